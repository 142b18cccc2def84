"""A checkpoint written at once."""

from soda_dist.config.schema import RunConfig
from soda_dist.data.storage.folder import Folder
from soda_dist.training.checkpoint_writer import CheckpointWriter
from soda_dist.training.context import WorkerContext
from soda_dist.training.engines.engine import Engine


def save(run: Folder, step: int, engine: Engine, context: WorkerContext, config: RunConfig) -> None:
    """Write the checkpoint of `step` and wait for it; call on every rank."""
    with CheckpointWriter(run, engine, context, config) as writer:
        writer.save(step)
