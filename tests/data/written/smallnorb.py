"""SmallNORB's binary matrices: magic, count of dimensions, at least three dimensions, values, all little endian."""

import gzip
import struct

import numpy as np

from soda_dist.data.storage.folder import Folder

NAMES = {
    "train": "smallnorb-5x46789x9x18x6x2x96x96-training",
    "test": "smallnorb-5x01235x9x18x6x2x96x96-testing",
}
MAGIC = {"B": 0x1E3D4C55, "i": 0x1E3D4C54}
RECORDS = {
    "train": [(0, 4, 8, 34, 5), (1, 9, 0, 0, 0), (0, 4, 3, 2, 5), (4, 6, 1, 20, 3), (0, 4, 3, 2, 1), (1, 9, 0, 18, 0)],
    "test": [(2, 0, 4, 6, 2), (3, 5, 5, 8, 4)],
}
"""Category, instance, elevation, azimuth and lighting of each record, in no order, as published."""
SHAPE = (96, 96)


def image(split: str, record: int, camera: int) -> np.ndarray:
    """Grey pixels up to 255."""
    return np.random.default_rng([len(split), record, camera]).integers(0, 256, SHAPE, np.uint8)


def matrix(kind: str, shape: list[int], data: bytes) -> bytes:
    """Of bytes (B) or int32 (i)."""
    padded = shape + [1] * (3 - len(shape))
    return struct.pack(f"<Ii{len(padded)}i", MAGIC[kind], len(shape), *padded) + data


def matrices(split: str) -> dict[str, bytes]:
    """The three files of a split, by their names."""
    records = RECORDS[split]
    pixels = b"".join(image(split, record, camera).tobytes() for record in range(len(records)) for camera in range(2))
    info = b"".join(struct.pack("<4i", *record[1:]) for record in records)
    category = b"".join(struct.pack("<i", record[0]) for record in records)
    files = {
        "dat": matrix("B", [len(records), 2, *SHAPE], pixels),
        "cat": matrix("i", [len(records)], category),
        "info": matrix("i", [len(records), 4], info),
    }
    return {f"{NAMES[split]}-{kind}.mat": data for kind, data in files.items()}


def write(folder: Folder) -> None:
    """The six published .gz files."""
    for split in NAMES:
        for name, data in matrices(split).items():
            folder.write(f"{name}.gz", gzip.compress(data))


def write_plain(folder: Folder) -> None:
    """The six files unpacked."""
    for split in NAMES:
        for name, data in matrices(split).items():
            folder.write(name, data)
