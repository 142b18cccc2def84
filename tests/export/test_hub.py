"""The Hub's folder: the checkpoint's own files, a card with every figure, an upload to a stand-in of the Hub."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard, constants

from soda_dist.config.older import parse_stored
from soda_dist.errors import MachineError, UserError
from soda_dist.evaluation.model_sources import EncoderFile
from soda_dist.export.exporter import export
from soda_dist.runs.folder import checkpoint_folder
from soda_dist.runs.results import read_step
from tests.export.checkpoints import NO_ENCODER, STEP, checkpointed, write_results
from tests.export.fake_hub import FakeHub, fake_hub
from tests.tiny import tiny_config

TOKEN = "hf_abcdefghijklmnopqrstuvwxyz012345"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made = checkpointed(tmp_path_factory.mktemp("hub") / "my-run", tiny_config())
    write_results(made)
    return made


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    """The stand-in as the endpoint, with a token; files go by LFS, since hf_xet has a protocol of its own."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr("huggingface_hub._commit_api.is_xet_available", lambda: False)
    with fake_hub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        yield server


def test_the_folder_holds_the_checkpoints_files_and_can_be_read(run: Any, tmp_path: Path) -> None:
    out = Path(export(run.uri, "hub", str(tmp_path / "out")))
    kept = checkpoint_folder(run, STEP)
    for name in ("model.safetensors", "encoder.safetensors", "config.json"):
        assert (out / name).read_bytes() == kept.read(name)
    assert parse_stored((out / "config.json").read_bytes(), "config.json") == tiny_config()
    assert EncoderFile(str(out / "encoder.safetensors")).load().encoder.latent_dim == 12
    assert json.loads((out / "preprocessing.json").read_text())["size"] == 16
    assert {path.name for path in out.iterdir()} == {
        "model.safetensors", "encoder.safetensors", "config.json", "preprocessing.json", "README.md",
    }  # fmt: skip


def numbers(tree: Any) -> Iterator[float]:
    """Every number of a result's facts."""
    if isinstance(tree, dict):
        for key, part in tree.items():
            if key not in ("data", "provenance", "seed", "seconds", "step", "settings", "weights"):
                yield from numbers(part)
    elif isinstance(tree, list):
        for part in tree:
            yield from numbers(part)
    elif isinstance(tree, int | float) and not isinstance(tree, bool):
        yield tree


def test_the_card_has_every_number_of_the_results_and_nothing_private(run: Any, tmp_path: Path) -> None:
    text = (Path(export(run.uri, "hub", str(tmp_path / "out"), license_id="mit")) / "README.md").read_text()
    cells = {part.strip() for line in text.splitlines() if line.startswith("|") for part in line.split("|")}
    found = [number for result in read_step(run, STEP).results.values() for number in numbers(result)]
    assert len(found) == 23
    missing = [n for n in found if f"{n:.6g}" not in cells and f"{n:.3g}" not in cells]
    assert missing == []
    assert "0.6123 ± 0.001" in cells and "0.01 ± 0.001" in cells
    assert "private" not in text and "/gone/data" not in text and "77.125" not in text and "<b>" not in text
    for said in (
        "trained for 3 steps of 8 pairs", "cifar10 (train 50,000, test 10,000 rows)", "not measured: knn, label_free",
        "none of the paper's", "by_factor.a\\|b.accuracy", "arXiv:2311.17901", "## License\n\n`mit`",
    ):  # fmt: skip
        assert said in text, said


def test_the_hubs_library_reads_the_cards_metadata(run: Any, tmp_path: Path) -> None:
    out = Path(export(run.uri, "hub", str(tmp_path / "out"), license_id="mit"))
    data = ModelCard.load(out / "README.md").data
    assert data.library_name == "soda_dist" and data.license == "mit" and data.datasets == ["cifar10"]
    assert data.model_name == "my-run"
    measured = {(r.task_name, r.metric_type, r.metric_value, r.dataset_split) for r in data.eval_results}
    assert measured == {
        ("linear probe", "accuracy", 0.61234, "test"),
        ("linear probe", "f1", 0.587, "test"),
        ("dci", "disentanglement", 0.4127, "test"),
    }


