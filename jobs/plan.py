"""Print length in epochs, parameter counts, GFLOPs per forward pass and modulated layers of a configuration."""

from soda_dist.cli import run
from soda_dist.commands.plan import main

if __name__ == "__main__":
    run(main)
