"""Every method and conditioning in a size for tests, and inputs for it."""

from typing import Any

import torch
from torch import Tensor

from soda_dist.config.schema import RunConfig
from soda_dist.models.condition import Sources
from soda_dist.models.method import Batch, Method
from soda_dist.models.pose_encoding import CAMERA_POSE, PIXEL_POSE
from soda_dist.training.build import build_model
from tests.tiny import tiny_config

NO_MASKS = {"layer_mask_rate": 0.0, "guidance_mask_rate": 0.0}
CAMERAS = {"views": "object", "augment": "none", "pose": "cameras"}
POSE = {"encoding_dim": 24, "mask_rate": 0.2}
METHODS: dict[str, dict[str, Any]] = {
    "soda": {},
    "no scale": {"denoiser": {"modulation": "no_scale"}},
    "sum": {"denoiser": {"modulation": "sum"}},
    "concat": {"denoiser": {"modulation": "concat"}},
    "no layer modulation": {"denoiser": {"conditioning": "modulation", "layer_mask_rate": 0.0}},
    "no modulation": {"denoiser": {"conditioning": "broadcast", "layer_mask_rate": 0.0}},
    "cross attention": {"denoiser": {"conditioning": "cross_attention"}},
    "no bottleneck": {"denoiser": {"conditioning": "grid_attention", "layer_mask_rate": 0.0}},
    "vit": {"encoder": {"arch": "vit_small", "stem": "imagenet", "norm": "batch", "patch": 8}},
    "pixels": {"data": {"pose": "pixels"}, "pose": POSE},
    "rays": {"data": CAMERAS, "pose": POSE},
    "rays and a vector": {"data": CAMERAS, "pose": {**POSE, "conditioning": "grid_relative"}},
    "a vector": {"data": CAMERAS, "pose": {**POSE, "conditioning": "absolute"}},
    "mean of sources": {"data": {"sources": (1, 3)}},
    "transformer of sources": {"data": {"sources": (2, 3)}, "aggregation": {"kind": "transformer"}},
    "encdec": {"method": "encdec", "denoiser": NO_MASKS},
    "encdec with rays": {"method": "encdec", "denoiser": NO_MASKS, "data": CAMERAS, "pose": {"encoding_dim": 24}},
    "unconditional": {"method": "unconditional", "denoiser": NO_MASKS},
    "palette": {"method": "palette", "denoiser": {"layer_mask_rate": 0.0}},
    "palette with rays": {
        "method": "palette", "denoiser": {"layer_mask_rate": 0.0}, "data": CAMERAS, "pose": POSE,
    },
}  # fmt: skip


def config_of(name: str, **more: dict[str, Any]) -> RunConfig:
    sections = {
        section: dict(fields) if isinstance(fields, dict) else fields for section, fields in METHODS[name].items()
    }
    for section, fields in more.items():
        sections[section] = {**sections.get(section, {}), **fields}
    return tiny_config(**sections)


def model_of(name: str, *, voiced: bool = True, **more: dict[str, Any]) -> Method:
    """As built; `voiced`: moved off its start, where no layer hears z."""
    model = build_model(config_of(name, **more))
    if voiced:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def cameras(count: int, generator: torch.Generator) -> Tensor:
    """float32 [count, 21]: cameras on a sphere of radius 3 that look at the origin."""
    away = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator) + torch.tensor([0, 0, 1.5]), dim=1)
    right = torch.nn.functional.normalize(torch.linalg.cross(-away, torch.tensor([[0.0, 0.0, 1.0]]).expand(count, 3)))
    down = torch.linalg.cross(-away, right)
    pose = torch.stack([right, down, -away, 3 * away], 2)
    intrinsics = torch.tensor([[1.2, 0, 0.5], [0, 1.2, 0.5], [0, 0, 1]]).expand(count, 3, 3)
    return torch.cat([pose.flatten(1), intrinsics.flatten(1)], 1)


def batch_of(config: RunConfig, count: int = 4) -> tuple[Batch, dict[str, Tensor | None]]:
    """Samples, and the timesteps, noise and masks that go with them."""
    generator = torch.Generator().manual_seed(1)
    slots, side, r = config.data.sources[1], config.data.source_size, config.data.target_size
    images = torch.randn(count, slots, 3, side, side, generator=generator)
    numbers = torch.randint(config.data.sources[0], slots + 1, (count,), generator=generator)
    present = torch.arange(slots) < numbers[:, None]
    width = {"none": 0, "pixels": PIXEL_POSE, "cameras": CAMERA_POSE}[config.data.pose]
    poses = torch.rand(count * (slots + 1), PIXEL_POSE, generator=generator)
    if config.data.pose == "cameras":
        poses = cameras(count * (slots + 1), generator)
    poses = poses.view(count, slots + 1, -1)
    sections = build_model(config).sections
    batch = Batch(
        Sources(images, present, poses[:, 1:] if width else None),
        torch.randn(count, 3, r, r, generator=generator).clamp(-1, 1),
        poses[:, 0] if width else None,
    )
    draws = {
        "t": torch.randint(0, config.diffusion.steps, (count,), generator=generator),
        "eps": torch.randn(count, 3, r, r, generator=generator),
        "keep": torch.rand(count, sections, generator=generator) > 0.3,
        "pose_keep": torch.rand(count, generator=generator) > 0.3 if width else None,
    }
    return batch, draws


def rows(batch: Batch, draws: dict[str, Tensor | None], at: slice) -> tuple[Batch, dict[str, Tensor | None]]:
    """Some of the samples."""
    sources = Sources(*(None if part is None else part[at] for part in batch.sources))
    part = Batch(sources, batch.target[at], None if batch.pose is None else batch.pose[at])
    return part, {name: None if value is None else value[at] for name, value in draws.items()}
