"""timm backbones of the encoder: ResNet v2 and ViT (appendix C).

Import this module only to build an encoder: timm takes seconds of CPU time to import.
"""

from collections import OrderedDict
from typing import Any, NamedTuple

from timm.layers import Attention, DropPath, PatchEmbed, create_conv2d
from timm.models.resnetv2 import ResNetV2
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from soda_dist.models.batch_norm import GroupedBatchNormAct2d
from soda_dist.models.layers import AddressedDropPath, GroupNorm


class _ResNetSize(NamedTuple):
    layers: tuple[int, ...]
    channels: tuple[int, ...]
    basic: bool
    width: int


class _ViTSize(NamedTuple):
    dim: int
    depth: int
    heads: int


RESNETS = {
    "resnet18": _ResNetSize((2, 2, 2, 2), (64, 128, 256, 512), basic=True, width=1),
    "resnet50": _ResNetSize((3, 4, 6, 3), (256, 512, 1024, 2048), basic=False, width=1),
    "resnet50x2": _ResNetSize((3, 4, 6, 3), (256, 512, 1024, 2048), basic=False, width=2),
}
VITS = {"vit_small": _ViTSize(dim=384, depth=12, heads=6), "vit_base": _ViTSize(dim=768, depth=12, heads=12)}
_STEM_CHANNELS = 64


class ResNet(ResNetV2):
    """timm's ResNet v2, split after its first convolution."""

    def first(self, images: Tensor) -> Tensor:
        """Apply the first convolution: [B, 3, h, w] to [B, C, h', w']."""
        return self.stem[0](images)

    def rest(self, x: Tensor) -> Tensor:
        """Map the output of `first` to the cells of the last grid, [B, N, num_features]."""
        for layer in list(self.stem)[1:]:
            x = layer(x)
        return self.norm(self.stages(x)).flatten(2).transpose(1, 2)


class ViT(VisionTransformer):
    """timm's ViT, split after its patch embedding."""

    def first(self, images: Tensor) -> Tensor:
        """Embed the patches: [B, 3, h, w] to [B, C, h / patch, w / patch]."""
        side = self.patch_embed.patch_size[0]
        if images.shape[2] % side or images.shape[3] % side:
            raise ValueError(
                f"images: got {images.shape[2]}x{images.shape[3]}; allowed: multiples of the patch size, {side}"
            )
        return self.patch_embed(images).permute(0, 3, 1, 2)

    def rest(self, x: Tensor) -> Tensor:
        """Map the output of `first` to the tokens of the last block, [B, N, num_features], after the final norm."""
        return self.norm(self.blocks(self._pos_embed(x.permute(0, 2, 3, 1))))


def build_resnet(arch: str, *, width: float, stem: str, norm: str, drop_path: float) -> ResNet:
    """Build a ResNet of `RESNETS`; arguments as in `Encoder`."""
    size = RESNETS[arch]

    def norm_layer(channels: int, **_: Any) -> nn.Module:
        return GroupedBatchNormAct2d(channels) if norm == "batch" else GroupNorm(channels, act=True)

    resnet = ResNet(
        layers=list(size.layers),
        channels=size.channels,
        num_classes=0,
        width_factor=size.width * width,  # type: ignore[arg-type]  # timm multiplies and rounds: any positive number
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
    _address_drop_paths(resnet)
    return resnet


def build_vit(arch: str, *, width: float, patch: int, image_size: int, drop_path: float) -> ViT:
    """Build a ViT of `VITS`; arguments as in `Encoder`, with `image_size` a multiple of `patch`.

    Raises:
        ValueError: patches that do not tile the images.
    """
    size = VITS[arch]
    if image_size % patch:
        raise ValueError(f"image_size: got {image_size} with patch {patch}; allowed: multiples of the patch size")
    step = 8 * size.heads
    vit = ViT(
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
    _address_drop_paths(vit)
    return vit


def _address_drop_paths(backbone: nn.Module) -> None:
    for owner in list(backbone.modules()):
        for name, path in list(owner.named_children()):
            if isinstance(path, DropPath):
                setattr(owner, name, AddressedDropPath(path.drop_prob))


def xavier(module: nn.Module) -> None:
    """Initialise one module by Xavier's uniform distribution, for `nn.Module.apply`.

    `apply` visits children first, so `PatchEmbed` and `Attention` overwrite the values that their layers got alone.
    """
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, PatchEmbed):
        nn.init.xavier_uniform_(module.proj.weight.flatten(1))
    elif isinstance(module, Attention):
        for weight in module.qkv.weight.chunk(3):
            nn.init.xavier_uniform_(weight)
