"""Who owns gradients, the update and the sharding of state."""
