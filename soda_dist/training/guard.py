"""What happens when many steps are skipped (`train.guard`): back to a good checkpoint, or an end with a diagnosis."""

from collections.abc import Sequence
from typing import NamedTuple

from soda_dist.config.schema import RunConfig
from soda_dist.config.sections import Guard
from soda_dist.data.storage.folder import Folder
from soda_dist.errors import DivergedError
from soda_dist.runs.folder import complete_steps, record_rollback, rollbacks
from soda_dist.training.checkpoint import remove_after
from soda_dist.training.context import WorkerContext
from soda_dist.training.finite import UnstableError


class Skips(NamedTuple):
    """Skipped steps of a log window: of the steps `start` + 1 to `end`, which count from 1."""

    start: int
    end: int
    skipped: int
    losses: int = 0
    """Steps whose loss was not finite."""
    gradients: int = 0
    """Steps whose gradient norm was not finite."""
    at_end: bool = False
    """Whether the last step was skipped."""


class SkipGuard:
    """Counts skipped steps over the last windows.

    Args:
        earlier: windows before a resume, oldest first.
    """

    def __init__(self, settings: Guard, earlier: Sequence[Skips] = ()) -> None:
        self._settings, self._windows = settings, list(earlier)

    def add(self, window: Skips, *, last: bool = False) -> None:
        """Take a window; raise `UnstableError` if too many of the last steps were skipped.

        At the `last` step, more than half of them is too many: a short run must not end well without training.
        """
        since = window.end - self._settings.window_steps
        self._windows = [*(old for old in self._windows if old.end > since), window]
        skipping = [each for each in self._windows if each.skipped]
        count = sum(each.skipped for each in skipping)
        seen = window.end - self._windows[0].start
        if count > self._settings.skipped_steps or (last and 2 * count > seen):
            first = skipping[0].start
            losses, gradients = (sum(getattr(w, name) for w in skipping) for name in ("losses", "gradients"))
            got = f"{count} of steps {first + 1} to {window.end} skipped"
            raise UnstableError(f"{got} (not finite: the loss in {losses}, the gradient in {gradients})", first)


def go_back(run: Folder, trouble: UnstableError, context: WorkerContext, config: RunConfig) -> None:
    """Make the last checkpoint before `trouble` the latest one, and change the randomness from there on.

    Trouble that comes again after a rollback goes one checkpoint further back. Call on every rank.

    Raises:
        DivergedError: no checkpoint, or `train.guard.rollbacks` rollbacks since the start; the run may be resumed.
    """
    target, number = None, 0
    if context.rank == 0 and (target := _target(run, trouble.since)) is not None:
        number = record_rollback(run, target, str(trouble.got))
        remove_after(run, target)
    target, number = context.gather((target, number))[0]
    most = config.train.guard.rollbacks
    if target is None or number > most:
        where = "start again" if target is None else f"rerun the command, which resumes from step {target}"
        after = f" after {most} rollbacks" if target is not None and most else ""
        got = f"{config.optim.lr:g} with {trouble.got}{after}"
        raise DivergedError("optim.lr", got, "a rate at which training stays finite", f"lower it and {where}") from None
    context.say(f"going back to step {target} with other noise, rollback {number} of {most}: {trouble.got}")


def _target(run: Folder, since: int) -> int | None:
    steps = complete_steps(run)
    good = [step for step in steps if step <= since] or steps[:1]
    before = [entry["step"] for entry in rollbacks(run, this_start=True)]
    if len(good) > 1 and before and before[-1] == good[-1]:
        good.pop()
    return good[-1] if good else None
