"""Extraction without Ray: each row once and in order, as the networks and the shards say."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from soda_dist.config.load import with_fields
from soda_dist.data.shards import ShardReader
from soda_dist.data.storage.folder import Folder, open_folder
from soda_dist.data.views.pair_views import center_views
from soda_dist.errors import UserError
from soda_dist.evaluation.features.extraction import collect, extract, place_of, read_features
from soda_dist.evaluation.model_sources import Checkpoint
from soda_dist.evaluation.pieces import Features, Piece, Point, check_splits, plan_pieces
from soda_dist.evaluation.worker import Models, load_models, readers
from soda_dist.models.condition import Sources
from soda_dist.models.layers import settle_norms
from soda_dist.models.pixels import raw_pixels, source_input
from soda_dist.training.build import build_model
from soda_dist.training.checkpoint import load_model
from tests.evaluation.small_run import small_data, train
from tests.tiny import tiny_config


def alone(views: torch.Tensor) -> Sources:
    """uint8 [n, s, s, 3] views as the single sources of n samples."""
    return Sources(source_input(views)[:, None], torch.ones(len(views), 1, dtype=torch.bool), None)


class LocalCrew:
    """The crew's methods in this process; pieces are done in a seeded random order."""

    def __init__(self, models: object, seed: int = 0) -> None:
        self._models, self._seed = models, seed

    def share_out(self, job, pieces, tick):
        for number in np.random.default_rng(self._seed).permutation(len(pieces)).tolist():
            yield number, job(self._models, pieces[number])

    def dismiss(self):
        return None

    def each(self, job, argument):
        return [job(self._models, argument)]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Models:
    path = tmp_path_factory.mktemp("features")
    config = tiny_config(train={"steps": 3})
    small_data(path / "data")
    train(str(path / "run"), config)
    return load_models(Checkpoint(open_folder(str(path / "run")), 3, True), str(path / "data"), config, "cpu")


@pytest.mark.parametrize("limit", [None, 1, 10, 16, 17, 31, 1000])
@pytest.mark.parametrize("batch", [1, 16, 500])
def test_pieces_cover_the_first_rows_once_and_in_order(limit: int | None, batch: int) -> None:
    groups = (10, 7, 10, 10, 8)
    total = min(limit or 45, 45)
    pieces = plan_pieces("train", groups, limit, batch)
    assert [p.first_row for p in pieces] == [sum(p.rows for p in pieces[:i]) for i in range(len(pieces))]
    assert sum(p.rows for p in pieces) == total
    assert [g for p in pieces for g in p.groups] == list(range(pieces[-1].groups[-1] + 1))
    starts = np.cumsum([0, *groups])
    assert all(p.first_row == starts[p.groups[0]] for p in pieces)
    assert all(p.rows >= batch for p in pieces[:-1])
    assert all(p.rows > starts[p.groups[-1]] - p.first_row for p in pieces), "no group is read in vain"


@pytest.fixture
def place(tmp_path: Path) -> Folder:
    return open_folder(str(tmp_path / "latents"))


def test_latents_are_those_of_the_trained_and_the_initial_encoder(models: Models, place: Folder) -> None:
    pieces = plan_pieces("train", models.reader["train"].groups, None, 16)
    features = collect(LocalCrew(models), place, pieces, lambda line: None)
    assert len(features) == 44 and features.unreadable == ["train/13.png"]
    keys = np.delete(np.arange(45), 13)
    assert (features.labels(("colour", "bright")) == np.stack([keys % 3, keys % 2], axis=1)).all()

    reader = ShardReader(models.reader["train"].folder, models.reader["train"].manifest, "train")
    images = [image for g in range(5) for image in reader.group(g, ["image"]).column("image").to_pylist()]
    views = torch.from_numpy(center_views([images[k] for k in keys], size=16, resize=1.0)[0])
    run = open_folder(models.reader["train"].folder.uri).uri.replace("data", "run")
    trained, _, _ = load_model(open_folder(run), 3)
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
    one, other = (
        collect(LocalCrew(models, seed), place.child(str(seed)), pieces, lambda line: None) for seed in (1, 2)
    )
    assert all((one.arrays[name] == other.arrays[name]).all() for name in one.arrays)
    assert one.table == other.table


def test_a_limit_takes_the_first_rows(models: Models, place: Folder) -> None:
    groups = models.reader["train"].groups
    some = collect(LocalCrew(models), place, plan_pieces("train", groups, 12, 16), lambda line: None)
    said: list[str] = []
    whole = collect(LocalCrew(models), place, plan_pieces("train", groups, None, 16), said.append)
    assert not any("from before" in line for line in said), "a part of a piece is not the piece"
    np.testing.assert_allclose(some.arrays["trained"], whole.arrays["trained"][:12], rtol=1e-4, atol=1e-5)


