"""What a configuration amounts to before anything is trained: parameters, arithmetic, modulated layers."""

from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from soda_dist.config.schema import RunConfig
from soda_dist.models.soda import Soda
from soda_dist.training.build import build_soda


def plan(config: RunConfig) -> dict[str, Any]:
    """Sizes of the networks as plain JSON values.

    `parameters` are counts; `flops_per_pair` those of one forward (a multiplication and an addition are two);
    `modulated_layers` says which section of z reaches which layer.
    """
    soda = build_soda(config).eval()
    return {
        "parameters": {
            "encoder_backbone": _count(soda.encoder.backbone),
            "encoder": _count(soda.encoder),
            "denoiser": _count(soda.denoiser),
            "total": _count(soda),
        },
        "flops_per_pair": _flops(soda, config),
        "modulated_layers": [layer._asdict() for layer in soda.denoiser.modulated_layers()],
    }


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _flops(soda: Soda, config: RunConfig) -> dict[str, int]:
    source = torch.zeros(1, 3, config.data.source_size, config.data.source_size)
    noised = torch.zeros(1, 3, config.data.target_size, config.data.target_size)
    with torch.no_grad(), FlopCounterMode(display=False) as encoder:
        latent = soda.encoder(source)
    with torch.no_grad(), FlopCounterMode(display=False) as denoiser:
        soda.denoiser(noised, torch.zeros(1, dtype=torch.int64), latent, None)
    return {"encoder": encoder.get_total_flops(), "denoiser": denoiser.get_total_flops()}
