"""The folder alone, read by timm, computes what our encoder computes; what timm cannot express is refused."""

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

from soda_dist.errors import UserError
from soda_dist.export.exporter import export
from soda_dist.export.timm_folder import timm_files
from soda_dist.training.build import build_encoder
from soda_dist.training.checkpoint import load_model
from tests.export.checkpoints import GRID, checkpointed, disturb, plain_config
from tests.tiny import tiny_config

ENCODERS = {
    "resnet18": plain_config(),
    "twice as wide bottlenecks": plain_config(encoder={"arch": "resnet50x2", "width": 0.0625}),
    "group norm": plain_config(encoder={"norm": "group", "width": 1.0}),
    "vit": plain_config(encoder={"arch": "vit_small", "width": 0.125, "patch": 8}),
    "grid of a resnet": plain_config(data={"source_size": 64}, denoiser=GRID),
    "grid of a vit": plain_config(encoder={"arch": "vit_small", "width": 0.125, "patch": 8}, denoiser=GRID),
}


def from_timm(folder: Path) -> torch.nn.Module:
    """The network as the docs build it, from the two files."""
    config = json.loads((folder / "config.json").read_text())
    model = timm.create_model(config["architecture"], num_classes=config["num_classes"], **config["model_args"])
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.eval()


@pytest.mark.parametrize("name", ENCODERS)
@torch.no_grad()
def test_timm_computes_z_from_the_files_alone(name: str, tmp_path: Path) -> None:
    config = ENCODERS[name]
    encoder = build_encoder(config).eval()
    disturb(encoder)
    for file, content in timm_files(encoder, config, lambda line: None).items():
        (tmp_path / file).write_bytes(content)
    size = config.data.source_size
    images = torch.randn(3, 3, size, size)
    z, theirs = encoder(images), from_timm(tmp_path)(images)
    if theirs.ndim == 4:
        theirs = theirs.flatten(2).transpose(1, 2)
    assert z.std() > 1e-2
    torch.testing.assert_close(theirs, z, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_checkpoint_becomes_a_folder_that_timm_reads_by_its_path(tmp_path: Path) -> None:
    run = checkpointed(tmp_path / "run", plain_config(data={"eval_resize": 1.25}))
    said: list[str] = []
    out = export(run.uri, "timm", str(tmp_path / "out"), say=said.append)
    assert out == str(tmp_path / "out") and "equals the encoder" in said[0]
    model = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    images = torch.randn(2, 3, 32, 32)
    z = load_model(run)[0].encoder(images)
    torch.testing.assert_close(model(images), z, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(from_timm(tmp_path / "out")(images), z, rtol=1e-5, atol=1e-5)
    facts = timm.data.resolve_model_data_config(model)
    assert [*facts["input_size"], *facts["mean"], facts["crop_pct"]] == [3, 32, 32, 0.485, 0.456, 0.406, 0.8]
    features = timm.create_model(f"local-dir:{out}", pretrained=True, num_classes=0).eval()(images)
    torch.testing.assert_close(model.head.fc.weight[:, :, 0, 0] @ features[0] + model.head.fc.bias, z[0])


REFUSED = {
    "small stem": (tiny_config(), "encoder.stem=small"),
    "narrow group norm": (plain_config(encoder={"norm": "group"}), "group norms of 4, 8, 16, 32 groups"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_timm_lacks_is_refused(name: str) -> None:
    config, says = REFUSED[name]
    with pytest.raises(UserError, match=says) as error:
        timm_files(build_encoder(config), config, lambda line: None)
    assert "use --to onnx or --to hub" in str(error.value)
