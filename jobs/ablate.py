"""Train and evaluate the variants of an ablation over several seeds; write a table beside the paper's rows."""

from soda_dist.cli import run
from soda_dist.commands.ablate import main

if __name__ == "__main__":
    run(main)
