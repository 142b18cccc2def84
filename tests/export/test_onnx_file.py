"""The ONNX file in onnxruntime against the encoder in PyTorch, at any batch size."""

import json
import sys
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch

from soda_dist.errors import MachineError, UserError
from soda_dist.export import onnx_file
from soda_dist.export.exporter import export
from soda_dist.export.onnx_file import onnx_bytes
from soda_dist.training.build import build_encoder
from soda_dist.training.checkpoint import load_model, weights_digest
from tests.evaluation.small_run import small_data
from tests.export.checkpoints import GRID, STEP, checkpointed, disturb, plain_config
from tests.tiny import tiny_config

ENCODERS = {
    "small stem, group norm": tiny_config(),
    "vit": plain_config(encoder={"arch": "vit_small", "width": 0.125, "patch": 8}),
    "grid": tiny_config(denoiser=GRID),
}


def run_in_onnx(content: bytes, images: torch.Tensor) -> torch.Tensor:
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["z"], {"images": images.numpy()})[0])


@pytest.mark.parametrize("name", ENCODERS)
@torch.no_grad()
def test_onnxruntime_equals_pytorch_at_any_batch_size(name: str) -> None:
    config = ENCODERS[name]
    encoder = build_encoder(config).eval().requires_grad_(False)
    disturb(encoder)
    content = onnx_bytes(encoder, config, {}, lambda line: None, int8=False, images=None)
    size = config.data.source_size
    for count in (1, 2, 7):
        images = torch.randn(count, 3, size, size)
        torch.testing.assert_close(run_in_onnx(content, images), encoder(images), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_checkpoint_becomes_a_file_with_metadata_and_a_smaller_int8_one(tmp_path: Path) -> None:
    run, said = checkpointed(tmp_path / "run", plain_config(encoder={"width": 0.25})), []
    small_data(tmp_path / "data")
    whole = Path(export(run.uri, "onnx", str(tmp_path / "e.onnx"), say=said.append))
    assert "onnxruntime equals PyTorch to" in said[0]
    model = onnx.load(whole)
    onnx.checker.check_model(model, full_check=True)
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert facts["weights_sha256"] == weights_digest(run, STEP, ema=True) and facts["step"] == str(STEP)
    assert json.loads(facts["preprocessing"])["mean"] == [0.485, 0.456, 0.406]
    images = torch.randn(3, 3, 32, 32)
    z = load_model(run)[0].encoder(images)
    torch.testing.assert_close(run_in_onnx(whole.read_bytes(), images), z, rtol=1e-5, atol=1e-5)

    small = Path(
        export(run.uri, "onnx", str(tmp_path / "8.onnx"), int8=True, data_uri=str(tmp_path / "data"), say=said.append)
    )
    assert small.stat().st_size < 0.4 * whole.stat().st_size
    found = run_in_onnx(small.read_bytes(), images)
    assert 0.98 < torch.nn.functional.cosine_similarity(found, z).min() < 1 - 1e-9
    assert said[-1].startswith("int8: cosine similarity of z with float 0.9") and said[-1].endswith("29 images")


def test_a_missing_package_is_named_with_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match=r"without the package onnx; .*pip install 'soda_dist\[onnx\]'"):
        export(str(tmp_path / "none"), "onnx", str(tmp_path / "e.onnx"))
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match="without the package onnxruntime"):
        export(str(tmp_path / "none"), "onnx", str(tmp_path / "e.onnx"), int8=True)


def test_without_onnxruntime_the_file_is_written_and_not_called_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    said: list[str] = []
    config = tiny_config()
    assert onnx_bytes(build_encoder(config).eval(), config, {}, said.append, int8=False, images=None)
    assert said == ["not checked against PyTorch: onnxruntime is not installed (pip install 'soda_dist[onnx]')"]


def test_a_file_that_computes_something_else_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config()
    encoder = build_encoder(config).eval()
    ran = onnx_file._run
    monkeypatch.setattr(onnx_file, "_run", lambda content, images: ran(content, images) + 1e-3)
    with pytest.raises(MachineError, match="differs from PyTorch"):
        onnx_bytes(encoder, config, {}, lambda line: None, int8=False, images=None)
