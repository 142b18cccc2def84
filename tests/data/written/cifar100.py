"""CIFAR-100's binary version: the superclass, the class, all red, all green and all blue values of each image."""

import io
import tarfile

import numpy as np

from soda_dist.data.storage.folder import Folder

ROOT = "cifar-100-binary"
ROWS = {"train": 5, "test": 3}


def pixels(split: str, row: int) -> np.ndarray:
    return np.random.default_rng([len(split), row]).integers(0, 256, (32, 32, 3), np.uint8)


def labels(split: str, row: int) -> tuple[int, int]:
    """Superclass and class."""
    return (7 * row + len(split)) % 20, 99 - 11 * row


def batch(split: str) -> bytes:
    records = b""
    for row in range(ROWS[split]):
        image = pixels(split, row)
        planes = [bytes([int(image[y, x, c]) for y in range(32) for x in range(32)]) for c in range(3)]
        records += bytes(labels(split, row)) + b"".join(planes)
    return records


def files() -> dict[str, bytes]:
    return {**{f"{split}.bin": batch(split) for split in ROWS}, "fine_label_names.txt": b"apple\naquarium_fish\n"}


def unpacked() -> dict[str, bytes]:
    return {f"{ROOT}/{name}": data for name, data in files().items()}


def archive(members: dict[str, bytes]) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w:gz") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(f"{ROOT}/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return sink.getvalue()


def write(folder: Folder) -> None:
    """The published archive, whose test batch comes first."""
    folder.write("cifar-100-binary.tar.gz", archive(dict(reversed(files().items()))))
