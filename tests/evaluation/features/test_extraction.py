"""Extraction: each row once and in order, as the networks and the shards say."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from soda_dist.config.load import with_fields
from soda_dist.data.shards import ShardReader
from soda_dist.data.storage.folder import Folder, open_folder
from soda_dist.data.views.pair_views import center_views
from soda_dist.errors import UserError
from soda_dist.evaluation.features.extraction import collect, extract, place_of, read_features
from soda_dist.evaluation.model_sources import Checkpoint
from soda_dist.evaluation.pieces import Piece, Point, plan_pieces
from soda_dist.evaluation.worker import Models, load_models
from soda_dist.models.pixels import raw_pixels
from soda_dist.parallel.pool import Held
from soda_dist.parallel.progress import silent
from soda_dist.training.build import build_model
from soda_dist.training.checkpoint import load_model
from tests.evaluation.local import Recording, alone, with_nan
from tests.evaluation.scattered_pool import ScatteredPool
from tests.tiny import tiny_config


@pytest.fixture(scope="module")
def models(small: Path) -> Models:
    return load_models(Checkpoint(open_folder(str(small / "run")), 6, True), str(small / "data"), tiny_config(), "cpu")


@pytest.fixture
def place(tmp_path: Path) -> Folder:
    return open_folder(str(tmp_path / "latents"))


def test_latents_are_those_of_the_trained_and_the_initial_encoder(models: Models, place: Folder, small: Path) -> None:
    pieces = plan_pieces("train", models.reader["train"].groups, None, 16)
    features = collect(ScatteredPool(0, Held(models)), place, pieces, silent)
    assert len(features) == 44 and features.unreadable == ["train/13.png"]
    keys = np.delete(np.arange(45), 13)
    assert (features.labels(("colour", "bright")) == np.stack([keys % 3, keys % 2], axis=1)).all()

    reader = ShardReader(models.reader["train"].folder, models.reader["train"].manifest, "train")
    images = [image for g in range(5) for image in reader.group(g, ["image"]).column("image").to_pylist()]
    views = torch.from_numpy(center_views([images[k] for k in keys], size=16, resize=1.0)[0])
    trained, _, _ = load_model(open_folder(str(small / "run")), 6)
    with torch.no_grad():
        expected = {
            "trained": trained.encode(alone(views)),
            "untrained": build_model(models.config).eval().encode(alone(views)),
            "pixels": views.flatten(1),
        }
    for name, values in expected.items():
        torch.testing.assert_close(torch.from_numpy(features.arrays[name]), values, rtol=1e-4, atol=1e-5)
    assert features.arrays["pixels"].dtype == np.uint8
    assert np.abs(features.arrays["trained"] - features.arrays["untrained"]).max() > 1e-3


def test_the_order_in_which_pieces_are_done_decides_nothing(models: Models, place: Folder) -> None:
    pieces = plan_pieces("test", models.reader["test"].groups, None, 8)
    one, other = (collect(ScatteredPool(seed, Held(models)), place.child(str(seed)), pieces, silent) for seed in (1, 2))
    assert all((one.arrays[name] == other.arrays[name]).all() for name in one.arrays)
    assert one.table == other.table


def test_drawn_rows_have_the_latents_that_they_have_among_all(models: Models, place: Folder) -> None:
    groups, drawn = models.reader["train"].groups, np.array([3, 4, 9, 13, 20, 30, 31, 44])
    some = collect(ScatteredPool(0, Held(models)), place, plan_pieces("train", groups, drawn, 3), silent)
    assert some.keys.tolist() == [3, 4, 9, 20, 30, 31, 44] and some.unreadable == ["train/13.png"]
    said: list[str] = []
    whole = collect(ScatteredPool(0, Held(models)), place, plan_pieces("train", groups, None, 16), said.append)
    assert not any("reusing" in line for line in said), "a part of a piece is not the piece"
    among = np.isin(whole.keys, drawn)
    assert some.table == whole.table.filter(among)
    np.testing.assert_allclose(some.arrays["trained"], whole.arrays["trained"][among], rtol=1e-4, atol=1e-5)


def test_pieces_that_are_there_are_not_done_again(models: Models, place: Folder) -> None:
    pieces = plan_pieces("test", models.reader["test"].groups, None, 8)
    collect(ScatteredPool(0, Held(models)), place, pieces[:-1], silent)

    pool, said = Recording(setup=Held(models)), list[str]()
    whole = collect(pool, place, pieces, said.append)
    assert pool.done == pieces[-1:] and len(whole) == 29
    assert "latents of test: reusing 20 of 30 cached images" in said
    alone = collect(ScatteredPool(0, Held(models)), place.child("alone"), pieces, silent)
    assert all((whole.arrays[name] == alone.arrays[name]).all() for name in whole.arrays)


def test_a_piece_in_anothers_place_is_noticed(models: Models, place: Folder) -> None:
    pieces = plan_pieces("test", models.reader["test"].groups, None, 8)
    collect(ScatteredPool(0, Held(models)), place, pieces, silent)
    folder = place.child("test")
    folder.write(pieces[1].file, folder.read(pieces[0].file))
    with pytest.raises(RuntimeError, match="lacks rows or has some twice"):
        read_features(folder, pieces)


def test_the_place_of_latents_says_what_they_depend_on(place: Folder) -> None:
    config = tiny_config()

    def at(weights="a", shards=("b",), points=(), **changed) -> str:
        return place_of(place, with_fields(config, changed), weights, shards, points).uri

    assert at() == at() == at(**{"evaluation.probe.epochs": 3, "scale.workers": 2})
    others = [
        at(weights="c"), at(shards=("b", "c")), at(points=(Point("up.0", 1),)), at(seed=5),
        at(**{"data.source_size": 24}), at(**{"evaluation.batch": 7}), at(**{"train.precision": "bf16"}),
    ]  # fmt: skip
    assert len({at(), *others}) == 1 + len(others)


def test_latents_lie_as_parquet_with_keys_and_labels(models: Models, place: Folder) -> None:
    pieces = plan_pieces("test", models.reader["test"].groups, np.arange(8), 8)
    collect(ScatteredPool(0, Held(models)), place, pieces, silent)
    (entry,) = place.list()
    table = pq.read_table(f"{place.uri}/{entry.name}")
    assert table.column("key").to_pylist() == list(range(8))
    assert table.column("ok").to_pylist() == [False, *[True] * 7]
    assert table.column("label/colour").to_pylist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert table.schema.field("vector/trained").type == pa.list_(pa.float32(), 12)


def test_rows_that_are_not_where_their_key_says_are_noticed(models: Models, monkeypatch) -> None:
    with pytest.raises(RuntimeError, match="keys other than their ordinals"):
        extract(models, Piece("test", (1,), 0, 10))
    table = models.reader["test"].group(0, ["key"])
    monkeypatch.setattr(ShardReader, "group", lambda self, number, columns: table)
    with pytest.raises(RuntimeError, match="keys other than their ordinals"):
        extract(models, Piece("test", (1,), 12, 2, chosen=(12, 14)))


def test_a_diverged_encoder_is_the_users_to_know(models: Models, place: Folder) -> None:
    model = copy.deepcopy(models.model)
    model.encoder.register_forward_hook(with_nan)
    pieces = plan_pieces("test", models.reader["test"].groups, None, 8)
    with pytest.raises(UserError, match="2 latents of test that are not finite"):
        collect(ScatteredPool(0, Held(replace(models, model=model))), place, pieces, silent)


def test_progress_ends_with_the_whole(models: Models, place: Folder) -> None:
    lines: list[str] = []
    collect(
        ScatteredPool(0, Held(models)), place, plan_pieces("test", models.reader["test"].groups, None, 8), lines.append
    )
    assert "latents of test: 30 of 30 images" in lines[-1]


def test_raw_pixels_are_the_image_averaged_down() -> None:
    small = torch.randint(256, (2, 16, 16, 3), dtype=torch.uint8)
    assert torch.equal(raw_pixels(small), small.flatten(1))
    coarse = torch.randint(256, (2, 32, 32, 3), dtype=torch.uint8)
    fine = coarse.repeat_interleave(4, 1).repeat_interleave(4, 2)
    found = raw_pixels(fine).view(2, 32, 32, 3).float()
    assert found.shape == coarse.shape
    correlation = np.corrcoef(found.flatten(), coarse.float().flatten())[0, 1]
    assert correlation > 0.9 and abs(float(found.mean() - coarse.float().mean())) < 1.0
