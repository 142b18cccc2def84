"""Updates that a tensor on the device can skip, so that no step waits for the host to look at its gradient."""

from collections.abc import Sequence

import torch
from torch import Tensor

from soda_dist.torch_internals import lerp_all


class SkippingAdamW(torch.optim.AdamW):
    """AdamW, fused, with steps that `skip_unless` turns into none: weights, moments and the count of updates stay."""

    found_inf: Tensor | None = None
    """Scalar that torch's fused kernels read, as they do for a loss scale that overflowed: 1 = skip."""

    def skip_unless(self, finite: Tensor) -> None:
        """Skip the next steps where the bool scalar `finite` is False."""
        self.found_inf = (~finite).float()


def is_finite(loss: Tensor, grad_norm: Tensor) -> Tensor:
    """Return a bool scalar: whether an update with this global loss and gradient norm may be made."""
    return torch.isfinite(loss) & torch.isfinite(grad_norm)


@torch.no_grad()
def update_ema(ema: Sequence[Tensor], params: Sequence[Tensor], decay: float, finite: Tensor) -> None:
    """Move each EMA towards its parameter by 1 - `decay`; not at all where `finite` is False."""
    lerp_all(ema, params, torch.where(finite, 1.0 - decay, 0.0))


def adam_state(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """Return Adam's state of `parameter`, initialised as fused Adam does if it has none yet."""
    state = optimizer.state[parameter]
    if not state:
        state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
        state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
    return state
