"""Pretrain a SODA encoder and denoiser on prepared shards."""

from soda_dist.cli import run
from soda_dist.commands.pretrain import main

if __name__ == "__main__":
    run(main)
