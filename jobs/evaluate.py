"""Evaluate checkpoints of a run, or any encoder; write eval/STEP/TASK.json, pictures and the report."""

from soda_dist.cli import run
from soda_dist.commands.evaluate import main

if __name__ == "__main__":
    run(main)
