"""Plans against built models, against a count by hooks, and against the sizes of the presets."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from soda_dist.config import RunConfig, load_config
from soda_dist.config.load import preset_names, with_fields
from soda_dist.models.condition import Sources
from soda_dist.models.method import Batch, Method
from soda_dist.training.build import build_model
from soda_dist.training.plan import plan, some_pose
from tests.models.methods import METHODS, config_of

SIZES = {
    # parameters; FLOPs of encoder and denoiser
    "imagenet": (135879235, 32241811456, 40672195840),
    **dict.fromkeys(("afhq", "celebahq", "lsun"), (61293571, 10684989440, 40672195840)),
    **dict.fromkeys(("gso", "nmr", "shapenet"), (82772227, 12073312256, 43218863360)),
    **dict.fromkeys(("cub", "flowers102"), (42363779, 4737990656, 40666854912)),
    **dict.fromkeys(
        ("mpi3d_complex", "mpi3d_real", "mpi3d_realistic", "mpi3d_toy", "shapes3d", "smallnorb"),
        (41503875, 4737597440, 40665529088),
    ),
    "cifar10": (21875139, 1111359488, 3648880640),
    **dict.fromkeys(("celebahq-small", "imagenet-small"), (3279347, 19759104, 40637440)),
    "shapenet-small": (3513219, 21775104, 42871040),
    "shapes3d-small": (3237875, 19726336, 40587392),
    "demo": (1139827, 5595136, 30107840),
    "own-images": (40963907, 1184890880, 17696969984),
    "solids": (1170723, 5554176, 40637440),
}

LONG = pytest.mark.long
COUNTED = ("soda", "no bottleneck", "cross attention", "rays and a vector", "unconditional", "encdec", "palette")
"""Methods of every day that between them have every kind of layer."""
NETWORKS = ("method", "data", "pose", "encoder", "aggregation", "denoiser")
"""Sections of a configuration that decide the networks' sizes."""


class Hooks:
    """FLOPs of forward passes by each layer's own formula: an independent count for `FlopCounterMode`."""

    def __init__(self) -> None:
        self.flops = 0

    def convolution(self, layer: nn.Conv2d, inputs: Any, out: torch.Tensor) -> None:
        self.flops += 2 * out.numel() * layer.in_channels * layer.kernel_size[0] * layer.kernel_size[1] // layer.groups

    def linear(self, layer: nn.Linear, inputs: Any, out: torch.Tensor) -> None:
        self.flops += 2 * out.numel() * layer.in_features

    def projections(self, layer: nn.MultiheadAttention, inputs: Any, out: Any) -> None:
        self.flops += 2 * out[0].numel() * layer.embed_dim * 4  # query, key, value and output

    def attention(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        batch, heads, queries, width = q.shape
        self.flops += 2 * batch * heads * queries * k.shape[2] * width * 2  # q k^T, then times v
        return torch.softmax(q @ k.mT / width**0.5, -1) @ v


@contextmanager
def hooked(model: Method, patch: pytest.MonkeyPatch) -> Iterator[Hooks]:
    hooks = Hooks()
    patch.setattr(F, "scaled_dot_product_attention", hooks.attention)
    patch.setattr(torch.backends.mha, "get_fastpath_enabled", lambda: False)
    kinds = ((nn.Conv2d, hooks.convolution), (nn.Linear, hooks.linear), (nn.MultiheadAttention, hooks.projections))
    handles = [m.register_forward_hook(h) for m in model.modules() for kind, h in kinds if isinstance(m, kind)]
    yield hooks
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("name", [name if name in COUNTED else pytest.param(name, marks=LONG) for name in METHODS])
def test_a_plan_counts_what_the_built_model_has_and_computes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(name)
    facts, model = plan(config), build_model(config).eval()
    counts = facts["parameters"]
    parts = sum(count for part, count in counts.items() if part not in ("total", "encoder_backbone"))
    assert counts["total"] == parts == sum(parameter.numel() for parameter in model.parameters())
    encodes = config.method in ("soda", "encdec")
    assert ("encoder_backbone" in counts) == encodes
    assert (facts["flops_per_pair"]["encoder"] > 0) == encodes
    pairs = config.denoiser.conditioning == "layer_modulation" and config.method == "soda"
    assert bool(facts["modulated_layers"]) == pairs
    data, pose = config.data, some_pose(config)
    image = torch.zeros(1, 1, 3, data.source_size, data.source_size)
    sources = Sources(image, torch.ones(1, 1, dtype=torch.bool), None if pose is None else pose[:, None])
    target = torch.zeros(1, 3, data.target_size, data.target_size)
    with hooked(model, monkeypatch) as hooks, torch.no_grad():
        model.condition(sources, pose, None, None)
        encoder = hooks.flops
        t = torch.zeros(1, dtype=torch.int64)
        model.loss(Batch(sources, target, pose), t=t, eps=target, keep=None, pose_keep=None)
    assert facts["flops_per_pair"] == {"encoder": encoder, "denoiser": hooks.flops - 2 * encoder}


@cache
def _sizes(config: str) -> tuple[int, int, int]:
    facts = plan(RunConfig.model_validate_json(config))
    return facts["parameters"]["total"], facts["flops_per_pair"]["encoder"], facts["flops_per_pair"]["denoiser"]


EVERY_DAY = ("imagenet", "nmr", "cifar10", "solids")


@pytest.mark.parametrize(
    "preset", [pytest.param(name, marks=() if name in EVERY_DAY else LONG) for name in preset_names()]
)
def test_presets_have_the_sizes_that_they_had(preset: str) -> None:
    config = load_config(preset)
    # Presets that differ in other sections have equal networks, which are counted once.
    networks = {name: getattr(config, name) for name in NETWORKS}
    assert _sizes(RunConfig().model_copy(update=networks).model_dump_json()) == SIZES[preset]


def test_a_plan_of_a_frozen_encoder_needs_no_weights() -> None:
    frozen = {
        "encoder.arch": "pretrained", "encoder.model": "test_vit.r160_in1k", "encoder.latent_dim": 64,
        "encoder.weights": "/nowhere/file.safetensors", "encoder.weights_sha256": "a" * 64,
    }  # fmt: skip
    facts = plan(with_fields(load_config("demo"), frozen))
    backbone = timm.create_model("test_vit", num_classes=0)
    assert facts["parameters"]["encoder_backbone"] == sum(tensor.numel() for tensor in backbone.state_dict().values())
    assert facts["parameters"]["encoder"] == facts["parameters"]["encoder_backbone"] + 6  # mean and variance of inputs
    assert facts["flops_per_pair"]["encoder"] > 10**7
