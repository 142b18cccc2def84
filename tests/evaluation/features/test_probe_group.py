"""The probe by a gang over latents on storage: the scores of one process with all rows, however they are divided."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from soda_dist.data.storage.folder import open_folder
from soda_dist.errors import UserError
from soda_dist.evaluation.context import Context
from soda_dist.evaluation.features.probe_group import Draw
from soda_dist.evaluation.features.probe_passes import Training, fit_probes
from soda_dist.evaluation.features.scoring import plain_values
from soda_dist.evaluation.features.targets import Target
from soda_dist.evaluation.pieces import Features, Piece
from soda_dist.metrics.classification import Labelled, Scores
from soda_dist.metrics.probe import evaluate
from tests.evaluation.contexts import context_of, without_model
from tests.evaluation.local import ThreadGang, on_threads
from tests.metrics.test_probe import SETTINGS
from tests.tiny import tiny_config

FIT = {**SETTINGS, "learning_rates": (1e-2, 3e-2), "epochs": 6}
SEED, ROWS = 2, 1200
DIGIT = Target("digit", "class", ("digit",), 10)


@pytest.fixture(scope="module")
def digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    latents, labels = load_digits(return_X_y=True)
    return latents.astype(np.float32), labels.astype(np.int64)


@pytest.fixture
def context(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    """Of a pool that fits on threads."""
    on_threads(monkeypatch)
    config = tiny_config(seed=SEED, evaluation={"probe": FIT})
    return replace(context_of(without_model(config, small / "data"), tmp_path), pool=ThreadGang())


def _stored(place: Path, latents: NDArray[np.float32], sizes: list[int], number: int | None = None) -> Draw:
    folder, pieces, at = open_folder(str(place / f"draw-{number}")), [], 0
    for count in sizes:
        piece = Piece("train", (), at, count, number=number)
        flat = pa.array(latents[at : at + count].ravel())
        table = pa.table({"vector/trained": pa.FixedSizeListArray.from_arrays(flat, latents.shape[1])})
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        folder.write(piece.file, sink.getvalue())
        pieces.append(piece)
        at += count
    return Draw(folder, tuple(pieces))


def _facts(split: str, columns: dict[str, NDArray[np.int64]], **arrays: NDArray[Any]) -> Features:
    table = pa.table(columns)
    return Features(split, np.arange(len(table)), table, arrays, [])


def _fit(
    context: Context, draws: list[NDArray[np.float32]], sizes: list[int], ok: NDArray[np.bool_], test: Features,
    columns: dict[str, NDArray[np.int64]], target: Target, members: int,
) -> dict[str, Any]:  # fmt: skip
    """The trained encoder's scores; the first of `draws` is the central one."""
    place = Path(context.run.uri)
    plain, *passes = [_stored(place, draw, sizes, number - 1 if number else None) for number, draw in enumerate(draws)]
    kept = {name: column[:ROWS][ok] for name, column in columns.items()}
    training = Training(plain, tuple(passes), ok, _facts("train", kept))
    return fit_probes(context, training, test, target, members)["encoders"]["trained"]


def _in_one_process(train: Labelled, test: Labelled, classes: int, **more: Any) -> Scores:
    return evaluate(train, test, classes=classes, seed=SEED, **FIT, **more)


def _same(found: dict[str, Any], alone: Scores, dimension: int = 64) -> None:
    assert {**found, "seconds": 0.0} == plain_values(alone, dimension, 0.0)


@pytest.mark.parametrize(
    ("members", "sizes", "passes"),
    [(1, [700, 500], 0), (2, [100, 300, 800], 0), (3, [500, 400, 300], 2), (3, [800, 400], 0)],
    ids=str,
)
def test_the_scores_are_those_of_one_process(context: Context, digits, members, sizes, passes) -> None:
    """More pieces than members, and fewer; rows that cannot be read are nobody's."""
    latents, labels = digits
    ok = np.ones(ROWS, bool)
    ok[[3, 500, 501, 1199]] = False
    noise = np.random.default_rng(0).normal(size=(passes, ROWS, 64)).astype(np.float32)
    draws = [latents[:ROWS], *(latents[:ROWS] + noise)]
    test = _facts("test", {"digit": labels[ROWS:]}, trained=latents[ROWS:])
    found = _fit(context, draws, sizes, ok, test, {"digit": labels}, DIGIT, members)

    shown = np.stack([draw[ok] for draw in draws[1:]]) if passes else latents[:ROWS][ok]
    train = Labelled(torch.from_numpy(shown), torch.from_numpy(labels[:ROWS][ok]))
    held = Labelled(torch.from_numpy(latents[ROWS:]), torch.from_numpy(labels[ROWS:]))
    alone = _in_one_process(train, held, 10, **({"plain": torch.from_numpy(latents[:ROWS][ok])} if passes else {}))
    assert alone.estimates["top1"].value > 0.85
    _same(found, alone)
    (parts,) = context.pool.gangs
    assert len(parts) == members and sum(len(part.labels) for part in parts) == ok.sum()
    assert [piece for part in parts for piece in part.plain.pieces] == sorted(
        (piece for part in parts for piece in part.plain.pieces), key=lambda piece: piece.first_row
    )


def test_attributes_come_with_their_own_f1(context: Context, digits) -> None:
    latents, labels = digits
    columns = {"odd": labels % 2, "high": labels // 5}
    target = Target("attributes", "attribute", tuple(columns), 2)
    test = _facts("test", {name: column[ROWS:] for name, column in columns.items()}, trained=latents[ROWS:])
    found = _fit(context, [latents[:ROWS]], [600, 600], np.ones(ROWS, bool), test, columns, target, 2)
    both = torch.from_numpy(np.stack(list(columns.values()), 1))
    alone = _in_one_process(
        Labelled(torch.from_numpy(latents[:ROWS]), both[:ROWS]),
        Labelled(torch.from_numpy(latents[ROWS:]), both[ROWS:]),
        2,
    )
    _same(found, alone)
    assert len(found["details"]["f1_by_attribute"]) == 2


def test_a_wrong_label_is_told_as_it_is_in_one_process(context: Context, digits) -> None:
    latents, labels = digits
    test = _facts("test", {"digit": labels[ROWS:]}, trained=latents[ROWS:])
    with pytest.raises(ValueError, match=r"labels 0\.\.9 for 5 classes"):
        five = replace(DIGIT, classes=5)
        _fit(context, [latents[:ROWS]], [600, 600], np.ones(ROWS, bool), test, {"digit": labels}, five, 2)


@pytest.mark.parametrize("passes", [0, 2])
def test_latents_of_any_member_that_are_not_finite_are_the_users_to_know(context: Context, digits, passes) -> None:
    """Each member reads its own rows; all of them end."""
    latents, labels = digits
    bad, ok = latents[:ROWS].copy(), np.ones(ROWS, bool)
    bad[[5, 1000], 3] = np.nan, np.inf
    bad[7] = np.nan
    ok[7] = False
    test = _facts("test", {"digit": labels[ROWS:]}, trained=latents[ROWS:])
    draws = [latents[:ROWS], *[bad] * passes] if passes else [bad]
    with pytest.raises(UserError, match=f"an encoder with {2 * max(passes, 1)} latents of train that are not finite"):
        _fit(context, draws, [600, 600], ok, test, {"digit": labels}, DIGIT, 2)
