"""The linear probe over a gang, each member with a part of the training rows; the result is that of one with all."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from soda_dist.data.storage.folder import Folder
from soda_dist.evaluation.features.extraction import check_finite, not_finite
from soda_dist.evaluation.features.scoring import as_tensor
from soda_dist.evaluation.piece_cache import load
from soda_dist.evaluation.pieces import Piece
from soda_dist.metrics.classification import Labelled, Scores
from soda_dist.metrics.probe import fit_probe, probe_scores
from soda_dist.parallel.pool import Seat, Shared
from soda_dist.training.collectives import ProcessGroupContext
from soda_dist.training.context import LocalContext

COLLECTIVE_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Draw:
    """One view of each training image, stored as latents: the central view, or that of an augmented pass."""

    folder: Folder
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Part:
    """The rows of one member of the gang.

    Attributes:
        plain: central views of its rows.
        passes: augmented views of the same rows; empty = the probe is fitted on the central ones.
        ok: the rows that every draw could read.
        labels: int64 [n] or [n, A] of these.
        test: latents and labels of the test rows, read by the first member.
        encoder: whose vectors are read.
        split: names the rows in errors.
        classes, seed, settings: as of `metrics.probe.evaluate`.
    """

    plain: Draw
    passes: tuple[Draw, ...]
    ok: NDArray[np.bool_]
    labels: NDArray[np.int64]
    test: tuple[Shared[NDArray[Any]], Shared[NDArray[np.int64]]]
    encoder: str
    split: str
    classes: int
    seed: int
    settings: dict[str, Any]


def meet(host: str, size: int) -> tuple[Any, Any]:
    """The address of a store at the first member, and the store."""
    store = dist.TCPStore(host, 0, size, True, _timeout(), wait_for_workers=False)
    return (host, store.port), store


def fit_part(seat: Seat, part: Part) -> Scores | None:
    """A member's job: fit with the others; the scores at the first one.

    Raises:
        UserError: latents of the trained encoder are not finite.
    """
    device = torch.device(seat.device)
    like = part.test[0].get()
    plain, bad = read_vectors([part.plain], part.encoder, part.ok, like)
    drawn, more = read_vectors(part.passes, part.encoder, part.ok, like) if part.passes else (plain, 0)
    together = _joined_group(seat, device)
    if part.encoder == "trained":
        check_finite(int(together.sum(torch.tensor(bad + more)).item()), part.split)
    probe = fit_probe(
        as_tensor(drawn, device),
        as_tensor(part.labels, device),
        plain=as_tensor(plain, device) if part.passes else None,
        workers=together,
        classes=part.classes,
        seed=part.seed,
        **part.settings,
    )
    scores = None
    if seat.rank == 0:
        held = Labelled(*(as_tensor(each.get(), device) for each in part.test))
        scores = probe_scores(probe, held, seed=part.seed)
    together.barrier()  # the first member holds the store that the others' groups need to the end
    return scores


def _joined_group(seat: Seat, device: torch.device) -> ProcessGroupContext | LocalContext:
    if seat.size == 1:
        return LocalContext(device)
    host, port = seat.meeting
    store = seat.kept or dist.TCPStore(host, port, seat.size, False, _timeout())
    backend = "gloo" if device.type == "cpu" else "nccl"
    dist.init_process_group(backend, store=store, rank=seat.rank, world_size=seat.size, timeout=_timeout())
    return ProcessGroupContext(device, None)


def read_vectors(
    draws: Sequence[Draw], encoder: str, ok: NDArray[np.bool_], like: NDArray[Any]
) -> tuple[NDArray[Any], int]:
    """Read an encoder's vectors of the `ok` rows of each draw, [draws, n, D]; count those that are not finite.

    `like`: vectors of the same width and dtype.
    """
    whole = np.empty((len(draws), int(ok.sum()), like.shape[1]), like.dtype)
    for number, draw in enumerate(draws):
        row = at = 0
        for piece in draw.pieces:
            column = load(draw.folder, piece, [f"vector/{encoder}"]).column(0).combine_chunks()
            rows = column.flatten().to_numpy().reshape(len(column), -1)[ok[row : row + piece.rows]]
            whole[number, at : at + len(rows)] = rows
            row, at = row + piece.rows, at + len(rows)
    return whole, sum(not_finite(draw) for draw in whole)


def _timeout() -> timedelta:
    return timedelta(seconds=COLLECTIVE_TIMEOUT_S)
