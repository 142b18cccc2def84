"""Scores of a set of drawn images."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from soda_dist.data.storage.folder import Folder
from soda_dist.errors import UserError
from soda_dist.evaluation.context import Context
from soda_dist.evaluation.images.generated_sets import SetPiece, load_set
from soda_dist.evaluation.images.judges import check_weights, facts_of, lpips_scores
from soda_dist.evaluation.images.scores import summary
from soda_dist.metrics.estimates import mean_of

ANGLE_BIN = 30
"""Degrees between source and target camera that share a row of scores."""


def check_lpips(context: Context) -> None:
    """Raise a `UserError` if LPIPS is asked for and its weights are not found."""
    if context.config.evaluation.lpips.weights is not None:
        check_weights(context.config, "lpips")


def set_scores(context: Context, folder: Folder, pieces: Sequence[SetPiece]) -> tuple[dict[str, Any], dict[str, int]]:
    """Score a drawn set by PSNR, SSIM and, where its weights are named, LPIPS; and count its images.

    Novel views have their mean `angle` too, in degrees between the target's camera and the nearest source's, and the
    scores `by_angle`.

    Raises:
        UserError: no image could be read.
    """
    table = load_set(folder, pieces, ["psnr", "ssim", "angle"])
    total = sum(piece.rows for piece in pieces)
    if not len(table):
        split = pieces[0].image_set.split
        got = f"split {split} without a readable image"
        raise UserError("evaluation.test_split", got, "readable images", "choose another split")
    values: dict[str, NDArray[Any]] = {name: table.column(name).to_numpy() for name in ("psnr", "ssim")}
    if context.config.evaluation.lpips.weights is not None:
        values["lpips"] = lpips_scores(context, folder, pieces)
    counts = {"images": len(table), "unreadable": total - len(table)}
    scores: dict[str, Any] = {name: summary(name, each) for name, each in values.items()}
    if pieces[0].image_set.kind == "novel_views":
        angles = table.column("angle").to_numpy()
        scores |= {"angle": mean_of(angles), "by_angle": _by_angle(angles, values)}
    return scores, counts


def _by_angle(angles: NDArray[np.float64], values: dict[str, NDArray[Any]]) -> list[dict[str, Any]]:
    """Score the images of each range of angles that has any; the last range holds 180 degrees."""
    bins = np.minimum(angles // ANGLE_BIN, 180 // ANGLE_BIN - 1).astype(np.int64)
    found = []
    for number in np.unique(bins).tolist():
        among = bins == number
        scores = {name: summary(name, each[among]) for name, each in values.items()}
        degrees = [number * ANGLE_BIN, (number + 1) * ANGLE_BIN]
        found.append({"degrees": degrees, "images": int(among.sum()), **scores})
    return found


def lpips_facts(context: Context) -> dict[str, Any] | None:
    """Return a result's record of LPIPS' weights; without weights say that LPIPS is left out."""
    if context.config.evaluation.lpips.weights is None:
        context.say("LPIPS left out: evaluation.lpips.weights names no file")
        return None
    facts = context.workers.call(facts_of, "lpips")
    with_weights = "" if facts["published"] else " with non-standard weights, not comparable with published values"
    context.say(f"LPIPS is measured by {facts['net']}{with_weights}")
    return facts


def score_line(scores: dict[str, Any]) -> str:
    """Format scores as a part of a line."""
    digits = {
        "psnr": ("PSNR", 2, " dB"),
        "ssim": ("SSIM", 3, ""),
        "lpips": ("LPIPS", 3, ""),
        "angle": ("angle to the nearest source", 0, "°"),
    }
    parts = []
    for name, score in ((name, scores[name]) for name in digits if name in scores):
        title, places, unit = digits[name]
        parts.append(f"{title} {score['value']:.{places}f} ± {score['standard_error']:.{places}f}{unit}")
    return ", ".join(parts)
