"""Ray Train under a supervisor: started, watched, started again, stopped."""

import os
import threading
import time
import uuid
from contextlib import suppress
from functools import partial
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, WorkerCrashedError

from soda_dist.config.schema import RunConfig
from soda_dist.data.storage.folder import Folder
from soda_dist.distributed.runtime.mailbox import Mailbox
from soda_dist.distributed.runtime.ray_internals import (
    draining_nodes,
    holds_machines,
    release_placement_group,
    run_callback,
)
from soda_dist.distributed.runtime.resources import capacity, training_resources, worker_resources
from soda_dist.distributed.supervisor import Controller, Placed, Restarting, Supervisor
from soda_dist.distributed.worker_control import leave_on_sigterm
from soda_dist.errors import UserError
from soda_dist.interrupts import Interrupts
from soda_dist.parallel.progress import Say
from soda_dist.runs.folder import scratch_folder
from soda_dist.training.context import Ask

LOST = (RayActorError, WorkerCrashedError, OutOfMemoryError)
"""Ray's errors for processes that were killed, as opposed to errors that a process raised."""
LOOK_S = 0.25
START_FAILURES = 3
"""Groups of workers that may end while they start before Ray Train gives up, which counts as one failure."""
HEAR_S = 6.0
"""After a wish to stop, the wait for a first sign of a step; without one there is nothing to save."""
ABORT_S = 20.0
"""Longest wait for workers to end that are told to."""
FOREVER_S = 10.0**8
"""For Ray Train's own limit of waiting: the supervisor has one that says what is missing."""


def train(job: dict[str, Any], config: RunConfig, run: Folder, box: Mailbox, interrupts: Interrupts, say: Say) -> bool:
    """Train to the end, starting again after lost processes; return False if the user stopped it before.

    Ray Train restarts a lost worker group. It gives up when it loses its controller, or a worker while a group starts
    (an out-of-memory kill did both), so it is started again then.

    Raises:
        Exception: what another start cannot mend, or one failure more than `scale.max_failures`.
    """
    supervisor = Supervisor(config.scale, say, partial(_missing, config), time.monotonic())
    while True:
        fit = _Fit(_trainer(job, config, run, box.actor))
        try:
            watched(fit, supervisor, box, interrupts, say)
        finally:
            scratch_folder(run).remove_tree("")
        if supervisor.end is not None:
            raise _explained(supervisor.end)
        if fit.error is None:
            return supervisor.ask is not Ask.STOP
        if supervisor.ask is Ask.STOP:
            return False
        lost = getattr(fit.error, "controller_failure", fit.error)
        if not isinstance(lost, LOST):
            raise _explained(fit.error)
        supervisor.lost(type(lost).__name__)
        if supervisor.end is not None:
            raise _explained(supervisor.end)
        release_placement_group(supervisor.controller)
        supervisor.begins_again()
        say(f"a process died ({type(lost).__name__}); starting again from the last checkpoint")


def _missing(config: RunConfig, controller: Any) -> str | None:
    """Return what a run asks for and what the cluster has; empty = there is room; None = it has its machines."""
    if controller is None:  # it has not asked for them yet
        return ""
    if holds_machines(controller):
        return None
    return capacity(training_resources(config))


class _Fit(threading.Thread):
    """`Trainer.fit` in a thread, since Ray Train replaces the handler of SIGINT in the main one."""

    def __init__(self, trainer: Any) -> None:
        super().__init__(daemon=True)
        self._trainer = trainer
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            self._trainer.fit()
        except Exception as error:
            self.error = error


def watched(fit: "_Fit", supervisor: Supervisor, box: Mailbox, interrupts: Interrupts, say: Say) -> None:
    """Supervise an attempt to its end, or end it."""
    heard_by = float("inf")
    while fit.is_alive():
        fit.join(LOOK_S)
        _take_facts(box, supervisor)
        supervisor.tick(time.monotonic(), box.heard, draining_nodes())
        if interrupts.signal is not None and supervisor.ask is not Ask.STOP:
            supervisor.ask, heard_by = Ask.STOP, time.monotonic() + HEAR_S
            say(f"{interrupts.signal.name}: saving a checkpoint after this step; once more to end at once")
        box.ask = supervisor.ask if supervisor.end is None else Ask.STOP
        nothing_to_save = supervisor.idle and (supervisor.waiting or time.monotonic() > heard_by)
        if supervisor.end is not None or (supervisor.ask is Ask.STOP and nothing_to_save):
            box.flush()  # processes that are starting meanwhile end at once
            _abort(supervisor.controller)
            fit.join(ABORT_S)
            return
    box.flush()
    _take_facts(box, supervisor)


def _take_facts(box: Mailbox, supervisor: Supervisor) -> None:
    while not box.facts.empty():
        supervisor.took(box.facts.get())


def _abort(controller: Any) -> None:
    """End Ray Train's controller and its workers, and free their machines."""
    if controller is not None:
        with suppress(Exception):  # it ends itself meanwhile
            ray.get(controller.abort.remote(), timeout=ABORT_S)
        with suppress(Exception):
            ray.kill(controller)
        release_placement_group(controller)


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


def _report(mailbox: Any, kind: str, value: Any) -> None:
    """Send a fact from the controller's process."""
    match kind:
        case "controller":
            fact: Any = Controller(value)
        case "placed":
            fact = Placed()
        case _:
            preempted = type(value).__name__ == "PreemptionError"
            failures = getattr(value, "worker_failures", {}) or {None: value}
            reason = str(next(iter(failures.values()))).strip().splitlines()
            fact = Restarting(reason[-1][:300] if reason else type(value).__name__, preempted)
    mailbox.report.remote(fact)


def _trainer(job: dict[str, Any], config: RunConfig, run: Folder, mailbox: Any) -> Any:
    from ray.train import FailureConfig, ScalingConfig
    from ray.train import RunConfig as TrainRunConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from soda_dist.distributed.train_worker import train_worker

    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(FOREVER_S)
    on_gpu = config.scale.gpus_per_worker > 0
    filesystem, path = scratch_folder(run).arrow()
    return TorchTrainer(
        train_worker,
        train_loop_config=job | {"mailbox": mailbox},
        torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=config.scale.workers, use_gpu=on_gpu, resources_per_worker=worker_resources(config)
        ),
        run_config=TrainRunConfig(
            name=f"attempt-{uuid.uuid4().hex[:12]}",
            storage_path=path,
            storage_filesystem=filesystem,
            # The supervisor counts failures: it knows which follow from the loss of a machine.
            failure_config=FailureConfig(max_failures=-1, controller_failure_limit=START_FAILURES),  # type: ignore[call-arg]
            callbacks=[run_callback(partial(_report, mailbox), leave_on_sigterm)],
        ),
    )
