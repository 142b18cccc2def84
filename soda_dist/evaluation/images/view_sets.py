"""Which novel views of held-out objects are drawn (section 4.2.2), from one source view or several."""

from bisect import bisect_right
from collections.abc import Sequence
from typing import Literal

from soda_dist.config.schema import RunConfig
from soda_dist.data.shards import ShardReader
from soda_dist.errors import UserError
from soda_dist.evaluation.context import Context
from soda_dist.evaluation.images.generated_sets import ImageSet, SetPiece, ViewPlan, plan_views
from soda_dist.evaluation.pieces import object_runs

PAPERS_SOURCES = (1, 3, 5, 7, 9)
"""Numbers of source views in figure 7 and table 5."""
Joined = Literal["own", "mean", "stochastic"]
"""Several latents: aggregated as the model was trained, by their mean, or one drawn at random for each step."""


def has_novel_views(config: RunConfig) -> bool:
    """Whether the model draws objects from cameras."""
    return config.data.views == "object" and config.data.pose == "cameras" and config.method != "unconditional"


def source_counts(context: Context) -> list[int]:
    """Return the numbers of source views to evaluate, ascending.

    Raises:
        UserError: objects have too few views for one of them.
    """
    e = context.config.evaluation
    reader = ShardReader(context.data, context.manifest, e.test_split)
    fewest = min(stop - start for start, stop in object_runs(reader))
    wanted = e.novel_views.sources or tuple(n for n in PAPERS_SOURCES if n < fewest)
    for number in (*wanted, context.config.sampling.sources):
        if number >= fewest:
            got = f"{number} sources of objects that have {fewest} views"
            allowed = f"1..{fewest - 1}" if fewest > 1 else "objects of two views or more"
            raise UserError("evaluation.novel_views.sources", got, allowed, "ask for fewer sources")
    return sorted(set(wanted))


def target_views(
    context: Context, sources: int, joined: Joined, objects: int | None, *, limit: int | None = None
) -> list[SetPiece]:
    """Plan the views to draw from `sources` source views: the same ones whatever their number.

    `objects`: None = all of the split; `limit`: of views in all.
    """
    e = context.config.evaluation
    sampling = context.config.sampling.model_copy(update={"sources": sources, "stochastic": joined == "stochastic"})
    image_set = ImageSet("novel_views", e.test_split, sampling, "mean" if joined == "mean" else "own")
    return plan_views(context, image_set, ViewPlan(objects, e.novel_views.views, _most(context), limit))


def _most(context: Context) -> int:
    """Return the largest number of sources of all sets: no set may draw one of its sources."""
    return max([*source_counts(context), context.config.sampling.sources])


def coverage(context: Context, pieces: Sequence[SetPiece]) -> dict[str, int]:
    """Count target views and their objects, and those that the split has in all: a result's record."""
    runs = object_runs(ShardReader(context.data, context.manifest, context.config.evaluation.test_split))
    starts, most = [start for start, _ in runs], _most(context)
    keys = [key for piece in pieces for key in piece.keys]
    return {
        "views": len(keys),
        "of_views": sum(stop - start - most for start, stop in runs),
        "objects": len({bisect_right(starts, key) for key in keys}),
        "of_objects": len(runs),
    }
