"""Groups of ablations: every variant is trained with every seed, and measured.

Variants that differ in sampling and evaluation alone share their training. Each run has its own folder, and its figures
are stored beside it, so the same command resumes.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from soda_dist.config.ablation import Ablation, Variant
from soda_dist.config.fields import as_yaml
from soda_dist.config.load import leaves
from soda_dist.config.provenance import provenance
from soda_dist.config.schema import RunConfig
from soda_dist.data.preparation import prepare
from soda_dist.data.shards import read_manifest
from soda_dist.data.storage.folder import Folder, open_folder
from soda_dist.distributed.evaluate_on_ray import evaluate
from soda_dist.distributed.pretrain import pretrain
from soda_dist.distributed.runtime.actor_pool import ActorPool
from soda_dist.distributed.runtime.mailbox import mailbox
from soda_dist.distributed.runtime.resources import check_resources, training_resources
from soda_dist.errors import DivergedError, UserError
from soda_dist.parallel.pool import Held
from soda_dist.parallel.progress import Say
from soda_dist.report.ablation import ablation_plot, as_markdown, check_group, summarize
from soda_dist.report.paper import Column, read_paper
from soda_dist.report.paper_columns import OURS, Figure, figure
from soda_dist.runs.folder import open_run
from soda_dist.runs.results import read_run
from soda_dist.training.observers.trackers import check_trackers

AFTER_TRAINING = ("sampling", "evaluation", "scale")
"""Sections that may differ between variants of one training."""
GROUP, SUMMARY = "group.json", "ablation"
PARTS = (GROUP, "data", "runs", "results", *(f"{SUMMARY}.{kind}" for kind in ("json", "png", "md")))
"""All files and folders of a group."""
MINUTE = 60.0


@dataclass(frozen=True)
class Reading:
    """One variant's evaluation of a run: the overrides of the run's own configuration."""

    variant: Variant
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Trial:
    """A training run, and the variants that are evaluated on it."""

    slug: str
    seed: int
    config: RunConfig
    readings: tuple[Reading, ...]

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{self.slug}-seed{self.seed}"


@dataclass(frozen=True)
class Place:
    """The common inputs of all trials."""

    group: Ablation
    data: str
    out: str
    mailbox: Any


def ablate(group: Ablation, base: RunConfig, data_uri: str | None, out_uri: str, say: Say) -> str:
    """Train and measure all variants of `group` over `base`; returns the URI of the table.

    Writes `ablation.json`, `ablation.md` and `ablation.png` into `out_uri`, and shows the table. Ray must be connected.

    Args:
        group: the variants, measures and claims.
        base: what the variants have in common.
        data_uri: prepared shards; None = the group's own, rendered into `data` of `out_uri`.
        out_uri: created if absent; a folder of the same group is resumed.
        say: shows progress and the table.

    Raises:
        UserError: a variant's field does not fit, the folder is another group's, the data lacks what a measure needs,
            or the cluster cannot hold the runs.
    """
    check_trackers(base.train.trackers)
    check_group(group, read_paper())
    trials = plan_trials(group, base)
    out = open_run(out_uri, PARTS)
    _claim(out, group, base, data_uri)
    needed = {name: count * group.concurrent for name, count in training_resources(base).items()}
    check_resources(needed, say)
    data = data_uri or _rendered(group, out, say)
    say(f"{len(group.variants)} variants, {len(group.seeds)} seeds: {len(trials)} runs of {base.train.steps} steps")
    _train_all(group, trials, data, out, say)
    return _conclude(group, base, trials, data, out, say)


def plan_trials(group: Ablation, base: RunConfig) -> list[Trial]:
    """Plan the training runs of a group, seed by seed; variants that are trained alike share one.

    Raises:
        UserError: a variant's field does not exist or does not fit.
    """
    trials: dict[str, Trial] = {}
    for seed in group.seeds:
        for variant in group.variants:
            config = _config_of(group, variant, seed, base)
            trained = config.model_copy(update={name: getattr(base, name) for name in AFTER_TRAINING})
            key = trained.model_dump_json()
            trial = trials.setdefault(key, Trial(variant.slug, seed, config, ()))
            reading = Reading(variant, _difference(trial.config, config))
            trials[key] = replace(trial, readings=(*trial.readings, reading))
    return list(trials.values())


def _config_of(group: Ablation, variant: Variant, seed: int, base: RunConfig) -> RunConfig:
    try:
        return group.config_of(variant, seed, base)
    except UserError as error:
        raise UserError(f"{variant.name}: {error.field}", error.got, error.allowed, error.remedy) from None


def _difference(before: RunConfig, now: RunConfig) -> tuple[str, ...]:
    """Overrides of `jobs/evaluate.py` with which a run of configuration `before` is evaluated as `now`."""
    old, new = (leaves({name: config.model_dump()[name] for name in AFTER_TRAINING}) for config in (before, now))
    return tuple(f"{path}={as_yaml(value)}" for path, value in new.items() if old[path] != value)


def _claim(out: Folder, group: Ablation, base: RunConfig, data_uri: str | None) -> None:
    kept = group.model_copy(update={"seeds": (0,), "concurrent": 1})  # more seeds may follow
    record = {
        "group": kept.model_dump(mode="json"),
        "base": base.model_dump(mode="json"),
        "data": open_folder(data_uri).uri if data_uri else None,
    }
    if out.exists(GROUP):
        if out.read_json(GROUP) != record:
            raise UserError("--out", out.uri, "the folder of the same group", "use another --out for a changed one")
        return
    out.write_json(GROUP, record)


def _rendered(group: Ablation, out: Folder, say: Say) -> str:
    options = [f"{name}={as_yaml(value)}" for name, value in group.data.options.items()]
    return prepare(group.data.kind, None, out.child("data").uri, options, ActorPool(say=say), say)


def _train_all(group: Ablation, trials: Sequence[Trial], data: str, out: Folder, say: Say) -> None:
    """Run the unfinished trials, `group.concurrent` at a time."""
    left = [trial for trial in trials if not _done(out, trial)]
    if not left:
        say(f"already trained: {len(trials)} runs")
        return
    done = len(trials) - len(left)
    with mailbox(say) as box:
        place = Place(group, data, out.uri, box.actor)
        pool = ActorPool(
            say=say,
            needs={"CPU": 0},  # what trains and evaluates asks for its own
            actors=group.concurrent,
            start_timeout_s=left[0].config.scale.wait_s,
            setup=Held(place),
        )
        with pool:
            for number, seconds in pool.completed(_do, left):
                done += 1
                say(f"finished {left[number].name} in {seconds:.0f} s: {done} of {len(trials)} runs")


def _do(place: Place, trial: Trial) -> float:
    """Train one run to its end and evaluate it; return the seconds that this took."""
    began = time.monotonic()
    out = open_run(place.out, PARTS)
    run = out.child(f"runs/{trial.name}")
    trained = 0.0

    def tell(line: str) -> None:
        place.mailbox.put.remote(f"{trial.name}: {line}")

    try:
        pretrain(trial.config, place.data, run.uri, tell)
        trained = time.monotonic() - began
    except DivergedError as error:
        tell(str(error))
        for reading in trial.readings:
            _write(out, reading.variant, trial, [None] * len(place.group.measures), began, str(error))
        return time.monotonic() - began
    for reading in trial.readings:
        if not out.exists(_name(reading.variant, trial.seed)):
            at = time.monotonic() - trained / len(trial.readings)
            tasks = ",".join(dict.fromkeys(OURS[measure.ours].task for measure in place.group.measures))
            evaluate(run.uri, place.data, tasks, "latest", reading.overrides, tell)
            _write(out, reading.variant, trial, _figures(place.group, run.uri), at, None)
    return time.monotonic() - began


def _figures(group: Ablation, run_uri: str) -> list[Figure | None]:
    """Read the group's figures from the results of the run."""
    run = read_run(run_uri)
    columns = [Column(metric="", ours=measure.ours, sources=measure.sources) for measure in group.measures]
    return [figure(run, column) for column in columns]


