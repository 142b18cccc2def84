"""Rendered solids as a data set made in this process, and the trivial predictors that a loss is held against."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from soda_dist.config.schema import RunConfig
from soda_dist.data.order import Order
from soda_dist.data.pairs import Pairs, local_pairs, read_pairs
from soda_dist.data.shards import (
    Manifest,
    ShardReader,
    Split,
    read_manifest,
    shard_schema,
    write_manifest,
)
from soda_dist.data.sources.synthetic import Options, Synthetic
from soda_dist.data.storage.folder import Folder, open_folder
from soda_dist.diffusion.schedules import alpha_bar
from soda_dist.models.condition import Sources
from soda_dist.models.method import Batch
from soda_dist.models.pixels import source_input, target_input
from soda_dist.runs.folder import complete_steps
from soda_dist.training.checkpoint import load_model
from soda_dist.training.context import LocalContext
from soda_dist.training.loop import fit
from soda_dist.training.randomness import draw
from soda_dist.training.to_device import to_device
from tests.evaluation.small_run import write_shard
from tests.training.test_engine import engine_of

HELD_OUT = 256
"""Pairs of the test split on which a loss is measured, always the same, with the same noise."""
FAR = 10**9
"""Positions of the held-out pairs: random numbers that training never meets."""


def write_scenes(path: Path, **options: Any) -> Folder:
    """A data set of solids, as prepare_data.py would make it with these options."""
    source = Synthetic(Options(**options))
    folder, splits, contents = open_folder(str(path)), {}, source.contents
    schema = shard_schema(contents.columns)
    for part in source.parts():
        rows = list(source.rows(source.index(part)))
        columns = {"key": range(len(rows)), "image": [row.image for row in rows], "name": [row.name for row in rows]}
        columns |= {column.name: [row.columns[column.name] for row in rows] for column in contents.columns}
        table = pa.table({name: pa.array(values, schema.field(name).type) for name, values in columns.items()})
        tables = [table.slice(start, 64) for start in range(0, len(table), 64)]
        shard = write_shard(folder, f"{part.split}/00000.parquet", tables, schema)
        splits[part.split] = Split(rows=len(table), shards=(shard,))
    manifest = Manifest(
        version=2,
        kind="synthetic",
        source="",
        fingerprint="0",
        splits=splits,
        labels=contents.labels,
        main_label=contents.main_label,
        rejected=0,
    )
    write_manifest(folder, manifest)
    return folder


@lru_cache(maxsize=4)
def reader_of(folder: Folder, split: str) -> ShardReader:
    return ShardReader(folder, read_manifest(folder), split)


def order_of(config: RunConfig, reader: ShardReader) -> Order:
    return Order(reader.groups, config.seed, config.train.global_batch, config.data.shuffle_groups)


def train(config: RunConfig, data: Folder, run: Folder) -> torch.nn.Module:
    """The EMA model after the run's last step, trained without Ray; a finished run is read, not repeated."""
    reader = reader_of(data, config.data.train_split)
    order = order_of(config, reader)

    def feed(step: int):
        start = step * config.train.global_batch
        return local_pairs(reader, order, start, config.micro_batch, seed=config.seed, data=config.data, threads=1)

    if config.train.steps not in complete_steps(run):
        fit(LocalContext(), engine_of(config), config, feed, run, rows=sum(reader.groups))
    return load_model(run)[0]


def held_out(config: RunConfig, data: Folder) -> Pairs:
    """The same pairs of the test split, for all configurations with the same views."""
    reader = reader_of(data, "test")
    return read_pairs(reader, order_of(config, reader), 0, HELD_OUT, seed=config.seed, data=config.data)


@torch.no_grad()
def loss_of(
    model,
    config: RunConfig,
    pairs: Pairs,
    *,
    latent: bool = True,
    pose: bool = True,
    elsewhere: bool = False,
    sources: int = 99,
) -> float:
    """Mean loss over held-out pairs with fixed noise; without z, or poses, or with fewer sources.

    `elsewhere`: each target is told the camera of another one.
    """
    batch, total = to_device(pairs, torch.device("cpu")), 0.0
    posed = batch.target_pose.shape[1] > 0
    for at in range(0, HELD_OUT, 64):
        source, target, _, _, present, source_pose, target_pose, _ = (part[at : at + 64] for part in batch)
        draws = draw(
            1,
            torch.arange(FAR + at, FAR + at + 64),
            timesteps=config.diffusion.steps,
            sources=0,
            source_size=8,
            target_size=config.data.target_size,
            sections=model.sections,
            rates=(0.0, 0.0, 0.0),
        )
        shown = present & (torch.arange(present.shape[1]) < sources)
        losses = model.loss(
            Batch(
                Sources(source_input(source), shown, source_pose if posed else None),
                target_input(target),
                (target_pose.roll(1, 0) if elsewhere else target_pose) if posed else None,
            ),
            t=draws.t,
            eps=draws.eps,
            keep=draws.keep if latent else ~draws.keep,
            pose_keep=torch.full((64,), pose) if posed else None,
        )
        total += float(losses.sum())
    return total / HELD_OUT


def trivial_loss(config: RunConfig, pairs: Pairs) -> float:
    """What the best predictor attains that knows each pixel's mean and variance alone.

    Of noise: E eps given x_t of Gaussian pixels, mean squared error abar s / (abar s + 1 - abar) at variance s. Of the
    image, without denoising: the mean image, s.
    """
    target = pairs.target.astype(np.float64) / 127.5 - 1
    variance = target.var(0)
    if config.method == "encdec":
        return float(variance.mean())
    abar = alpha_bar(config.diffusion.schedule, config.diffusion.steps).numpy()[:, None]
    s = variance.reshape(1, -1)
    return float((abar * s / (abar * s + 1 - abar)).mean())
