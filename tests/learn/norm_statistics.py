"""EMA weights with the live network's batch-norm statistics against statistics estimated for them.

Each checkpoint's `model.safetensors` is copied with means and variances over 200 batches of training views, those that
the run would see next, through the EMA encoder. Probe and nearest neighbours of both:
  python -m tests.learn.norm_statistics RUN --data URI --out DIR
"""

import argparse
import hashlib
import json
import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from soda_dist.data.order import Order
from soda_dist.data.pairs import local_pairs
from soda_dist.data.shards import ShardReader, read_manifest
from soda_dist.data.storage.folder import open_folder
from soda_dist.evaluation import LocalPool, evaluate
from soda_dist.models.batch_norm import settle_norms
from soda_dist.models.lr_equalization import plain_state_dict
from soda_dist.models.pixels import source_input
from soda_dist.runs.folder import MANIFEST, complete_steps, open_run
from soda_dist.training.checkpoint import load_model

BATCHES = 200


def training_views(run: Path, data: str, step: int) -> Iterator[tuple[Tensor, None, None]]:
    """First source views of the batches after `step`, as the encoder takes them: without poses and source noise."""
    _, config, _ = load_model(open_run(str(run)), step)
    reader = ShardReader(open_folder(data), read_manifest(open_folder(data)), "train")
    batch = config.train.global_batch
    order = Order(reader.groups, config.seed, batch, config.data.shuffle_groups)
    pairs = local_pairs(reader, order, step * batch, batch, seed=config.seed, data=config.data, threads=1)
    for found in islice(pairs, BATCHES):
        yield source_input(torch.from_numpy(found.source[found.ok, :1])).flatten(0, 1), None, None


def with_estimates(run: Path, data: str, out: Path) -> None:
    """Copy `run` to `out`, its models with estimated statistics."""
    shutil.copytree(run, out, ignore=shutil.ignore_patterns("eval", "latents", "samples"))
    for step in complete_steps(open_run(str(out))):
        model, _, _ = load_model(open_run(str(out)), step)
        settle_norms(model.get_submodule("encoder"), list(training_views(run, data, step)))
        folder = next(path for path in (out / "checkpoints").iterdir() if int(path.name) == step)
        file, manifest = folder / "model.safetensors", json.loads((folder / MANIFEST).read_text())
        save_file({name: value.contiguous() for name, value in plain_state_dict(model).items()}, file)
        for entry in manifest["files"]:
            if entry["name"] == file.name:
                entry |= {"bytes": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
        (folder / MANIFEST).write_text(json.dumps(manifest))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("run", type=Path)
    arguments.add_argument("--data", required=True)
    arguments.add_argument("--out", type=Path, required=True)
    args = arguments.parse_args()
    torch.set_num_threads(1)
    with_estimates(args.run, args.data, args.out)
    for step in complete_steps(open_run(str(args.run))):
        values: dict[str, dict[str, Any]] = {}
        for name, place in (("live", args.run), ("estimated", args.out)):
            overrides = ["evaluation.baselines=false"]
            found = evaluate(str(place), args.data, "probe,knn", LocalPool(), step=str(step), overrides=overrides)
            values[name] = {task: round(100 * result["value"], 2) for task, result in found.items()}
        print(f"step {step}: {values}", flush=True)


if __name__ == "__main__":
    main()
