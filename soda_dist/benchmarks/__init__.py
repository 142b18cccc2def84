"""Ratios measured on this machine; only jobs/benchmark.py imports them."""
