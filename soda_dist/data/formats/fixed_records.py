"""Fixed-size records of a file, read by number in any order and in bounded memory.

Plain files are read by byte range. A compressed stream is read once for a whole selection, holding records that come
before their turn. `convert` converts a record's bytes to the value held and returned.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from soda_dist.data.source import READERS
from soda_dist.data.storage.folder import Folder

MAX_SIDE = 2**16
"""Pixels; encoders refuse much larger images."""
READ_BYTES = 2**20

Value = TypeVar("Value")
Block = TypeVar("Block", bound=Hashable)
Numbers = NDArray[np.int64]
Convert = Callable[[bytes], Value]


def is_size(sides: Sequence[int]) -> bool:
    """Whether an image of this height and width can be encoded."""
    return min(sides) >= 1 and max(sides) <= MAX_SIDE


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """Encode RGB [h, w, 3] or grey [h, w] pixels as PNG, which is lossless."""
    order = pixels[:, :, ::-1] if pixels.ndim == 3 else pixels
    return cv2.imencode(".png", np.ascontiguousarray(order))[1].tobytes()


def plain_records(
    folder: Folder, name: str, *, start: int, size: int, numbers: Numbers, convert: Convert[Value]
) -> Iterator[Value]:
    """Read records of `size` bytes of a file, record 0 at byte `start`; shorter ones at its end."""
    most = max(1, READ_BYTES // size)
    breaks = np.flatnonzero(np.diff(numbers) != 1) + 1
    runs = [part for run in np.split(numbers, breaks) for part in np.split(run, range(most, len(run), most))]

    def read(run: Numbers) -> list[Value]:
        with folder.explained(name):
            data = file.read_at(len(run) * size, start + int(run[0]) * size)
        return [convert(data[at * size : (at + 1) * size]) for at in range(len(run))]

    if not len(numbers):
        return
    with folder.open(name) as file, ThreadPoolExecutor(READERS) as pool:
        for first in range(0, len(runs), 4 * READERS):
            for values in pool.map(read, runs[first : first + 4 * READERS]):
                yield from values


def stream_records(stream: IO[bytes], *, size: int, numbers: Numbers, convert: Convert[Value]) -> Iterator[Value]:
    """Read records of a stream positioned at record 0, in one pass; shorter ones at its end."""
    order = np.argsort(numbers, kind="stable").tolist()
    held: dict[int, Value] = {}
    wanted, passed, record = iter(order), 0, b""
    for place in range(len(order)):
        while place not in held:
            at = next(wanted)
            if numbers[at] >= passed:
                _skip(stream, (int(numbers[at]) - passed) * size)
                record, passed = stream.read(size), int(numbers[at]) + 1
            held[at] = convert(record)
        yield held.pop(place)


def _skip(stream: IO[bytes], count: int) -> None:
    while count and (data := stream.read(min(count, READ_BYTES))):
        count -= len(data)


def block_records(blocks: Sequence[Block], read: Callable[[Block, list[int]], Iterable[Value]]) -> Iterator[Value]:
    """Yield a value per place 0, 1, ..., reading each block once, when first needed.

    Args:
        blocks: the block of each place.
        read: returns the values at all places of a block.
    """
    places: defaultdict[Block, list[int]] = defaultdict(list)
    for place, block in enumerate(blocks):
        places[block].append(place)
    held: dict[int, Value] = {}
    for place, block in enumerate(blocks):
        if place not in held:
            held.update(zip(places[block], read(block, places[block]), strict=True))
        yield held.pop(place)
