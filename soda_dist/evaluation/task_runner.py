"""The entry to evaluation: a run's checkpoints or an encoder, the tasks of `tasks.TASKS`, over any pool."""

from collections.abc import Callable, Sequence
from functools import partial

from soda_dist.config.load import with_overrides
from soda_dist.config.schema import RunConfig
from soda_dist.data.shards import Manifest, check_shards, read_manifest
from soda_dist.data.storage.folder import Folder, open_folder
from soda_dist.evaluation.context import Context
from soda_dist.evaluation.model_sources import Checkpoint, ModelSource
from soda_dist.evaluation.pieces import check_splits
from soda_dist.evaluation.tasks import TASKS, check, chosen, fitting
from soda_dist.evaluation.tasks.reconstruction import scored
from soda_dist.evaluation.worker import load_models
from soda_dist.parallel.local_pool import LocalPool
from soda_dist.parallel.pool import Pool
from soda_dist.parallel.progress import Say, silent
from soda_dist.runs.folder import chosen_steps, open_run, read_config, write_config
from soda_dist.runs.results import Result, headlines

OF_RUNS = ("evaluation", "sampling", "scale")
"""Sections that may be overridden when a run is evaluated: the weights do not depend on them."""
OF_ENCODERS = ("data", "evaluation", "scale")


def evaluate(
    run_uri: str,
    data_uri: str,
    tasks: str | None = None,
    pool: Pool | None = None,
    *,
    step: str = "latest",
    overrides: Sequence[str] = (),
    say: Say = silent,
    ema: bool = True,
    after_task: Callable[[], None] = lambda: None,
) -> dict[str, Result]:
    """Do `tasks` (comma-separated names of `TASKS`) on checkpoints of a run; results of the same step are replaced.

    Without names, the tasks are those of `tasks.fitting`.

    Writes `eval/STEP/TASK.json` and pictures into the run's folder. Latents and drawn images are cached in its folders
    `latents` and `samples`, so that a repeated or an interrupted evaluation reuses them.

    Args:
        pool: where the work is done; None = in this process.
        step: of a complete checkpoint, `latest`, or `all`, one after another.
        overrides: `a.b=value` of the sections evaluation, sampling and scale.
        say: shows progress and tables.
        ema: evaluate the moving average of the weights; without it results lie in `eval/STEP/without-ema`.
        after_task: called when the result of a task is written, such as to renew a report.

    Returns:
        The results by task, as the JSON files hold them; of the last step.

    Raises:
        UserError: the run, the data or a setting does not fit, a task lacks what it needs, or no worker could start.
    """
    named = None if tasks is None else chosen(tasks)
    run, data = open_run(run_uri), open_folder(data_uri)
    config, steps = evaluation_config(run, overrides), chosen_steps(run, step)
    manifest = _checked_manifest(data, config)
    pool = pool or LocalPool()
    contexts = [_context(run, data, manifest, config, Checkpoint(run, at, ema), pool, say) for at in steps]
    names = named or fitting(contexts[0])
    check(names, contexts[0])
    return [_do(names, context, after_task) for context in contexts][-1]


def evaluate_encoder(
    model_source: ModelSource,
    data_uri: str,
    tasks: str | None,
    out_uri: str,
    pool: Pool | None = None,
    *,
    overrides: Sequence[str] = (),
    say: Say = silent,
    after_task: Callable[[], None] = lambda: None,
) -> dict[str, Result]:
    """Do `tasks` on an encoder alone; results lie in `eval/0` of the folder `out_uri`, laid out as a run's.

    Args:
        overrides: of the sections data, evaluation and scale.
        after_task: as in `evaluate`.

    Returns and raises as `evaluate`.
    """
    named = None if tasks is None else chosen(tasks)
    out, data = open_run(out_uri), open_folder(data_uri)
    config = encoder_config(model_source, overrides)
    context = _context(out, data, _checked_manifest(data, config), config, model_source, pool or LocalPool(), say)
    names = named or fitting(context)
    check(names, context)
    write_config(out, config)  # for the report
    return _do(names, context, after_task)


def guidance_scores(
    run_uri: str, data_uri: str, guidance: Sequence[float], pool: Pool | None = None
) -> list[dict[str, float]]:
    """PSNR and SSIM of the latest checkpoint's reconstructions at each guidance scale, from the same noise."""
    run, data = open_run(run_uri), open_folder(data_uri)
    config, (step,) = read_config(run), chosen_steps(run, "latest")
    source = Checkpoint(run, step, ema=True)
    context = _context(run, data, _checked_manifest(data, config), config, source, pool or LocalPool(), silent)
    try:
        rows = [scored(context, config.sampling.model_copy(update={"guidance": w})) for w in guidance]
    finally:
        context.close()
    return [{"guidance": row["guidance"], "psnr": row["psnr"]["value"], "ssim": row["ssim"]["value"]} for row in rows]


def evaluation_config(run: Folder, overrides: Sequence[str]) -> RunConfig:
    """A run's configuration with the overrides that an evaluation may make."""
    return with_overrides(read_config(run), overrides, OF_RUNS, "pretrain anew to change anything else")


def encoder_config(model_source: ModelSource, overrides: Sequence[str]) -> RunConfig:
    """An encoder's configuration with the overrides that its evaluation may make."""
    return with_overrides(model_source.configuration(), overrides, OF_ENCODERS, "an encoder has no other sections")


def _do(names: Sequence[str], context: Context, after_task: Callable[[], None]) -> dict[str, Result]:
    results = {}
    try:
        for name in names:
            results[name] = TASKS[name].do(context)
            after_task()
    finally:
        context.close()
    for line in headlines(results) if len(results) > 1 else ():
        context.say(line)
    return results


def _context(
    run: Folder, data: Folder, manifest: Manifest, config: RunConfig, model_source: ModelSource, pool: Pool, say: Say
) -> Context:
    trained = model_source if isinstance(model_source, Checkpoint) else None
    return Context(
        run=run,
        data=data,
        manifest=manifest,
        config=config,
        step=trained.step if trained else 0,
        ema=trained.ema if trained else True,
        weights=model_source.digest(),
        say=say,
        pool=pool,
        workers=pool.with_state(partial(load_models, model_source, data.uri, config)),
        encoder_only=trained is None,
    )


def _checked_manifest(data: Folder, config: RunConfig) -> Manifest:
    manifest = read_manifest(data)
    check_splits(manifest, config)
    for split in (config.evaluation.train_split, config.evaluation.test_split):
        check_shards(data, manifest, split)
    return manifest
