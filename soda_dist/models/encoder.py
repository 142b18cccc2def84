"""The image encoder E (section 3.2, appendix C): ResNet v2, mean pooling, bottleneck."""

import math
from collections import OrderedDict
from typing import Any, Literal, NamedTuple

import torch
from timm.layers import DropPath, create_conv2d
from timm.models.resnetv2 import ResNetV2
from torch import Tensor, nn
from torch.nn.utils import parametrize

from soda_dist.models.layers import AddressedDropout, AddressedDropPath, GroupNorm, SyncedBatchNormAct2d


class _Arch(NamedTuple):
    layers: tuple[int, ...]
    channels: tuple[int, ...]
    basic: bool
    width: int


_ARCHS = {
    "resnet18": _Arch((2, 2, 2, 2), (64, 128, 256, 512), basic=True, width=1),
    "resnet50": _Arch((3, 4, 6, 3), (256, 512, 1024, 2048), basic=False, width=1),
    "resnet50x2": _Arch((3, 4, 6, 3), (256, 512, 1024, 2048), basic=False, width=2),
}
_STEM_CHANNELS = 64


class Encoder(nn.Module):
    """z = E(image) (section 3.2): ResNet v2 with ReLU, drop path and mean pooling (appendix C).

    Our reading: a linear layer leads from the pooled features to z, so that z's size is free; drop path grows linearly
    from zero at the first block to `drop_path` at the last; Xavier initialisation is the uniform one. `backbone` is
    everything but that linear layer.

    Args:
        arch: resnet18 (basic blocks), resnet50 or resnet50x2 (twice the channels).
        width: multiplier of every channel count of `arch`; counts are rounded to multiples of 8.
        stem: `imagenet`, 7x7 stride 2 and max pooling, or `small`, 3x3 stride 1.
        norm: `batch`, synchronised when told to, or `group`.
        latent_dim: D.
        lr_ratio: r, the encoder's learning rate over the denoiser's, by `equalize`.
        drop_path: the last block's rate of stochastic depth.
        dropout: rate on z (bottleneck dropout).
    """

    def __init__(
        self,
        *,
        arch: Literal["resnet18", "resnet50", "resnet50x2"],
        width: float,
        stem: Literal["imagenet", "small"],
        norm: Literal["batch", "group"],
        latent_dim: int,
        lr_ratio: float,
        drop_path: float,
        dropout: float,
    ) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.backbone = _backbone(arch, width, norm, drop_path)
        if stem == "small":
            channels = self.backbone.feature_info[0]["num_chs"]
            self.backbone.stem = nn.Sequential(OrderedDict(conv=create_conv2d(3, channels, 3, stride=1)))
        _readdress_drop_paths(self.backbone)
        self.projection = nn.Linear(self.backbone.num_features, latent_dim)
        self.dropout = AddressedDropout(dropout)
        self.apply(_xavier)
        equalize(self, lr_ratio)

    def forward(self, images: Tensor) -> Tensor:
        """Latents, float [B, D].

        Args:
            images: float [B, 3, h, w], ImageNet mean and variance; any size from 32 up, or 8 with the small stem.
        """
        return self.dropout(self.projection(self.backbone(images)))


def _backbone(arch: str, width: float, norm: str, drop_path: float) -> ResNetV2:
    a = _ARCHS[arch]

    def norm_layer(channels: int, **_: Any) -> nn.Module:
        return SyncedBatchNormAct2d(channels) if norm == "batch" else GroupNorm(channels, act=True)

    return ResNetV2(
        layers=list(a.layers),
        channels=a.channels,
        num_classes=0,
        width_factor=a.width * width,  # type: ignore[arg-type]  # it multiplies and rounds: any positive number will do
        stem_chs=_STEM_CHANNELS,
        basic=a.basic,
        bottle_ratio=1.0 if a.basic else 0.25,
        norm_layer=norm_layer,
        conv_layer=create_conv2d,
        drop_path_rate=drop_path,
    )


def _readdress_drop_paths(backbone: nn.Module) -> None:
    for block in list(backbone.modules()):
        path = getattr(block, "drop_path", None)
        if isinstance(path, DropPath):
            block.drop_path = AddressedDropPath(path.drop_prob)


def _xavier(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class Scaled(nn.Module):
    """A parameter that is stored divided by `ratio` and used multiplied by it."""

    def __init__(self, ratio: float) -> None:
        super().__init__()
        self.ratio = ratio

    def forward(self, stored: Tensor) -> Tensor:
        """The value in use."""
        return stored * self.ratio

    def right_inverse(self, used: Tensor) -> Tensor:
        """The value to store."""
        return used / self.ratio


def equalize(module: nn.Module, ratio: float) -> None:
    """Learning-rate equalization (appendix C): parameters are stored divided by `ratio` and used multiplied by it.

    The function is unchanged; gradients are scaled by `ratio`, and an optimizer of Adam's kind moves the weights in use
    `ratio` times as fast. Our reading: this holds for every parameter, biases and norms included. At a ratio of 1
    nothing is changed.
    """
    if ratio == 1:
        return
    if not (ratio > 0 and math.isfinite(ratio)):
        raise ValueError(f"lr_ratio: got {ratio}; allowed: positive and finite")
    for owner in list(module.modules()):
        for name in list(owner._parameters):
            if owner._parameters[name] is not None:
                parametrize.register_parametrization(owner, name, Scaled(ratio))


def plain_state_dict(module: nn.Module) -> dict[str, Tensor]:
    """Parameters in use and buffers, under the names that the module would have without `equalize`; detached copies."""
    return {name: _used(owner, leaf).detach().clone() for name, owner, leaf in _tensors(module)}


@torch.no_grad()
def load_plain_state_dict(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Inverse of `plain_state_dict`, for any ratio of either module. Storage is kept: values are copied in.

    Raises:
        ValueError: names or shapes that are not the module's.
    """
    own = {name: (owner, leaf) for name, owner, leaf in _tensors(module)}
    if own.keys() != tensors.keys():
        missing, unknown = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
        raise ValueError(f"state dict: missing {missing[:5]}, unknown {unknown[:5]}")
    for name, (owner, leaf) in own.items():
        expected, got = _used(owner, leaf).shape, tensors[name].shape
        if expected != got:
            raise ValueError(f"{name}: got shape {list(got)}; allowed: {list(expected)}")
    for name, (owner, leaf) in own.items():
        if parametrize.is_parametrized(owner, leaf):
            parametrizations: Any = owner.parametrizations
            entry = parametrizations[leaf]
            entry.original.copy_(entry[0].right_inverse(tensors[name].to(entry.original)))
        else:
            _used(owner, leaf).copy_(tensors[name])


def _tensors(module: nn.Module) -> list[tuple[str, nn.Module, str]]:
    """(plain name, owner, attribute) of each parameter and persistent buffer."""
    found = []
    for path, owner in module.named_modules():
        if isinstance(owner, Scaled | parametrize.ParametrizationList) or path.endswith("parametrizations"):
            continue
        names = [name for name, value in owner._parameters.items() if value is not None]
        names += list(getattr(owner, "parametrizations", {}))
        names += [n for n, b in owner._buffers.items() if b is not None and n not in owner._non_persistent_buffers_set]
        found += [(f"{path}.{name}" if path else name, owner, name) for name in names]
    return found


def _used(owner: nn.Module, leaf: str) -> Tensor:
    value = getattr(owner, leaf)
    assert isinstance(value, Tensor)
    return value
