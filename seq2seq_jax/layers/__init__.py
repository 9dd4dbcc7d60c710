"""Linen building blocks and the pure functions behind them. Plain arguments, never the run's config."""
