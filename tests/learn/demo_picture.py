"""The README's picture of a run on rendered solids.

After `make demo`:
  python -m tests.learn.demo_picture --run RUN --data DATA --out docs/demo.png
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from soda_dist.data.storage.folder import open_folder
from soda_dist.evaluation.images.decode_latents import LatentJob, decode_job, encode_inputs
from soda_dist.evaluation.images.sampling import pick_inputs
from soda_dist.evaluation.model_sources import Checkpoint
from soda_dist.evaluation.task_runner import evaluation_config
from soda_dist.evaluation.worker import Models, load_models
from soda_dist.models.latents import interpolate
from soda_dist.plots.image_grid import image_grid
from soda_dist.runs.folder import chosen_steps, open_run

COLUMNS = 8
ROWS = ("source", "drawn from z", "other noise", "between the first two", "between the last two")


def picture(models: Models) -> bytes:
    """Sources, images drawn from their latents with two sets of noise, and from latents between pairs, as PNG."""
    inputs = pick_inputs(models, COLUMNS)
    z = encode_inputs(models, inputs)
    rows = [inputs.source[:, 0], *(_drawn(models, inputs.keys, z, noise) for noise in (0, 1))]
    for pair in (z[[0, 1]], z[[-2, -1]]):
        weights = torch.linspace(0, 1, COLUMNS)
        between = interpolate(*torch.from_numpy(pair), weights, method="linear").numpy()
        rows.append(_drawn(models, np.repeat(inputs.keys[:1], COLUMNS), between, 0))
    side = max(row.shape[1] for row in rows)
    grid = [list(np.repeat(np.repeat(row, side // row.shape[1], 1), side // row.shape[1], 2)) for row in rows]
    return image_grid(grid, [""] * COLUMNS, ROWS)


def _drawn(models: Models, keys: NDArray[np.int64], z: NDArray[np.float32], noise: int) -> NDArray[np.uint8]:
    return decode_job(models, LatentJob(keys, z, None, noise=noise)).images


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--run", "--data", "--out"):
        arguments.add_argument(name, required=True)
    arguments.add_argument("overrides", nargs="*", metavar="a.b=value", help="of sampling")
    args = arguments.parse_intermixed_args()
    run = open_run(args.run)
    config, (step,) = evaluation_config(run, args.overrides), chosen_steps(run, "latest")
    models = load_models(Checkpoint(run, step, True), open_folder(args.data).uri, config, "cpu")
    Path(args.out).write_bytes(picture(models))


if __name__ == "__main__":
    main()
