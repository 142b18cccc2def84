"""The context of a task: a checkpoint, its data, and the workers that hold both."""

import time
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from soda_dist.config.provenance import provenance
from soda_dist.config.schema import RunConfig
from soda_dist.data.shards import Manifest
from soda_dist.data.storage.folder import Folder
from soda_dist.errors import UserError
from soda_dist.evaluation.features.extraction import collect, place_of
from soda_dist.evaluation.pieces import Features, Piece, Point, plan_pieces
from soda_dist.evaluation.rows import drawn_rows
from soda_dist.parallel.pool import Pool
from soda_dist.parallel.progress import Say
from soda_dist.runs.folder import evaluation_folder
from soda_dist.runs.results import Result, write_result

Pictures = dict[str, bytes]


@dataclass
class Context:
    """A checkpoint under evaluation.

    Attributes:
        run: the run's folder, where latents, drawn images and results lie.
        data, manifest: the prepared data set.
        config: the run's configuration with the overrides of this evaluation.
        step: of the checkpoint.
        ema: whether the weights are the moving average.
        encoder_only: whether the model is an encoder without a denoiser.
        weights: digest of the checkpoint's files.
        say: shows progress and tables.
        pool: where jobs run.
        workers: the same with workers that hold `worker.Models`.
    """

    run: Folder
    data: Folder
    manifest: Manifest
    config: RunConfig
    step: int
    ema: bool
    weights: str
    say: Say
    pool: Pool
    workers: Pool
    encoder_only: bool = False
    points: dict[str, tuple[Point, dict[str, float]]] = field(default_factory=dict)
    """Where the denoiser is read, by the label of the search, with each candidate's accuracy."""
    _features: dict[tuple[str, Point | None, int], Features] = field(default_factory=dict)

    def close(self) -> None:
        """End the workers."""
        self.workers.release()

    @property
    def place(self) -> Folder:
        """The folder of this checkpoint's results."""
        return evaluation_folder(self.run, self.step, ema=self.ema)

    @property
    def data_facts(self) -> Result:
        """A result's record of the prepared data, which may be gone when the result is read."""
        rows = {name: split.rows for name, split in self.manifest.splits.items()}
        reencoded = self.manifest.reencoded
        return {
            "uri": self.data.uri,
            "kind": self.manifest.kind,
            "rows": rows,
            "reencoded": reencoded and reencoded.model_dump(),
        }

    def rows(self, which: str, limit: int | None = None) -> int:
        """Count the rows of the train or test split that evaluation uses, at most `limit`."""
        rows = self.manifest.split(getattr(self.config.evaluation, f"{which}_split")).rows
        limits = (getattr(self.config.evaluation, f"max_{which}_images"), limit)
        return min([rows, *(each for each in limits if each is not None)])

    def drawn(self, which: str, limit: int | None = None) -> NDArray[np.int64]:
        """Draw these rows: int64, ascending; those of a smaller limit are among those of a larger one."""
        split = getattr(self.config.evaluation, f"{which}_split")
        return drawn_rows(self.manifest.split(split).rows, self.rows(which, limit), self.config.seed, split)

    def features(self, which: str, point: Point | None, limit: int | None = None) -> Features:
        """Extract the features of rows of the train or test split, or read cached ones; rows as of `drawn`.

        Raises:
            UserError: fewer than two readable images.
        """
        key = (which, point, self.rows(which, limit))
        if key not in self._features:
            pieces = self.pieces(which, () if point is None else (point,), limit)
            found = collect(self.workers, self.latents(pieces[0].split, pieces[0].points), pieces, self.say)
            self.check_readable(which, len(found))
            self._features[key] = found
        return self._features[key]

    def pieces(self, which: str, points: tuple[Point, ...] = (), limit: int | None = None) -> list[Piece]:
        """Cut rows of the train or test split into pieces; rows as of `drawn`."""
        e = self.config.evaluation
        split = getattr(e, f"{which}_split")
        return plan_pieces(split, self.manifest.split(split).groups, self.drawn(which, limit), e.batch, points)

    def check_readable(self, which: str, count: int) -> None:
        """Raise a `UserError` for fewer than two readable images in the train or test split."""
        if count < 2:
            split = getattr(self.config.evaluation, f"{which}_split")
            got = f"{split} with {count} readable images"
            raise UserError(f"evaluation.{which}_split", got, "two or more", "choose another split or more of it")

    def latents(self, split: str, points: tuple[Point, ...], *, passes: bool = False) -> Folder:
        """Name the folder of a split's latents; `passes`: those of augmented views."""
        splits = (split, self.config.evaluation.train_split)
        shards = [shard.sha256 for name in splits for shard in self.manifest.split(name).shards]
        return place_of(self.run, self.config, self.weights, shards, points, passes=passes)

    def record(self, task: str, facts: Result, pictures: Pictures, began: float) -> Result:
        """Store the result of a task with its pictures, and return it.

        `began`: `time.monotonic()` at the start.
        """
        result = {
            "task": task,
            "step": self.step,
            "ema": self.ema,
            "weights": self.weights,
            **facts,
            "data": self.data_facts,
            "seed": self.config.seed,
            "seconds": time.monotonic() - began,
            "provenance": provenance(),
        }
        write_result(self.run, self.step, result, pictures, ema=self.ema)
        return result
