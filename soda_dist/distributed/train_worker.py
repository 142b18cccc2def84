"""One training process of Ray Train."""

import traceback
from contextlib import suppress
from functools import partial
from typing import Any

import ray
import torch
import torch.distributed as dist
from ray.exceptions import GetTimeoutError, RayActorError

from soda_dist.config.load import with_fields
from soda_dist.config.schema import RunConfig
from soda_dist.config.settle import PRECISION
from soda_dist.data.shards import read_manifest
from soda_dist.data.storage.folder import Folder, open_folder
from soda_dist.distributed.ingest import stream
from soda_dist.distributed.runtime.mailbox import Beat, Relay
from soda_dist.distributed.supervisor import Failed
from soda_dist.distributed.worker_control import Control
from soda_dist.runs.folder import read_config, write_config
from soda_dist.training.build import build_engine
from soda_dist.training.collectives import ProcessGroupContext
from soda_dist.training.context import Ask, WorkerContext
from soda_dist.training.failures import judged
from soda_dist.training.init_from import filling
from soda_dist.training.loop import fit
from soda_dist.training.precision import device_precision
from soda_dist.training.validation import Validation

ANSWER_S = 10.0
"""Longest wait until the driver's mailbox has an error."""
BEAT_ANSWER_S = 2.0
"""Longest wait for its answer to a sign of life; short, so that the next one soon reaches a mailbox that was lost."""


def train_worker(job: dict[str, Any]) -> None:
    """Train as one process. The driver hears of an error before Ray does, with whether another start may mend it."""
    here = Beat(dist.get_rank(), ray.get_runtime_context().get_node_id(), None)
    if _answered(job["mailbox"].beat, BEAT_ANSWER_S, here) is Ask.STOP:
        return  # Ray Train was restarting the processes when the run was ended
    control = _control(job)
    try:
        with control.beating():
            _train(job, control)
    except Exception as error:
        remedy, shown = judged(error)
        failed = Failed(dist.get_rank(), control.step, remedy, shown, traceback.format_exc())
        _answered(job["mailbox"].report, ANSWER_S, failed)
        raise


def _answered(method: Any, seconds: float, argument: Any) -> Any:
    """Call a method of the mailbox and return its answer; None if there is none in time."""
    with suppress(RayActorError, GetTimeoutError):
        return ray.get(method.remote(argument), timeout=seconds)
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


def _control(job: dict[str, Any]) -> Control:
    mailbox = job["mailbox"]
    return Control(
        ray.get_runtime_context().get_node_id(),
        partial(_answered, mailbox.beat, BEAT_ANSWER_S),
        mailbox.report.remote,
        rank=dist.get_rank(),
        world=dist.get_world_size(),
        hang_timeout_s=job["config"].scale.hang_timeout_s,
    )


def _train(job: dict[str, Any], control: Control) -> None:
    from ray.train.torch import get_device

    config, device = job["config"], get_device()
    context = ProcessGroupContext(device, job["mailbox"].put.remote, control.asked)
    if device.type == "cpu":
        torch.set_num_threads(max(1, int(config.scale.cpus_per_worker)))
    run = job["run"]
    config = _with_precision(config, run, context)
    context.say(f"building the model ({config.method}, {config.train.precision}, {device})")
    engine = build_engine(config, context.device, job["labels"], filling(run, job["initial"]))
    validation = None
    if config.train.holds_out:
        data = open_folder(job["data"])
        validation = Validation(config, data, read_manifest(data), job["labels"], context)
    fit(
        context,
        engine,
        config,
        lambda step: stream(job["data"], config, context.rank, step),
        run,
        job["rows"],
        job["until"],
        validation,
        Relay(job["mailbox"]) if config.train.trackers else None,
    )
