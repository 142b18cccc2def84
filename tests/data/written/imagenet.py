"""ImageNet: images of three classes, the tar of tars, and the flat tar with its devkit."""

import io

import numpy as np
from PIL import Image
from scipy.io import savemat

from soda_dist.data.storage.folder import Folder
from tests.data.written.pictures import tar_of

WNIDS = ("n01440764", "n01443537", "n02105855")
IDS = {1: "n02105855", 2: "n01440764", 3: "n01443537", 4: "n00001740"}
"""ILSVRC2012_ID to wnid: not in the order of wnids; the last has children and is no class."""
DEVKIT = "ILSVRC2012_devkit_t12"
TRAIN, VAL = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
WORDS = {1: "kuvasz", 2: "tench, Tinca tinca", 3: "goldfish, Carassius auratus", 4: "entity"}


def jpeg(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (20 + number, 30, 3), np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "JPEG")
    return sink.getvalue()


def images(wnid: str, count: int) -> dict[str, bytes]:
    return {f"{wnid}_{i}.JPEG": jpeg(10 * WNIDS.index(wnid) + i) for i in range(count)}


def train_tar() -> bytes:
    inner = {f"{wnid}.tar": tar_of(images(wnid, 2 + i)) for i, wnid in enumerate(WNIDS)}
    return tar_of(dict(reversed(inner.items())))


def val_images() -> dict[str, bytes]:
    return {f"ILSVRC2012_val_{i:08d}.JPEG": jpeg(100 + i) for i in (3, 1, 4, 2)}


def meta(compressed: bool = False) -> bytes:
    """`synsets` with the fields that the published meta.mat has, in its order."""
    kinds = [("ILSVRC2012_ID", float), *((name, object) for name in ("WNID", "words", "gloss"))]
    kinds += [("num_children", float), ("children", object), ("wordnet_height", float), ("num_train_images", float)]
    rows = []
    for number, wnid in IDS.items():
        children = np.array([1.0, 2.0, 3.0]) if number == 4 else np.array([])
        rows.append((number, wnid, WORDS[number], "of some kind", float(len(children)), children, 0.0, 1300.0))
    sink = io.BytesIO()
    savemat(sink, {"synsets": np.array(rows, kinds).reshape(-1, 1)}, do_compression=compressed)
    return sink.getvalue()


def devkit(compressed: bool = False) -> dict[str, bytes]:
    truth = b"3\n1\n2\n1\n"
    return {
        f"{DEVKIT}/data/meta.mat": meta(compressed),
        f"{DEVKIT}/data/ILSVRC2012_validation_ground_truth.txt": truth,
    }


def folders() -> dict[str, bytes]:
    """Two splits of folders of classes."""
    train = {f"train/{wnid}/{name}": data for wnid in WNIDS for name, data in images(wnid, 3).items()}
    return {**train, **{f"val/{wnid}/{name}": data for wnid in WNIDS[1:] for name, data in images(wnid, 1).items()}}


def write(folder: Folder) -> None:
    """The published tars."""
    tars = {TRAIN: train_tar(), VAL: tar_of(val_images()), f"{DEVKIT}.tar.gz": tar_of(devkit(True), "w:gz")}
    for name, data in tars.items():
        folder.write(name, data)
