"""A model is found at every address that names it; what is none is refused in one line."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import soda_dist
from soda_dist.data.storage.folder import open_folder
from soda_dist.errors import UserError
from soda_dist.inference import load
from soda_dist.training.checkpoint import load_model
from tests.inference.exports import write_export

IMAGE = np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8)


@pytest.fixture(scope="module")
def latents(small: Path) -> dict[tuple[int, bool], torch.Tensor]:
    """z of IMAGE by step and ema, by the networks of `load_model`."""
    from soda_dist.data.views.pair_views import center_view
    from soda_dist.models.condition import Sources
    from soda_dist.models.pixels import source_input

    view = torch.from_numpy(center_view(IMAGE, size=16, resize=1.0)[None, None])
    sources = Sources(source_input(view), torch.ones(1, 1, dtype=torch.bool), None)
    run = open_folder(str(small / "run"))
    return {(step, ema): load_model(run, step, ema=ema)[0].encode(sources) for step in (3, 6) for ema in (True, False)}


@pytest.mark.parametrize(
    ("place", "choice", "key"),
    [
        ("run", {}, (6, True)),
        ("run", {"step": 3}, (3, True)),
        ("run", {"ema": False}, (6, False)),
        ("run/checkpoints/000000003", {}, (3, True)),
        ("run/checkpoints/000000003/", {"step": 3, "ema": False}, (3, False)),
        ("run/checkpoints/000000003/encoder.safetensors", {}, (3, True)),
        ("copied", {}, (3, True)),
    ],
)
def test_every_address_gives_the_weights_that_it_names(small, tmp_path, latents, place, choice, key) -> None:
    if place == "copied":  # without manifest and state: what an export holds
        (tmp_path / "copied").mkdir()
        for name in ("model.safetensors", "config.json"):
            shutil.copy(small / "run/checkpoints/000000003" / name, tmp_path / "copied" / name)
    root = tmp_path if place == "copied" else small
    z = load(f"{root}/{place}", device="cpu", **choice).encode(IMAGE)
    torch.testing.assert_close(z, latents[key], rtol=1e-4, atol=1e-5)
    others = [other for each, other in latents.items() if each != key]
    assert not any(torch.allclose(z, other, rtol=1e-4, atol=1e-5) for other in others)


@pytest.mark.parametrize(
    ("place", "choice", "message"),
    [
        ("nothing", {}, "load: got .*nothing, which has neither config.yaml nor model.safetensors; allowed: a run"),
        ("run", {"step": 4}, "--step: got 4; allowed: 3, 6, latest"),
        ("run", {"device": "tpu"}, "device: got tpu; allowed: cpu"),
        ("run", {"overrides": ["encoder.width=2"]}, "override: got encoder.width=2; allowed: sampling.field"),
        ("run/checkpoints/000000003", {"step": 6}, "step: got 6 with .*000000003"),
        ("run/checkpoints/000000004", {}, "got .*4; allowed: 3, 6"),
        ("run/checkpoints/000000003/encoder.safetensors", {"ema": False}, "ema: got False with .*safetensors"),
        ("run/checkpoints/000000003/none.safetensors", {}, "an existing file, or timm:NAME"),
        ("run", {"weights": "w"}, "--weights: got one of"),
        ("timm:resnet_no", {}, "timm"),
    ],
)
def test_what_is_no_model_is_refused(small: Path, place: str, choice: dict, message: str) -> None:
    uri = place if place.startswith("timm:") else f"{small}/{place}"
    with pytest.raises(UserError, match=message) as caught:
        load(uri, **choice)
    assert "\n" not in str(caught.value)


def test_a_damaged_export_is_refused(tmp_path: Path) -> None:
    folder = write_export(tmp_path / "export", "soda")
    sound = load_file(folder / "model.safetensors")
    name = "denoiser.conv_out.weight"
    broken = {
        "not finite": sound | {name: sound[name] * float("nan")},
        "got shape": sound | {name: sound[name][:1]},
        "unknown": sound | {"more": torch.ones(1)},
        "got torch.int32": sound | {name: sound[name].to(torch.int32)},
        "bytes": sound | {"much": torch.ones(10**6)},
    }
    for message, tensors in broken.items():
        save_file({key: value.contiguous() for key, value in tensors.items()}, folder / "model.safetensors")
        with pytest.raises(UserError, match=message):
            load(str(folder))
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"a folder without config\.json"):
        load(str(folder))


def test_the_package_lends_the_functions() -> None:
    assert soda_dist.load is load
    assert {"load", "pretrain", "embed"} <= set(soda_dist.__all__)
