"""Pretraining on Ray Train: workers, engine and ingest, from a configuration and two URIs."""

import os
import uuid
from itertools import count
from typing import Any

import ray
import torch
import torch.distributed as dist
from ray.exceptions import OutOfMemoryError, RayActorError, WorkerCrashedError

from soda_dist.config.load import dump_config, parse_config
from soda_dist.config.provenance import provenance
from soda_dist.config.schema import RunConfig
from soda_dist.data.labels import ProbeLabels, probe_labels
from soda_dist.data.pairs import check_data
from soda_dist.data.shards import ShardReader, check_shards, read_manifest
from soda_dist.data.storage.folder import Folder, open_folder
from soda_dist.distributed.ingest import hold_statistics_here, least_memory_mb, stream
from soda_dist.distributed.runtime.cluster import Say, autoscaler_active, check_resources, training_resources
from soda_dist.distributed.runtime.driver_lines import board
from soda_dist.errors import UserError
from soda_dist.models.layers import synchronize_norms
from soda_dist.training.build import build_objective, build_optimizer, plain_engine
from soda_dist.training.checkpoint import complete_steps
from soda_dist.training.collectives import ProcessGroupContext, set_collective_timeout, sum_over_workers
from soda_dist.training.engines.engine import Engine
from soda_dist.training.loop import fit

COLLECTIVE_TIMEOUT_S = 600.0
LOST = (RayActorError, WorkerCrashedError, OutOfMemoryError)
"""What Ray says of processes that were killed, as opposed to what a process raised."""
FREE_TO_CHANGE = ("scale", "evaluation", "sampling")
FREE_TRAIN_FIELDS = (
    "steps",
    "log_every_steps",
    "checkpoint_every_steps",
    "keep_checkpoints",
    "micro_batch",
    "max_unreadable",
)


def pretrain(config: RunConfig, data_uri: str, run_uri: str, say: Say, until: int | None = None) -> str:
    """Train `config` on the shards at `data_uri` into the folder `run_uri`; go on where an earlier attempt stopped.

    Ray must be connected. `until` stops at that step of the run (none: at its end). Returns the run's URI.

    Raises:
        UserError: the data or the run's folder does not fit, or the cluster cannot give what the run needs.
    """
    data, run = open_folder(data_uri), open_folder(run_uri)
    manifest = read_manifest(data)
    split = config.data.train_split
    if split not in manifest.splits:
        raise UserError("data.train_split", split, ", ".join(manifest.splits), "choose one of them")
    check_shards(data, manifest, split)
    check_data(ShardReader(data, manifest, split), config.data)
    labels = probe_labels(manifest, config.train)
    steps, end = complete_steps(run), min(until or config.train.steps, config.train.steps)
    finished = bool(steps) and steps[-1] >= end
    if not finished:  # what is refused leaves nothing in the run's folder
        check_resources(training_resources(config), say)
        check_memory(config)
    claim(run, config)
    if finished:
        say(f"nothing left to do: step {steps[-1]} of {end} is there")
        return run.uri
    rows = manifest.splits[split].rows
    what = manifest.kind + (f" ({manifest.reencoded})" if manifest.reencoded else "")
    say(f"{rows} rows of {what}; {config.train.steps} steps of {config.train.global_batch} pairs")
    hold_statistics_here()
    with board(say) as lines:
        job = {
            "config": config, "data": data.uri, "run": run.uri, "rows": rows, "until": end, "labels": labels,
            "board": lines,
        }  # fmt: skip
        _run_trainer(job, config, run, say)
    return run.uri


def check_memory(config: RunConfig) -> None:
    """A `UserError` if the workers' pipelines cannot keep to `scale.data_memory_mb`, or the cluster lacks so much.

    With an autoscaler the cluster is not asked: what its nodes will have is not known.
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


def claim(run: Folder, config: RunConfig) -> None:
    """Write the run's configuration and provenance, or check that an earlier attempt's is the same.

    Machines, length, cadence, evaluation and sampling may change between attempts; what the weights depend on may not.
    """
    if run.exists("config.yaml"):
        before = load_run_config(run)
        if (difference := _difference(before, config)) is not None:
            field, old, new = difference
            raise UserError(
                field, f"{new}, but the run at {run.uri} has {old}", "the run's own value", "use another --run"
            )
    run.write("config.yaml", dump_config(config).encode())
    history = run.read_json("provenance.json") if run.exists("provenance.json") else []
    run.write_json("provenance.json", [*history, provenance()])


def load_run_config(run: Folder) -> RunConfig:
    """The configuration that a run was last started with."""
    return parse_config(run.read("config.yaml").decode(), f"{run.uri}/config.yaml")


def _difference(before: RunConfig, now: RunConfig) -> tuple[str, Any, Any] | None:
    old, new = _leaves(before.model_dump()), _leaves(now.model_dump())
    for field, value in new.items():
        section, _, name = field.partition(".")
        free = section in FREE_TO_CHANGE or (section == "train" and name in FREE_TRAIN_FIELDS)
        if not free and old.get(field) != value:
            return field, old.get(field), value
    return None


def _leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return leaves


def _run_trainer(job: dict[str, Any], config: RunConfig, run: Folder, say: Say) -> None:
    """Train to the end, over losses of processes.

    Ray Train starts a lost worker group again. It gives up where its own processes are lost (its controller, or a
    worker while a group is being started: measured, an out-of-memory kill did both), so those are counted here.
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
            _release(getattr(lost, "actor_id", None))
            say(f"starting again from the last checkpoint: a process of the run was lost ({type(lost).__name__})")
        except TrainingFailedError as error:
            raise _explained(error) from None
        finally:
            run.child("ray").remove_tree("")
    fatal = ray.get(job["board"].fatal.remote())
    if fatal is not None:
        raise fatal


