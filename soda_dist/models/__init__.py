"""The encoder, the denoiser and SODA over both: torch and timm alone, plain arguments, no configuration objects."""
