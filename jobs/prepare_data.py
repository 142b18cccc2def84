"""Convert a published data set, or rendered solids, to shards for training; check, extend or reduce existing shards."""

from soda_dist.cli import run
from soda_dist.commands.prepare_data import main

if __name__ == "__main__":
    run(main)
