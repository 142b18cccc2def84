"""Evaluation by Ray actors: `evaluation.task_runner` over an actor pool of the size that the configuration asks for."""

from collections.abc import Callable, Sequence

from soda_dist.config.schema import RunConfig
from soda_dist.data.storage.folder import open_folder
from soda_dist.distributed.runtime.actor_pool import ActorPool
from soda_dist.distributed.runtime.resources import evaluation_resources
from soda_dist.evaluation import task_runner
from soda_dist.evaluation.model_sources import ModelSource
from soda_dist.parallel.progress import Say, silent
from soda_dist.runs.folder import read_config
from soda_dist.runs.results import Result


def evaluation_pool(config: RunConfig, say: Say) -> ActorPool:
    """A pool of `evaluation.actors` actors with a GPU's share or a CPU each. Ray must be connected."""
    return ActorPool(
        say=say,
        needs=evaluation_resources(config),
        actors=config.evaluation.actors,
        start_timeout_s=config.scale.wait_s,
    )


def evaluate(
    run_uri: str,
    data_uri: str,
    tasks: str | None,
    step: str,
    overrides: Sequence[str],
    say: Say,
    *,
    ema: bool = True,
    after_task: Callable[[], None] = lambda: None,
) -> dict[str, Result]:
    """As `task_runner.evaluate`."""
    pool = evaluation_pool(task_runner.evaluation_config(open_folder(run_uri), overrides), say)
    return task_runner.evaluate(
        run_uri, data_uri, tasks, pool, step=step, overrides=overrides, say=say, ema=ema, after_task=after_task
    )


def evaluate_encoder(
    model_source: ModelSource,
    data_uri: str,
    tasks: str | None,
    out_uri: str,
    overrides: Sequence[str],
    say: Say,
    *,
    after_task: Callable[[], None] = lambda: None,
) -> dict[str, Result]:
    """As `task_runner.evaluate_encoder`."""
    pool = evaluation_pool(task_runner.encoder_config(model_source, overrides), say)
    return task_runner.evaluate_encoder(
        model_source, data_uri, tasks, out_uri, pool, overrides=overrides, say=say, after_task=after_task
    )


def guidance_scores(run_uri: str, data_uri: str, guidance: Sequence[float]) -> list[dict[str, float]]:
    """As `task_runner.guidance_scores`."""
    pool = evaluation_pool(read_config(open_folder(run_uri)), silent)
    return task_runner.guidance_scores(run_uri, data_uri, guidance, pool)
