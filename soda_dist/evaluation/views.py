"""Views for evaluation, central or augmented, with their poses; and noise addressed by an image's key."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from soda_dist.config.schema import RunConfig
from soda_dist.data.views.pair_views import center_poses, center_views, view_pairs
from soda_dist.data.views.poses import CAMERA_COLUMNS, read_cameras
from soda_dist.models.condition import Sources
from soda_dist.models.pixels import source_input
from soda_dist.training.randomness import mix64

PURPOSE = 0x5A3B1E
"""Sets the noise of evaluation apart from that of training."""


@dataclass(frozen=True)
class EvaluationViews:
    """Views of n images, one of each: central (section D.2) unless `augmented_views` made them."""

    source: NDArray[np.uint8]
    """uint8 [n, s, s, 3], the encoder's; zeros where not ok."""
    target: NDArray[np.uint8]
    """uint8 [n, r, r, 3], the denoiser's; zeros where not ok."""
    pose: NDArray[np.float32] | None
    """float32 [n, P]; none where the run has no poses."""
    ok: NDArray[np.bool_]

    def rows(self, at: slice) -> "EvaluationViews":
        """Some of them."""
        return EvaluationViews(
            self.source[at], self.target[at], None if self.pose is None else self.pose[at], self.ok[at]
        )

    def sources(self, device: torch.device) -> Sources:
        """Each as the single source of a sample."""
        images = source_input(torch.from_numpy(self.source).to(device))[:, None]
        pose = None if self.pose is None else torch.from_numpy(self.pose).to(device)[:, None]
        return Sources(images, torch.ones(len(images), 1, dtype=torch.bool, device=device), pose)


def pose_columns(config: RunConfig) -> list[str]:
    """Columns that `central_views` needs beside the image."""
    return list(CAMERA_COLUMNS) if config.data.pose == "cameras" else []


def central_views(table: pa.Table, config: RunConfig, *, target: bool = True) -> EvaluationViews:
    """Central views of a table's rows, with columns `image` and `pose_columns`; without `target` it has no rows."""
    data = config.data
    images = table.column("image").to_pylist()
    source, ok = center_views(images, size=data.source_size, resize=data.eval_resize)
    same = data.source_size == data.target_size
    if target:
        drawn = source if same else center_views(images, size=data.target_size, resize=data.eval_resize)[0]
    else:
        drawn = np.zeros((0, data.target_size, data.target_size, 3), np.uint8)
    pose = None
    if data.pose != "none":
        pose = center_poses(table, size=data.source_size, resize=data.eval_resize, pose=data.pose)
    return EvaluationViews(source, drawn, pose, ok)


def augmented_views(table: pa.Table, config: RunConfig, number: int, *, target: bool = True) -> EvaluationViews:
    """Crops and flips alone, as the probe is fitted on (sections D.3, E.1): a function of (seed, number, key).

    Area, aspect and flips are those of `data.augmentation`. Both views show the same, whatever training did: a latent
    is of one place in the image.

    Args:
        table: as of `central_views`, with `key` too.
        number: of the pass, in place of an epoch.
    """
    rate = {"crop_flip_rate": config.evaluation.probe.crop_flip_rate, "randaugment_rate": 0.0}
    augmentation = config.data.augmentation.model_copy(update=rate)
    one = {"views": "same", "sources": (1, 1), "augment": "both", "augmentation": augmentation}
    data = config.data.model_copy(update=one)
    images, keys = table.column("image").to_pylist(), table.column("key").to_numpy()
    shown = np.repeat(np.arange(len(images))[:, None], 2, 1)
    if not target:
        shown[:, 1] = -1
    stored = read_cameras(table) if data.pose == "cameras" else None
    epochs = np.full(len(images), number)
    views = view_pairs(images, shown, keys, epochs, seed=config.seed, data=data, stored=stored)
    drawn = views.target if target else views.target[:0]
    return EvaluationViews(
        views.source[:, 0], drawn, None if data.pose == "none" else views.source_pose[:, 0], views.ok
    )


def addressed_noise(seed: int, keys: NDArray[np.int64], noise: int, step: int, side: int) -> Tensor:
    """Standard normal float32 [n, 3, side, side] on the CPU, each image's a function of the arguments and its key."""
    draws = []
    for key in keys.tolist():
        generator = torch.Generator().manual_seed(mix64(seed, PURPOSE, key, noise, step) >> 1)
        draws.append(torch.randn(3, side, side, generator=generator))
    return torch.stack(draws)
