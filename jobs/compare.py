"""Print or write a table of the paper with rows for our runs and notes on their differences."""

from soda_dist.cli import run
from soda_dist.commands.compare import main

if __name__ == "__main__":
    run(main)
