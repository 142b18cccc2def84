"""Novel views (section 4.2.2, table 5): one source view or several, their latents joined in several ways."""

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from soda_dist.config.schema import RunConfig
from soda_dist.errors import UserError
from soda_dist.evaluation.context import Context, Result
from soda_dist.evaluation.images.generated_sets import generate_set, view_order
from soda_dist.evaluation.images.sampling import SampleInputs, SampleJob, sample_all
from soda_dist.evaluation.images.scores import likeness
from soda_dist.evaluation.images.set_scores import check_lpips, lpips_facts, score_line, set_scores
from soda_dist.evaluation.images.view_sets import Joined, coverage, has_novel_views, source_counts, target_views
from soda_dist.evaluation.pieces import object_runs, rows_at
from soda_dist.evaluation.rows import drawn_order
from soda_dist.evaluation.views import EvaluationViews, central_views, pose_columns
from soda_dist.evaluation.worker import Models
from soda_dist.parallel.pool import Pool
from soda_dist.parallel.progress import Say
from soda_dist.plots.image_grid import image_grid


def check(context: Context) -> None:
    """Raise a `UserError` unless the model draws objects from cameras and objects have enough views."""
    if not has_novel_views(context.config):
        got = "novel_views of a run without cameras"
        allowed = "runs with data.views=object and data.pose=cameras"
        raise UserError("--tasks", got, allowed, "leave it out, or pretrain with cameras")
    source_counts(context)
    check_lpips(context)


def draw_views(context: Context) -> Result:
    """Write `novel_views.json` and `novel_views.png`."""
    began = time.monotonic()
    config, say = context.config, context.say
    facts, pictures = show_novel_views(context.workers, config, say)
    sets: list[dict[str, Any]] = []
    for sources in source_counts(context):
        for joined in _ways(config, sources):
            pieces = target_views(context, sources, joined, config.evaluation.novel_views.objects)
            name = config.aggregation.kind if joined == "own" else joined
            what = f"novel views from {sources}, {name}" if sources > 1 else "novel views from 1"
            folder = generate_set(context, pieces, what)
            scores, counts = set_scores(context, folder, pieces)
            sets.append({"sources": sources, "aggregation": name, "counts": counts, **scores})
            say(f"{what}: {score_line(scores)}")
    facts |= {
        "splits": {"test": facts["split"]},
        "counts": sets[0]["counts"],
        "coverage": coverage(context, pieces),
        "limits": config.evaluation.novel_views.model_dump(mode="json", include={"objects", "views"}),
        "metric": "psnr",
        **sets[0]["psnr"],
        "sets": sets,
        "lpips": lpips_facts(context),
    }
    return context.record("novel_views", facts, pictures, began)


def _ways(config: RunConfig, sources: int) -> list[Joined]:
    """List the ways to join latents, the configured one first."""
    if sources == 1:
        return ["own"]
    ways: list[Joined] = ["own", "stochastic"] if config.aggregation.kind == "mean" else ["own", "mean", "stochastic"]
    return sorted(ways, key=lambda way: way != "stochastic") if config.sampling.stochastic else ways


MOST_TARGETS = 8
"""Views of each object in the picture."""


def pick_objects(models: Models, count: int) -> tuple[SampleInputs, list[int]]:
    """Draw `count` objects of the test split, and count the target views of each.

    The first `sampling.sources` readable views of an object's drawn order are its sources; up to MOST_TARGETS of the
    next are its targets.
    """
    config = models.config
    split, given = config.evaluation.test_split, config.sampling.sources
    runs = object_runs(models.reader[split])
    found: list[tuple[NDArray[np.int64], EvaluationViews]] = []
    for number in drawn_order(len(runs), config.seed, split).tolist():
        if len(found) == count:
            break
        keys = np.array(view_order(config, split, *runs[number]))
        seen = central_views(rows_at(models.reader[split], keys.tolist(), ["image", *pose_columns(config)]), config)
        if seen.ok.sum() > given:
            found.append((keys[seen.ok], seen))
    if not found:
        got = f"{split} without an object of {given + 1} readable views"
        raise UserError("evaluation.test_split", got, f"objects with more than {given} views", "choose another split")
    parts = [_inputs_of(keys, seen, given) for keys, seen in found]
    names = ("keys", "source", "source_pose", "target", "pose")
    whole = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return SampleInputs(**whole), [len(part.keys) for part in parts]


