"""What comes before training, measured small: every side does its work, and the table has every ratio."""

from functools import partial
from pathlib import Path

import pytest

from soda_dist.benchmarks import harness, startup
from soda_dist.data.storage.folder import open_folder
from soda_dist.errors import UserError
from tests.data.written.pictures import picture
from tests.evaluation.small_run import prepare

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.usefixtures("cluster", "one_actor")]


@pytest.fixture
def one_actor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each import starts its own actors, whose processes cost more than the import."""
    monkeypatch.setattr(startup, "ActorPool", partial(startup.ActorPool, actors=1))


def test_an_import_is_measured_over_as_many_bytes_as_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "ROUNDS", 2)
    data = picture(0, "JPEG", side=(60, 80))
    for name in ("a/1.jpg", "a/2.jpg", "b/1.JPEG"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    (tmp_path / "readme.txt").write_text("no image")
    monkeypatch.setattr(startup, "BYTES", 39 * len(data) + 1)
    monkeypatch.setattr(startup, "PIECE", 7 * len(data))
    said: list[str] = []
    found = startup.measure_import(str(tmp_path), said.append)
    assert said[0].startswith("import, 40 images, 0 MB, round 1 of 2, MB/s: import ")
    names = ["import against reading and hashing", "import against reading, hashing and writing"]
    assert [result["name"] for result in found] == names
    assert [result["limit"] for result in found] == [0.7, None]
    assert all(len(rates) == 2 and min(rates) > 0 for result in found for rates in result["rounds"].values())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "readme.txt"]
    (tmp_path / "none").mkdir()
    (tmp_path / "none/empty.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"none: got no images; allowed: files in \.jpg, "):
        startup.measure_import(str(tmp_path / "none"), said.append)


def test_images_of_a_store_are_read_where_they_are(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "ROUNDS", 1)
    folder = open_folder(s3_uri)
    for number in range(30):
        folder.write(f"{number}.jpg", picture(number, "JPEG", side=(60, 80)))
    said: list[str] = []
    found = startup.measure_import(s3_uri, said.append)
    assert said[0].startswith("import, 30 images, 0 MB, round 1 of 1, MB/s: import ")
    assert [min(result["median"].values()) > 0 for result in found] == [True, True]
    monkeypatch.setattr(startup, "BYTES", 1000)
    with pytest.raises(UserError, match=r"got 0 MB; allowed: at most 0 MB; choose a subfolder"):
        startup.measure_import(s3_uri, said.append)


def test_written_pieces_hold_every_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "PIECE", 250)
    files = []
    for number in range(11):
        files.append(tmp_path / f"{number}")
        files[-1].write_bytes(bytes([number]) * 100)
    (tmp_path / "out").mkdir()
    startup._read(open_folder(str(tmp_path)), tmp_path / "out", 0, [file.name for file in files])
    pieces = [path.read_bytes() for path in sorted((tmp_path / "out").iterdir())]
    assert [len(piece) for piece in pieces] == [300, 300, 300, 200]
    assert b"".join(pieces) == b"".join(file.read_bytes() for file in files)


def test_first_batches_of_a_start_and_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "ROUNDS", 1)
    prepare(str(tmp_path), {"train": [[8, 8], [8]]}, {})
    asked, measured = [], startup.first_batch
    monkeypatch.setattr(
        startup, "first_batch", lambda uri, config, step: asked.append(step) or measured(uri, config, step)
    )
    small = ["train.global_batch=4", "train.steps=3", "optim.warmup_steps=2"]
    found = startup.measure_start("cifar10", str(tmp_path), small, lambda _: None)
    assert asked == [0, 2], "the middle of the epoch, or the last step before it"
    with pytest.raises(UserError, match="split: got other; allowed: train"):
        startup.measure_start("cifar10", str(tmp_path), [*small, "data.train_split=other"], lambda _: None)
    assert [result["name"] for result in found] == [
        "first batch, 2 shards, a start, against 10 s",
        "first batch, 2 shards, a resume in mid-epoch, against 10 s",
    ]
    for result in found:
        assert result["ratio"] == pytest.approx(10 / result["facts"]["seconds"], rel=1e-2)
        assert result["limit"] == 1 and result["ratio"] > 0
