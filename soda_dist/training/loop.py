"""The training loop."""

from collections.abc import Callable, Iterable

from soda_dist.config.schema import RunConfig
from soda_dist.data.pairs import Pairs
from soda_dist.data.storage.folder import Folder
from soda_dist.runs.folder import complete_steps
from soda_dist.training import checkpoint
from soda_dist.training.context import WorkerContext
from soda_dist.training.engines.engine import Engine
from soda_dist.training.log_window import LogWindow
from soda_dist.training.schedule import learning_rate

Feed = Callable[[int], Iterable[Pairs]]
"""First step -> this worker's micro-batches, `config.accumulation` for each step."""


def fit(
    context: WorkerContext,
    engine: Engine,
    config: RunConfig,
    feed: Feed,
    run: Folder,
    rows: int,
    until: int | None = None,
) -> None:
    """Train from the run's latest complete checkpoint to the last step, and checkpoint it.

    Args:
        feed: called once, with the first step.
        run: folder of checkpoints, metrics.jsonl and quarantine.jsonl.
        rows: rows of the training split, to compute epochs.
        until: last step; None = `train.steps`. The learning-rate schedule is that of the whole run.

    Raises:
        FloatingPointError: the loss is not finite.
        UserError: more unreadable images than `train.max_unreadable`.
    """
    step = resume(context, engine, run)
    window = LogWindow(context, config, run, rows, step)
    batches = iter(feed(step))
    end = config.train.steps if until is None else min(until, config.train.steps)
    while step < end:
        lr = learning_rate(step, config.optim, config.train.steps)
        result = engine.step(window.timed(batches, config.accumulation), lr)
        step += 1
        window.add(result)
        last = step == end
        save = last or step % config.train.checkpoint_every_steps == 0
        if save or step % config.train.log_every_steps == 0:  # windows end at checkpoints: resumes are exact
            window.log(step, lr)
        if save:
            window.flush()
            checkpoint.save(run, step, engine, context, config)


def resume(context: WorkerContext, engine: Engine, run: Folder) -> int:
    """Restore the latest complete checkpoint and return its step; 0 = a new run."""
    steps = complete_steps(run)
    if not steps:
        return 0
    checkpoint.restore(run, steps[-1], engine, context)
    context.say(f"resuming from step {steps[-1]} of {run.uri}")
    return steps[-1]