def _inputs_of(keys: NDArray[np.int64], seen: EvaluationViews, given: int) -> SampleInputs:
    """One object's sources, repeated for each target view."""
    ok = np.flatnonzero(seen.ok)
    sources, targets = ok[:given], ok[given : given + MOST_TARGETS]
    assert seen.pose is not None
    return SampleInputs(
        keys=keys[given : given + MOST_TARGETS],
        source=np.broadcast_to(seen.source[sources], (len(targets), *seen.source[sources].shape)),
        source_pose=np.broadcast_to(seen.pose[sources], (len(targets), *seen.pose[sources].shape)),
        target=seen.target[targets],
        pose=seen.pose[targets],
    )


def show_novel_views(workers: Pool, config: RunConfig, say: Say) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return facts for novel_views.json, and the picture: each object's sources, drawn views, and the truth below."""
    inputs, counts = workers.call(pick_objects, config.evaluation.images)
    (drawn,) = sample_all(workers, [SampleJob(inputs, config.sampling.guidance, 0, 0)], say)
    facts = {
        "split": config.evaluation.test_split,
        "objects": len(counts),
        "views": len(inputs.keys),
        "sources": config.sampling.sources,
        "model": likeness(drawn.images, inputs.target),
        "nearest_source": likeness(_nearest(inputs), inputs.target),
        "mean_image": likeness(_mean(inputs.target), inputs.target),
        "settings": config.sampling.model_dump(mode="json"),
    }
    say(_line(facts))
    return facts, {"novel_views.png": _picture(inputs, drawn.images, counts)}


def _nearest(inputs: SampleInputs) -> NDArray[np.uint8]:
    """Return the source with the nearest camera for each target, in the target's size."""
    import cv2

    assert inputs.source_pose is not None and inputs.pose is not None
    side = inputs.target.shape[1]
    places = inputs.source_pose[:, :, 3:12:4]  # the fourth column of each row: where the camera is
    distance = np.linalg.norm(places - inputs.pose[:, None, 3:12:4], axis=2)
    chosen = inputs.source[np.arange(len(distance)), distance.argmin(1)]
    return np.stack([cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA) for image in chosen])


def _mean(target: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the mean of all targets for each of them: the best guess without any source."""
    mean = target.astype(np.float64).mean(0).round().astype(np.uint8)
    return np.broadcast_to(mean, target.shape).copy()


def _line(facts: dict[str, Any]) -> str:
    psnr = {name: facts[name]["psnr"]["value"] for name in ("model", "nearest_source", "mean_image")}
    return (
        f"novel views of {facts['objects']} held-out objects, sources {facts['sources']}: PSNR {psnr['model']:.2f} dB, "
        f"nearest source {psnr['nearest_source']:.2f}, mean image {psnr['mean_image']:.2f}"
    )


def _picture(inputs: SampleInputs, drawn: NDArray[np.uint8], counts: list[int]) -> bytes:
    """Draw two rows for each object: drawn and truth, after the sources."""
    import cv2

    side, given = inputs.target.shape[1], inputs.source.shape[1]
    blank = np.full((side, side, 3), 255, np.uint8)
    rows, names, at = [], [], 0
    for count in counts:
        small = [cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA) for image in inputs.source[at]]
        pad = [blank] * (max(counts) - count)
        rows.append([*small, *drawn[at : at + count], *pad])
        rows.append([*[blank] * given, *inputs.target[at : at + count], *pad])
        names += ["drawn", "truth"]
        at += count
    columns = [*["source"] * given, *[f"camera {i + 1}" for i in range(max(counts))]]
    return image_grid(rows, columns, names)
