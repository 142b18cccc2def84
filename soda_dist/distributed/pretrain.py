"""Pretraining on Ray Train: workers, engine and ingest, from a configuration and two URIs."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, WorkerCrashedError

from soda_dist.config.schema import RunConfig
from soda_dist.data.storage.folder import Folder
from soda_dist.distributed.ingest_plan import least_memory_mb
from soda_dist.distributed.runtime.driver_lines import board
from soda_dist.distributed.runtime.ray_internals import autoscaler_active, hold_statistics_here, release_placement_group
from soda_dist.distributed.runtime.resources import check_resources, training_resources
from soda_dist.errors import UserError
from soda_dist.parallel.progress import Say
from soda_dist.report.renewal import ReportWriter
from soda_dist.runs.folder import claim, open_run, record_end, scratch_folder
from soda_dist.runs.lease import HeldFolder, held
from soda_dist.training.observers.trackers import check_trackers, open_observers
from soda_dist.training.start import TrainingData, finished, open_training_data, shortened

LOST = (RayActorError, WorkerCrashedError, OutOfMemoryError)
"""Ray's errors for processes that were killed, as opposed to errors that a process raised."""
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
) -> str:
    """Train `config` on the shards at `data_uri` into the folder `run_uri`, resuming from its last checkpoint.

    Ray must be connected. `until`: stop at that step of the run; None = at its end. `accept_data`: resume although the
    data has changed since the run's last start. Returns the run's URI.

    Raises:
        UserError: the data or the run's folder does not fit, the cluster cannot give what the run needs, or another
            trainer holds the run.
    """
    check_trackers(config.train.trackers)
    source, run = open_training_data(config, data_uri), open_run(run_uri)
    end = min(until or config.train.steps, config.train.steps)
    if not finished(run, end):  # before anything is written into the run's folder
        check_resources(training_resources(config), say)
        check_memory(config)
    with held(run, say, f"Ray job {ray.get_runtime_context().get_job_id()}") as mine:
        done = finished(mine, end)
        whole = claim(mine, config, source.facts(), accept_data=accept_data)
        for line in (shortened(config, whole), done or source.describe(whole)):
            if line:
                say(line)
        if not done:
            _train(whole, source, mine, end, say)
    return run.uri


def _train(config: RunConfig, source: TrainingData, run: HeldFolder, end: int, say: Say) -> None:
    """Train a claimed run to step `end`, with its report and trackers."""
    hold_statistics_here()
    observers = open_observers(config.train.trackers, run, say) if config.train.trackers else None
    with ReportWriter(run.uri, say).renewing(), _recorded(run), board(say, observers) as lines:
        job = {
            "config": config, "data": source.folder.uri, "run": run, "rows": source.rows, "until": end,
            "labels": source.labels, "board": lines,
        }  # fmt: skip
        say(f"starting {config.scale.workers} worker{'s' if config.scale.workers > 1 else ''}")
        _run_trainer(job, config, run, say)


@contextmanager
def _recorded(run: Folder) -> Iterator[None]:
    """Note in the run's provenance how this attempt ends; without a note it is training still, or was killed."""
    reason = "interrupted"
    try:
        yield
        reason = "reached the last step that was asked for"
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


def _run_trainer(job: dict[str, Any], config: RunConfig, run: Folder, say: Say) -> None:
    """Train to the end, restarting after killed processes.

    Ray Train restarts a lost worker group. It gives up when it loses its controller, or a worker while a group starts
    (an out-of-memory kill did both), so those are counted here.
    """
    from ray.train import ControllerError, TrainingFailedError

    for failures in count(1):
        try:
            _trainer(job, config, run).fit()
            break
        except (ControllerError, *LOST) as error:
            lost = getattr(error, "controller_failure", error)
            if not isinstance(lost, LOST) or 0 <= config.scale.max_failures < failures:
                raise _explained(error) from None
            release_placement_group(getattr(lost, "actor_id", None))
            say(f"a process died ({type(lost).__name__}); restarting from the last checkpoint")
        except TrainingFailedError as error:
            raise _explained(error) from None
        finally:
            scratch_folder(run).remove_tree("")
    fatal = ray.get(job["board"].fatal.remote())
    if fatal is not None:
        raise fatal


def _explained(error: Exception) -> Exception:
    """Turn an out-of-memory kill into a `UserError`; return every other error as it is."""
    if "running low on memory" not in str(error):
        return error
    return UserError(
        "memory",
        "a process killed because its machine ran out of memory",
        "the machine's memory",
        "lower train.micro_batch or scale.data_memory_mb, raise scale.workers, or use larger machines",
    )


def _trainer(job: dict[str, Any], config: RunConfig, run: Folder) -> Any:
    from ray.train import FailureConfig, ScalingConfig
    from ray.train import RunConfig as TrainRunConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from soda_dist.distributed.train_worker import train_worker

    scale = config.scale
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(scale.start_timeout_s)
    on_gpu = scale.gpus_per_worker > 0
    resources = {"CPU": scale.cpus_per_worker} | ({"GPU": scale.gpus_per_worker} if on_gpu else {})
    filesystem, path = scratch_folder(run).arrow()
    return TorchTrainer(
        train_worker,
        train_loop_config=job,
        torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo"),
        scaling_config=ScalingConfig(num_workers=scale.workers, use_gpu=on_gpu, resources_per_worker=resources),
        run_config=TrainRunConfig(
            name=f"attempt-{uuid.uuid4().hex[:12]}",
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=scale.max_failures, controller_failure_limit=3),  # type: ignore[call-arg]
        ),
    )
