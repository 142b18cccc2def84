"""Embeddings of folders and prepared data: those of the model, with names and reasons, whole after a kill."""

import pickle
from functools import partial
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import soda_dist
from soda_dist.commands.embed import main
from soda_dist.data.shards import ShardReader, read_manifest
from soda_dist.data.storage.folder import open_folder
from soda_dist.errors import UserError
from soda_dist.inference import embed, image_sets, load
from soda_dist.inference.embedding import ahead, load_embedder
from soda_dist.inference.image_sets import open_images
from soda_dist.inference.loading import model_source
from soda_dist.inference.model import Model
from soda_dist.parallel.local_pool import LocalPool
from tests.evaluation.small_run import image_of
from tests.inference.exports import write_export

NAMES = [f"b/{number}.png" for number in range(7)] + ["b/ä ö/7.PNG", "c.jpg"]
BROKEN = {"a.png": (b"no image", "not an image"), "d/empty.png": (b"", "no bytes")}


def write_images(root: Path) -> Path:
    """NAMES with images, BROKEN ones, and files that are no images."""
    for number, name in enumerate(NAMES):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image_of("test", number)).save(root / name)
    for name, (content, _) in BROKEN.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    for name in (".hidden.png", "b/.cache/0.png", "b/labels.csv"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"none")
    return root


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_export(tmp_path_factory.mktemp("export"), "soda"))


@pytest.fixture(scope="module")
def model(export: str) -> Model:
    return load(export, device="cpu")


def read(path: Path) -> dict[str, list]:
    """Columns of a file, missing vectors as None."""
    if path.suffix == ".npz":
        with np.load(path) as found:
            rows = [None if np.isnan(row).all() else row for row in found["embedding"]]
            errors = [error or None for error in found["error"].tolist()]
            return {"name": found["name"].tolist(), "embedding": rows, "error": errors}
    return pq.read_table(path).to_pydict()


@pytest.mark.parametrize("ending", [".parquet", ".npz"])
@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_embeddings_are_those_of_the_model(tmp_path: Path, export: str, model: Model, ending: str, kind: str) -> None:
    images, said = write_images(tmp_path / "images"), list[str]()
    uri = str(images)
    if kind == "zip":
        uri = str(tmp_path / "images.zip")
        with ZipFile(uri, "w") as archive:
            for path in sorted(images.rglob("*")):
                archive.write(path, path.relative_to(images))
    out = tmp_path / f"out/x{ending}"
    assert embed(Path(export), uri, out, device="cpu", say=said.append) == str(out)
    found = read(out)
    assert found["name"] == sorted([*NAMES, *BROKEN])
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    whole = {name: row for name, row in zip(found["name"], found["embedding"], strict=True) if row is not None}
    assert sorted(whole) == sorted(NAMES)
    expected = model.encode([images / name for name in whole])
    np.testing.assert_allclose(np.stack(list(whole.values())), expected.numpy(), rtol=1e-4, atol=1e-5)
    errors = dict(zip(found["name"], found["error"], strict=True))
    assert errors == dict.fromkeys(NAMES) | {name: reason for name, (_, reason) in BROKEN.items()}
    assert said[0] == "left out: 1 files that are not named as images, such as b/labels.csv"
    assert said[-1] == "11 images, 2 without an embedding: a.png (not an image), d/empty.png (no bytes)"


def test_vectors_have_one_type_that_readers_can_map(tmp_path: Path, export: str) -> None:
    out = tmp_path / "x.parquet"
    embed(export, str(write_images(tmp_path / "images")), str(out), device="cpu", say=lambda _: None)
    assert pq.read_schema(out).field("embedding").type == pa.list_(pa.float32(), 12)


class _Killed(LocalPool):
    """A pool whose process is killed after two pieces."""

    def with_state(self, setup, *, cpus=None):
        return _Killed(setup=setup)

    def completed(self, job, pieces, progress=None):
        for number, found in enumerate(super().completed(job, pieces, progress)):
            if number == 2:
                raise KeyboardInterrupt
            yield found


