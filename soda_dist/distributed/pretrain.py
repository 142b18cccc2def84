"""Pretraining on Ray Train: workers, engine and ingest, from a configuration and two URIs."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray

from soda_dist.config.schema import RunConfig
from soda_dist.data.storage.folder import Folder
from soda_dist.distributed.ingest_plan import least_memory_mb
from soda_dist.distributed.runtime.mailbox import mailbox
from soda_dist.distributed.runtime.ray_internals import autoscaler_active, hold_statistics_here
from soda_dist.distributed.runtime.resources import check_resources, training_resources
from soda_dist.distributed.trainer import train
from soda_dist.errors import UserError
from soda_dist.interrupts import RESUME, Interrupted, Interrupts, wished
from soda_dist.parallel.progress import Say
from soda_dist.report.renewal import ReportWriter
from soda_dist.runs.folder import changed_rate, claim, complete_steps, open_run, record_end
from soda_dist.runs.lease import HeldFolder, held
from soda_dist.training.init_from import initial_weights
from soda_dist.training.observers.trackers import check_trackers, open_observers
from soda_dist.training.start import TrainingData, finished, open_training_data, shortened

MOST_REASON = 500
"""Characters of the reason of an attempt's end that provenance keeps."""


def pretrain(
    config: RunConfig,
    data_uri: str,
    run_uri: str,
    say: Say,
    until: int | None = None,
    *,
    accept_data: bool = False,
    init_from: str | None = None,
) -> str:
    """Train `config` on the shards at `data_uri` into the folder `run_uri`, resuming from its last checkpoint.

    Ray must be connected. `until`: stop at that step of the run; None = at its end. `accept_data`: resume although the
    data has changed since the run's last start. `init_from`: begin with the weights of URI@STEP, a run's checkpoint, or
    of an exported folder. Returns the run's URI.

    Raises:
        UserError: the data or the run's folder does not fit, the cluster cannot give what the run needs, or another
            trainer holds the run.
        MachineError: a failure that another start would not mend, or one more than `scale.max_failures`.
        Interrupted: SIGINT or SIGTERM; the step of that time is saved.
    """
    check_trackers(config.train.trackers)
    source, run = open_training_data(config, data_uri), open_run(run_uri)
    end = min(until or config.train.steps, config.train.steps)
    if not finished(run, end):  # before anything is written into the run's folder
        check_resources(training_resources(config), say)
        check_memory(config)
    initial = initial_weights(run, init_from)
    with held(run, say, f"Ray job {ray.get_runtime_context().get_job_id()}") as mine:
        done = finished(mine, end)
        whole = claim(mine, config, source.facts(), accept_data=accept_data, initial=initial)
        for line in (shortened(config, whole), changed_rate(mine), done or source.describe(whole)):
            if line:
                say(line)
        if not done:
            _train(whole, source, mine, end, initial, say)
    return run.uri


def _train(config: RunConfig, source: TrainingData, run: HeldFolder, end: int, initial: Any, say: Say) -> None:
    """Train a claimed run to step `end`, with its report and trackers."""
    hold_statistics_here()
    observers = open_observers(config.train.trackers, run, say) if config.train.trackers else None
    job = {
        "config": config, "data": source.folder.uri, "run": run, "rows": source.rows, "until": end,
        "labels": source.labels, "initial": initial,
    }  # fmt: skip
    with (
        ReportWriter(run.uri, say).renewing(),
        _recorded(run),
        wished() as interrupts,
        mailbox(say, observers) as box,
    ):
        say(f"starting {config.scale.workers} worker{'s' if config.scale.workers > 1 else ''}")
        if not train(job, config, run, box, interrupts, say) and not finished(run, end):
            raise _stopped(run, interrupts)


def _stopped(run: Folder, interrupts: Interrupts) -> Interrupted:
    found, steps = interrupts.signal or signal.SIGTERM, complete_steps(run)
    where = f"at step {steps[-1]}, which is saved" if steps else "before its first checkpoint"
    return Interrupted(found, f"stopped by {found.name} {where}; {RESUME}")


@contextmanager
def _recorded(run: Folder) -> Iterator[None]:
    """Note in the run's provenance how this attempt ends; without a note it is training still, or was killed."""
    reason = "interrupted"
    try:
        yield
        reason = "reached the last step that was asked for"
    except Interrupted as error:
        reason = str(error).partition(";")[0]
        raise
    except Exception as error:
        reason = f"failed: {error}"
        raise
    finally:
        with suppress(Exception):  # a note that cannot be written must not hide why the attempt ended
            record_end(run, reason[:MOST_REASON])


def check_memory(config: RunConfig) -> None:
    """Raise a `UserError` if `scale.data_memory_mb` is too little for the pipelines, or more than the cluster has.

    With an autoscaler the second is not checked: the memory of future nodes is unknown.
    """
    import ray

    field, each, workers = "scale.data_memory_mb", config.scale.data_memory_mb, config.scale.workers
    least = least_memory_mb(config.data)
    if each < least:
        got = f"{each}, too little for blocks of view pairs of these sizes"
        raise UserError(field, got, f">= {least}", "raise it, or lower data.source_size or data.sources")
    have = int(ray.cluster_resources().get("object_store_memory", 0)) >> 20
    if each * workers > have and not autoscaler_active():
        got = f"{each} for each of {workers} workers, {each * workers} in all"
        remedy = "lower it, add nodes, or start Ray with a larger --object-store-memory"
        raise UserError(field, got, f"at most {have} MB in all, Ray's object stores", remedy)
