"""FID, KID, precision and recall (section E.2) of a run's images against those of the test split."""

import time
from typing import Any

from torch import Tensor

from soda_dist.config.schema import RunConfig
from soda_dist.errors import UserError
from soda_dist.evaluation.context import Context, Result
from soda_dist.evaluation.images.generated_sets import ImageSet, Kind, SetPiece, generate_set, plan_images
from soda_dist.evaluation.images.judges import check_weights, facts_of, set_moments
from soda_dist.evaluation.images.view_sets import coverage, has_novel_views, source_counts, target_views
from soda_dist.metrics.distributions import KID_SUBSET_SIZE, KID_SUBSETS, NEIGHBOURS, fid, kid, precision_recall


def check(context: Context) -> None:
    """Raise a `UserError` without Inception's weights, or for sets that the run cannot draw."""
    config = context.config
    check_weights(config, "inception")
    able = _able(config)
    for kind in config.evaluation.fid.sets:
        if kind not in able:
            allowed = ", ".join(able)
            raise UserError("evaluation.fid.sets", kind, f"{allowed} with this run", "name sets that it can draw")
    if "novel_views" in _sets(config):
        source_counts(context)


def _able(config: RunConfig) -> list[Kind]:
    """List the sets that the run can draw."""
    found: list[Kind] = [] if config.method == "unconditional" else ["reconstruction"]
    if config.method in ("soda", "unconditional"):
        found.append("samples")
    return [*found, "novel_views"] if has_novel_views(config) else found


def _sets(config: RunConfig) -> list[Kind]:
    return [kind for kind in _able(config) if kind in (config.evaluation.fid.sets or _able(config))]


def measure(context: Context) -> Result:
    """Write `fid.json`."""
    began = time.monotonic()
    config, say = context.config, context.say
    e = config.evaluation
    sets: dict[str, Any] = {}
    for kind in _sets(config):
        pieces = _members(context, kind)
        folder = generate_set(context, pieces, f"images for FID, {kind}")
        found = {side: set_moments(context, folder, pieces, side, e.fid.feature_images) for side in ("image", "target")}
        (drawn, drawn_features), (real, real_features) = found["image"], found["target"]
        if drawn.count < 2:
            got = f"{drawn.count} readable images"
            raise UserError("evaluation.fid.images", got, "two or more", "choose another split or more of it")
        sets[kind] = {
            "fid": {"value": fid(drawn, real), "standard_error": None},
            **_by_features(drawn_features, real_features, config.seed),
            "counts": {"images": drawn.count, "unreadable": sum(piece.rows for piece in pieces) - drawn.count},
            "folder": folder.uri,
        }
        if kind == "novel_views":
            sets[kind]["coverage"] = coverage(context, pieces)
        say(_line(kind, sets[kind]))
    weights = context.workers.call(facts_of, "inception")
    if not weights["published"]:
        say("FID used non-standard Inception weights; not comparable with published values")
    first = next(iter(sets.values()))
    facts = {
        "split": e.test_split,
        "splits": {"test": e.test_split},
        "counts": first["counts"],
        "limits": {"test": e.fid.images},
        "metric": "fid",
        **first["fid"],
        "sets": sets,
        "inception": weights,
        "settings": {**e.fid.model_dump(mode="json"), "sampling": config.sampling.model_dump(mode="json")},
    }
    return context.record("fid", facts, {}, began)


def _members(context: Context, kind: Kind) -> list[SetPiece]:
    e = context.config.evaluation
    if kind == "novel_views":
        return target_views(context, context.config.sampling.sources, "own", None, limit=e.fid.images)
    return plan_images(context, ImageSet(kind, e.test_split, context.config.sampling), e.fid.images)


def _by_features(drawn: Tensor, real: Tensor, seed: int) -> dict[str, Any]:
    """Return KID over subsets, and precision and recall if the images suffice."""
    size = min(KID_SUBSET_SIZE, len(drawn))
    distance = kid(drawn, real, subset_size=size)
    found: dict[str, Any] = {
        "kid": {"value": distance.mean, "standard_error": distance.std / KID_SUBSETS**0.5},
        "kid_subset": size,
    }
    if len(drawn) > NEIGHBOURS:
        share = precision_recall(drawn, real)
        for name, value in (("precision", share.precision), ("recall", share.recall)):
            found[name] = {"value": value, "standard_error": (value * (1 - value) / len(drawn)) ** 0.5}
    return found


def _line(kind: str, scores: dict[str, Any]) -> str:
    text = f"FID of {kind}, {scores['counts']['images']:,} images: {scores['fid']['value']:.2f}"
    text += f", KID {scores['kid']['value']:.4f}"
    if "precision" in scores:
        text += f", precision {scores['precision']['value']:.3f}, recall {scores['recall']['value']:.3f}"
    return text
