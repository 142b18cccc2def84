"""Encoder, denoiser, SODA and its baselines: torch and timm only, plain arguments, no configuration objects.

Wrong arguments raise ValueError where they are checked.
"""
