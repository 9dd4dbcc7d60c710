"""The two loops of the plain LSTM as one kernel launch each: twins of the scans, for accelerators."""
