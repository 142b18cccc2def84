"""Evaluation of checkpoints by actors: the tasks of `tasks.TASKS`; results in `eval/STEP/`."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import ray

from soda_dist.config.load import with_overrides
from soda_dist.config.schema import RunConfig
from soda_dist.data.shards import Manifest, check_shards, read_manifest
from soda_dist.data.storage.folder import Folder, open_folder
from soda_dist.distributed.runtime.actor_pool import Crew
from soda_dist.distributed.runtime.resources import check_resources, evaluation_resources
from soda_dist.evaluation.context import Result, Subject
from soda_dist.evaluation.model_sources import Checkpoint, Origin
from soda_dist.evaluation.pieces import check_splits
from soda_dist.evaluation.tasks import TASKS, check, chosen
from soda_dist.evaluation.tasks.reconstruction import scored
from soda_dist.evaluation.worker import load_models
from soda_dist.parallel.progress import Say
from soda_dist.runs.folder import chosen_steps, read_config, write_config

FREE_SECTIONS = ("evaluation", "sampling", "scale")


def evaluate(
    run_uri: str,
    data_uri: str,
    tasks: str,
    step: str,
    overrides: Sequence[str],
    say: Say,
    *,
    ema: bool = True,
) -> dict[str, Result]:
    """Do `tasks` (comma-separated names of `TASKS`) on a checkpoint; results of the same step are replaced.

    Ray must be connected. Writes `eval/STEP/TASK.json` and pictures into the run's folder. What actors made stays in
    its `latents` and `samples`, under a name that says what it depends on, and is not made twice.

    Args:
        step: a step with a complete checkpoint, `latest`, or `all`, one after another.
        overrides: `a.b=value` of the sections evaluation, sampling and scale.
        say: where progress and tables are shown.
        ema: with the running mean of the weights; without it results lie in `eval/STEP/without-ema`.

    Returns:
        What the JSON files hold, by task; of the last step.

    Raises:
        UserError: the run, the data or a setting does not fit, a task lacks what it needs, or the cluster cannot start
            an actor.
    """
    names = chosen(tasks)
    run, data = open_folder(run_uri), open_folder(data_uri)
    config = with_overrides(read_config(run), overrides, FREE_SECTIONS, "pretrain anew to change anything else")
    steps = chosen_steps(run, step)
    manifest = _checked_manifest(data, config)
    subjects = [_subject(run, data, manifest, config, Checkpoint(run, at, ema), say) for at in steps]
    check(names, subjects[0])
    return [_do(names, subject) for subject in subjects][-1]


def evaluate_encoder(
    origin: Origin, data_uri: str, tasks: str, out_uri: str, overrides: Sequence[str], say: Say
) -> dict[str, Result]:
    """Do `tasks` on an encoder alone; results lie in `eval/0` of the folder `out_uri`, as a run's do.

    Args:
        overrides: of the sections data, evaluation and scale.

    Returns and raises as `evaluate`.
    """
    names = chosen(tasks)
    data = open_folder(data_uri)
    sections = ("data", "evaluation", "scale")
    config = with_overrides(origin.configuration(), overrides, sections, "an encoder has no more")
    manifest = _checked_manifest(data, config)
    out = open_folder(out_uri)
    subject = _subject(out, data, manifest, config, origin, say)
    check(names, subject)
    write_config(out, config)  # for the report
    return _do(names, subject)


def _do(names: Sequence[str], subject: Subject) -> dict[str, Result]:
    try:
        return {name: TASKS[name].do(subject) for name in names}
    finally:
        subject.close()


def guidance_scores(run_uri: str, data_uri: str, guidance: Sequence[float]) -> list[dict[str, float]]:
    """PSNR and SSIM of the latest checkpoint's reconstructions at each guidance scale, from the same noise."""
    run, data = open_folder(run_uri), open_folder(data_uri)
    config, (step,) = read_config(run), chosen_steps(run, "latest")
    origin = Checkpoint(run, step, ema=True)
    subject = _subject(run, data, _checked_manifest(data, config), config, origin, _silent)
    try:
        rows = [scored(subject, config.sampling.model_copy(update={"guidance": w})) for w in guidance]
    finally:
        subject.close()
    return [{"guidance": row["guidance"], "psnr": row["psnr"]["value"], "ssim": row["ssim"]["value"]} for row in rows]


def _silent(line: str) -> None:
    """A `Say` for work that is told of by its caller."""


def _subject(run: Folder, data: Folder, manifest: Manifest, config: RunConfig, origin: Origin, say: Say) -> Subject:
    trained = origin if isinstance(origin, Checkpoint) else None
    return Subject(
        run=run,
        data=data,
        manifest=manifest,
        config=config,
        step=trained.step if trained else 0,
        ema=trained.ema if trained else True,
        weights=origin.digest(),
        say=say,
        hire=partial(_crew, origin, data.uri, config, say),
        alone=trained is None,
    )


def _checked_manifest(data: Folder, config: RunConfig) -> Manifest:
    manifest = read_manifest(data)
    check_splits(manifest, config)
    for split in (config.evaluation.train_split, config.evaluation.test_split):
        check_shards(data, manifest, split)
    return manifest


def _crew(origin: Origin, data_uri: str, config: RunConfig, say: Say) -> Crew[Any, Any]:
    needed = evaluation_resources(config)
    check_resources(needed, say)
    device = "cuda" if "GPU" in needed else "cpu"
    return Crew(
        setup=partial(load_models, origin, data_uri, config, device),
        actors=config.evaluation.actors or _fitting(needed),
        resources={f"num_{name.lower()}s": count for name, count in needed.items()},
        start_timeout_s=config.scale.start_timeout_s,
        say=say,
    )


def _fitting(needed: dict[str, float]) -> int:
    """How many actors of these resources the cluster has room for, one at least."""
    have = ray.cluster_resources()
    return max(1, int(min(have.get(name, 0.0) / count for name, count in needed.items())))
