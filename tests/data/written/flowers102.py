"""Flowers 102: images by number, and MATLAB files with labels and splits, numbers from 1 on."""

import io

import numpy as np
from scipy.io import savemat

from soda_dist.data.storage.folder import Folder
from tests.data.written.pictures import picture, tar_of

LABELS = (77, 1, 102, 77, 21, 1, 50, 3)
"""Of images 1..8."""
SETS = {"trnid": (2, 7), "valid": (3, 5), "tstid": (8, 1, 6, 4)}


def images() -> dict[str, bytes]:
    return {f"jpg/image_{number:05d}.jpg": picture(number) for number in range(1, len(LABELS) + 1)}


def mat(compressed: bool = True, **variables: tuple[int, ...]) -> bytes:
    """Row vectors, as published."""
    sink = io.BytesIO()
    vectors = {name: np.array([values], np.uint16) for name, values in variables.items()}
    savemat(sink, vectors, do_compression=compressed)
    return sink.getvalue()


def mats() -> dict[str, bytes]:
    return {"imagelabels.mat": mat(labels=LABELS), "setid.mat": mat(**SETS)}


def write(folder: Folder) -> None:
    """As published: the archive and the two files beside it; its members are in no order."""
    packed = dict(sorted(images().items(), key=lambda item: item[0][::-1]))
    for name, data in {"102flowers.tgz": tar_of(packed, "w:gz"), **mats()}.items():
        folder.write(name, data)


def write_folder(folder: Folder) -> None:
    """Unpacked."""
    for name, data in {**images(), **mats()}.items():
        folder.write(name, data)
