"""The trained encoder of a checkpoint, ready to be written in another format, and what it expects of its input."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from soda_dist.config.schema import RunConfig
from soda_dist.data.storage.folder import Folder
from soda_dist.errors import UserError
from soda_dist.models.pixels import IMAGENET_MEAN, IMAGENET_STD
from soda_dist.training.checkpoint import load_model

TOLERANCE = 1e-5
"""Largest difference of an export's output from PyTorch's, over the largest value of z or 1."""


def load_encoder(run: Folder, step: int, form: str) -> tuple[nn.Module, RunConfig]:
    """Load a checkpoint's encoder (EMA weights) in eval mode, with weights stored as they are used.

    Args:
        form: the format that it is loaded for, named in errors.

    Raises:
        UserError: as `load_model`; or a method without an encoder, or an encoder that needs poses.
    """
    model, config, _ = load_model(run, step)
    encoder = getattr(model, "encoder", None)
    if encoder is None:
        got = f"{form} of a run with method={config.method}, which has no encoder"
        raise UserError("--to", got, "method=soda or encdec", "use --to hub, which takes the whole model")
    if getattr(encoder, "pose", None) is not None:
        got = f"{form} of an encoder that takes poses (pose.conditioning={config.pose.conditioning})"
        raise UserError("--to", got, "encoders of images alone", "use --to hub, which keeps the pose input")
    for owner in list(encoder.modules()):
        for name in list(getattr(owner, "parametrizations", ())):
            parametrize.remove_parametrizations(owner, name)
    return encoder.requires_grad_(False), config


def preprocessing(config: RunConfig) -> dict[str, Any]:
    """Describe the encoder's input as evaluation prepares it (section D.2, appendix C)."""
    size = config.data.source_size
    return {
        "input": f"float32 [N, 3, {size}, {size}], RGB: pixels / 255, minus mean, over std",
        "size": size,
        "resize_short_side": round(size * config.data.eval_resize),
        "crop": "center",
        "interpolation": "bilinear, antialiased",
        "mean": list(IMAGENET_MEAN),
        "std": list(IMAGENET_STD),
    }


def noise_images(config: RunConfig, count: int) -> Tensor:
    """Draw `count` inputs of the encoder, standard normal float32 [count, 3, s, s], with seed 0."""
    size = config.data.source_size
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest absolute difference of two outputs, over the largest value of `ours` or 1."""
    return ((ours - theirs).abs().max() / ours.abs().max().clamp_min(1)).item()
