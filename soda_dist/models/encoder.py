"""The image encoder E (section 3.2, appendix C): ResNet v2 or ViT, mean pooling, bottleneck."""

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from soda_dist.models.layers import AddressedDropout
from soda_dist.models.lr_equalization import equalize
from soda_dist.models.pose_encoding import PoseGrid

if TYPE_CHECKING:
    from soda_dist.models.backbones import ResNet, ViT

Arch = Literal["resnet18", "resnet50", "resnet50x2", "vit_small", "vit_base"]


class Encoder(nn.Module):
    """z = E(image) (section 3.2): ResNet v2 with ReLU, or ViT; drop path and mean pooling (appendix C).

    Our readings: a linear layer maps the pooled features to z, so z may have any size; drop path grows linearly from
    zero at the first block to `drop_path` at the last; Xavier initialisation is uniform, and takes a ViT's patch
    embedding and its maps to queries, keys and values as linear maps. A ViT has no class token: its patches are pooled
    after the last norm, like a ResNet's cells. A pose grid joins the first layer's channels (section 3.3), and a 1x1
    convolution reduces both to the first layer's width. `backbone` is everything except these two layers and the grid.

    Args:
        arch: resnet18 (basic blocks), resnet50, resnet50x2 (twice the channels), vit_small or vit_base.
        width: multiplier of all channel counts, rounded to multiples of 8. A ViT keeps its number of heads; the width
            of a head is rounded.
        patch: side of a ViT's patches; unused by ResNets, as is `image_size`.
        image_size: side of the images of a ViT's position table, which is resampled for others.
        stem: `imagenet` (7x7 stride 2, max pooling) or `small` (3x3 stride 1); ResNets only, as is `group`.
        norm: `batch`, over groups of samples (`batch_norm.grouped`), or `group`. ViTs have layer norm.
        latent_dim: D.
        lr_ratio: r, the encoder's learning rate over the denoiser's, see `equalize`.
        drop_path: the last block's rate of stochastic depth.
        dropout: rate on z (bottleneck dropout).
        pool: False = z is a grid of cells (section F.1, without bottleneck).
        pose: embeds the source's pose; None = no poses.

    Raises:
        ValueError: an unknown architecture, or options that it does not have.
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
        from soda_dist.models.backbones import RESNETS, VITS, build_resnet, build_vit, xavier

        super().__init__()
        self.latent_dim, self.pool = latent_dim, pool
        self.backbone: ResNet | ViT
        if arch in RESNETS:
            self.backbone = build_resnet(arch, width=width, stem=stem, norm=norm, drop_path=drop_path)
        elif arch in VITS:
            for field, got, allowed in (("stem", stem, "imagenet"), ("norm", norm, "batch")):
                if got != allowed:
                    raise ValueError(f"{field}: got {got} with {arch}; allowed: {allowed}")
            self.backbone = build_vit(arch, width=width, patch=patch, image_size=image_size, drop_path=drop_path)
        else:
            raise ValueError(f"arch: got {arch}; allowed: {', '.join([*RESNETS, *VITS])}")
        self.projection = nn.Linear(self.backbone.num_features, latent_dim)
        self.dropout = AddressedDropout(dropout)
        self.pose = pose
        if pose is not None:
            first: Any = self.backbone.feature_info[0]
            channels = first["num_chs"]
            self.pose_mix = nn.Conv2d(channels + pose.channels, channels, 1)
        self.apply(xavier)
        equalize(self, lr_ratio)

    def forward(self, images: Tensor, poses: Tensor | None = None, pose_keep: Tensor | None = None) -> Tensor:
        """Encode to float [B, D]; without pooling, to one token per cell, [B, N, D], in row-major order.

        Args:
            images: float [B, 3, h, w], ImageNet mean and variance; sides from 32 up, or 8 with the small stem;
                multiples of the patch size for a ViT.
            poses: [B, P], as the pose grid takes them; None if and only if the encoder has no pose grid.
            pose_keep: bool [B]: False = the pose is masked; None = no mask.
        """
        if (poses is None) != (self.pose is None):
            got, allowed = ("none", "one per image") if poses is None else ("poses", "none without a pose grid")
            raise ValueError(f"poses: got {got}; allowed: {allowed}")
        x = self.backbone.first(images)
        if self.pose is not None:
            grid = self.pose(poses, *x.shape[2:], pose_keep)
            x = self.pose_mix(torch.cat([x, grid.to(x.dtype)], 1))
        cells = self.backbone.rest(x)
        return self.dropout(self.projection(cells.mean(1) if self.pool else cells))
