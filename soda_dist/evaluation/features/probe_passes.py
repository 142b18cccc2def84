"""Probes on latents that stay on storage: several workers with a part of the rows each, and passes of crops and flips.

Here the driver holds labels and the test split's latents alone; the training split's are read where they are needed.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from soda_dist.config.schema import RunConfig
from soda_dist.data.storage.folder import Folder
from soda_dist.distributed.probe_group import Gang, Rows, evaluate_in_parallel
from soda_dist.distributed.runtime.resources import check_resources, evaluation_resources
from soda_dist.evaluation.context import Subject
from soda_dist.evaluation.features.extraction import check_finite, features_of, not_finite, write_latents
from soda_dist.evaluation.features.scoring import fit_settings, plain_values, result_of
from soda_dist.evaluation.features.targets import Target
from soda_dist.evaluation.piece_cache import load
from soda_dist.evaluation.pieces import Features, Piece, Point
from soda_dist.parallel.progress import Progress
from soda_dist.runs.results import ENCODERS


@dataclass(frozen=True)
class Draw:
    """One view of each training image: the central ones, or those of a pass."""

    folder: Folder
    pieces: tuple[Piece, ...]


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
    """Whether probes are fitted here rather than by the actors that extract."""
    return config.evaluation.probe.workers > 1 or config.evaluation.probe.passes > 0


def gang_of(subject: Subject) -> Gang:
    """The workers that fit, for which the cluster must have, or may get, room.

    Raises:
        UserError: it has not.
    """
    config = subject.config
    workers, each = config.evaluation.probe.workers, evaluation_resources(config)
    gpus = math.ceil(each.get("GPU", 0))  # NCCL wants a whole one for each
    needed = {"CPU": float(workers)} | ({"GPU": float(workers * gpus)} if gpus else {})
    check_resources(needed, subject.say, setting="evaluation.probe.workers")
    return Gang(workers=workers, cpus=1.0, gpus=gpus, start_timeout_s=config.scale.start_timeout_s)


def extract_training(subject: Subject, point: Point | None) -> Training:
    """Extracts what is not there from before: central views, and `evaluation.probe.passes` passes of the same rows."""
    pieces, count = subject.pieces("train", point), subject.config.evaluation.probe.passes
    split, points = pieces[0].split, pieces[0].points
    plain = Draw(write_latents(subject.crew, subject.latents(split, points), pieces, subject.say), tuple(pieces))
    passes: tuple[Draw, ...] = ()
    if count:
        drawn = [tuple(replace(piece, number=number) for piece in pieces) for number in range(count)]
        place = subject.latents(split, points, passes=True)
        folder = write_latents(subject.crew, place, [piece for each in drawn for piece in each], subject.say)
        passes = tuple(Draw(folder, each) for each in drawn)
    labels = [f"label/{name}" for name in subject.manifest.labels]
    rows = _rows(plain, ["key", "name", "ok", *labels])
    readable = [rows, *(_rows(draw, ["key", "ok"]) for draw in passes)]
    ok = np.logical_and.reduce([each.column("ok").to_numpy() for each in readable])
    facts = features_of(split, rows, pa.chunked_array([pa.array(ok)]), {})
    subject.check_readable("train", len(facts))
    return Training(plain, passes, ok, facts)


def _rows(draw: Draw, columns: list[str]) -> pa.Table:
    """Of every piece of a draw, without latents."""
    rows = pa.concat_tables([load(draw.folder, piece, columns) for piece in draw.pieces])
    if rows.column("key").to_pylist() != list(range(sum(piece.rows for piece in draw.pieces))):
        raise RuntimeError(f"{draw.folder.uri} lacks rows, or has some twice")
    return rows


def fit_probes(subject: Subject, training: Training, test: Features, target: Target, gang: Gang) -> dict[str, Any]:
    """The probe's part of its result, as `measure_all` has it: each encoder's, one after another.

    The crew should be dismissed, so that what it held is free.
    """
    config, say = subject.config, subject.say
    encoders = [encoder for encoder in ENCODERS if encoder in test.arrays]
    labels = target.of(training.facts)
    progress = Progress(say, f"probe of {len(labels):,} images", "fits", len(encoders))
    found = {}
    for encoder in encoders:
        began = time.monotonic()
        parts = _parts(training, encoder, labels, gang.workers)
        held = Rows(ray.put(test.arrays[encoder]), ray.put(target.of(test)))
        settings = fit_settings(config, "probe")
        scores = evaluate_in_parallel(parts, held, gang, say, classes=target.classes, seed=config.seed, **settings)
        found[encoder] = plain_values(scores, test.arrays[encoder].shape[1], time.monotonic() - began)
        progress.add(1)
        progress.tick()
    progress.close()
    return result_of("probe", found, config)


def _parts(training: Training, encoder: str, labels: NDArray[np.int64], workers: int) -> list[Rows]:
    """An encoder's training rows in order, as one part for each worker, fewer where there are fewer pieces.

    Raises:
        UserError: latents of the trained encoder are not finite.
    """
    # No CPU: the gang may hold all of them when a part that was lost with its node is read again.
    read: Any = ray.remote(num_cpus=0, num_returns=2)(read_vectors)
    ends = np.cumsum([piece.rows for piece in training.plain.pieces])
    parts, bad, before = [], [], 0
    for places in np.array_split(np.arange(len(ends)), min(workers, len(ends))):
        first, last = int(places[0]), int(places[-1])
        ok = training.ok[ends[first] - training.plain.pieces[first].rows : ends[last]]
        plain, *passes = (
            Draw(draw.folder, draw.pieces[first : last + 1]) for draw in (training.plain, *training.passes)
        )
        found = [read.remote(draws, encoder, ok) for draws in ([plain], passes) if draws]
        bad += [count for _, count in found]
        after = before + int(ok.sum())
        kept, central = ray.put(labels[before:after]), found[0][0]
        parts.append(Rows(found[-1][0], kept, central if passes else None))
        before = after
    count = sum(ray.get(bad))
    if encoder == "trained":
        check_finite(count, training.facts.split)
    return parts


def read_vectors(draws: Sequence[Draw], encoder: str, ok: NDArray[np.bool_]) -> tuple[NDArray[Any], int]:
    """An encoder's vectors of the rows that are `ok` in each draw, [draws, n, D], and how many are not finite."""
    whole: NDArray[Any] | None = None
    for number, draw in enumerate(draws):
        row = at = 0
        for piece in draw.pieces:
            column = load(draw.folder, piece, [f"vector/{encoder}"]).column(0).combine_chunks()
            rows = column.flatten().to_numpy().reshape(len(column), -1)[ok[row : row + piece.rows]]
            if whole is None:
                whole = np.empty((len(draws), int(ok.sum()), rows.shape[1]), rows.dtype)
            whole[number, at : at + len(rows)] = rows
            row, at = row + piece.rows, at + len(rows)
    assert whole is not None, "a part has pieces"
    return whole, sum(not_finite(draw) for draw in whole)
