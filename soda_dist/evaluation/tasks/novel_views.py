"""Novel views (section 4.2.2, table 5): one source or several, their latents joined in several ways."""

import time
from typing import Any, Literal

from soda_dist.config.schema import RunConfig
from soda_dist.data.shards import ShardReader
from soda_dist.errors import UserError
from soda_dist.evaluation.context import Result, Subject
from soda_dist.evaluation.images.generated_sets import DrawnSet, Members, draw_set, object_runs, view_set
from soda_dist.evaluation.images.view_sets import has_novel_views, show_novel_views
from soda_dist.evaluation.tasks.reconstruction import check_lpips, lpips_facts, score_line, set_scores

PAPERS = (1, 3, 5, 7, 9)
"""Numbers of source views in figure 7 and table 5."""
Joined = Literal["own", "mean", "stochastic"]


def check(subject: Subject) -> None:
    """Needs a model that draws objects from cameras, and objects with views enough."""
    if not has_novel_views(subject.config):
        got = "novel_views of a run without cameras"
        allowed = "runs with data.views=object and data.pose=cameras"
        raise UserError("--tasks", got, allowed, "leave it out, or pretrain with cameras")
    check_sources(subject)
    check_lpips(subject)


def check_sources(subject: Subject) -> None:
    """A `UserError` where objects have too few views for a number of sources."""
    _sources(subject)


def _views(subject: Subject) -> int:
    """Fewest views of an object of the test split."""
    reader = ShardReader(subject.data, subject.manifest, subject.config.evaluation.test_split)
    return min(stop - start for start, stop in object_runs(reader))


def _sources(subject: Subject) -> list[int]:
    fewest, e = _views(subject), subject.config.evaluation
    wanted = e.novel_views.sources or tuple(n for n in PAPERS if n < fewest)
    for number in (*wanted, subject.config.sampling.sources):
        if number >= fewest:
            got = f"{number} sources of objects that have {fewest} views"
            allowed = f"1..{fewest - 1}" if fewest > 1 else "objects of two views or more"
            raise UserError("evaluation.novel_views.sources", got, allowed, "ask for fewer sources")
    return sorted(set(wanted))


def asked_views(
    subject: Subject, sources: int, joined: Joined, objects: int, *, limit: int | None = None
) -> list[Members]:
    """The views that are drawn from so many sources; which they are does not depend on the number of sources."""
    e = subject.config.evaluation
    how = subject.config.sampling.model_copy(update={"sources": sources, "stochastic": joined == "stochastic"})
    of = DrawnSet("novel_views", e.test_split, how, "mean" if joined == "mean" else "own")
    skip = max([*_sources(subject), subject.config.sampling.sources])
    return view_set(subject, of, objects, e.novel_views.views, skip, limit)


def draw_views(subject: Subject) -> Result:
    """`novel_views.json` and `novel_views.png`."""
    began = time.monotonic()
    config, say = subject.config, subject.say
    facts, pictures = show_novel_views(subject.crew, config, say)
    sets: list[dict[str, Any]] = []
    for sources in _sources(subject):
        for joined in _ways(config, sources):
            pieces = asked_views(subject, sources, joined, config.evaluation.novel_views.objects)
            name = config.aggregation.kind if joined == "own" else joined
            what = f"novel views from {sources}, {name}" if sources > 1 else "novel views from 1"
            folder = draw_set(subject, pieces, what)
            scores, counts = set_scores(subject, folder, pieces)
            sets.append({"sources": sources, "aggregation": name, "counts": counts, **scores})
            say(f"{what}: {score_line(scores)}")
    facts |= {
        "splits": {"test": facts["split"]},
        "counts": sets[0]["counts"],
        "metric": "psnr",
        **sets[0]["psnr"],
        "sets": sets,
        "lpips": lpips_facts(subject),
    }
    return subject.record("novel_views", facts, pictures, began)


def _ways(config: RunConfig, sources: int) -> list[Joined]:
    """How latents are joined, the configured way first: as trained, by their mean, one at random a step."""
    if sources == 1:
        return ["own"]
    ways: list[Joined] = ["own", "stochastic"] if config.aggregation.kind == "mean" else ["own", "mean", "stochastic"]
    return sorted(ways, key=lambda way: way != "stochastic") if config.sampling.stochastic else ways
