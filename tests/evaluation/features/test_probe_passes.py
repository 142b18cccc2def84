"""Augmented passes: their views, every training row once in each, and nothing else."""

import copy
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest
import torch

from soda_dist.config.load import with_fields
from soda_dist.config.schema import RunConfig
from soda_dist.data.views.crops import plan_crops
from soda_dist.errors import UserError
from soda_dist.evaluation.context import Context
from soda_dist.evaluation.features.extraction import extract
from soda_dist.evaluation.features.probe_group import read_vectors
from soda_dist.evaluation.features.probe_passes import Training, extract_training
from soda_dist.evaluation.pieces import Piece, Point
from soda_dist.evaluation.tasks.probe_knn import check_probe
from soda_dist.evaluation.views import addressed_noise, augmented_views, central_views
from soda_dist.evaluation.worker import Models, readers
from soda_dist.models.condition import Condition
from soda_dist.models.pixels import raw_pixels
from soda_dist.training.build import build_model
from tests.evaluation.contexts import context_of
from tests.evaluation.local import Recording, alone, with_nan
from tests.evaluation.small_run import image_of
from tests.models.methods import NO_MASKS, config_of
from tests.tiny import tiny_config

READABLE = np.delete(np.arange(45), 13)
LIKE, LIKE_PIXELS = np.empty((0, 12), np.float32), np.empty((0, 768), np.uint8)
"""Of the width and the type of latents and of pixels."""


@pytest.fixture(scope="module")
def data(small: Path) -> Path:
    return small / "data"


def config_with(**changed) -> RunConfig:
    probe = {"epochs": 4, "passes": 2, "crop_flip_rate": 1.0, **changed.pop("probe", {})}
    return tiny_config(evaluation={"batch": 8, "probe": probe}, **changed)


def models_of(data: Path, config: RunConfig, model: torch.nn.Module | None = None) -> Models:
    model = (model or build_model(config)).eval().requires_grad_(False)
    return Models(model, config, readers(str(data), config), torch.device("cpu"))


def extracted(data: Path, run: Path, config: RunConfig, seed: int = 0) -> tuple[Training, Context, list[Piece]]:
    """With the context, and the pieces that were worked on."""
    context = context_of(models_of(data, config), run, pool=Recording(seed))
    return extract_training(context, None), context, context.workers.done


@pytest.fixture(scope="module")
def done(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Training]:
    """A run with two passes of `config_with()`, to be copied."""
    run = tmp_path_factory.mktemp("done")
    return run, extracted(data, run, config_with())[0]


def vectors(training: Training, encoder: str = "pixels") -> np.ndarray:
    """[passes, n, D]."""
    like = LIKE_PIXELS if encoder == "pixels" else LIKE
    return read_vectors(training.passes, encoder, training.ok, like)[0]


def expected_view(config: RunConfig, number: int, key: int) -> np.ndarray:
    """The crop of a row in a pass, cut and resized by OpenCV's own pixel areas."""
    image = image_of("train", key)
    how = config.data.augmentation.model_copy(update={"crop_flip_rate": config.evaluation.probe.crop_flip_rate})
    epochs, keys, sizes = np.array([number]), np.array([key]), np.array([image.shape[:2]])
    crops = plan_crops(config.seed, "views/source/crop", epochs, keys, sizes, how)
    top, left, height, width = crops.boxes[0].tolist()
    view = cv2.resize(image[top : top + height, left : left + width], (16, 16), interpolation=cv2.INTER_LINEAR)
    return view[:, ::-1] if crops.flipped[0] else view


def test_a_pass_shows_the_crops_and_flips_of_its_number_without_randaugment(data: Path, tmp_path: Path) -> None:
    config = config_with(data={"augmentation": {"randaugment_rate": 1.0}, "augment": "none"})
    found = vectors(extracted(data, tmp_path, config)[0]).reshape(2, 44, 16, 16, 3)
    for number in (0, 1):
        shown = np.stack([expected_view(config, number, key) for key in READABLE])
        # Where a crop shrinks, ours is low-passed before: noise aside, the same picture.
        assert np.abs(found[number].astype(float) - shown).mean() < 6
        other = np.stack([expected_view(config, 1 - number, key) for key in READABLE])
        assert np.abs(found[number].astype(float) - other).mean() > 12


def test_latents_of_a_pass_are_the_encoders_of_its_views(data: Path, tmp_path: Path) -> None:
    config = config_with()
    models = models_of(data, config)
    table = models.reader["train"].group(1, ["key", "image"])
    seen = augmented_views(table, config, 3, target=False)
    assert len(seen.target) == 0 and seen.ok.tolist() == [key != 13 for key in range(10, 17)]
    got = extract(models, Piece("train", (1,), 10, 7, number=3))
    rows = torch.from_numpy(seen.source)
    trained = np.stack(got.column("vector/trained").to_pylist()).astype(np.float32)
    with torch.no_grad():
        expected = models.model.encode(alone(rows)).numpy()
    np.testing.assert_allclose(trained[seen.ok], expected[seen.ok], rtol=1e-4, atol=1e-5)
    assert (np.stack(got.column("vector/pixels").to_pylist()) == raw_pixels(rows).numpy()).all()
    assert got.column("key").to_pylist() == list(range(10, 17))


