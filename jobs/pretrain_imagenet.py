"""Pretrain the paper's ImageNet model: `pretrain` with the preset `imagenet`."""

from soda_dist.cli import run
from soda_dist.commands.pretrain_imagenet import main

if __name__ == "__main__":
    run(main)
