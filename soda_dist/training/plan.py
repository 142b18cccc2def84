"""What a configuration amounts to before anything is trained: parameters, arithmetic, modulated layers."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from soda_dist.config.schema import RunConfig
from soda_dist.models.condition import Sources
from soda_dist.models.method import Batch, DiffusionMethod, Method
from soda_dist.models.pose_encoding import CAMERA_POSE, PIXEL_POSE
from soda_dist.training.build import build_model


def plan(config: RunConfig) -> dict[str, Any]:
    """Sizes of the networks as plain JSON values.

    `parameters` are counts (a frozen encoder's are buffers, and counted too); `flops_per_pair` those of one forward (a
    multiplication and an addition are two); `modulated_layers` says which section of z reaches which layer.
    """
    model = build_model(config).eval().requires_grad_(False)  # the counter trips over views of what wants gradients
    parts = {name: child for name, child in model.named_children() if name != "process"}
    counts = {name: _count(part) for name, part in parts.items()}
    if "encoder" in parts:
        counts["encoder_backbone"] = _count(model.get_submodule("encoder.backbone"))
    layers = model.denoiser.modulated_layers() if isinstance(model, DiffusionMethod) else []
    return {
        "parameters": {**counts, "total": _count(model)},
        "flops_per_pair": _flops(model, config),
        "modulated_layers": [layer._asdict() for layer in layers],
    }


def some_pose(config: RunConfig) -> Tensor | None:
    """A pose to run the networks with, float32 [1, P], of no meaning; none where the data has no poses."""
    width = {"none": 0, "pixels": PIXEL_POSE, "cameras": CAMERA_POSE}[config.data.pose]
    return torch.eye(5)[:1].repeat(1, 5)[:, :width] if width else None


def _count(module: nn.Module) -> int:
    frozen = sum(b.numel() for b in module.buffers()) if not any(True for _ in module.parameters()) else 0
    return frozen + sum(parameter.numel() for parameter in module.parameters())


def _flops(model: Method, config: RunConfig) -> dict[str, int]:
    data = config.data
    camera = some_pose(config)
    sources = Sources(
        torch.zeros(1, 1, 3, data.source_size, data.source_size),
        torch.ones(1, 1, dtype=torch.bool),
        None if camera is None else camera[:, None],
    )
    target = torch.zeros(1, 3, data.target_size, data.target_size)
    with torch.no_grad(), FlopCounterMode(display=False) as whole:
        model.loss(
            Batch(sources, target, camera),
            t=torch.zeros(1, dtype=torch.int64),
            eps=target,
            keep=None,
            pose_keep=None,
        )
    with torch.no_grad(), FlopCounterMode(display=False) as encoding:
        model.condition(sources, camera, None, None)
    encoder = encoding.get_total_flops()
    return {"encoder": encoder, "denoiser": whole.get_total_flops() - encoder}
