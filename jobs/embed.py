"""Encode a folder of images, or a split of prepared data, and write their embeddings to one file."""

from soda_dist.cli import run
from soda_dist.commands.embed import main

if __name__ == "__main__":
    run(main)
