"""Novel views (section 4.2.2): held-out objects, seen from cameras that are asked for, given one source or several."""

from typing import Literal

from soda_dist.config.schema import RunConfig
from soda_dist.data.shards import ShardReader
from soda_dist.errors import UserError
from soda_dist.evaluation.context import Context
from soda_dist.evaluation.images.generated_sets import ImageSet, SetPiece, plan_views
from soda_dist.evaluation.pieces import object_runs


def has_novel_views(config: RunConfig) -> bool:
    """Whether the model draws objects from cameras."""
    return config.data.views == "object" and config.data.pose == "cameras" and config.method != "unconditional"


PAPERS = (1, 3, 5, 7, 9)
"""Numbers of source views in figure 7 and table 5."""
Joined = Literal["own", "mean", "stochastic"]


def check_sources(context: Context) -> None:
    """A `UserError` where objects have too few views for a number of sources."""
    sources_of(context)


def _views(context: Context) -> int:
    """Fewest views of an object of the test split."""
    reader = ShardReader(context.data, context.manifest, context.config.evaluation.test_split)
    return min(stop - start for start, stop in object_runs(reader))


def sources_of(context: Context) -> list[int]:
    fewest, e = _views(context), context.config.evaluation
    wanted = e.novel_views.sources or tuple(n for n in PAPERS if n < fewest)
    for number in (*wanted, context.config.sampling.sources):
        if number >= fewest:
            got = f"{number} sources of objects that have {fewest} views"
            allowed = f"1..{fewest - 1}" if fewest > 1 else "objects of two views or more"
            raise UserError("evaluation.novel_views.sources", got, allowed, "ask for fewer sources")
    return sorted(set(wanted))


def asked_views(
    context: Context, sources: int, joined: Joined, objects: int, *, limit: int | None = None
) -> list[SetPiece]:
    """The views that are drawn from so many sources; which they are does not depend on the number of sources."""
    e = context.config.evaluation
    how = context.config.sampling.model_copy(update={"sources": sources, "stochastic": joined == "stochastic"})
    of = ImageSet("novel_views", e.test_split, how, "mean" if joined == "mean" else "own")
    skip = max([*sources_of(context), context.config.sampling.sources])
    return plan_views(context, of, objects, e.novel_views.views, skip, limit)
