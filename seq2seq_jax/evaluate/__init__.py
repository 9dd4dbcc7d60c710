"""Hypotheses to numbers and pictures."""
