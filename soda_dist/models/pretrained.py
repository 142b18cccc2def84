"""Frozen, pretrained image encoder, as in unCLIP (section F.1, table 6: DALL-E2)."""

from difflib import get_close_matches
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from soda_dist.models.pixels import IMAGENET_MEAN, IMAGENET_STD
from soda_dist.torch_internals import own_parameters
from soda_dist.weights import fill, read_weights

_SHOWN = 5
"""Maximum number of names in a message."""


class UnsuitableModelError(ValueError):
    """timm has no model named `got`, or it cannot be the encoder; `allowed` describes those that can."""

    def __init__(self, got: str, allowed: str) -> None:
        super().__init__(f"model: got {got}; allowed: {allowed}")
        self.got, self.allowed = got, allowed


class FrozenEncoder(nn.Module):
    """z = E(image) by a timm model without its classifier, never trained (section F.1, unCLIP).

    Weights are random until `load_frozen`; nothing is downloaded. They are buffers, not parameters: optimizers, DDP and
    ZeRO ignore them, while state dicts hold them under timm's names. `train(True)` leaves the model in eval mode. Table
    6's unCLIP is `vit_large_patch14_clip_224.openai`, with 1024 features.

    Our reading: the model sees the whole image, resampled to its training size.

    Args:
        model: timm's name, such as `vit_base_patch16_224` or, with a tag, `vit_base_patch16_clip_224.openai`; the tag
            decides the mean and variance of the model's input.
        image_size: side of the images.

    Raises:
        UnsuitableModelError: timm has no such model, or its images are not RGB.
    """

    backbone: Any
    scale: Tensor
    shift: Tensor

    def __init__(self, *, model: str, image_size: int) -> None:
        super().__init__()
        self.image_size = image_size
        self.backbone = _built(model)
        info: dict[str, Any] = self.backbone.pretrained_cfg
        if info["input_size"][0] != 3:
            got = f"{model}, a model of {info['input_size'][0]}-channel images"
            raise UnsuitableModelError(got, "models of RGB images")
        self.latent_dim: int = self.backbone.head_hidden_size
        self._size: tuple[int, int] = tuple(info["input_size"][1:])
        self._classifiers = _classifiers(info)
        _freeze(self.backbone)
        mean, std, own_mean, own_std = torch.tensor(
            [IMAGENET_MEAN, IMAGENET_STD, info["mean"], info["std"]], dtype=torch.float64
        ).view(4, 3, 1, 1)
        self.register_buffer("scale", (std / own_std).float(), persistent=False)
        self.register_buffer("shift", ((mean - own_mean) / own_std).float(), persistent=False)
        self.train(False)

    def train(self, mode: bool = True) -> "FrozenEncoder":
        """Stay in eval mode for either `mode`: neither dropout nor running statistics may change the features."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor, poses: Tensor | None = None, pose_keep: Tensor | None = None) -> Tensor:
        """Compute features, float [B, D], without gradients.

        Args:
            images: float [B, 3, image_size, image_size], ImageNet mean and variance.
            poses, pose_keep: must be None.
        """
        if poses is not None or pose_keep is not None:
            raise ValueError("poses: got poses; allowed: None, since a frozen encoder takes images only")
        if images.shape[2:] != (self.image_size, self.image_size):
            raise ValueError(f"images: got {list(images.shape[2:])}; allowed: {[self.image_size] * 2}")
        images = images.to(self.scale.dtype) * self.scale + self.shift
        if images.shape[2:] != self._size:
            images = F.interpolate(images, self._size, mode="bicubic", antialias=True)
        return self.backbone(images)

    def is_classifiers(self, name: str) -> bool:
        """Return whether a tensor of this name belongs to the classifier that the model was trained with."""
        return any(name.startswith(f"{classifier}.") for classifier in self._classifiers)


def load_frozen(encoder: FrozenEncoder, content: bytes, sha256: str) -> None:
    """Copy a file's weights into `encoder`, all or none; names are timm's, with or without the classifier.

    Args:
        content: the file's bytes: safetensors, or a state dict by `torch.save`.
        sha256: their required digest, in hexadecimal.

    Raises:
        UserError: another digest, content other than tensors, or weights of another model.
    """
    found = read_weights(content, sha256, field="encoder.weights")
    own: dict[str, Tensor] = encoder.backbone.state_dict()
    found = {name: tensor for name, tensor in found.items() if name in own or not encoder.is_classifiers(name)}
    fill(own, found, field="encoder.weights", network="encoder.model")


def _built(model: str) -> Any:
    """Build the model if timm's own table has it: `hf-hub:NAME` and other sources would use the network."""
    import timm

    if not timm.is_model(model):
        near = get_close_matches(model.partition(".")[0], timm.list_models(), n=_SHOWN, cutoff=0.5)
        raise UnsuitableModelError(model, "timm's models" + (f", such as {', '.join(near)}" if near else ""))
    arch, dot, tag = model.partition(".")
    known = [name.partition(".")[2] for name in timm.list_models(f"{arch}.*", pretrained=True)]
    if dot and tag not in known:
        near = get_close_matches(tag, known, n=_SHOWN, cutoff=0) or ["none"]
        raise UnsuitableModelError(model, f"{arch} with a tag that timm knows: {', '.join(near)}")
    return timm.create_model(model, pretrained=False, num_classes=0)


def _classifiers(info: dict[str, Any]) -> tuple[str, ...]:
    named = info["classifier"]
    return (named,) if isinstance(named, str) else tuple(named or ())


def _freeze(model: nn.Module) -> None:
    """Turn parameters into persistent buffers of the same names; a shared one becomes two equal ones."""
    for owner in model.modules():
        for name, parameter in own_parameters(owner).items():
            delattr(owner, name)
            owner.register_buffer(name, parameter.detach().clone())