def test_the_share_of_crops_is_the_probes_own_rate(data: Path) -> None:
    """The others are central squares, whatever the rate of training."""
    never, often = (
        config_with(probe={"crop_flip_rate": rate}, data={"augmentation": {"crop_flip_rate": 1.0}})
        for rate in (0.0, 0.65)
    )
    reader = readers(str(data), never)["train"]
    table = pa.concat_tables([reader.group(number, ["key", "image"]) for number in (0, 2, 3, 4)])
    squares = augmented_views(table, never, 0).source
    assert np.abs(squares.astype(float) - central_views(table, never).source).mean() < 9  # noise, on another grid
    assert (augmented_views(table, never, 1).source == squares).all()
    differ = [
        (augmented_views(table, often, number).source != squares).any(axis=(1, 2, 3)).mean() for number in range(20)
    ]
    assert abs(float(np.mean(differ)) - 0.65) < 0.05  # 760 views: three standard errors


def test_passes_differ_and_are_the_same_in_any_order_of_pieces(
    data: Path, done: tuple[Path, Training], tmp_path: Path
) -> None:
    first, second = vectors(done[1]), vectors(extracted(data, tmp_path / "order", config_with(), seed=1)[0])
    assert (first == second).all()
    assert (first[0] != first[1]).any(axis=1).mean() > 0.9, "a row looks otherwise in the next pass"
    other = with_fields(config_with(), {"seed": 1})
    again = vectors(extracted(data, tmp_path / "seed", other)[0])
    assert (first != again).any(axis=2).mean() > 0.9


def test_each_training_row_is_once_in_each_pass_and_no_test_row_in_any(data: Path, tmp_path: Path) -> None:
    training, context, done = extracted(data, tmp_path, config_with(probe={"passes": 3}))
    asked = [(piece.number, key) for piece in done for key in piece.keys.tolist()]
    assert sorted(asked, key=str) == sorted(((n, key) for n in (None, 0, 1, 2) for key in range(45)), key=str)
    assert {piece.split for piece in done} == {"train"}
    assert len(training.facts) == 44 and training.facts.unreadable == ["train/13.png"]
    assert (training.facts.labels(["colour"])[:, 0] == READABLE % 3).all()
    done.clear()
    before = context.features("test", None).arrays["pixels"]
    assert done and all(piece.number is None for piece in done), "test rows are central views"
    plain = extracted(data, tmp_path / "plain", config_with(probe={"passes": 0}))[1]
    assert (before == plain.features("test", None).arrays["pixels"]).all()
    written = {path.name for path in tmp_path.glob("latents/*/test/*")}
    assert written and not any(name.startswith("pass") for name in written)


def test_the_plain_latents_stay_plain(data: Path, done: tuple[Path, Training]) -> None:
    """The rows that a learning rate is chosen on, and what nearest neighbours read."""
    run, training = done
    context = context_of(models_of(data, config_with()), run, pool=Recording())
    features = context.features("train", None)
    assert context.workers.done == [], "they lie where those of an evaluation without passes do"
    assert (read_vectors([training.plain], "trained", training.ok, LIKE)[0][0] == features.arrays["trained"]).all()


def test_what_was_stopped_goes_on_and_more_passes_keep_those_there(
    data: Path, done: tuple[Path, Training], tmp_path: Path
) -> None:
    whole, run = vectors(done[1], "trained"), Path(shutil.copytree(done[0], tmp_path / "run"))
    lost = sorted(run.glob("latents/*/train/pass-0001-*"))[1]
    lost.unlink()
    again, _, pieces = extracted(data, run, config_with())
    assert [piece.file for piece in pieces] == [lost.name]
    assert (vectors(again, "trained") == whole).all()
    more, _, pieces = extracted(data, run, config_with(probe={"passes": 3}))
    assert {piece.number for piece in pieces} == {2}
    assert (vectors(more, "trained")[:2] == whole).all()
    pieces = extracted(data, run, config_with(probe={"crop_flip_rate": 0.5}))[2]
    assert {piece.number for piece in pieces} == {0, 1}, "of another rate, they are made anew"


def _spoilt(models: Models, piece: Piece) -> pa.Table:
    table = extract(models, piece)
    if piece.number == 1 and piece.first_row == 0:
        ok = table.column("ok").to_numpy().copy()
        ok[2] = False
        table = table.set_column(table.column_names.index("ok"), "ok", pa.array(ok))
    return table


