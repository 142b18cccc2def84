"""Probes on latents that stay on storage: several workers with a part of the rows each, and passes of crops and flips.

Here the driver holds labels and the test split's latents alone; the training split's are read where they are needed.
"""

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from soda_dist.config.schema import RunConfig
from soda_dist.evaluation.context import Context
from soda_dist.evaluation.features.extraction import features_of, write_latents
from soda_dist.evaluation.features.probe_group import Draw, Part, fit_part, meet
from soda_dist.evaluation.features.scoring import fit_settings, plain_values, result_of
from soda_dist.evaluation.features.targets import Target
from soda_dist.evaluation.piece_cache import load
from soda_dist.evaluation.pieces import Features, Point
from soda_dist.parallel.progress import Progress
from soda_dist.runs.results import ENCODERS


@dataclass(frozen=True)
class Training:
    """The training split's latents on storage."""

    plain: Draw
    passes: tuple[Draw, ...]
    """Each of the same pieces as `plain`."""
    ok: NDArray[np.bool_]
    """Which rows every draw could read."""
    facts: Features
    """Of these rows, without latents."""


def needs_gang(config: RunConfig) -> bool:
    """Whether a gang fits the probes rather than the workers that extract."""
    return config.evaluation.probe.workers > 1 or config.evaluation.probe.passes > 0


def extract_training(context: Context, point: Point | None) -> Training:
    """Extract the latents that are not cached: central views and `evaluation.probe.passes` passes of the same rows."""
    pieces, count = context.pieces("train", () if point is None else (point,)), context.config.evaluation.probe.passes
    split, points = pieces[0].split, pieces[0].points
    plain = Draw(write_latents(context.workers, context.latents(split, points), pieces, context.say), tuple(pieces))
    passes: tuple[Draw, ...] = ()
    if count:
        drawn = [tuple(replace(piece, number=number) for piece in pieces) for number in range(count)]
        place = context.latents(split, points, passes=True)
        folder = write_latents(context.workers, place, [piece for each in drawn for piece in each], context.say)
        passes = tuple(Draw(folder, each) for each in drawn)
    labels = [f"label/{name}" for name in context.manifest.labels]
    rows = _rows(plain, ["key", "name", "ok", *labels])
    readable = [rows, *(_rows(draw, ["key", "ok"]) for draw in passes)]
    ok = np.logical_and.reduce([each.column("ok").to_numpy() for each in readable])
    facts = features_of(split, rows, pa.chunked_array([pa.array(ok)]), {})
    context.check_readable("train", len(facts))
    return Training(plain, passes, ok, facts)


def _rows(draw: Draw, columns: list[str]) -> pa.Table:
    """Of every piece of a draw, without latents."""
    rows = pa.concat_tables([load(draw.folder, piece, columns) for piece in draw.pieces])
    if not np.array_equal(rows.column("key").to_numpy(), np.concatenate([piece.keys for piece in draw.pieces])):
        raise RuntimeError(f"{draw.folder.uri} lacks rows, or has some twice")
    return rows


def fit_probes(context: Context, training: Training, test: Features, target: Target, members: int) -> dict[str, Any]:
    """The probe's part of its result, as `score_all` has it: each encoder's, one after another.

    The other workers should be released first. `members`: of the gang, see `Pool.gang_size`.
    """
    config, pool = context.config, context.pool
    encoders = [encoder for encoder in ENCODERS if encoder in test.arrays]
    labels = target.of(training.facts)
    progress = Progress(context.say, f"probe of {len(labels):,} images", "fits")
    progress.begin(encoders)
    found = {}
    for encoder in encoders:
        began = time.monotonic()
        held = (pool.share(test.arrays[encoder]), pool.share(target.of(test)))
        common = {"test": held, "encoder": encoder, "classes": target.classes, "seed": config.seed}
        parts = _parts(training, labels, members, settings=fit_settings(config, "probe"), **common)
        scores = pool.gang(fit_part, parts, meet)
        assert scores is not None, "the first member has the test rows"
        found[encoder] = plain_values(scores, test.arrays[encoder].shape[1], time.monotonic() - began)
        progress.add(encoder, scores)
        progress.tick()
    progress.close()
    return result_of("probe", found, config)


def _parts(training: Training, labels: NDArray[np.int64], members: int, **common: Any) -> list[Part]:
    """The training rows in order, a part for each member; parts without rows where members outnumber the pieces."""
    ends = np.cumsum([0, *(piece.rows for piece in training.plain.pieces)])
    kept = np.concatenate([[0], np.cumsum(training.ok)])
    parts = []
    for places in np.array_split(np.arange(len(ends) - 1), members):
        first, last = (int(places[0]), int(places[-1]) + 1) if len(places) else (0, 0)
        start, stop = ends[first], ends[last]
        draws = [Draw(draw.folder, draw.pieces[first:last]) for draw in (training.plain, *training.passes)]
        parts.append(
            Part(
                plain=draws[0],
                passes=tuple(draws[1:]),
                ok=training.ok[start:stop],
                labels=labels[kept[start] : kept[stop]],
                split=training.facts.split,
                **common,
            )
        )
    return parts
