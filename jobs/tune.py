"""Search the encoder's learning-rate ratio, masking rates and guidance; write trials.json, best.yaml and a plot."""

from soda_dist.cli import run
from soda_dist.commands.tune import main

if __name__ == "__main__":
    run(main)
