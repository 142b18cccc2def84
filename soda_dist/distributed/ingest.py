"""Ray Data streams a worker's micro-batches in the order that `data.order` fixes.

One dataset for each rank, built in the training worker from the step to go on with. Its read tasks each decode and
augment several blocks of several micro-batches; blocks arrive in order; a lost task is run again and gives the same
bytes, since it is a pure function of its plan. So neither workers, nor failures, nor a resume change which pair is seen
when.
"""

import gc
import time
from bisect import bisect_right
from collections.abc import Generator, Iterator
from functools import lru_cache, partial
from itertools import groupby, pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
from ray.data import DataContext, ExecutionResources
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask
from ray.data.extensions import ArrowTensorArray

from soda_dist.config.schema import Data, RunConfig
from soda_dist.data.labels import probe_labels
from soda_dist.data.order import Order
from soda_dist.data.pairs import Pairs, read_pairs
from soda_dist.data.shards import ShardReader, read_manifest
from soda_dist.data.storage.folder import open_folder
from soda_dist.data.views.poses import POSE_SIZES

BYTES_PER_BLOCK = 32 << 20
ROWS_PER_BLOCK = 2048
"""A block is large enough that its cost (10 to 25 ms) vanishes, and small enough that several fit."""
BLOCKS_PER_TASK = 8
"""A task gives its blocks one by one; between two tasks its processor waits for the scheduling loop."""
LEAST_BLOCKS, BLOCKS_BEYOND = 6, 4
"""Ray Data holds up to four blocks more than it plans with: those being made and taken (measured), and for
up to a second what was taken before, since Ray frees objects once a second."""
TASKS_PER_DATASET = 256
"""Starting a dataset costs about a millisecond a task, so a run is a chain of datasets."""

TENSORS = "source", "present", "target", "source_pose", "target_pose", "source_layers", "target_layers", "label"
NUMBERS, TEXTS = ("key", "ok", "index", "retries"), ("name", "reason")
"""Fields of `Pairs`: of several elements a row (or none, as poses and labels may be), and of one."""

REST_S = 0.02

Slice = tuple[int, int]
"""[start, stop) in positions of the run."""
Block = list[Slice]


def slices(config: RunConfig, rank: int, step: int) -> list[Slice]:
    """The positions that make up a rank's micro-batches of one step.

    Micro-step j of all workers together is one contiguous piece of the global batch, so that statistics over a
    micro-step (batch norm) see the same samples for any number of workers at the same `micro_batch * workers`.
    """
    micro, workers = config.micro_batch, config.scale.workers
    base = step * config.train.global_batch + rank * micro
    return [(base + j * micro * workers, base + j * micro * workers + micro) for j in range(config.accumulation)]


def opened(data_uri: str, config: RunConfig) -> tuple[ShardReader, Order]:
    """Reader and order, kept for the life of the process."""
    data = config.data
    return _open(data_uri, data.train_split, config.train.global_batch, data.shuffle_groups, config.seed)


@lru_cache(maxsize=2)
def _open(data_uri: str, split: str, batch: int, mix: int, seed: int) -> tuple[ShardReader, Order]:
    folder = open_folder(data_uri)
    manifest = read_manifest(folder)
    groups = [rows for shard in manifest.splits[split].shards for rows in shard.groups]
    return ShardReader(folder, manifest, split), Order(groups, seed, batch, mix)


def _read(data_uri: str, config: RunConfig, plan: list[Block]) -> Iterator[pa.Table]:
    """A read task: a table for each block of its plan, an Arrow chunk for each slice."""
    _settle()
    reader, order = opened(data_uri, config)
    probe = probe_labels(reader.manifest, config.train)
    labels = probe.columns if probe else ()
    read = partial(read_pairs, reader, order, seed=config.seed, data=config.data, labels=labels)
    for block in plan:
        yield pa.concat_tables([_table(read(start, stop)) for start, stop in block])


@lru_cache(maxsize=1)
def _settle() -> None:
    """Once in a data worker: OpenCV on the task's one CPU, and no more visits of the garbage collector to what the
    libraries made at import: at 32 px every ninth second went there (measured)."""
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
    """The inverse of `_table`, after Ray Data's batching."""
    arrays: dict[str, Any] = {name: np.asarray(batch[name]) for name in (*TENSORS, *NUMBERS)}
    texts: dict[str, Any] = {name: list(batch[name]) for name in TEXTS}
    return Pairs(**arrays, **texts)


class PlannedPairs(Datasource):
    """A datasource whose tasks are given: each a list of blocks."""

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


class RestingLoop(ExecutionCallback):
    """A pause after each turn of Ray Data's scheduling loop, which runs in the training process.

    While training is the slower side, a finished block waits to be fetched, `ray.wait` answers at once, and the loop
    would turn without end: it took most of a core and the interpreter's lock from the training thread (measured on two
    cores: 20 pairs/s with it, 46 without). A block is worth seconds of work, so the pause delays nothing.
    """

    def on_execution_step(self, executor: Any) -> None:
        time.sleep(REST_S)


