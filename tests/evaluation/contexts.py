"""Models and checkpoints under evaluation, made in this process."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from soda_dist.config.load import with_fields
from soda_dist.config.schema import RunConfig
from soda_dist.data.storage.folder import open_folder
from soda_dist.evaluation.context import Context
from soda_dist.evaluation.worker import Models, readers
from soda_dist.parallel.pool import Held, Pool
from soda_dist.training.build import build_model
from tests.evaluation.scattered_pool import ScatteredPool


def voiced(config: RunConfig, data: Path) -> Models:
    """A worker's models with random weights, moved off their start, where no layer hears z."""
    model = build_model(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return Models(model, config, readers(str(data), config), torch.device("cpu"))


def without_model(config: RunConfig, data: Path) -> Models:
    """A worker's models for what ends before any network is used."""
    return Models(nn.Module(), config, readers(str(data), config), torch.device("cpu"))  # type: ignore[arg-type]


def context_of(
    models: Models, run: Path, said: list[str] | None = None, pool: Pool | None = None, **fields: object
) -> Context:
    """Step 3 of a run whose workers hold `models`, with some fields of the configuration replaced.

    Args:
        said: collects the lines for the user.
        pool: None = a `ScatteredPool`.
    """
    config, pool, reader = with_fields(models.config, fields), pool or ScatteredPool(), models.reader["test"]
    return Context(
        run=open_folder(str(run)),
        data=reader.folder,
        manifest=reader.manifest,
        config=config,
        step=3,
        ema=True,
        weights="0",
        say=([] if said is None else said).append,
        pool=pool,
        workers=pool.with_state(Held(replace(models, config=config))),
    )
