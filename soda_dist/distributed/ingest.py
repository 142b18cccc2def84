"""Ray Data streams a worker's micro-batches in the order that `data.order` fixes.

Each training worker builds the dataset of its rank, from the step to resume at. A read task decodes and augments
several blocks of several micro-batches, and blocks arrive in order. A task is a pure function of its plan, so a retried
one gives the same bytes: neither workers, failures nor a resume change which pair is seen when.
"""

import gc
from collections.abc import Generator, Iterator
from functools import lru_cache, partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
from ray.data import DataContext, ExecutionResources
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask
from ray.data.extensions import ArrowTensorArray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from soda_dist.config.schema import RunConfig
from soda_dist.data.labels import probe_labels
from soda_dist.data.order import Order
from soda_dist.data.pairs import Pairs, read_pairs
from soda_dist.data.shards import ShardReader, read_manifest
from soda_dist.data.storage.folder import open_folder
from soda_dist.distributed.ingest_plan import Block, datasets, planned_bytes, row_bytes
from soda_dist.distributed.runtime.ray_internals import resting_loop

TENSORS = "source", "present", "target", "source_pose", "target_pose", "source_layers", "target_layers", "label"
NUMBERS, TEXTS = ("key", "ok", "index", "retries"), ("name", "reason")
"""Fields of `Pairs` with several elements a row (poses and labels may have none), and with one."""


def opened(data_uri: str, config: RunConfig) -> tuple[ShardReader, Order]:
    """Open reader and order once for the life of the process."""
    data = config.data
    return _open(data_uri, data.train_split, config.train.global_batch, data.shuffle_groups, config.seed)


@lru_cache(maxsize=2)
def _open(data_uri: str, split: str, batch: int, mix: int, seed: int) -> tuple[ShardReader, Order]:
    folder = open_folder(data_uri)
    manifest = read_manifest(folder)
    groups = [rows for shard in manifest.splits[split].shards for rows in shard.groups]
    return ShardReader(folder, manifest, split), Order(groups, seed, batch, mix)


def _read(data_uri: str, config: RunConfig, plan: list[Block]) -> Iterator[pa.Table]:
    """Run a read task: a table for each block of its plan, an Arrow chunk for each slice."""
    _settle()
    reader, order = opened(data_uri, config)
    probe = probe_labels(reader.manifest, config.train)
    labels = probe.columns if probe else ()
    read = partial(read_pairs, reader, order, seed=config.seed, data=config.data, labels=labels)
    for block in plan:
        yield pa.concat_tables([_table(read(start, stop)) for start, stop in block])


@lru_cache(maxsize=1)
def _settle() -> None:
    """Set up a data worker once: OpenCV on one CPU, and imported objects out of the garbage collector's reach.

    At 32 px the collector took a ninth of the time (measured).
    """
    import cv2

    cv2.setNumThreads(1)
    gc.collect()
    gc.freeze()


def _table(pairs: Pairs) -> pa.Table:
    return pa.table(
        {
            **{name: ArrowTensorArray.from_numpy(getattr(pairs, name)) for name in TENSORS},
            **{name: getattr(pairs, name) for name in NUMBERS},
            **{name: pa.array(getattr(pairs, name), pa.string()) for name in TEXTS},
        }
    )


def _pairs(batch: dict[str, Any]) -> Pairs:
    """Invert `_table`, after Ray Data's batching."""
    arrays: dict[str, Any] = {name: np.asarray(batch[name]) for name in (*TENSORS, *NUMBERS)}
    texts: dict[str, Any] = {name: list(batch[name]) for name in TEXTS}
    return Pairs(**arrays, **texts)


class PlannedPairs(Datasource):
    """A datasource with given tasks, each a list of blocks."""

    def __init__(self, data_uri: str, config: RunConfig, plans: list[list[Block]]) -> None:
        super().__init__()
        self._data_uri, self._config, self._plans = data_uri, config, plans

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        return [
            ReadTask(
                partial(_read, self._data_uri, self._config, plan),
                BlockMetadata(
                    num_rows=sum(stop - start for block in plan for start, stop in block),
                    size_bytes=None,
                    input_files=None,
                    exec_stats=None,
                ),
            )
            for plan in self._plans
        ]


def stream(data_uri: str, config: RunConfig, rank: int, first_step: int) -> Generator[Pairs, None, None]:
    """Yield a rank's micro-batches from `first_step` to the end of the run."""
    reader, order = opened(data_uri, config)
    for plans in datasets(order, config, rank, first_step, stays=reader.fits_in_cache):
        yield from _dataset_batches(data_uri, config, plans)


def _dataset_batches(data_uri: str, config: RunConfig, plans: list[list[Block]]) -> Iterator[Pairs]:
    blocks = [block for plan in plans for block in plan]
    largest = max(sum(stop - start for start, stop in block) for block in blocks)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    # A table that a task yields becomes a block if it is larger than this; up to 1.5 times this it is not split.
    context.target_max_block_size = int(0.8 * row_bytes(config.data) * largest)
    context.execution_options.preserve_order = True
    context.custom_execution_callback_classes = [resting_loop()]
    context.execution_options.resource_limits = ExecutionResources.for_limits(object_store_memory=planned_bytes(config))
    # The worker has reserved their CPUs with its own, on its node.
    beside = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    dataset = ray.data.read_datasource(
        PlannedPairs(data_uri, config, plans),
        override_num_blocks=len(plans),
        concurrency=config.scale.data_cpus_per_worker,
        num_cpus=0,
        ray_remote_args={"scheduling_strategy": beside},
    )
    due = np.concatenate([np.arange(start, stop) for block in blocks for start, stop in block])
    for batch in dataset.iter_batches(batch_size=config.micro_batch, batch_format="numpy", prefetch_batches=2):
        expected, due = np.split(due, [config.micro_batch])
        if not np.array_equal(batch["index"], expected):
            got = f"{len(batch['index'])} rows from position {batch['index'][0]}"
            raise RuntimeError(f"the pipeline delivered {got}; {len(expected)} from {expected[:1]} were due")
        yield _pairs(batch)
    if len(due):
        raise RuntimeError("the pipeline ended before its plan")
