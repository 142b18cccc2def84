"""What a run needs before it starts, checked before anything is written: its data, its splits, its labels."""

from dataclasses import dataclass

from soda_dist.config.schema import RunConfig
from soda_dist.data.labels import ProbeLabels, probe_labels
from soda_dist.data.pairs import check_data
from soda_dist.data.shards import Manifest, ShardReader, check_shards, read_manifest
from soda_dist.data.storage.folder import Folder, open_folder
from soda_dist.errors import UserError
from soda_dist.runs.folder import complete_steps, stopped_step


@dataclass(frozen=True)
class TrainingData:
    """A prepared data set that fits a configuration.

    Attributes:
        reader: of the training split.
        labels: for the online probe; None without one.
    """

    folder: Folder
    manifest: Manifest
    reader: ShardReader
    labels: ProbeLabels | None

    @property
    def rows(self) -> int:
        """Rows of the training split."""
        return self.manifest.split(self.reader.split).rows

    def facts(self) -> dict[str, str | int]:
        """What a run's provenance records of its data."""
        return {"uri": self.folder.uri, "digest": self.manifest.digest, "rows": self.rows}

    def describe(self, config: RunConfig) -> str:
        """Return the line that a run begins with."""
        kind, reencoded = self.manifest.kind, self.manifest.reencoded
        what = kind + (f" ({reencoded})" if reencoded else "")
        return f"{self.rows} rows of {what}; {config.train.steps} steps of {config.train.global_batch} pairs"


def open_training_data(config: RunConfig, data_uri: str) -> TrainingData:
    """Open the data of a run.

    Raises:
        UserError: the data is missing, incomplete or does not fit the configuration.
    """
    folder = open_folder(data_uri)
    manifest, split = read_manifest(folder), config.data.train_split
    if split not in manifest.splits:
        raise UserError("data.train_split", split, ", ".join(manifest.splits), "choose one of them")
    check_shards(folder, manifest, split)
    reader = ShardReader(folder, manifest, split)
    check_data(reader, config.data)
    check_validation(manifest, config)
    return TrainingData(folder, manifest, reader, probe_labels(manifest, config.train))


def check_validation(manifest: Manifest, config: RunConfig) -> None:
    """Raise a `UserError` if the data lacks the split of held-out images, or the split has too few rows."""
    stop = config.train.stop
    if not config.train.holds_out:
        return
    rows = {name: split.rows for name, split in manifest.splits.items()}
    if rows.get(stop.split, 0) < 2:
        got = f"{stop.split} with {rows.get(stop.split, 0)} rows"
        others = ", ".join(name for name, count in rows.items() if count > 1 and name != config.data.train_split)
        raise UserError("train.stop.split", got, others or "a held-out split", "name a held-out split")


def finished(run: Folder, end: int) -> str | None:
    """Return the line that says why a run needs no more training up to step `end`; None = it does."""
    steps, stopped = complete_steps(run), stopped_step(run)
    early = stopped is not None and stopped in steps
    if not early and (not steps or steps[-1] < end):
        return None
    return f"already finished: step {steps[-1]} of {end}" + (", stopped early by train.stop" if early else "")


def shortened(asked: RunConfig, config: RunConfig) -> str | None:
    """Return the line that says that the run has a shorter warm-up than asked for; None = it has not."""
    steps, given = config.optim.warmup_steps, asked.optim.warmup_steps
    return None if steps == given else f"optim.warmup_steps: {given} is too long for the run; using {steps}"