def _write(
    out: Folder, variant: Variant, trial: Trial, figures: Sequence[Figure | None], began: float, failure: str | None
) -> None:
    result = {
        "variant": variant.name,
        "seed": trial.seed,
        "run": trial.name,
        "figures": [None if each is None else asdict(each) for each in figures],
        "failure": failure,
        "seconds": time.monotonic() - began,
    }
    out.write_json(_name(variant, trial.seed), result)


def _read(out: Folder, variant: Variant, seed: int) -> dict[str, Any]:
    result: dict[str, Any] = out.read_json(_name(variant, seed))
    return result


def _conclude(group: Ablation, base: RunConfig, trials: Sequence[Trial], data: str, out: Folder, say: Say) -> str:
    """Write the table, the picture and all facts behind them."""
    results = {variant.name: [_read(out, variant, seed) for seed in group.seeds] for variant in group.variants}
    figures = {name: [_figures_of(result) for result in of_seeds] for name, of_seeds in results.items()}
    seconds = sum(result["seconds"] for of_seeds in results.values() for result in of_seeds)
    kind = read_manifest(open_folder(data)).kind
    budget = (
        f"{len(trials)} runs of {base.train.steps} steps of {base.train.global_batch} pairs on data of kind {kind}, "
        f"{seconds / len(trials) / MINUTE:.1f} min each with its evaluation, {group.concurrent} at a time."
    )
    summary = summarize(group, figures, read_paper(), budget)
    text = as_markdown(summary)
    facts = {
        "summary": asdict(summary),
        "base": base.model_dump(mode="json"),
        "data": data,
        "failures": [result for of_seeds in results.values() for result in of_seeds if result["failure"]],
        "provenance": provenance(),
    }
    out.write_json(f"{SUMMARY}.json", facts)
    out.write(f"{SUMMARY}.png", ablation_plot(summary))
    out.write(f"{SUMMARY}.md", text.encode())
    say(text)
    return out.file_uri(f"{SUMMARY}.md")


def _figures_of(result: dict[str, Any]) -> list[Figure | None]:
    return [None if each is None else Figure(**each) for each in result["figures"]]


def _name(variant: Variant, seed: int) -> str:
    return f"results/{variant.slug}-seed{seed}.json"


def _done(out: Folder, trial: Trial) -> bool:
    return all(out.exists(_name(reading.variant, trial.seed)) for reading in trial.readings)