@pytest.mark.parametrize("ending", [".parquet", ".npz"])
def test_a_killed_embedding_resumes_and_equals_the_undisturbed(tmp_path, export, monkeypatch, ending) -> None:
    monkeypatch.setattr(image_sets, "MOST_ROWS", 2)
    images, said = str(write_images(tmp_path / "images")), list[str]()
    killed, undisturbed = tmp_path / f"killed{ending}", tmp_path / f"undisturbed{ending}"
    embed(export, images, str(undisturbed), device="cpu", say=lambda _: None)
    with pytest.raises(KeyboardInterrupt):
        embed(export, images, str(killed), pool=_Killed(), say=lambda _: None)
    assert not killed.exists()
    stale = tmp_path / f"killed{ending}.parts" / ".soda-tmp-0123456789abcdef"
    stale.write_bytes(b"of a kill while the pieces were joined")
    embed(export, images, str(killed), device="cpu", say=said.append)
    assert "embeddings: reusing 6 of 11 cached images" in said  # the third piece was stored when the kill came
    assert killed.read_bytes() == undisturbed.read_bytes() or ending == ".npz"
    one, other = read(killed), read(undisturbed)
    for name in ("name", "error"):
        assert one[name] == other[name]
    for row, same in zip(one["embedding"], other["embedding"], strict=True):
        np.testing.assert_array_equal(row, same)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["images", killed.name, undisturbed.name])


def test_a_finished_output_is_left_alone(tmp_path: Path, export: str) -> None:
    images, out, said = write_images(tmp_path / "images"), tmp_path / "x.parquet", list[str]()
    for _ in range(2):
        embed(export, str(images), str(out), device="cpu", say=said.append)
    assert said[-1] == "already finished: 11 images"
    before = out.read_bytes()
    (images / "more.png").write_bytes((images / NAMES[0]).read_bytes())
    foreign = tmp_path / "foreign.npz"
    foreign.write_bytes(b"something else")
    for place in (out, foreign):
        with pytest.raises(UserError, match=r"--out: got .* which exists and was not made by this command"):
            embed(export, str(images), str(place), device="cpu", say=said.append)
    assert out.read_bytes() == before and foreign.read_bytes() == b"something else"


def test_a_split_of_prepared_data_needs_no_files(tmp_path: Path, small: Path) -> None:
    """By the command, from a run."""
    out = tmp_path / "x.parquet"
    arguments = ["--encoder", str(small / "run"), "--images", str(small / "data"), "--out", str(out)]
    assert main([*arguments, "--split", "test", "--device", "cpu", "--step", "3"]) == str(out)
    found = read(out)
    data = open_folder(str(small / "data"))
    reader = ShardReader(data, read_manifest(data), "test")
    rows = [row for number in range(3) for row in reader.group(number, ["name", "image"]).to_pylist()]
    assert found["name"] == [row["name"] for row in rows] and found["error"][0] == "not an image"
    model = load(str(small / "run"), step=3, device="cpu")
    expected = model.encode([Image.open(BytesIO(row["image"])) for row in rows[1:]])
    np.testing.assert_allclose(np.stack(found["embedding"][1:]), expected.numpy(), rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="--split: got nothing; allowed: train, test"):
        main(arguments)
    with pytest.raises(UserError, match="--split: got val; allowed: train, test"):
        main([*arguments, "--split", "val"])


def test_an_encoder_with_cameras_needs_prepared_data(tmp_path: Path, solids: Path) -> None:
    export = str(write_export(tmp_path / "export", "rays"))
    out = tmp_path / "x.npz"
    embed(export, str(solids), str(out), split="test", device="cpu", say=lambda _: None)
    with np.load(out) as found:
        assert found["embedding"].shape == (24, 12) and np.isfinite(found["embedding"]).all()
    with pytest.raises(UserError, match="files without the cameras that the encoder takes"):
        embed(export, str(write_images(tmp_path / "images")), str(tmp_path / "y.npz"), device="cpu")
    plain = str(write_export(tmp_path / "plain", "a vector"))  # the denoiser alone is told poses
    embed(plain, str(tmp_path / "images"), str(tmp_path / "z.npz"), device="cpu", say=lambda _: None)


