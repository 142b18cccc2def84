"""From which checkpoint a run resumes: the latest that is whole."""

from soda_dist.data.storage.folder import Folder
from soda_dist.data.storage.metadata import ContentError
from soda_dist.errors import UserError
from soda_dist.runs.folder import CHECKPOINTS, complete_steps, set_aside
from soda_dist.training import checkpoint
from soda_dist.training.context import WorkerContext
from soda_dist.training.engines.engine import Engine


def resume(context: WorkerContext, engine: Engine, run: Folder) -> int:
    """Restore the latest checkpoint that is whole and return its step; 0 = a new run. Call on every rank.

    A damaged one is passed over with a line and counts as incomplete from then on.

    Raises:
        UserError: an older format, a checkpoint of another model, or all are damaged.
    """
    damaged: dict[int, ContentError] = {}
    for step in reversed(context.gather(complete_steps(run) if context.rank == 0 else [])[0]):
        updates, problem = 0, None
        try:
            updates = checkpoint.read_into(run, step, engine, context)
        except UserError as error:
            problem = error
        problems = [found for found in context.gather(problem) if found is not None]
        fatal = next((found for found in problems if not isinstance(found, ContentError)), None)
        if fatal is not None:
            raise fatal
        if not problems:
            engine.restored(updates)
            if context.rank == 0:
                for other, reason in damaged.items():
                    set_aside(run, other, str(reason))
            context.say(f"resuming from step {step} of {run.uri}")
            return step
        damaged[step] = problems[0]
        why = str(problems[0]).partition("; allowed: ")[0]
        context.say(f"passing over the damaged checkpoint of step {step}: {why}")
    if damaged:
        first = next(iter(damaged.values()))
        remedy = f"none of the {len(damaged)} checkpoints is whole: restore a file, or remove {run.uri}/{CHECKPOINTS}"
        raise UserError(first.field, first.got, first.allowed, f"{remedy} to begin anew")
    return 0
