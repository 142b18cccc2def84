"""The training loop."""

from collections.abc import Callable, Iterable

from soda_dist.config.schema import RunConfig
from soda_dist.data.pairs import Pairs
from soda_dist.data.storage.folder import Folder
from soda_dist.runs.folder import complete_steps, record_stop
from soda_dist.training import checkpoint
from soda_dist.training.context import WorkerContext
from soda_dist.training.early_stop import Patience
from soda_dist.training.engines.engine import Engine
from soda_dist.training.log_window import LogWindow
from soda_dist.training.schedule import learning_rate
from soda_dist.training.validation import Validation

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
    validation: Validation | None = None,
) -> None:
    """Train from the run's latest complete checkpoint to the last step, or until `train.stop` ends the run.

    The last step is checkpointed, also one at which the run stops early; such a run is finished and trains no further.

    Args:
        feed: called once, with the first step.
        run: folder of checkpoints, metrics.jsonl and quarantine.jsonl.
        rows: rows of the training split, to compute epochs.
        validation: measures `train.stop.metric`; None if it is `none`.
        until: last step; None = `train.steps`. The learning-rate schedule is that of the whole run.

    Raises:
        FloatingPointError: the loss is not finite.
        UserError: more unreadable images than `train.max_unreadable`.
    """
    step = resume(context, engine, run)
    stop, patience = config.train.stop, _patience(run, step, validation)
    window = LogWindow(context, config, run, rows, step)
    batches = iter(feed(step))
    end = config.train.steps if until is None else min(until, config.train.steps)
    while step < end and not (patience and patience.stopped):
        lr = learning_rate(step, config.optim, config.train.steps)
        result = engine.step(window.timed(batches, config.accumulation), lr)
        step += 1
        window.add(result)
        facts: dict[str, float] = {}
        if validation is not None and patience is not None and step % stop.every_steps == 0:
            patience.add(value := validation.measure(engine), stop)
            facts = {f"validation_{stop.metric}": value, "stopped": patience.stopped}
        last = step == end or bool(patience and patience.stopped)
        save = last or step % config.train.checkpoint_every_steps == 0
        if save or facts or step % config.train.log_every_steps == 0:  # windows end at checkpoints: resumes are exact
            window.log(step, lr, facts)
        if save:
            window.flush()
            checkpoint.save(run, step, engine, context, config, patience)
    if patience and patience.stopped and context.rank == 0:
        record_stop(run, step, f"{stop.metric} did not improve on {patience.best} in {stop.patience} evaluations")
        context.say(f"stopped at step {step} of {end}: {stop.metric} no longer improves on {patience.best}")


def _patience(run: Folder, step: int, validation: Validation | None) -> Patience | None:
    """Read the state of `train.stop` at `step`, or begin anew; None without validation."""
    if validation is None:
        return None
    return (checkpoint.read_patience(run, step) if step else None) or Patience()


def resume(context: WorkerContext, engine: Engine, run: Folder) -> int:
    """Restore the latest complete checkpoint and return its step; 0 = a new run."""
    steps = complete_steps(run)
    if not steps:
        return 0
    checkpoint.restore(run, steps[-1], engine, context)
    context.say(f"resuming from step {steps[-1]} of {run.uri}")
    return steps[-1]
