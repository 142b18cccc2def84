"""Forward process: clean images to noised ones in one step (section 3.1, appendix B)."""

from typing import Literal

import torch
from torch import Tensor

from soda_dist.errors import UserError
from soda_dist.torch_internals import FixedDtype

Prediction = Literal["noise", "velocity"]


class GaussianProcess(FixedDtype):
    """q(x_t | x_0) = N(sqrt(abar_t) x_0, (1 - abar_t) I) (appendix B), and what a network says of x_t.

    `abar` stays a float64 table on the CPU, from which samplers take strided steps. Training reads float32 buffers that
    follow the module's device but never its dtype: casting the model to bf16 must not round the noise levels. Neither
    is in the state dict: the schedule belongs to the configuration.

    Args:
        abar: float64 [T], in (0, 1), never rising; index i is t = i + 1. Other tables raise UserError.
        prediction: the network's output: eps, as in the paper, or v = sqrt(abar_t) eps - sqrt(1 - abar_t) x_0 (Salimans
            and Ho 2022). The squared error of v is that of the eps it implies, divided by abar_t.
    """

    sqrt_abar: Tensor
    sqrt_one_minus_abar: Tensor

    def __init__(self, abar: Tensor, prediction: Prediction = "noise") -> None:
        super().__init__()
        if prediction not in ("noise", "velocity"):
            raise ValueError(f"prediction: got {prediction}; allowed: noise, velocity")
        self.prediction = prediction
        _check_table(abar)
        self.abar = abar.detach().cpu().clone()
        self.register_buffer("sqrt_abar", self.abar.sqrt().float(), persistent=False)
        self.register_buffer("sqrt_one_minus_abar", (1 - self.abar).sqrt().float(), persistent=False)

    @property
    def steps(self) -> int:
        """T, the number of noise levels."""
        return len(self.abar)

    def noised(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """Compute x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps (appendix B, closed form).

        Args:
            x0, eps: [B, ...] float: images in [-1, 1] and standard normal noise.
            t: int64 [B] in 0..T-1, the table's index.
        """
        signal, noise = self._scales(t, x0.ndim)
        return signal * x0 + noise * eps

    def wanted(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """Compute what the network should say of x_t; arguments as in `noised`."""
        if self.prediction == "noise":
            return eps
        signal, noise = self._scales(t, x0.ndim)
        return signal * eps - noise * x0

    def noise_in(self, x: Tensor, t: Tensor, output: Tensor) -> Tensor:
        """Compute the eps that the network's output for x = x_t implies, [B, ...] float."""
        if self.prediction == "noise":
            return output
        signal, noise = self._scales(t, x.ndim)
        return noise * x + signal * output

    def _scales(self, t: Tensor, ndim: int) -> tuple[Tensor, Tensor]:
        shape = (-1,) + (1,) * (ndim - 1)
        return self.sqrt_abar[t].view(shape), self.sqrt_one_minus_abar[t].view(shape)


def _check_table(abar: Tensor) -> None:
    remedy = "build it with alpha_bar(name, steps)"
    if abar.dtype != torch.float64 or abar.ndim != 1 or len(abar) == 0:
        raise UserError("abar", f"{abar.dtype} {list(abar.shape)}", "float64 [T], T >= 1", remedy)
    if not bool(((abar > 0) & (abar < 1)).all()):
        raise UserError("abar", f"{float(abar.min())}..{float(abar.max())}", "values in (0, 1)", remedy)
    if bool((abar.diff() > 0).any()):
        raise UserError("abar", "a rising table", "values that never rise with t", remedy)
