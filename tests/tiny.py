"""A configuration small enough to train in a test, and pairs that are a function of their position."""

import numpy as np

from soda_dist.config import RunConfig
from soda_dist.config.load import validate
from soda_dist.data.pairs import Pairs
from soda_dist.data.views.poses import POSE_SIZES

TINY = {
    "data": {"source_size": 16, "target_size": 16, "source_noise": 0.1, "shuffle_groups": 4},
    "encoder": {
        "arch": "resnet18", "width": 0.125, "stem": "small", "norm": "group",
        "latent_dim": 12, "lr_ratio": 2.0, "dropout": 0.1, "drop_path": 0.1,
    },
    "denoiser": {
        "base_channels": 8, "channel_multipliers": (1, 2), "blocks": 1, "attention_resolutions": (8,),
        "head_dim": 8, "position_dim": 16, "dropout": 0.1,
    },
    "diffusion": {"steps": 50},
    "sampling": {"steps": 5},
    "optim": {"lr": 1e-3, "warmup_steps": 2, "ema_decay": 0.9},
    "train": {
        "steps": 6, "global_batch": 8, "log_every_steps": 2, "checkpoint_every_steps": 3, "precision": "fp32",
    },
    "scale": {"engine": "torch", "data_memory_mb": 64},
    "evaluation": {"batch": 16, "images": 2, "probe": {"epochs": 2}},
}  # fmt: skip


def tiny_config(**sections: dict) -> RunConfig:
    """TINY with some fields of some sections replaced."""
    tree = {
        name: {**TINY.get(name, {}), **fields} if isinstance(fields, dict) else fields
        for name, fields in sections.items()
    }
    return validate(RunConfig, {**TINY, **tree})


def pairs_at(config: RunConfig, start: int, stop: int) -> Pairs:
    """View pairs of noise for positions start..stop, each a function of its position, with plausible poses."""
    data, count = config.data, stop - start
    most, size = data.sources[1], POSE_SIZES[data.pose]
    draw = [np.random.default_rng(position) for position in range(start, stop)]
    source = np.stack([d.integers(0, 256, (most, data.source_size, data.source_size, 3), np.uint8) for d in draw])
    target = np.stack([d.integers(0, 256, (data.target_size, data.target_size, 3), np.uint8) for d in draw])
    numbers = np.array([d.integers(data.sources[0], most + 1) for d in draw])
    poses = np.stack([[_pose(data.pose, d) for _ in range(most + 1)] for d in draw]).astype(np.float32)
    index = np.arange(start, stop, dtype=np.int64)
    present = np.arange(most) < numbers[:, None]
    source[~present] = 0
    source_pose = poses.reshape(count, most + 1, size)[:, 1:].copy()
    source_pose[~present] = 0
    return Pairs(
        source=source,
        present=present,
        target=target,
        source_pose=source_pose,
        target_pose=poses.reshape(count, most + 1, size)[:, 0].copy(),
        source_layers=np.zeros((count, most, 0, 2), np.float32),
        target_layers=np.zeros((count, 0, 2), np.float32),
        key=index,
        ok=np.ones(count, bool),
        index=index,
        label=np.zeros((count, 0), np.int64),
        name=[""] * count,
        reason=[""] * count,
        retries=np.zeros(count, np.int64),
    )


def _pose(kind: str, d: np.random.Generator) -> np.ndarray:
    """A frame within its image, or a camera on a sphere of radius 3 that looks at the origin."""
    if kind == "none":
        return np.zeros(0)
    if kind == "pixels":
        return np.concatenate([d.uniform(-1, 0, 2), d.uniform(0, 1, 2)])
    away = d.normal((0, 0, 1.5))
    away /= np.linalg.norm(away)
    right = np.cross(-away, [0, 0, 1.0])
    right /= np.linalg.norm(right)
    pose = np.stack([right, np.cross(-away, right), -away, 3 * away], 1)
    return np.concatenate([pose.ravel(), [1.2, 0, 0.5, 0, 1.2, 0.5, 0, 0, 1]])


def feed(config: RunConfig, rank: int = 0):
    """A feed of `pairs_at` in the slices that training uses."""
    micro, workers, batch = config.micro_batch, config.scale.workers, config.train.global_batch

    def batches(first_step: int):
        for step in range(first_step, config.train.steps):
            for j in range(config.accumulation):
                start = step * batch + j * micro * workers + rank * micro
                yield pairs_at(config, start, start + micro)

    return batches