def test_a_card_without_results_or_license_says_so(tmp_path: Path) -> None:
    plain = checkpointed(tmp_path / "run", tiny_config(**NO_ENCODER))
    text = (Path(export(plain.uri, "hub", str(tmp_path / "out"))) / "README.md").read_text()
    assert "This checkpoint was not evaluated." in text and "## License\n\nNot stated." in text
    assert "license" not in yaml.safe_load(text.split("---\n")[1])
    assert not (tmp_path / "out/encoder.safetensors").exists() and "encoder.safetensors" not in text


def test_a_card_on_the_papers_data_lists_what_sets_it_apart(tmp_path: Path) -> None:
    plain = checkpointed(tmp_path / "run", tiny_config())
    rows = {"train": 1000, "val": 50}
    estimates = {"top1": {"value": 0.5, "standard_error": 0.1}}
    result = {
        "task": "probe", "metric": "top1", "value": 0.5, "encoders": {"trained": {"estimates": estimates}},
        "splits": {"train": "train", "test": "val"}, "counts": {"train": 1000, "test": 25},
        "data": {"uri": "x", "kind": "imagenet", "rows": rows},
    }  # fmt: skip
    plain.write_json(f"eval/{STEP}/probe.json", result)
    text = (Path(export(plain.uri, "hub", str(tmp_path / "out"))) / "README.md").read_text()
    assert "against the paper: subset of the data: 1,050 images" in text
    assert "against the paper: measured on 25 of the 50 images of val." in text


def test_an_upload_has_the_folders_bytes_and_shows_no_token(
    run: Any, hub: FakeHub, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []
    url = export(run.uri, "hub", str(tmp_path / "out"), push_to="me/solids", say=said.append)
    assert url == f"{hub.url}/me/solids"
    assert hub.repositories == [{"name": "solids", "organization": "me", "visibility": "private"}]
    assert hub.files == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert hub.modes["model.safetensors"] == "lfsFile" and hub.modes["README.md"] == "file"
    assert 'snapshot_download("me/solids")' in hub.files["README.md"].decode()
    assert hub.tokens == {f"Bearer {TOKEN}"}
    shown = "".join([*said, *capfd.readouterr()]).encode() + b"".join(hub.files.values())
    assert TOKEN.encode() not in shown


def test_without_credentials_nothing_is_written(
    run: Any, hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match="--push: got me/solids without credentials"):
        export(run.uri, "hub", str(tmp_path / "out"), push_to="me/solids")
    assert not (tmp_path / "out").exists() and not hub.repositories


@pytest.mark.parametrize("name", ["solids", "me/so/lids", "me/-x", ""])
def test_a_name_that_is_no_repository_is_refused(name: str, run: Any, hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="OWNER/NAME"):
        export(run.uri, "hub", str(tmp_path / "out"), push_to=name)


def test_a_card_that_the_hub_refuses_is_one_line(run: Any, hub: FakeHub, tmp_path: Path) -> None:
    hub.card_errors = ['"license" must be one of [mit]']
    with pytest.raises(
        UserError, match=r'model card that the Hub refuses .*"license" must be one of .*check --license'
    ):
        export(run.uri, "hub", str(tmp_path / "out"), push_to="me/solids", license_id="none-of-them")
    assert not hub.files


@pytest.mark.parametrize(
    ("status", "error", "says"),
    [(403, UserError, "refused with HTTP status 403"), (500, MachineError, "HTTP status 500")],
)
def test_a_refusal_of_the_hub_is_one_line(
    status: int, error: type[Exception], says: str, run: Any, hub: FakeHub, tmp_path: Path
) -> None:
    hub.status = status
    with pytest.raises(error, match=says) as caught:
        export(run.uri, "hub", str(tmp_path / "out"), push_to="me/solids")
    assert TOKEN not in str(caught.value)
