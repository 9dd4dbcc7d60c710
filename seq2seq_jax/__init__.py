"""Sequence-to-sequence learning in JAX: train, study and serve."""

__version__ = "0.1.0"
