"""One small run for each method on rendered solids, and what must hold after it."""

from dataclasses import dataclass
from typing import Any

from soda_dist.config.load import validate
from soda_dist.config.schema import RunConfig

BASE: dict[str, Any] = {
    "data": {
        "source_size": 32, "target_size": 16, "source_noise": 0.0, "augment": "none", "views": "object",
    },
    "encoder": {"arch": "resnet18", "width": 0.25, "latent_dim": 96, "dropout": 0.0, "drop_path": 0.0},
    "denoiser": {
        "base_channels": 16, "channel_multipliers": (1, 2, 2), "blocks": 1, "attention_resolutions": (8,),
        "head_dim": 16, "position_dim": 128, "dropout": 0.0, "layer_mask_rate": 0.1, "guidance_mask_rate": 0.1,
    },
    "pose": {"encoding_dim": 96, "scale": 1e-2, "radius": 2.5, "extent": 8.0},
    "optim": {"lr": 2e-3, "warmup_steps": 30, "decay": "cosine", "ema_decay": 0.95},
    "train": {"global_batch": 32, "checkpoint_every_steps": 100_000, "log_every_steps": 100},
    "sampling": {"steps": 50, "guidance": 1.0},
}  # fmt: skip
NO_SECTIONS = {"layer_mask_rate": 0.0}
NO_MASKS = {"layer_mask_rate": 0.0, "guidance_mask_rate": 0.0}
CAMERAS = {"pose": "cameras"}


@dataclass(frozen=True)
class Run:
    """A configuration's difference from BASE, and what must hold."""

    sections: dict[str, Any]
    hears_source: bool = True
    """Without z (or Palette's image) the loss must be worse by a tenth."""
    hears_pose: bool = False
    """Without poses too."""


RUNS = {
    "SODA": Run({}),
    "no scale": Run({"denoiser": {"modulation": "no_scale"}}),
    "sum": Run({"denoiser": {"modulation": "sum"}}),
    "concat": Run({"denoiser": {"modulation": "concat"}}),
    "no layer modulation": Run({"denoiser": {"conditioning": "modulation", **NO_SECTIONS}}),
    "no layer mask": Run({"denoiser": NO_SECTIONS}),
    "no modulation": Run({"denoiser": {"conditioning": "broadcast", **NO_SECTIONS}}),
    "no bottleneck": Run({"denoiser": {"conditioning": "grid_attention", **NO_SECTIONS}}),
    "cross attention, cameras": Run(
        {"denoiser": {"conditioning": "cross_attention"}, "data": CAMERAS, "pose": {"mask_rate": 0.1}}, hears_pose=True
    ),
    "SODA, cameras": Run({"data": CAMERAS, "pose": {"mask_rate": 0.1}}, hears_pose=True),
    "relative vector": Run(
        {"data": CAMERAS, "pose": {"conditioning": "relative", "mask_rate": 0.1, "scale": 1.0}}, hears_pose=True
    ),
    "three sources": Run({"data": {**CAMERAS, "sources": (1, 3)}, "aggregation": {"kind": "transformer"}}),
    "same view": Run({"data": {"views": "same"}}),
    "encoder-decoder": Run({"method": "encdec", "denoiser": NO_MASKS}),
    "auto-encoder": Run({"method": "encdec", "denoiser": NO_MASKS, "data": {"views": "same"}}),
    "unconditional": Run({"method": "unconditional", "denoiser": NO_MASKS}, hears_source=False),
    "Palette": Run({"method": "palette", "denoiser": NO_SECTIONS}),
}


def config_of(name: str, steps: int) -> RunConfig:
    """The whole configuration of a run of that many steps."""
    tree: dict[str, Any] = {section: dict(fields) for section, fields in BASE.items()}
    for section, fields in RUNS[name].sections.items():
        tree[section] = {**tree.get(section, {}), **fields} if isinstance(fields, dict) else fields
    tree["train"]["steps"] = steps
    return validate(RunConfig, tree)
