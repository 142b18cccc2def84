"""Latents of a split, and metrics on them."""
