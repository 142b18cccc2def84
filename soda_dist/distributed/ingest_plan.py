"""Plans of read tasks: which positions of the order each reads, and the memory of its blocks."""

from bisect import bisect_right
from collections.abc import Iterator
from itertools import groupby, pairwise

from soda_dist.config.schema import RunConfig
from soda_dist.config.sections import Data
from soda_dist.data.order import Order
from soda_dist.data.views.poses import POSE_SIZES

BYTES_PER_BLOCK = 32 << 20
ROWS_PER_BLOCK = 2048
"""Blocks this large hide their cost (10 to 25 ms each), and several still fit into memory."""
BLOCKS_PER_TASK = 8
"""A task yields its blocks one by one; between two tasks its CPU waits for the scheduling loop."""
LEAST_BLOCKS, BLOCKS_BEYOND = 6, 4
"""Ray Data holds up to four blocks more than it plans with: those being made and consumed (measured), and for up to a
second consumed ones, since Ray frees objects once a second."""
TASKS_PER_DATASET = 256
"""A dataset takes about a millisecond a task to start, so a run is a chain of datasets."""
Slice = tuple[int, int]
"""[start, stop) in positions of the run."""
Block = list[Slice]


def slices(config: RunConfig, rank: int, step: int) -> list[Slice]:
    """Return the positions of a rank's micro-batches of one step.

    Micro-step j of all workers together is one contiguous piece of the global batch, rank after rank, so that the
    groups of batch norm are each in one worker or in neighbouring ones.
    """
    micro, workers = config.micro_batch, config.scale.workers
    base = step * config.train.global_batch + rank * micro
    return [(base + j * micro * workers, base + j * micro * workers + micro) for j in range(config.accumulation)]


def datasets(
    order: Order, config: RunConfig, rank: int, first_step: int, *, stays: bool
) -> Iterator[list[list[Block]]]:
    """Yield the plans of read tasks, one dataset's at a time.

    A task ends where the window of row groups changes, so that no group is fetched twice, unless the whole split
    `stays` in a process's cache. A micro-batch larger than a block is cut.
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
    """Limit the rows of a block."""
    return max(1, min(ROWS_PER_BLOCK, BYTES_PER_BLOCK // row_bytes(data)))


def row_bytes(data: Data) -> int:
    """Size of one pair in a block: pixels, poses and marks; labels are too small to count."""
    most, aug = data.sources[1], data.augmentation
    layers = aug.randaugment_layers if aug.randaugment_on == "device" and aug.randaugment_rate else 0
    marks = 4 * (POSE_SIZES[data.pose] + 2 * layers) * (most + 1) + most
    return 3 * (most * data.source_size**2 + data.target_size**2) + marks


def least_memory_mb(data: Data) -> int:
    """Smallest `scale.data_memory_mb` that a pipeline can keep to."""
    return -(-LEAST_BLOCKS * rows_per_block(data) * row_bytes(data) // 2**20)


def planned_bytes(config: RunConfig) -> int:
    """Memory that Ray Data may plan with, so that a pipeline holds no more than `scale.data_memory_mb`."""
    return (config.scale.data_memory_mb << 20) - BLOCKS_BEYOND * rows_per_block(config.data) * row_bytes(config.data)


def _cut(piece: Slice, most: int) -> list[Slice]:
    """Cut a slice into even slices of at most `most` positions."""
    start, stop = piece
    parts = -(-(stop - start) // most)
    return [*pairwise(start + number * (stop - start) // parts for number in range(parts + 1))]


def _evenly(pieces: list[Slice], most: int) -> list[list[Slice]]:
    parts = -(-len(pieces) // most)
    size = -(-len(pieces) // parts)
    return [pieces[i : i + size] for i in range(0, len(pieces), size)]