def stream(data_uri: str, config: RunConfig, rank: int, first_step: int) -> Generator[Pairs, None, None]:
    """A rank's micro-batches from `first_step` to the end of the run."""
    reader, order = opened(data_uri, config)
    for plans in _datasets(order, config, rank, first_step, stays=reader.stays_cached):
        yield from _dataset_batches(data_uri, config, plans)


def hold_statistics_here() -> None:
    """Make Ray Data's detached statistics actor on the caller's node, if the cluster has none yet.

    Ray Data makes it where a dataset first runs and never ends it: on a worker node it would keep the autoscaler from
    ever letting that node go (measured). The function is private to Ray, whose version is pinned.
    """
    from ray.data._internal.stats import get_or_create_stats_actor

    get_or_create_stats_actor()


def _datasets(
    order: Order, config: RunConfig, rank: int, first_step: int, *, stays: bool
) -> Iterator[list[list[Block]]]:
    """Plans of read tasks, a dataset's worth at a time.

    A task ends where the window of row groups changes, so that no group is fetched by two tasks in vain, unless the
    split `stays` in a process's cache whole; a small data set has many windows, and so few steps to a dataset. A
    micro-batch larger than a block is cut.
    """
    most = rows_per_block(config.data)
    pieces_per_block = max(1, most // config.micro_batch)
    per_task = BLOCKS_PER_TASK * pieces_per_block
    steps = max(1, TASKS_PER_DATASET * per_task // (config.accumulation * len(_cut((0, config.micro_batch), most))))
    batch, first = config.train.global_batch, first_step
    while first < config.train.steps:
        last = min(first + steps, config.train.steps)
        starts = [] if stays else [window.start for window in order.windows(first * batch, last * batch)]
        if len(starts) > TASKS_PER_DATASET:
            last = max(first + 1, starts[TASKS_PER_DATASET] // batch)
        whole = (piece for step in range(first, last) for piece in slices(config, rank, step))
        pieces = [part for piece in whole for part in _cut(piece, most)]
        yield [
            _evenly(task, pieces_per_block)
            for _, window in groupby(pieces, key=lambda piece: bisect_right(starts, piece[0]))
            for task in _evenly(list(window), per_task)
        ]
        first = last


def rows_per_block(data: Data) -> int:
    """The most rows of a block."""
    return max(1, min(ROWS_PER_BLOCK, BYTES_PER_BLOCK // row_bytes(data)))


def row_bytes(data: Data) -> int:
    """Of one pair in a block: its pixels, poses and marks; labels are too few to count."""
    most, how = data.sources[1], data.augmentation
    layers = how.randaugment_layers if how.randaugment_on == "device" and how.randaugment_rate else 0
    marks = 4 * (POSE_SIZES[data.pose] + 2 * layers) * (most + 1) + most
    return 3 * (most * data.source_size**2 + data.target_size**2) + marks


def least_memory_mb(data: Data) -> int:
    """The least `scale.data_memory_mb` that can be kept to."""
    return -(-LEAST_BLOCKS * rows_per_block(data) * row_bytes(data) // 2**20)


def _planned_bytes(config: RunConfig) -> int:
    """What Ray Data may plan with, so that a pipeline holds no more than `scale.data_memory_mb`."""
    return (config.scale.data_memory_mb << 20) - BLOCKS_BEYOND * rows_per_block(config.data) * row_bytes(config.data)


def _cut(piece: Slice, most: int) -> list[Slice]:
    """A slice as slices of at most `most` positions, as even as can be."""
    start, stop = piece
    parts = -(-(stop - start) // most)
    return [*pairwise(start + number * (stop - start) // parts for number in range(parts + 1))]


def _evenly(pieces: list[Slice], most: int) -> list[list[Slice]]:
    parts = -(-len(pieces) // most)
    size = -(-len(pieces) // parts)
    return [pieces[i : i + size] for i in range(0, len(pieces), size)]


def _dataset_batches(data_uri: str, config: RunConfig, plans: list[list[Block]]) -> Iterator[Pairs]:
    blocks = [block for plan in plans for block in plan]
    largest = max(sum(stop - start for start, stop in block) for block in blocks)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    # What a task yields is a block at once if it is larger than this, and stays whole if at most half as large again.
    context.target_max_block_size = int(0.8 * row_bytes(config.data) * largest)
    context.execution_options.preserve_order = True
    context.custom_execution_callback_classes = [RestingLoop]
    context.execution_options.resource_limits = ExecutionResources.for_limits(
        cpu=config.scale.data_cpus_per_worker, object_store_memory=_planned_bytes(config)
    )
    dataset = ray.data.read_datasource(
        PlannedPairs(data_uri, config, plans),
        override_num_blocks=len(plans),
        concurrency=config.scale.data_cpus_per_worker,
        num_cpus=1,
    )
    due = np.concatenate([np.arange(start, stop) for block in blocks for start, stop in block])
    for batch in dataset.iter_batches(batch_size=config.micro_batch, batch_format="numpy", prefetch_batches=2):
        expected, due = np.split(due, [config.micro_batch])
        if not np.array_equal(batch["index"], expected):
            got = f"{len(batch['index'])} rows from position {batch['index'][0]}"
            raise RuntimeError(f"the pipeline delivered {got} where {len(expected)} from {expected[:1]} were due")
        yield _pairs(batch)
    if len(due):
        raise RuntimeError("the pipeline ended before its plan")
