"""Batches to parameters: losses, schedules, optimisers, the step, the loop, checkpoints, log writers."""
