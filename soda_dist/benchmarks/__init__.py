"""Benchmarks of this machine, used by jobs/benchmark.py only."""
