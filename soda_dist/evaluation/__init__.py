"""Evaluation of checkpoints and encoders, over any pool. No Ray."""