def test_a_row_that_one_pass_cannot_read_is_left_out_of_all(data: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("soda_dist.evaluation.features.extraction.extract", _spoilt)
    training = extracted(data, tmp_path, config_with())[0]
    assert training.facts.unreadable == ["train/2.png", "train/13.png"]
    assert np.flatnonzero(~training.ok).tolist() == [2, 13] and vectors(training).shape[1] == 43


def test_latents_that_are_not_finite_are_counted(data: Path, tmp_path: Path) -> None:
    config = config_with()
    model = copy.deepcopy(build_model(config))
    model.encoder.register_forward_hook(with_nan)
    training = extract_training(context_of(models_of(data, config, model), tmp_path), None)
    bad = read_vectors(training.passes, "trained", training.ok, LIKE)[1]
    assert bad == 2 * 8, "a row of each batch, in each pass"
    assert read_vectors(training.passes, "pixels", training.ok, LIKE_PIXELS)[1] == 0


def test_a_lost_pass_is_noticed(data: Path, done: tuple[Path, Training], tmp_path: Path) -> None:
    shutil.copytree(done[0], tmp_path / "run")
    pieces = done[1].passes[0].pieces
    (folder,) = (path.parent for path in tmp_path.glob(f"run/latents/*/train/{pieces[1].file}"))
    shutil.copy(folder / pieces[2].file, folder / pieces[1].file)
    with pytest.raises(UserError, match=r"damaged file \(10 rows, not 17\)"):
        extracted(data, tmp_path / "run", config_with())


def test_a_denoiser_sees_the_crop_and_its_noise_is_the_passes(data: Path, tmp_path: Path) -> None:
    point = Point("up.0", 9)
    config = config_with(method="unconditional", denoiser=NO_MASKS, data={"target_size": 16})
    models = models_of(data, config)
    table = models.reader["train"].group(0, ["key", "image"])
    found = {}
    for number in (0, 1):
        piece = Piece("train", (0,), 0, 10, (point,), number)
        got = np.stack(extract(models, piece).column("vector/trained").to_pylist()).astype(np.float32)
        seen = augmented_views(table, config, number)
        assert (seen.target == seen.source).all(), "of one size, they are one view"
        x0 = torch.from_numpy(seen.target).permute(0, 3, 1, 2).float() / 127.5 - 1
        eps = addressed_noise(config.seed, np.arange(10), point.t, number + 1, 16)
        abar = models.method.process.abar[point.t].item()
        taken: list[torch.Tensor] = []
        models.model.denoiser(
            abar**0.5 * x0 + (1 - abar) ** 0.5 * eps,
            torch.full((10,), point.t),
            Condition(),
            tap=lambda name, h, taken=taken: taken.append(h) if name == point.layer else None,
        )
        # Rows meet the network in batches of `evaluation.batch`.
        np.testing.assert_allclose(got, taken[0].mean((2, 3)).numpy(), rtol=1e-3, atol=1e-4)
        found[number] = eps
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[0], addressed_noise(config.seed, np.arange(10), point.t, 0, 16))


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("rays", {}, r"evaluation\.probe\.passes: got 2 with data\.pose=cameras .*flip=true; allowed: 0"),
        ("soda", {"epochs": 1}, r"evaluation\.probe\.passes: got 2 with evaluation\.probe\.epochs=1; allowed: 0\.\.1"),
    ],
)
def test_passes_that_cannot_be_are_refused(data: Path, tmp_path: Path, name: str, changed: dict, message: str) -> None:
    models = models_of(data, config_with())
    config = config_of(name, evaluation={"probe": {"passes": 2, **changed}})
    with pytest.raises(UserError, match=message) as caught:
        check_probe(context_of(replace(models, config=config), tmp_path))
    assert "\n" not in str(caught.value)
    check_probe(context_of(replace(models, config=config_of(name)), tmp_path))


def test_pixel_poses_are_of_the_crops(data: Path) -> None:
    config = config_of("pixels", evaluation={"probe": {"passes": 1, "crop_flip_rate": 1.0}})
    table = readers(str(data), config)["train"].group(0, ["key", "image"])
    seen, plain = augmented_views(table, config, 0, target=False), central_views(table, config, target=False)
    assert seen.pose.shape == plain.pose.shape == (10, 4)
    spans = np.abs(seen.pose[:, 2:] - seen.pose[:, :2]) / 2
    for key, span in enumerate(spans):
        how = config.data.augmentation.model_copy(update={"crop_flip_rate": 1.0})
        crops = plan_crops(0, "views/source/crop", np.array([0]), np.array([key]), np.array([[20, 24]]), how)
        np.testing.assert_allclose(span, crops.boxes[0, 2:] / [20, 24], rtol=1e-5)
        assert bool(seen.pose[key, 1] > seen.pose[key, 3]) == bool(crops.flipped[0])
