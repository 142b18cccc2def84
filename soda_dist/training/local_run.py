"""Pretraining in this process, on one device, without Ray: for notebooks and small machines."""

from collections.abc import Callable, Iterator, Mapping
from os import PathLike, fspath
from typing import Any

import torch

from soda_dist.config.load import leaves, load_config, parse_config, validate, with_fields
from soda_dist.config.schema import RunConfig
from soda_dist.data.order import Order
from soda_dist.data.pairs import Pairs, local_pairs
from soda_dist.data.storage.folder import Folder, locate
from soda_dist.errors import UserError
from soda_dist.runs.folder import changed_rate, claim, open_run, write_config
from soda_dist.runs.lease import held
from soda_dist.training.build import Fill, build_objective, torch_engine
from soda_dist.training.context import LocalContext, chosen_device
from soda_dist.training.init_from import filling, initial_weights
from soda_dist.training.loop import fit
from soda_dist.training.observers.trackers import check_trackers, open_observers
from soda_dist.training.precision import with_precision
from soda_dist.training.start import TrainingData, finished, open_training_data, shortened
from soda_dist.training.validation import Validation


def pretrain(
    config: RunConfig | str | PathLike[str] | Mapping[str, Any],
    data: str,
    run: str,
    overrides: Mapping[str, Any] | None = None,
    *,
    device: str | torch.device | None = None,
    accept_data: bool = False,
    init_from: str | None = None,
    say: Callable[[str], None] = print,
) -> str:
    """Train on the shards at `data` into the folder `run`, resuming from its last checkpoint; return the run's URI.

    The run is that of `jobs/pretrain.py` with one worker and the engine `torch`, and either resumes the other's.

    Args:
        config: a configuration, a preset's name, a YAML file or its URI, or the fields that differ from the defaults.
        overrides: further fields, by dotted name or nested: `{"train.steps": 500}`, `{"train": {"steps": 500}}`.
        device: `cpu` or `cuda`; None = `cuda` where it is available.
        accept_data: resume although the data has changed since the run's last start.
        init_from: begin with the EMA weights of URI@STEP, a run's checkpoint, or of an exported folder.
        say: shows progress lines.

    Raises:
        UserError: the configuration, the data or the run's folder does not fit, or another trainer holds the run.
        DivergedError: training does not stay finite, see `train.guard`.
    """
    asked = alone(configuration(config, overrides or {}))
    check_trackers(asked.train.trackers)
    source, folder = open_training_data(asked, data), open_run(run)
    context = LocalContext(chosen_device(device), say)
    initial = initial_weights(folder, init_from)
    with held(folder, say, "soda_dist.pretrain") as mine:
        done = finished(mine, asked.train.steps)
        whole = claim(mine, asked, source.facts(), accept_data=accept_data, initial=initial)
        for line in (shortened(asked, whole), changed_rate(mine), done or source.describe(whole)):
            if line:
                say(line)
        if not done:
            settled = with_precision(whole, context.device)
            if settled != whole:
                write_config(mine, settled)
            _train(settled, source, mine, context, filling(mine, initial))
    return folder.uri


def _train(config: RunConfig, source: TrainingData, run: Folder, context: LocalContext, fill: Fill | None) -> None:
    context.say(f"building the model ({config.method}, {config.train.precision}, {context.device})")
    engine = torch_engine(config, build_objective(config, source.labels, fill).to(context.device))
    validation = None
    if config.train.holds_out:
        validation = Validation(config, source.folder, source.manifest, source.labels, context)
    observers = open_observers(config.train.trackers, run, context.say)
    try:
        fit(context, engine, config, _feed(config, source), run, source.rows, None, validation, observers)
    finally:
        observers.close()


def configuration(
    config: RunConfig | str | PathLike[str] | Mapping[str, Any], overrides: Mapping[str, Any]
) -> RunConfig:
    """Resolve the arguments of `pretrain`; raises `UserError` as `load_config`."""
    match config:
        case RunConfig():
            whole = config
        case Mapping():
            whole = with_fields(RunConfig(), leaves(dict(config)))
        case _ if "://" in fspath(config):
            folder, name = locate(fspath(config))
            try:
                whole = parse_config(folder.read(name), fspath(config))
            except FileNotFoundError:
                raise UserError("config", fspath(config), "an existing YAML file", "check the URI") from None
        case _:
            whole = load_config(fspath(config))
    return with_fields(whole, leaves(dict(overrides)))


def alone(config: RunConfig) -> RunConfig:
    """Return the same run on one worker: the same weights up to summation order, in micro-batches of a worker's size.

    Batch norm keeps its groups whole, so a micro-batch is at least one of them.
    """
    tree = config.model_dump()
    tree["scale"] |= {"workers": 1, "engine": "torch"}
    if config.scale.workers > 1:
        tree["train"]["micro_batch"] = max(config.micro_batch, config.norm_batch or 1)
    return validate(RunConfig, tree, "set scale.workers=1 and train.micro_batch")


def _feed(config: RunConfig, source: TrainingData) -> Callable[[int], Iterator[Pairs]]:
    """Return the micro-batches from a step on; `scale.data_cpus_per_worker` threads make them."""
    batch, data = config.train.global_batch, config.data
    order = Order(source.reader.groups, config.seed, batch, data.shuffle_groups)

    def feed(step: int) -> Iterator[Pairs]:
        return local_pairs(
            source.reader,
            order,
            step * batch,
            config.micro_batch,
            seed=config.seed,
            data=data,
            threads=config.scale.data_cpus_per_worker,
            labels=source.labels.columns if source.labels else (),
        )

    return feed
