"""The tasks of evaluation. A new one is a file beside these and a row in `TASKS`."""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from soda_dist.errors import UserError
from soda_dist.evaluation.context import Context, Result
from soda_dist.evaluation.tasks import dci, fid, label_free, latents, novel_views, probe_knn, reconstruction


class Task(NamedTuple):
    """A task that `jobs/evaluate.py --tasks` names.

    Attributes:
        check: raises a `UserError` for what the run or the data lack; called before any work.
        do: does it and records the result.
        draws: whether it needs more of a run than its encoder.
        labels: whether it needs labelled data.
    """

    check: Callable[[Context], None]
    do: Callable[[Context], Result]
    draws: bool = False
    labels: bool = False


TASKS: Final[dict[str, Task]] = {
    "probe": Task(probe_knn.check_probe, probe_knn.probe, labels=True),
    "knn": Task(probe_knn.check_knn, probe_knn.knn, labels=True),
    "label_free": Task(label_free.check, label_free.judge),
    "dci": Task(dci.check, dci.disentangle, labels=True),
    "reconstruction": Task(reconstruction.check, reconstruction.reconstruct, draws=True),
    "samples": Task(reconstruction.check_samples, reconstruction.samples, draws=True),
    "novel_views": Task(novel_views.check, novel_views.draw_views, draws=True),
    "fid": Task(fid.check, fid.measure, draws=True),
    "latents": Task(latents.check, latents.draw_sheets),
}


DEFAULT: Final = ("probe", "knn")
UNLABELLED: Final = ("label_free", "samples")
"""What is done without `--tasks`, on data with labels and without."""


def chosen(text: str) -> Sequence[str]:
    """Parse comma-separated names of tasks, in the order of the table; a `UserError` for unknown ones."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in TASKS]
    if unknown or not names:
        raise UserError("--tasks", ", ".join(unknown) or "nothing", ", ".join(TASKS), "choose some of them")
    return [name for name in TASKS if name in names]


def fitting(context: Context) -> Sequence[str]:
    """Return the tasks to do if none is named, those that the data and the model allow; say what is left out.

    Raises:
        UserError: none of them can be done.
    """
    if context.manifest.labels:
        return DEFAULT
    doing, left = list[str](), list(DEFAULT)
    for name in UNLABELLED:
        try:
            check([name], context)
            doing.append(name)
        except UserError:
            left.append(name)
    if not doing:
        allowed = ", ".join(name for name, task in TASKS.items() if not _lack(task, context))
        raise UserError("--tasks", "nothing, on data without labels", allowed, "choose some of them")
    context.say(f"data without labels: doing {', '.join(doing)}; left out {', '.join(left)}")
    return doing


def check(names: Sequence[str], context: Context) -> None:
    """Raise a `UserError` for the first task that lacks what it needs."""
    for name in names:
        if lack := _lack(TASKS[name], context):
            allowed = ", ".join(other for other, task in TASKS.items() if not _lack(task, context))
            got, remedy = lack
            raise UserError("--tasks", f"{name} of {got}", allowed, f"leave it out, or {remedy}")
        TASKS[name].check(context)


def _lack(task: Task, context: Context) -> tuple[str, str] | None:
    """Return why a task cannot be done with this encoder or data, and the remedy; None if it can."""
    if task.draws and context.encoder_only:
        return "an encoder alone", "evaluate a run"
    if task.labels and not context.manifest.labels:
        return "data without labels", "prepare labelled data"
    return None