def test_pieces_that_are_there_are_not_done_again(models: Models, place: Folder) -> None:
    pieces = plan_pieces("test", models.reader["test"].groups, None, 8)
    collect(LocalCrew(models), place, pieces[:-1], lambda line: None)

    class Counting(LocalCrew):
        done: list[Piece]

        def share_out(self, job, pieces, tick):
            self.done = list(pieces)
            return super().share_out(job, pieces, tick)

    crew, said = Counting(models), []
    whole = collect(crew, place, pieces, said.append)
    assert crew.done == pieces[-1:] and len(whole) == 29
    assert "latents of test: 20 of 30 images are there from before" in said
    alone = collect(LocalCrew(models), place.child("alone"), pieces, lambda line: None)
    assert all((whole.arrays[name] == alone.arrays[name]).all() for name in whole.arrays)


def test_a_lost_and_a_doubled_piece_are_noticed(models: Models, place: Folder) -> None:
    pieces = plan_pieces("test", models.reader["test"].groups, None, 8)
    collect(LocalCrew(models), place, pieces, lambda line: None)
    folder = place.child("test")
    with pytest.raises(RuntimeError, match="lacks rows, or has some twice"):
        read_features(folder, [pieces[0], pieces[2]])
    folder.write(pieces[1].file, folder.read(pieces[0].file))
    with pytest.raises(RuntimeError, match="lacks rows, or has some twice"):
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
    pieces = plan_pieces("test", models.reader["test"].groups, 8, 8)
    collect(LocalCrew(models), place, pieces, lambda line: None)
    (entry,) = place.list()
    table = pq.read_table(f"{place.uri}/{entry.name}")
    assert table.column("key").to_pylist() == list(range(8))
    assert table.column("ok").to_pylist() == [False, *[True] * 7]
    assert table.column("label/colour").to_pylist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert table.schema.field("vector/trained").type == pa.list_(pa.float32(), 12)


def test_a_row_without_a_value_is_told_when_it_is_asked_for() -> None:
    features = Features("test", pa.table({"a": pa.array([1, None]), "b": pa.array([1, 2])}), {}, [])
    assert features.labels(["b"]).tolist() == [[1], [2]]
    with pytest.raises(UserError, match="a: got 1 rows of split test without a value"):
        features.labels(["b", "a"])


def test_rows_that_are_not_where_their_key_says_are_noticed(models: Models) -> None:
    with pytest.raises(RuntimeError, match="other keys"):
        extract(models, Piece("test", (1,), 0, 10))


def _with_nan(module: nn.Module, args: tuple, z: torch.Tensor) -> torch.Tensor:
    z = z.clone()
    z[0, 0] = float("nan")  # row 0 of the split is unreadable and does not count
    return z


def test_a_diverged_encoder_is_the_users_to_know(models: Models, place: Folder) -> None:
    model = copy.deepcopy(models.model)
    model.encoder.register_forward_hook(_with_nan)
    pieces = plan_pieces("test", models.reader["test"].groups, None, 8)
    with pytest.raises(UserError, match="2 latents of test that are not finite"):
        collect(LocalCrew(replace(models, model=model)), place, pieces, lambda line: None)


def test_progress_ends_with_the_whole(models: Models, place: Folder) -> None:
    lines: list[str] = []
    collect(LocalCrew(models), place, plan_pieces("test", models.reader["test"].groups, None, 8), lines.append)
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


@pytest.mark.parametrize("rows", [64, 70])
def test_an_untrained_batch_norm_gets_the_statistics_of_the_images(rows: int) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)).eval()
    images = torch.randn(rows, 3, 6, 6, generator=torch.Generator().manual_seed(0)) * 3 + 1
    settle_norms(network, [(part,) for part in images[:64].split(16)])
    features = network[0](images[:64]).detach()
    batches = features.split(16)
    torch.testing.assert_close(network[1].running_mean, features.mean((0, 2, 3)))
    torch.testing.assert_close(network[1].running_var, torch.stack([b.var((0, 2, 3)) for b in batches]).mean(0))
    assert not any(module.training for module in network.modules()) and network[1].momentum == 0.1


def test_the_untrained_encoder_with_batch_norm_is_not_blind(tmp_path) -> None:
    """Torch's initial statistics would normalise nothing: each batch norm must have seen images."""
    config = tiny_config(encoder={"norm": "batch"})
    small_data(tmp_path)
    models = Models(build_model(config), config, readers(str(tmp_path), config), torch.device("cpu"))
    norms = [m for m in models.untrained.encoder.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and all(float((norm.running_var - 1).abs().max()) > 1e-3 for norm in norms)
    assert not any(module.training for module in models.untrained.modules())


def test_a_split_that_is_not_there_or_empty_is_the_users_mistake(models: Models) -> None:
    manifest = models.reader["train"].manifest
    with pytest.raises(UserError, match=r"evaluation.test_split: got val; allowed: train, test"):
        check_splits(manifest, tiny_config(evaluation={"test_split": "val"}))
