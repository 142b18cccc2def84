"""Pools: the same job over many pieces, in this process, in a few processes, or (`distributed`) on a cluster."""
