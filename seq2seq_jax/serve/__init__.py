"""Trained model to people: text in, text out."""
