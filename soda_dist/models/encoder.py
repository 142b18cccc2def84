"""The image encoder E (section 3.2, appendix C): ResNet v2 or ViT, mean pooling, bottleneck."""

from collections import OrderedDict
from typing import Any, Literal, NamedTuple

import torch
from timm.layers import Attention, DropPath, PatchEmbed, create_conv2d
from timm.models.resnetv2 import ResNetV2
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from soda_dist.models.layers import AddressedDropout, AddressedDropPath, GroupNorm, SyncedBatchNormAct2d
from soda_dist.models.lr_equalization import equalize
from soda_dist.models.pose_encoding import PoseGrid

Arch = Literal["resnet18", "resnet50", "resnet50x2", "vit_small", "vit_base"]


class _ResNetSize(NamedTuple):
    layers: tuple[int, ...]
    channels: tuple[int, ...]
    basic: bool
    width: int


class _ViTSize(NamedTuple):
    dim: int
    depth: int
    heads: int


_RESNETS = {
    "resnet18": _ResNetSize((2, 2, 2, 2), (64, 128, 256, 512), basic=True, width=1),
    "resnet50": _ResNetSize((3, 4, 6, 3), (256, 512, 1024, 2048), basic=False, width=1),
    "resnet50x2": _ResNetSize((3, 4, 6, 3), (256, 512, 1024, 2048), basic=False, width=2),
}
_STEM_CHANNELS = 64
_VITS = {
    "vit_small": _ViTSize(dim=384, depth=12, heads=6),
    "vit_base": _ViTSize(dim=768, depth=12, heads=12),
}


class Encoder(nn.Module):
    """z = E(image) (section 3.2): ResNet v2 with ReLU, or ViT; drop path and mean pooling (appendix C).

    Our readings: a linear layer leads from the pooled features to z, so that z's size is free; drop path grows linearly
    from zero at the first block to `drop_path` at the last; Xavier initialisation is the uniform one, a ViT's patch
    embedding and its maps to queries, keys and values taken as the linear maps that they are. A ViT has no class token:
    its patches are pooled as a ResNet's cells are, after the last norm. A pose grid joins the first layer's channels
    (section 3.3), and a 1x1 convolution brings both to the first layer's count. `backbone` is everything but these two
    layers and the grid.

    Args:
        arch: resnet18 (basic blocks), resnet50, resnet50x2 (twice the channels), vit_small or vit_base.
        width: multiplier of every channel count of `arch`; counts are rounded to multiples of 8, a ViT's (whose heads
            stay as many) to multiples of 8 for each head.
        patch: side of a ViT's patches; not read by ResNets, as is `image_size`.
        image_size: side of the images that a ViT's position table is made for; it is resampled for others.
        stem: `imagenet`, 7x7 stride 2 and max pooling, or `small`, 3x3 stride 1. ResNets alone, as is `group`.
        norm: `batch`, synchronised when told to, or `group`. ViTs have layer norm.
        latent_dim: D.
        lr_ratio: r, the encoder's learning rate over the denoiser's, by `equalize`.
        drop_path: the last block's rate of stochastic depth.
        dropout: rate on z (bottleneck dropout).
        pool: false: z is a grid of cells (section F.1, without bottleneck).
        pose: embeds the source's pose; none: the encoder takes no poses.

    Raises:
        ValueError: what the architecture does not have.
    """

    def __init__(
        self,
        *,
        arch: Arch,
        width: float,
        patch: int,
        image_size: int,
        stem: Literal["imagenet", "small"],
        norm: Literal["batch", "group"],
        latent_dim: int,
        lr_ratio: float,
        drop_path: float,
        dropout: float,
        pool: bool,
        pose: PoseGrid | None,
    ) -> None:
        super().__init__()
        self.latent_dim, self.pool = latent_dim, pool
        self.backbone: _ResNet | _ViT
        if arch in _RESNETS:
            self.backbone = _resnet(_RESNETS[arch], width, stem, norm, drop_path)
        elif arch in _VITS:
            for field, got, allowed in (("stem", stem, "imagenet"), ("norm", norm, "batch")):
                if got != allowed:
                    raise ValueError(f"{field}: got {got} with {arch}; allowed: {allowed}")
            self.backbone = _vit(_VITS[arch], width, patch, image_size, drop_path)
        else:
            raise ValueError(f"arch: got {arch}; allowed: {', '.join([*_RESNETS, *_VITS])}")
        _readdress_drop_paths(self.backbone)
        self.projection = nn.Linear(self.backbone.num_features, latent_dim)
        self.dropout = AddressedDropout(dropout)
        self.pose = pose
        if pose is not None:
            first: Any = self.backbone.feature_info[0]
            channels = first["num_chs"]
            self.pose_mix = nn.Conv2d(channels + pose.channels, channels, 1)
        self.apply(_xavier)
        equalize(self, lr_ratio)

    def forward(self, images: Tensor, poses: Tensor | None = None, pose_keep: Tensor | None = None) -> Tensor:
        """Latents, float [B, D]; without pooling a token for each cell, [B, N, D], rows of the grid first.

        Args:
            images: float [B, 3, h, w], ImageNet mean and variance. Any size from 32 up, or 8 with the small stem;
                multiples of the patch for a ViT.
            poses: [B, P], as the pose grid takes them; given if and only if there is one.
            pose_keep: bool [B]: False where the pose is masked. None: nothing is.
        """
        if (poses is None) != (self.pose is None):
            got, allowed = ("none", "one an image") if poses is None else ("poses", "none without a pose grid")
            raise ValueError(f"poses: got {got}; allowed: {allowed}")
        x = self.backbone.first(images)
        if self.pose is not None:
            grid = self.pose(poses, *x.shape[2:], pose_keep)
            x = self.pose_mix(torch.cat([x, grid.to(x.dtype)], 1))
        cells = self.backbone.rest(x)
        return self.dropout(self.projection(cells.mean(1) if self.pool else cells))


