"""The training loop."""

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager

from soda_dist.config.load import with_fields
from soda_dist.config.schema import RunConfig
from soda_dist.config.sections import Stop
from soda_dist.config.settle import PRECISION
from soda_dist.data.pairs import Pairs
from soda_dist.data.storage.folder import Folder
from soda_dist.runs.folder import record_stop, rollbacks
from soda_dist.training import checkpoint
from soda_dist.training.checkpoint_writer import CheckpointWriter
from soda_dist.training.context import Ask, LeavingError, WorkerContext
from soda_dist.training.early_stop import Patience
from soda_dist.training.engines.engine import Engine
from soda_dist.training.finite import UnstableError
from soda_dist.training.guard import SkipGuard, go_back
from soda_dist.training.held_out import HeldOut, Measure
from soda_dist.training.log_window import LogWindow
from soda_dist.training.observers.observer import Observer
from soda_dist.training.randomness import salted
from soda_dist.training.resuming import resume
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
    validation: Measure | None = None,
    observer: Observer | None = None,
) -> None:
    """Train from the run's latest complete checkpoint to the last step, or until `train.stop` ends the run.

    The last step is checkpointed, also one at which the run stops early; such a run is finished and trains no further.
    So is a step after which the context asks to end.
    Where too many steps are skipped (`train.guard`), training goes back to an earlier checkpoint.

    Args:
        feed: called with the first step, and again after each rollback.
        run: folder of checkpoints, metrics.jsonl and quarantine.jsonl.
        rows: rows of the training split, to compute epochs.
        validation: measures what `train.holds_out` asks for; None if that is off.
        until: last step; None = `train.steps`. The learning-rate schedule is that of the whole run.
        observer: gets the metrics and pictures of the first rank.

    Raises:
        DivergedError: loss, gradient or state are not finite, beyond what `train.guard` allows.
        LeavingError: the context asked to leave.
        UserError: as `resume`, or more unreadable images than `train.max_unreadable`.
    """
    if config.train.precision == "auto":  # checkpoints say what was trained
        config = with_fields(config, {PRECISION: engine.objective.model.precision})
    observer = observer if context.rank == 0 else None
    end = config.train.steps if until is None else min(until, config.train.steps)
    while True:
        try:
            return _fit(context, engine, config, feed, run, rows, end, validation, observer)
        except UnstableError as trouble:
            go_back(run, trouble, context, config)


def _fit(
    context: WorkerContext,
    engine: Engine,
    config: RunConfig,
    feed: Feed,
    run: Folder,
    rows: int,
    end: int,
    validation: Measure | None,
    observer: Observer | None,
) -> None:
    """Train to step `end`; raise `UnstableError` to go back."""
    step = resume(context, engine, run)
    if observer is not None:
        observer.start(step)
    held_out = HeldOut(validation, _patience(run, step, config, validation), config, run, observer, end)
    window = LogWindow(context, config, run, rows, step, observer)
    guard, salts = SkipGuard(config.train.guard, window.earlier()), _salts(context, run)
    writer = CheckpointWriter(run, engine, context, config)
    with window.shown_by_time() as now, _closing(feed(step)) as batches, writer:
        context.say("reading the first rows")
        asked = Ask.NOTHING
        while step < end and not held_out.stopped and asked is Ask.NOTHING:
            lr = learning_rate(step, config.optim, config.train.steps)
            engine.objective.seed = salted(config.seed, salts, step)
            window.add(engine.step(window.timed(batches, config.accumulation), lr))
            step += 1
            if held_out.due(step):
                now.doing("measuring held-out images")
            facts = held_out.facts(step, engine)
            asked = context.asked(step)
            last = step == end or held_out.stopped
            save = last or asked is not Ask.NOTHING or step % config.train.checkpoint_every_steps == 0
            if save or facts or step % config.train.log_every_steps == 0:  # windows end at checkpoints: exact resumes
                skips = window.log(step, lr, facts, last=last)
                guard.add(skips, last=last)
                # Trouble must not fill the checkpoints that are kept, except where training ends.
                save = save and (last or asked is not Ask.NOTHING or not skips.at_end)
            if save:
                now.doing("saving a checkpoint")
                window.paused(writer.save(step, held_out.patience, facts, window.flush))
    _say_stop(context, run, step, end, config.train.stop, held_out)
    if asked is Ask.LEAVE and step < end and not held_out.stopped:
        raise LeavingError(f"saved step {step}")


@contextmanager
def _closing(batches: Iterable[Pairs]) -> Iterator[Iterator[Pairs]]:
    """Iterate over micro-batches; at the end, also one by an error, close the generator that makes them."""
    iterator = iter(batches)
    try:
        yield iterator
    finally:
        if isinstance(iterator, Generator):
            iterator.close()


def _salts(context: WorkerContext, run: Folder) -> list[tuple[int, int]]:
    """Read the steps and salts of the run's rollbacks on the first rank."""
    own = [(entry["step"], entry["salt"]) for entry in rollbacks(run)] if context.rank == 0 else []
    return list(context.gather(own)[0])


def _say_stop(context: WorkerContext, run: Folder, step: int, end: int, stop: Stop, held_out: HeldOut) -> None:
    if held_out.patience is not None and held_out.stopped and context.rank == 0:
        best = held_out.patience.best
        record_stop(run, step, f"{stop.metric} did not improve on {best} in {stop.patience} evaluations")
        context.say(f"stopped at step {step} of {end}: {stop.metric} no longer improves on {best}")


def _patience(run: Folder, step: int, config: RunConfig, validation: Measure | None) -> Patience | None:
    """Read the state of `train.stop` at `step`, or begin anew; None if it is off."""
    if validation is None or config.train.stop.metric == "none":
        return None
    return (checkpoint.read_patience(run, step) if step else None) or Patience()
