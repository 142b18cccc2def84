"""Parameter counts, FLOPs and modulated layers of a configuration."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from soda_dist.config.schema import RunConfig
from soda_dist.models.condition import Condition, Sources
from soda_dist.models.method import DiffusionMethod, Method
from soda_dist.models.pose_encoding import CAMERA_POSE, PIXEL_POSE
from soda_dist.models.soda import EncDec
from soda_dist.training.build import build_model

Result = TypeVar("Result")


def plan(config: RunConfig) -> dict[str, Any]:
    """Compute the networks' sizes on the meta device, without weights, as JSON values.

    `parameters` include a frozen encoder's; `flops_per_pair` is for one forward pass (a multiply-add is two);
    `modulated_layers` gives each layer's section of z.
    """
    with torch.device("meta"):
        model = build_model(config)
    # FlopCounterMode fails on views of tensors that require grad.
    model = model.to("meta").eval().requires_grad_(False)
    parts = {name: child for name, child in model.named_children() if name not in ("process", "pose_masks")}
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
    """Return an arbitrary pose, float32 [1, P]; None if the data has no poses."""
    width = {"none": 0, "pixels": PIXEL_POSE, "cameras": CAMERA_POSE}[config.data.pose]
    return torch.eye(5)[:1].repeat(1, 5)[:, :width] if width else None


def _count(module: nn.Module) -> int:
    frozen = sum(b.numel() for b in module.buffers()) if not any(True for _ in module.parameters()) else 0
    return frozen + sum(parameter.numel() for parameter in module.parameters())


def _flops(model: Method, config: RunConfig) -> dict[str, int]:
    """Count FLOPs of one forward pass of a meta model over one pair with one source."""
    with torch.device("meta"):
        data, camera = config.data, some_pose(config)
        image = torch.empty(1, 1, 3, data.source_size, data.source_size)
        sources = Sources(image, torch.ones(1, 1, dtype=torch.bool), None if camera is None else camera[:, None])
        encoder, condition = _counted(lambda: model.condition(sources, camera, None, None))
        denoiser, _ = _counted(lambda: _predicted(model, condition, data.target_size))
    return {"encoder": encoder, "denoiser": denoiser}


def _predicted(model: Method, condition: Condition, size: int) -> Tensor:
    if isinstance(model, EncDec):
        return model.decode(condition)
    assert isinstance(model, DiffusionMethod)
    return model.denoise(torch.empty(1, 3, size, size), torch.zeros(1, dtype=torch.int64), condition)


def _counted(forward: Callable[[], Result]) -> tuple[int, Result]:
    """Count the FLOPs of a forward pass and return them with its result."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    # This kernel splits attention into matmuls, which FlopCounterMode counts on every device.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        result = forward()
    return counter.get_total_flops(), result