class _ResNet(ResNetV2):
    def first(self, images: Tensor) -> Tensor:
        """[B, 3, h, w] to the first convolution's [B, C, h', w']."""
        return self.stem[0](images)

    def rest(self, x: Tensor) -> Tensor:
        """What `first` gave to the last grid's cells, [B, N, num_features]."""
        for layer in list(self.stem)[1:]:
            x = layer(x)
        return self.norm(self.stages(x)).flatten(2).transpose(1, 2)


class _ViT(VisionTransformer):
    def first(self, images: Tensor) -> Tensor:
        """[B, 3, h, w] to the embedded patches, [B, C, h / patch, w / patch]."""
        side = self.patch_embed.patch_size[0]
        if images.shape[2] % side or images.shape[3] % side:
            raise ValueError(
                f"images: got {images.shape[2]}x{images.shape[3]}; allowed: multiples of the patch, {side}"
            )
        return self.patch_embed(images).permute(0, 3, 1, 2)

    def rest(self, x: Tensor) -> Tensor:
        """What `first` gave to the last block's tokens, [B, N, num_features], after the last norm."""
        return self.norm(self.blocks(self._pos_embed(x.permute(0, 2, 3, 1))))


def _resnet(size: _ResNetSize, width: float, stem: str, norm: str, drop_path: float) -> _ResNet:
    def norm_layer(channels: int, **_: Any) -> nn.Module:
        return SyncedBatchNormAct2d(channels) if norm == "batch" else GroupNorm(channels, act=True)

    resnet = _ResNet(
        layers=list(size.layers),
        channels=size.channels,
        num_classes=0,
        width_factor=size.width * width,  # type: ignore[arg-type]  # it multiplies and rounds: any positive number will do
        stem_chs=_STEM_CHANNELS,
        basic=size.basic,
        bottle_ratio=1.0 if size.basic else 0.25,
        norm_layer=norm_layer,
        conv_layer=create_conv2d,
        drop_path_rate=drop_path,
    )
    if stem == "small":
        channels = resnet.feature_info[0]["num_chs"]
        resnet.stem = nn.Sequential(OrderedDict(conv=create_conv2d(3, channels, 3, stride=1)))
    return resnet


def _vit(size: _ViTSize, width: float, patch: int, image_size: int, drop_path: float) -> _ViT:
    if image_size % patch:
        raise ValueError(f"image_size: got {image_size} with patch {patch}; allowed: multiples of the patch")
    step = 8 * size.heads
    return _ViT(
        img_size=image_size,
        patch_size=patch,
        num_classes=0,
        global_pool="avg",
        class_token=False,
        embed_dim=step * max(1, round(size.dim * width / step)),
        depth=size.depth,
        num_heads=size.heads,
        fc_norm=False,  # the last norm comes before the pooling
        dynamic_img_size=True,
        drop_path_rate=drop_path,
    )


def _readdress_drop_paths(backbone: nn.Module) -> None:
    for owner in list(backbone.modules()):
        for name, path in list(owner.named_children()):
            if isinstance(path, DropPath):
                setattr(owner, name, AddressedDropPath(path.drop_prob))


def _xavier(module: nn.Module) -> None:
    """To be applied to children first: a ViT's modules know better what their layers map from and to."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, PatchEmbed):
        nn.init.xavier_uniform_(module.proj.weight.flatten(1))
    elif isinstance(module, Attention):
        for weight in module.qkv.weight.chunk(3):
            nn.init.xavier_uniform_(weight)
