"""Sets of drawn images: which members they have, what is drawn for them, and that nothing is drawn twice."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from soda_dist.config.load import with_fields
from soda_dist.config.schema import RunConfig
from soda_dist.data.shards import read_manifest
from soda_dist.data.storage.folder import Folder, open_folder
from soda_dist.errors import UserError
from soda_dist.evaluation.context import Subject
from soda_dist.evaluation.images import generated_sets
from soda_dist.evaluation.images.generated_sets import (
    ImageSet,
    folder_of,
    generate_piece,
    generate_set,
    image_set,
    load_set,
    view_set,
    with_mean,
)
from soda_dist.evaluation.images.sampling import SampleJob, draw, pick_inputs
from soda_dist.evaluation.images.scores import images_of, png
from soda_dist.evaluation.images.set_scores import set_scores
from soda_dist.evaluation.images.view_sets import asked_views
from soda_dist.evaluation.model_sources import Checkpoint
from soda_dist.evaluation.pieces import shuffled
from soda_dist.evaluation.tasks.novel_views import _ways, draw_views
from soda_dist.evaluation.worker import Models, load_models, readers
from soda_dist.models.aggregation import MeanAggregation
from soda_dist.training.build import build_model
from tests.evaluation.features.test_extraction import LocalCrew
from tests.evaluation.small_run import small_data, train
from tests.learn.scenes import write_scenes
from tests.models.methods import config_of
from tests.tiny import tiny_config


def subject_of(models: Models, run: Folder, config: RunConfig, crew: object, said: list[str]) -> Subject:
    """A checkpoint under evaluation by a crew in this process."""
    data = models.reader["test"].folder
    subject = Subject(run, data, read_manifest(data), config, 3, True, "0", said.append, lambda: crew)
    subject._crew = crew
    return subject


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Models:
    path = tmp_path_factory.mktemp("drawings")
    config = tiny_config(train={"steps": 3})
    small_data(path / "data")
    train(str(path / "run"), config)
    return load_models(Checkpoint(open_folder(str(path / "run")), 3, True), str(path / "data"), config, "cpu")


@pytest.fixture
def subject(models: Models, tmp_path: Path) -> Subject:
    return subject_of(models, open_folder(str(tmp_path)), models.config, LocalCrew(models), [])


@pytest.mark.parametrize(
    ("fields", "sources", "ways"),
    [
        ({}, 1, ["own"]),
        ({"sampling.stochastic": True, "sampling.sources": 3}, 1, ["own"]),
        ({}, 3, ["own", "stochastic"]),
        ({"aggregation.kind": "transformer"}, 3, ["own", "mean", "stochastic"]),
        ({"sampling.stochastic": True, "sampling.sources": 3}, 3, ["stochastic", "own"]),
    ],
)
def test_the_configured_way_of_joining_sources_is_drawn_first(fields: dict, sources: int, ways: list[str]) -> None:
    assert _ways(with_fields(config_of("soda"), {"data.views": "object", **fields}), sources) == ways


def test_a_png_gives_back_the_image() -> None:
    import pyarrow as pa

    images = np.random.default_rng(0).integers(0, 256, (3, 9, 11, 3), np.uint8)
    assert (images_of(pa.chunked_array([[png(image) for image in images]])) == images).all()


def test_a_smaller_set_is_the_beginning_of_a_larger_one(subject: Subject, monkeypatch) -> None:
    monkeypatch.setattr(generated_sets, "PIECE", 4)
    of = ImageSet("reconstruction", "test", subject.config.sampling)
    small, large = image_set(subject, of, 8), image_set(subject, of, 1000)
    assert small == large[:2] and sum(piece.rows for piece in large) == 30
    assert sorted(key for piece in large for key in piece.keys) == list(range(30))
    assert [key for piece in large for key in piece.keys] == shuffled(subject.config, 30).tolist()
    assert all(piece.sources == tuple((key,) for key in piece.keys) for piece in large)


def test_a_reconstruction_is_the_samplers_from_its_own_source(models: Models, subject: Subject) -> None:
    """Against `samples.draw`, which is held against the sampler itself."""
    of = ImageSet("reconstruction", "test", models.config.sampling)
    pieces = image_set(subject, of, 30)
    table = generate_piece(models, pieces[0])
    inputs = pick_inputs(models, 29)
    drawn = draw(models, SampleJob(inputs, models.config.sampling.guidance, 0, 0)).images
    images, targets = images_of(table.column("image")), images_of(table.column("target"))
    place = {key: row for row, key in enumerate(table.column("key").to_pylist())}
    assert table.column("ok").to_pylist() == [key != 0 for key in table.column("key").to_pylist()]
    for row, key in enumerate(inputs.keys.tolist()):
        assert (targets[place[key]] == inputs.target[row]).all()
        assert np.abs(images[place[key]].astype(int) - drawn[row]).max() <= 1  # sums of another batch size


def test_what_is_drawn_is_not_drawn_again_and_another_way_is_another_place(models: Models, subject: Subject) -> None:
    of = ImageSet("reconstruction", "test", models.config.sampling)
    folder = generate_set(subject, image_set(subject, of, 5), "drawn")
    table = load_set(folder, image_set(subject, of, 5), ["psnr"])
    subject._crew = None  # nobody is there to draw
    subject.hire = nullcontext
    assert generate_set(subject, image_set(subject, of, 5), "drawn") == folder
    assert load_set(folder, image_set(subject, of, 5), ["psnr"]) == table
    places = {folder_of(subject, of).uri}
    for changed in (
        replace(of, how=of.how.model_copy(update={"guidance": 1.5})),
        replace(of, how=of.how.model_copy(update={"steps": 4})),
        replace(of, kind="samples"),
        replace(of, split="train"),
        replace(of, aggregation="mean"),
    ):
        places.add(folder_of(subject, changed).uri)
    subject.weights = "1"
    places.add(folder_of(subject, of).uri)
    assert len(places) == 7


def test_scores_leave_out_what_could_not_be_read_and_say_so(models: Models, subject: Subject) -> None:
    of = ImageSet("reconstruction", "test", models.config.sampling)
    pieces = image_set(subject, of, 30)
    scores, counts = set_scores(subject, generate_set(subject, pieces, "drawn"), pieces)
    assert counts == {"images": 29, "unreadable": 1}
    table = load_set(folder_of(subject, of), pieces, ["image", "target"])
    error = images_of(table.column("image")).astype(float) / 255 - images_of(table.column("target")) / 255
    expected = -10 * np.log10((error**2).mean((1, 2, 3)))
    assert scores["psnr"]["value"] == pytest.approx(expected.mean())
    assert scores["psnr"]["standard_error"] == pytest.approx(expected.std(ddof=1) / 29**0.5)


def test_a_split_without_a_readable_image_is_the_users_to_know(models: Models, tmp_path) -> None:
    from tests.evaluation.small_run import prepare

    prepare(str(tmp_path / "data"), {"train": [[4]], "test": [[3]]}, {"test": {0, 1, 2}})
    own = replace(models, reader=readers(str(tmp_path / "data"), models.config))
    subject = subject_of(own, open_folder(str(tmp_path / "run")), models.config, LocalCrew(own), [])
    pieces = image_set(subject, ImageSet("reconstruction", "test", models.config.sampling), 3)
    with pytest.raises(UserError, match="split test without a readable image"):
        set_scores(subject, generate_set(subject, pieces, "drawn"), pieces)


def test_samples_need_no_source_and_differ_from_place_to_place(models: Models, subject: Subject) -> None:
    of = ImageSet("samples", "test", models.config.sampling)
    (piece,) = image_set(subject, of, 6)
    images = images_of(generate_piece(models, piece).column("image"))
    other = replace(piece, keys=piece.keys[::-1], sources=piece.sources[::-1])
    assert (images_of(generate_piece(models, other).column("image")) == images).all(), "the source has no part in it"
    assert len({image.tobytes() for image in images}) == 6


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("scenes")
    write_scenes(path, objects=4, test_objects=4, views=6, size=20)
    return path


def _views(scenes: Path, tmp_path: Path, crew=LocalCrew, **more) -> tuple[Subject, Models, list[str]]:
    evaluation = {"images": 2, "novel_views": {"objects": 2, "views": 2}}
    fields = {"sampling": {"steps": 2}, "data": {"sources": (1, 3)}, "evaluation": evaluation, **more}
    config = config_of("rays", **fields)
    model = build_model(config).eval()
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(1)
        for parameter in model.parameters():  # the last layer starts at zero, so that nothing would matter
            parameter.add_(0.1 * torch.randn_like(parameter))
    models = Models(model, config, readers(str(scenes), config), torch.device("cpu"))
    said: list[str] = []
    return subject_of(models, open_folder(str(tmp_path)), config, crew(models), said), models, said


def test_views_asked_for_do_not_depend_on_the_number_of_sources(scenes: Path, tmp_path: Path) -> None:
    subject, models, _ = _views(scenes, tmp_path)
    owner = models.reader["test"].column("object").to_pylist()
    keys = {}
    for sources in (1, 3):
        pieces = asked_views(subject, sources, "own", 2)
        keys[sources] = [key for piece in pieces for key in piece.keys]
        for piece in pieces:
            for key, given in zip(piece.keys, piece.sources, strict=True):
                assert len(given) == sources and key not in given
                assert {owner[one] for one in given} == {owner[key]}
    assert keys[1] == keys[3] and len(keys[1]) == 2, "six views, of which five are never asked for"


def test_novel_views_are_measured_for_each_number_of_sources_and_way_to_join(scenes: Path, tmp_path: Path) -> None:
    subject, _, said = _views(scenes, tmp_path, aggregation={"kind": "transformer", "depth": 1, "heads": 2})
    result = draw_views(subject)
    ways = [(row["sources"], row["aggregation"]) for row in result["sets"]]
    assert ways == [(1, "transformer")] + [(n, way) for n in (3, 5) for way in ("transformer", "mean", "stochastic")]
    assert all(row["counts"] == {"images": 2, "unreadable": 0} for row in result["sets"])
    three = {row["aggregation"]: row["psnr"]["value"] for row in result["sets"] if row["sources"] == 3}
    assert len(set(three.values())) == 3, "the ways differ"
    assert subject.place.read_json("novel_views.json")["sets"] == result["sets"]
    assert subject.place.exists("novel_views.png")
    assert any(line.startswith("novel views from 3, stochastic: PSNR") for line in said)


def test_the_mean_joins_latents_by_their_mean(scenes: Path, tmp_path: Path) -> None:
    _, models, _ = _views(scenes, tmp_path, aggregation={"kind": "transformer", "depth": 1, "heads": 2})
    other = with_mean(models.model)
    assert isinstance(other.aggregation, MeanAggregation) and other.denoiser is models.model.denoiser
    assert not isinstance(models.model.aggregation, MeanAggregation), "the model itself stays as it is"


def test_more_sources_than_views_are_refused(scenes: Path, tmp_path: Path) -> None:
    subject, _, _ = _views(scenes, tmp_path)
    subject.config = with_fields(subject.config, {"evaluation.novel_views.sources": [1, 7]})
    with pytest.raises(UserError, match=r"7 sources of objects that have 6 views; allowed: 1\.\.5"):
        asked_views(subject, 1, "own", 2)


def test_a_limit_cuts_the_views(scenes: Path, tmp_path: Path) -> None:
    subject, _, _ = _views(scenes, tmp_path)
    of = ImageSet("novel_views", "test", subject.config.sampling)
    pieces = view_set(subject, of, objects=4, asked=3, skip=1, limit=5)
    assert sum(piece.rows for piece in pieces) == 5