def _release(controller: str | None) -> None:
    """Free the machines that a killed controller had reserved.

    Its placement group is detached, and the actor that Ray Train leaves to remove it did not (measured for minutes):
    the next attempt's data tasks would wait for its CPUs for ever.
    """
    from ray._private.state import state
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData  # type: ignore[attr-defined]
    from ray.util.placement_group import PlacementGroup, PlacementGroupID, remove_placement_group

    for record in state._connect_and_get_accessor().get_placement_group_table():
        group = PlacementGroupTableData.FromString(record)
        if group.creator_actor_id.hex() == controller:
            remove_placement_group(PlacementGroup(PlacementGroupID(group.placement_group_id)))


def _explained(error: Exception) -> Exception:
    """Memory is the user's to give; everything else keeps its own report."""
    if "running low on memory" not in str(error):
        return error
    return UserError(
        "memory",
        "a process of the run killed because its machine ran out of it",
        "what the machine has",
        "lower train.micro_batch or scale.data_memory_mb, raise scale.workers, or use larger machines",
    )


def _trainer(job: dict[str, Any], config: RunConfig, run: Folder) -> Any:
    from ray.train import FailureConfig, ScalingConfig
    from ray.train import RunConfig as TrainRunConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    scale = config.scale
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(scale.start_timeout_s)
    on_gpu = scale.gpus_per_worker > 0
    resources = {"CPU": scale.cpus_per_worker} | ({"GPU": scale.gpus_per_worker} if on_gpu else {})
    filesystem, path = run.child("ray").arrow()
    return TorchTrainer(
        _train_worker,
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


def _train_worker(job: dict[str, Any]) -> None:
    """One training process. An error that a retry cannot mend goes to the board, and the next attempt ends at once."""
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
    """The user's mistake, or the diverged loss, somewhere in a chain of wrapped errors."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, UserError):
            return UserError(error.field, error.got, error.allowed, error.remedy)
        if isinstance(error, FloatingPointError):
            return FloatingPointError(str(error))
        error = getattr(error, "cause", None) or error.__cause__ or error.__context__
    return None


def _train(job: dict[str, Any]) -> None:
    from ray.train.torch import get_device

    config: RunConfig = job["config"]
    device = get_device()
    context = ProcessGroupContext(device, job["board"].put.remote)
    if device.type == "cpu":
        torch.set_num_threads(max(1, int(config.scale.cpus_per_worker)))
    engine = build_engine(config, context.device, job["labels"])
    fit(
        context,
        engine,
        config,
        lambda step: stream(job["data"], config, context.rank, step),
        open_folder(job["run"]),
        job["rows"],
        job["until"],
    )


def build_engine(config: RunConfig, device: torch.device, labels: ProbeLabels | None = None) -> Engine:
    """The configured engine in an initialised process group; `labels` are those of an online probe."""
    objective = build_objective(config, labels).to(device)
    world = dist.get_world_size()
    if world > 1:
        synchronize_norms(objective, sum_over_workers)
        if objective.online_probe is not None:
            objective.online_probe.workers = ProcessGroupContext(device, None)
    if config.scale.engine == "deepspeed":
        from soda_dist.training.engines.deepspeed_engine import DeepSpeedEngine

        optimizer = build_optimizer(config, objective)
        engine: Engine = DeepSpeedEngine(objective=objective, optimizer=optimizer, config=config, device=device)
    else:
        engine = plain_engine(config, objective, rank=dist.get_rank(), world=world)
    set_collective_timeout(COLLECTIVE_TIMEOUT_S)
    return engine
