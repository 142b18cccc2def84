"""Learning-rate equalization (appendix C), hidden from state dicts."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from soda_dist.torch_internals import own_parameters, own_persistent_buffers


class Scaled(nn.Module):
    """Parametrization that stores a parameter divided by `ratio` and uses it multiplied by `ratio`."""

    def __init__(self, ratio: float) -> None:
        super().__init__()
        self.ratio = ratio

    def forward(self, stored: Tensor) -> Tensor:
        """Return the value in use."""
        return stored * self.ratio

    def right_inverse(self, used: Tensor) -> Tensor:
        """Return the value to store."""
        return used / self.ratio


def equalize(module: nn.Module, ratio: float) -> None:
    """Equalize learning rates (appendix C): store parameters divided by `ratio` and use them multiplied by it.

    The network computes the same function; gradients are scaled by `ratio`, and optimizers like Adam move the weights
    in use `ratio` times as fast. Our reading: every parameter takes part, biases and norms included. A ratio of 1
    changes nothing.
    """
    if ratio == 1:
        return
    if not (ratio > 0 and math.isfinite(ratio)):
        raise ValueError(f"lr_ratio: got {ratio}; allowed: positive and finite")
    for owner in list(module.modules()):
        for name in own_parameters(owner):
            parametrize.register_parametrization(owner, name, Scaled(ratio))


def plain_state_dict(module: nn.Module) -> dict[str, Tensor]:
    """Copy the parameters in use and the buffers, detached, under their names without `equalize`."""
    return {name: _used(owner, leaf).detach().clone() for name, owner, leaf in _tensors(module)}


def plain_names(module: nn.Module) -> dict[str, tuple[str, float]]:
    """Map each name of the state dict to its name without `equalize` and the factor of the value in use."""
    found = {}
    for plain, owner, leaf in _tensors(module):
        if parametrize.is_parametrized(owner, leaf):
            parametrizations: Any = owner.parametrizations
            stored = f"{plain.removesuffix(leaf)}parametrizations.{leaf}.original"
            found[stored] = (plain, float(parametrizations[leaf][0].ratio))
        else:
            found[plain] = (plain, 1.0)
    return found


@torch.no_grad()
def load_plain_state_dict(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Copy in what `plain_state_dict` returned, for any ratio of either module; the tensors keep their storage.

    Raises:
        ValueError: names, shapes or kinds of number that are not the module's, or values that are not finite.
    """
    own = {name: (owner, leaf) for name, owner, leaf in _tensors(module)}
    if own.keys() != tensors.keys():
        missing, unknown = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
        raise ValueError(f"state dict: missing {missing[:5]}, unknown {unknown[:5]}")
    for name, (owner, leaf) in own.items():
        used, tensor = _used(owner, leaf), tensors[name]
        if used.shape != tensor.shape:
            raise ValueError(f"{name}: got shape {list(tensor.shape)}; allowed: {list(used.shape)}")
        if used.is_floating_point() != tensor.is_floating_point():
            raise ValueError(f"{name}: got {tensor.dtype}; allowed: {used.dtype}")
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name}: got values that are not finite; allowed: finite values")
    for name, (owner, leaf) in own.items():
        if parametrize.is_parametrized(owner, leaf):
            parametrizations: Any = owner.parametrizations
            entry = parametrizations[leaf]
            entry.original.copy_(entry[0].right_inverse(tensors[name].to(entry.original)))
        else:
            _used(owner, leaf).copy_(tensors[name])


def _tensors(module: nn.Module) -> list[tuple[str, nn.Module, str]]:
    """List (plain name, owner, attribute) of each parameter and persistent buffer."""
    found = []
    for path, owner in module.named_modules():
        if isinstance(owner, Scaled | parametrize.ParametrizationList) or path.endswith("parametrizations"):
            continue
        names = [*own_parameters(owner), *getattr(owner, "parametrizations", {}), *own_persistent_buffers(owner)]
        found += [(f"{path}.{name}" if path else name, owner, name) for name in names]
    return found


def _used(owner: nn.Module, leaf: str) -> Tensor:
    value = getattr(owner, leaf)
    assert isinstance(value, Tensor)
    return value
