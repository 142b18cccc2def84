"""One training process of Ray Train."""

from typing import Any

import ray
import torch

from soda_dist.config.load import with_fields
from soda_dist.config.schema import RunConfig
from soda_dist.config.settle import PRECISION
from soda_dist.data.shards import read_manifest
from soda_dist.data.storage.folder import Folder, open_folder
from soda_dist.distributed.ingest import stream
from soda_dist.distributed.runtime.driver_lines import Relay
from soda_dist.errors import UserError
from soda_dist.runs.folder import read_config, write_config
from soda_dist.training.build import build_engine
from soda_dist.training.collectives import ProcessGroupContext
from soda_dist.training.context import WorkerContext
from soda_dist.training.loop import fit
from soda_dist.training.precision import device_precision
from soda_dist.training.validation import Validation


def train_worker(job: dict[str, Any]) -> None:
    """Train as one process. An error that a retry cannot mend goes to the board, so the next attempt ends at once."""
    lines = job["board"]
    if ray.get(lines.fatal.remote()) is not None:
        return
    try:
        _train(job)
    except Exception as error:
        fatal = _cause(error)
        if fatal is not None:
            ray.get(lines.fail.remote(fatal))
        raise


def _cause(error: BaseException | None) -> Exception | None:
    """Find a user's mistake or a diverged loss in a chain of wrapped errors."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, UserError):
            return UserError(error.field, error.got, error.allowed, error.remedy)
        if isinstance(error, FloatingPointError):
            return FloatingPointError(str(error))
        error = getattr(error, "cause", None) or error.__cause__ or error.__context__
    return None


def _with_precision(config: RunConfig, run: Folder, context: WorkerContext) -> RunConfig:
    """Resolve `train.precision: auto` once for the run: bf16 if it suits the devices of all workers."""
    if config.train.precision != "auto":
        return config
    stored = read_config(run) if context.rank == 0 else config
    found = context.gather((stored.train.precision, device_precision(context.device)))
    kept, precision = found[0][0], "bf16" if all(own == "bf16" for _, own in found) else "fp32"
    config = with_fields(config, {PRECISION: precision if kept == "auto" else kept})
    if context.rank == 0 and kept == "auto":
        write_config(run, config)
    return config


def _train(job: dict[str, Any]) -> None:
    from ray.train.torch import get_device

    config, device = job["config"], get_device()
    context = ProcessGroupContext(device, job["board"].put.remote)
    if device.type == "cpu":
        torch.set_num_threads(max(1, int(config.scale.cpus_per_worker)))
    config = _with_precision(config, job["run"], context)
    context.say(f"building the model ({config.method}, {config.train.precision}, {device})")
    engine = build_engine(config, context.device, job["labels"])
    validation = None
    if config.train.holds_out:
        data = open_folder(job["data"])
        validation = Validation(config, data, read_manifest(data), job["labels"], context)
    fit(
        context,
        engine,
        config,
        lambda step: stream(job["data"], config, context.rank, step),
        job["run"],
        job["rows"],
        job["until"],
        validation,
        Relay(job["board"]) if config.train.trackers else None,
    )
