"""Batch norms of a network that was never trained."""
