"""Engines: gradients, the update and sharded state."""
