"""The state of an evaluation worker: networks, and readers of the splits."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from soda_dist.config.schema import RunConfig
from soda_dist.data.shards import ShardReader, read_manifest
from soda_dist.data.storage.folder import open_folder
from soda_dist.evaluation.model_sources import ModelSource
from soda_dist.evaluation.pieces import Piece, rows_at
from soda_dist.evaluation.rows import drawn_rows
from soda_dist.evaluation.views import central_views, pose_columns
from soda_dist.models.batch_norm import settle_norms
from soda_dist.models.encoder import Encoder
from soda_dist.models.encoder_only import EncoderAlone
from soda_dist.models.method import Method
from soda_dist.models.pixels import source_input
from soda_dist.training.build import build_model

NORM_ROWS = 256
"""Training images that give an untrained encoder's batch norms their statistics."""
UNTRAINED = (
    "the same architecture with the initial weights of the run's seed; batch norms, if any, have the statistics of "
    f"{NORM_ROWS} training images, drawn at random"
)


@dataclass
class Models:
    """The state of a worker. `config` sets sizes and evaluation; the checkpoint defines the networks."""

    model: Method | EncoderAlone
    config: RunConfig
    reader: dict[str, ShardReader]
    device: torch.device
    fresh: Callable[[RunConfig], Method | EncoderAlone] = build_model
    """Builds the model as it was before training."""
    kept: dict[Any, Any] = field(default_factory=dict)
    """Values that jobs cache from one piece to the next."""

    @cached_property
    def untrained(self) -> Method | EncoderAlone:
        """The model before training, with usable batch norms; built on first use."""
        fresh = self.fresh(self.config).to(self.device).eval().requires_grad_(False)
        encoder = getattr(fresh, "encoder", None)
        if isinstance(encoder, Encoder):
            settle_norms(encoder, self._training_batches())
        return fresh

    @property
    def method(self) -> Method:
        """The model as a method that draws; an encoder alone is refused by the tasks that need one."""
        assert isinstance(self.model, Method)
        return self.model

    def _training_batches(self) -> list[tuple[Tensor, Tensor | None, None]]:
        """Whole batches of drawn training images as the encoder takes them; one partial batch if they are fewer."""
        split, batch = self.config.evaluation.train_split, self.config.evaluation.batch
        reader = self.reader[split]
        keys = drawn_rows(sum(reader.groups), NORM_ROWS, self.config.seed, split).tolist()
        seen = central_views(rows_at(reader, keys, ["image", *pose_columns(self.config)]), self.config, target=False)
        images = source_input(torch.from_numpy(seen.source[seen.ok])).to(self.device)
        poses = None if seen.pose is None else torch.from_numpy(seen.pose[seen.ok]).to(self.device)
        starts = range(0, max(len(images) // batch * batch, 1), batch)
        return [(images[at : at + batch], None if poses is None else poses[at : at + batch], None) for at in starts]


def load_models(model_source: ModelSource, data_uri: str, config: RunConfig, device: str) -> Models:
    """Load the networks and open the splits of evaluation: the set-up of a worker."""
    import cv2

    cv2.setNumThreads(1)  # OpenCV would use every core of the machine
    model = model_source.load().to(device).eval()
    return Models(model, config, readers(data_uri, config), torch.device(device), model_source.fresh)


def readers(data_uri: str, config: RunConfig) -> dict[str, ShardReader]:
    """Open a reader of each split of evaluation, by name."""
    folder = open_folder(data_uri)
    manifest = read_manifest(folder)
    splits = (config.evaluation.train_split, config.evaluation.test_split)
    return {split: ShardReader(folder, manifest, split) for split in splits}


def rows_of(reader: ShardReader, piece: Piece, columns: list[str]) -> pa.Table:
    """Read the rows of a piece."""
    if piece.chosen is not None:
        return rows_at(reader, piece.chosen, columns)
    return pa.concat_tables([reader.group(number, columns) for number in piece.groups])
