"""The encoder as a folder that timm reads: `model.safetensors` and `config.json`, in timm's names."""

import json
from typing import Any

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from soda_dist.config.schema import RunConfig
from soda_dist.errors import MachineError, UserError
from soda_dist.export.encoder import TOLERANCE, difference, noise_images, preprocessing
from soda_dist.models.encoder import Encoder
from soda_dist.models.layers import GroupNorm
from soda_dist.models.lr_equalization import plain_state_dict
from soda_dist.parallel.progress import Say

NAMES = {
    "resnet18": "resnetv2_18",
    "resnet50": "resnetv2_50",
    "resnet50x2": "resnetv2_50",
    "vit_small": "vit_small_patch16_224",
    "vit_base": "vit_base_patch16_224",
}
"""`encoder.arch` -> the model of timm whose arguments `_arguments` overrides."""
TIMM_GROUPS = 32
"""Groups of a group norm that `timm.create_model` builds from a name."""
OTHERWISE = "use --to onnx or --to hub"


def timm_files(encoder: nn.Module, config: RunConfig, say: Say) -> dict[str, bytes]:
    """Convert the encoder to timm's names, with the projection to z as its classifier; return files by name.

    `timm.create_model(architecture, num_classes=num_classes, **model_args)`, with these three of `config.json`, is the
    network of `model.safetensors`. Its output is z, [B, D]. Of an encoder without pooling it is the grid of latents:
    [B, N, D] of a ViT, [B, D, h, w] of a ResNet.

    Raises:
        UserError: timm cannot express the encoder.
    """
    name, arguments = _architecture(encoder, config)
    vit = name.startswith("vit")
    tensors = _timm_names(plain_state_dict(encoder), "head" if vit else "head.fc", as_convolution=not vit)
    _check(encoder, name, arguments, tensors, config, say)
    return {
        "config.json": (json.dumps(_description(encoder, name, arguments, config), indent=1) + "\n").encode(),
        "model.safetensors": save_tensors(tensors),
    }


def _architecture(encoder: nn.Module, config: RunConfig) -> tuple[str, dict[str, Any]]:
    """Return the name and the arguments of the encoder's backbone for `timm.create_model`."""
    e = config.encoder
    if not isinstance(encoder, Encoder):
        remedy = f"give timm.create_model('{e.model}', num_classes=0) the file of encoder.weights"
        raise UserError("--to", f"timm of the frozen {e.model}, which is timm's own", "a trained encoder", remedy)
    if e.stem == "small":
        got = "timm with encoder.stem=small: timm's ResNet v2 has no 3x3 stem of stride 1 without pooling"
        raise UserError("--to", got, "encoder.stem=imagenet, or a ViT", OTHERWISE)
    counts = {m.num_groups for m in encoder.modules() if isinstance(m, GroupNorm)}
    if counts - {TIMM_GROUPS}:
        got = f"timm with group norms of {', '.join(map(str, sorted(counts)))} groups (encoder.width={e.width:g})"
        allowed = f"{TIMM_GROUPS} groups in every norm, as timm has without code: 64 channels or more"
        raise UserError("--to", got, allowed, OTHERWISE)
    pool = "avg" if encoder.pool else ""
    if e.arch.startswith("vit"):
        width: Any = encoder.backbone.embed_dim
        own = {"img_size": config.data.source_size, "patch_size": e.patch, "embed_dim": width}
        fixed = {"class_token": False, "fc_norm": False, "dynamic_img_size": True}
        return NAMES[e.arch], {**own, "global_pool": pool, **fixed}
    factor = e.width * (2 if e.arch == "resnet50x2" else 1)
    norm = {"norm_layer": "groupnorm"} if e.norm == "group" else {}
    return NAMES[e.arch], {"width_factor": factor, "global_pool": pool, **norm}


def _timm_names(tensors: dict[str, Tensor], head: str, *, as_convolution: bool) -> dict[str, Tensor]:
    """Drop the prefix of the backbone and make the projection the classifier, a 1x1 convolution for a ResNet."""
    named = {name.removeprefix("backbone."): tensor.contiguous() for name, tensor in tensors.items()}
    weight, bias = named.pop("projection.weight"), named.pop("projection.bias")
    return named | {f"{head}.weight": weight[:, :, None, None] if as_convolution else weight, f"{head}.bias": bias}


def _check(
    encoder: nn.Module, name: str, arguments: dict[str, Any], tensors: dict[str, Tensor], config: RunConfig, say: Say
) -> None:
    """Load the tensors into timm's model and compare outputs on two noise images."""
    import timm

    model = timm.create_model(name, num_classes=config.encoder.latent_dim, **arguments)
    model.load_state_dict(tensors)
    images = noise_images(config, 2)
    with torch.no_grad():
        theirs = model.eval()(images)
        ours = encoder(images)
    found = difference(ours, theirs.flatten(2).transpose(1, 2) if theirs.ndim == 4 else theirs)
    if not found <= TOLERANCE:
        raise MachineError(
            f"timm's {name} differs from the encoder by {found:.1e}; report it with the run's config.yaml"
        )
    say(f"timm's {name} equals the encoder to {found:.1e}")


def _description(encoder: nn.Module, name: str, arguments: dict[str, Any], config: RunConfig) -> dict[str, Any]:
    """Return `config.json` as timm keeps it on the Hub."""
    facts, size = preprocessing(config), config.data.source_size
    backbone: Any = encoder.backbone
    classes = config.encoder.latent_dim
    return {
        "architecture": name,
        "num_classes": classes,
        "num_features": backbone.num_features,
        "global_pool": arguments["global_pool"],
        "model_args": arguments,
        "pretrained_cfg": {
            "num_classes": classes,
            "input_size": [3, size, size],
            "fixed_input_size": False,
            "crop_pct": size / facts["resize_short_side"],
            "crop_mode": facts["crop"],
            "interpolation": "bilinear",
            "mean": facts["mean"],
            "std": facts["std"],
            "first_conv": "patch_embed.proj" if name.startswith("vit") else "stem.conv",
            "classifier": "head" if name.startswith("vit") else "head.fc",
        },
    }
