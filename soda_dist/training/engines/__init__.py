"""Engines: owners of gradients, the update and the sharding of state."""
