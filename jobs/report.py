"""Write a run's report.html anew from its folder."""

from soda_dist.cli import run
from soda_dist.commands.report import main

if __name__ == "__main__":
    run(main)
