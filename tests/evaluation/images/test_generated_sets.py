"""Sets of generated images: which members they have, what is drawn for them, and that nothing is drawn twice."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from soda_dist.evaluation.context import Context
from soda_dist.evaluation.images import generated_sets
from soda_dist.evaluation.images.generated_sets import (
    ImageSet,
    ViewPlan,
    folder_of,
    generate_piece,
    generate_set,
    load_set,
    plan_images,
    plan_views,
    with_mean,
)
from soda_dist.evaluation.images.sampling import SampleJob, draw, pick_inputs
from soda_dist.evaluation.images.scores import images_of
from soda_dist.evaluation.rows import drawn_order
from soda_dist.evaluation.worker import Models
from soda_dist.models.aggregation import MeanAggregation
from soda_dist.parallel.local_pool import LocalPool
from tests.evaluation.contexts import context_of, voiced, without_model
from tests.models.methods import config_of, model_of
from tests.tiny import tiny_config


@pytest.fixture(scope="module")
def models(small_set: Path) -> Models:
    return voiced(tiny_config(), small_set)


@pytest.fixture
def context(models: Models, tmp_path: Path) -> Context:
    return context_of(models, tmp_path)


def _nobody(device: str) -> None:
    raise AssertionError("a worker was asked for")


def test_a_smaller_set_is_the_beginning_of_a_larger_one(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generated_sets, "PIECE", 4)
    of = ImageSet("reconstruction", "test", context.config.sampling)
    small, large = plan_images(context, of, 8), plan_images(context, of, 1000)
    assert small == large[:2] and sum(piece.rows for piece in large) == 30
    assert sorted(key for piece in large for key in piece.keys) == list(range(30))
    assert [key for piece in large for key in piece.keys] == drawn_order(30, context.config.seed, "test").tolist()
    assert all(piece.sources == tuple((key,) for key in piece.keys) for piece in large)


def test_a_reconstruction_is_the_samplers_from_its_own_source(models: Models, context: Context) -> None:
    """Against `sampling.draw`, which is held against the sampler itself."""
    of = ImageSet("reconstruction", "test", models.config.sampling)
    pieces = plan_images(context, of, 30)
    table = generate_piece(models, pieces[0])
    inputs = pick_inputs(models, 29)
    drawn = draw(models, SampleJob(inputs, models.config.sampling.guidance, 0, 0)).images
    images, targets = images_of(table.column("image")), images_of(table.column("target"))
    place = {key: row for row, key in enumerate(table.column("key").to_pylist())}
    assert table.column("ok").to_pylist() == [key != 0 for key in table.column("key").to_pylist()]
    for row, key in enumerate(inputs.keys.tolist()):
        assert (targets[place[key]] == inputs.target[row]).all()
        assert np.abs(images[place[key]].astype(int) - drawn[row]).max() <= 1  # sums of another batch size


def test_what_is_drawn_is_not_drawn_again_and_another_way_is_another_place(models: Models, context: Context) -> None:
    of = ImageSet("reconstruction", "test", models.config.sampling)
    folder = generate_set(context, plan_images(context, of, 5), "drawn")
    table = load_set(folder, plan_images(context, of, 5), ["psnr"])
    context.workers = LocalPool(setup=_nobody)
    assert generate_set(context, plan_images(context, of, 5), "drawn") == folder
    assert load_set(folder, plan_images(context, of, 5), ["psnr"]) == table
    places = {folder_of(context, of).uri}
    for changed in (
        replace(of, sampling=of.sampling.model_copy(update={"guidance": 1.5})),
        replace(of, sampling=of.sampling.model_copy(update={"steps": 4})),
        replace(of, kind="samples"),
        replace(of, split="train"),
        replace(of, aggregation="mean"),
    ):
        places.add(folder_of(context, changed).uri)
    context.weights = "1"
    places.add(folder_of(context, of).uri)
    assert len(places) == 7


def test_samples_need_no_source_and_differ_from_place_to_place(models: Models, context: Context) -> None:
    of = ImageSet("samples", "test", models.config.sampling)
    (piece,) = plan_images(context, of, 6)
    images = images_of(generate_piece(models, piece).column("image"))
    other = replace(piece, keys=piece.keys[::-1], sources=piece.sources[::-1])
    assert (images_of(generate_piece(models, other).column("image")) == images).all(), "the source has no part in it"
    assert len({image.tobytes() for image in images}) == 6


def test_the_mean_joins_latents_by_their_mean() -> None:
    model = model_of("transformer of sources")
    other = with_mean(model)
    assert isinstance(other.aggregation, MeanAggregation) and other.denoiser is model.denoiser
    assert not isinstance(model.aggregation, MeanAggregation), "the model itself stays as it is"


def test_a_limit_cuts_the_views(solids: Path, tmp_path: Path) -> None:
    context = context_of(without_model(config_of("rays"), solids), tmp_path)
    of = ImageSet("novel_views", "test", context.config.sampling)
    pieces = plan_views(context, of, ViewPlan(objects=4, views=3, most=1, limit=5))
    assert sum(piece.rows for piece in pieces) == 5