def test_a_workers_set_up_can_be_sent(tmp_path: Path, export: str) -> None:
    """Small, however many files the folder has: the pieces name them."""
    found = open_images(str(write_images(tmp_path / "images")), None, (), lambda _: None)
    source = model_source(export)
    setup = partial(load_embedder, source, source.configuration(), found.reader, 1)
    assert len(pickle.dumps(setup)) < 10_000
    assert pickle.loads(pickle.dumps(found.pieces))[0].members == found.pieces[0].members


def test_items_made_ahead_keep_their_order_and_their_errors() -> None:
    def items():
        yield from range(5)
        raise ValueError("six")

    made = ahead(items())
    assert [next(made) for _ in range(5)] == [*range(5)]
    with pytest.raises(ValueError, match="six"):
        next(made)
    assert list(ahead(iter(range(3)))) == [0, 1, 2]


WRONG = {
    "empty": r"--images: got .*empty, no files; allowed: files that end in .jpg",
    "texts": r"--images: got .*texts, which has 1 files and no image among them",
    "broken": r"--images: got 1 images that cannot be read, such as a.png \(not an image\)",
    "folder": "--out: got .*x.parquet, a folder; allowed: a file",
    "format": r"--out: got .*x.csv; allowed: a name that ends in .parquet, .npz",
    "unwritable": "a path through a file; allowed: a folder",
    "nowhere": "/proc/none.*: got a place that takes no folder",
    "no run": "--encoder: got .*nothing, which has neither config.yaml nor model.safetensors",
    "no checkpoint": r"--encoder: got .*fresh, which has no complete checkpoint",
    "no encoder": "--encoder: got .*, a model of method palette, which has no encoder",
    "no timm model": "--encoder: got timm:resnet_no",
    "split of files": "--split: got test with .*; allowed: a split of prepared data",
    "workers": "--workers: got -1",
    "links": r"got a link to the files of b/0.png; allowed: each file once",
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_line_and_leaves_no_output(tmp_path: Path, export: str, small: Path, case: str) -> None:
    images, out = write_images(tmp_path / "images"), tmp_path / "out/x.parquet"
    for name, files in {"empty": {}, "texts": {"a.txt": b"text"}, "broken": {"a.png": b"text"}}.items():
        (tmp_path / name).mkdir()
        for file, content in files.items():
            (tmp_path / name / file).write_bytes(content)
    (tmp_path / "fresh").mkdir()
    (tmp_path / "fresh/config.yaml").write_bytes((small / "run/config.yaml").read_bytes())
    if case == "folder":
        out.mkdir(parents=True)
    if case == "links":
        (images / "again.png").symlink_to(images / "b/0.png")
    if case == "no encoder":
        write_export(tmp_path / "palette", "palette")
    changed: dict[str, dict[str, object]] = {
        "format": {"out": out.with_suffix(".csv")},
        "unwritable": {"out": images / "a.png/x.parquet"},
        "nowhere": {"out": "/proc/none/x.parquet"},
        "no run": {"encoder": tmp_path / "nothing"},
        "no checkpoint": {"encoder": tmp_path / "fresh"},
        "no encoder": {"encoder": tmp_path / "palette"},
        "no timm model": {"encoder": "timm:resnet_no"},
        "split of files": {"split": "test"},
        "workers": {"workers": -1},
        **{name: {"images": tmp_path / name} for name in ("empty", "texts", "broken")},
    }
    given = {"encoder": export, "images": images, "out": out, "device": "cpu"} | changed.get(case, {})
    with pytest.raises(UserError, match=WRONG[case]) as caught:
        main([text for name, value in given.items() for text in (f"--{name}", str(value))])
    assert "\n" not in str(caught.value)
    assert not Path(str(given["out"])).is_file()


def test_the_package_lends_it() -> None:
    assert soda_dist.embed is embed
