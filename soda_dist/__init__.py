"""SODA (bottleneck diffusion models for representation learning, 2023), trained and evaluated on clusters."""

__version__ = "0.1.0"
