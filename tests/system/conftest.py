"""The shared Ray cluster."""

from tests.ray_cluster import cluster, until_the_end

__all__ = ["cluster", "until_the_end"]
