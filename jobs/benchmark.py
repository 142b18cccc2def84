"""Benchmark this machine: ingest, import, training loop, feature extraction, DCI, sampler and training step."""

from soda_dist.cli import run
from soda_dist.commands.benchmark import main

if __name__ == "__main__":
    run(main)
