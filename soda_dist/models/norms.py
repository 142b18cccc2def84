"""Batch norms of a network that was never trained."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


@torch.no_grad()
def settle_norms(module: nn.Module, batches: Sequence[tuple[Tensor | None, ...]]) -> None:
    """Batch norms of a module in eval mode get the mean statistics of `batches`, each the module's arguments.

    Everything else stays in eval mode. Without batch norms nothing happens.
    """
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for number, batch in enumerate(batches if norms else ()):
        for norm in norms:
            norm.train()
            norm.momentum = 1.0 / (number + 1)  # a running mean over the batches
        module(*batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval()
        norm.momentum = momentum
