"""Search: a step function to hypotheses. Knows no model and no vocabulary."""
