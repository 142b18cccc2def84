"""Every published layout of every kind, made small: what is fuzzed and what is imported by Ray.

A layout is files by name, and for archives how they are packed, so that damage can be done within as well.
"""

import gzip
import zipfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple
from unittest import mock

import pyarrow as pa

from soda_dist.data.sources import mpi3d as mpi3d_source
from soda_dist.data.sources import shapes3d as shapes3d_source
from soda_dist.data.storage.folder import Folder
from tests.data.written import (
    afhq,
    celebahq,
    cifar10,
    cifar100,
    cub,
    flowers102,
    folder,
    imagenet,
    kubric,
    lsun,
    mpi3d,
    multiview,
    nmr,
    parquet,
    shapes3d,
    smallnorb,
    webdataset,
)
from tests.data.written.pictures import picture, tar_of, zip_of

Files = dict[str, bytes]


def as_they_are(files: Files) -> Files:
    return files


class Layout(NamedTuple):
    """Of a kind: files before they are packed, how they are published, what of the folder to name, and options."""

    kind: str
    files: Callable[[], Files]
    packed: Callable[[Files], Files] = as_they_are
    name: str = ""
    options: tuple[str, ...] = ()


class Memory:
    """A folder's `write` alone, for writers."""

    def __init__(self) -> None:
        self.files: Files = {}

    def write(self, name: str, data: bytes) -> None:
        self.files[name] = bytes(data)


def written(write: Callable[[Folder], None]) -> Callable[[], Files]:
    """What a writer puts into a folder."""

    def files() -> Files:
        memory = Memory()
        write(memory)  # type: ignore[arg-type]
        return memory.files

    return files


def in_tgz(name: str) -> Callable[[Files], Files]:
    return lambda files: {name: tar_of(files, "w:gz")}


def in_tar(name: str) -> Callable[[Files], Files]:
    return lambda files: {name: tar_of(files)}


def in_zip(name: str) -> Callable[[Files], Files]:
    return lambda files: {name: zip_of(files)}


def gzipped(files: Files) -> Files:
    return {f"{name}.gz": gzip.compress(data) for name, data in files.items()}


def _celebahq() -> Files:
    return {**celebahq.files(), f"{celebahq.ROOT}/list_eval_partition.txt": celebahq.partition()}


def _flowers(files: Files) -> Files:
    """The archive, and the .mat files beside it."""
    beside = {name: data for name, data in files.items() if name.endswith(".mat")}
    return {"102flowers.tgz": tar_of({n: d for n, d in files.items() if n not in beside}, "w:gz"), **beside}


def _flat_mats() -> Files:
    """Not compressed, so that damage meets their elements."""
    mats = {"imagelabels.mat": {"labels": flowers102.LABELS}, "setid.mat": flowers102.SETS}
    return {**flowers102.images(), **{name: flowers102.mat(compressed=False, **v) for name, v in mats.items()}}


def _scanned(into: Folder) -> None:
    for name, category in {"a/1": "Shoe", "a/2": "None", "b/1": None}.items():
        kubric.write_object(into, name, kubric.metadata(category))


def _imagenet_tars() -> Files:
    return {
        imagenet.TRAIN: imagenet.train_tar(),
        imagenet.VAL: tar_of(imagenet.val_images()),
        **imagenet.devkit(compressed=False),
    }


def _posed(into: Folder) -> None:
    multiview.write(into)
    multiview.write_lists(into)


def _cifar10_tables() -> Files:
    return {"train/a.parquet": cifar10.table(range(7)), "test/a.parquet": cifar10.table(range(7, 11), struct=True)}


def _mpi3d(deflated: bool) -> Callable[[], Files]:
    return lambda: {"mpi3d_real.npz": mpi3d.archive(images=mpi3d.images(), deflated=deflated)}


def _texts(into: Folder) -> None:
    """Labels as texts, in a dictionary in one of two files."""
    for split, names in (("train", ["b", "a", "c", "a"]), ("test", ["c", ""])):
        cells = pa.array(names)
        made = parquet.table(range(len(names)), features=None)
        made = made.set_column(1, "label", cells.dictionary_encode() if split == "train" else cells)
        parquet.put(into, f"{split}.parquet", made)


def _samples_of_others() -> Files:
    """Keys with a second dot, hidden members, and names of classes that are numbers."""
    members: Files = {}
    for at in range(6):
        members |= {f"._{at}.input.png": b"x", f"{at}.input.png": picture(at, "PNG"), f"{at}.mask.png": b"x"}
        members[f"{at}.target.cls"] = str(at % 3).encode()
    return {"train.tar": tar_of(members), "classes.txt": b"\xef\xbb\xbf2\r\n1\r\n0\r\n"}


LAYOUTS = {
    "afhq": Layout("afhq", written(afhq.write)),
    "afhq zip": Layout("afhq", lambda: afhq.files(2), in_zip("afhq_v2.zip")),
    "celebahq": Layout("celebahq", written(celebahq.write)),
    "celebahq zip": Layout("celebahq", _celebahq, in_zip("CelebAMask-HQ.zip")),
    "celebahq of stargan": Layout("celebahq", celebahq.stargan),
    "cifar10": Layout("cifar10", cifar10.files),
    "cifar10 tgz": Layout("cifar10", cifar10.files, in_tgz("cifar-10-binary.tar.gz")),
    "cifar10 parquet": Layout("cifar10", _cifar10_tables),
    "cifar100": Layout("cifar100", cifar100.unpacked, in_tgz("cifar-100-binary.tar.gz")),
    "cub": Layout("cub", cub.files),
    "cub tgz": Layout("cub", cub.files, in_tgz("CUB_200_2011.tgz")),
    "cub zip": Layout("cub", cub.files, in_zip("CUB_200_2011.zip"), options=("crop=none",)),
    "flowers102": Layout("flowers102", _flat_mats),
    "flowers102 tgz": Layout("flowers102", written(flowers102.write_folder), _flowers),
    "folder": Layout("folder", folder.files),
    "folder zip": Layout("folder", folder.files, in_zip("a.zip"), "a.zip"),
    "folder tar": Layout("folder", folder.files, in_tar("a.tar"), "a.tar", ("splits=drawn",)),
    "folder tgz": Layout("folder", folder.files, in_tgz("a.tgz"), "a.tgz", ("classes=false",)),
    "folder tiny": Layout("folder", folder.tiny),
    "gso": Layout("gso", written(_scanned)),
    "imagenet": Layout("imagenet", imagenet.folders),
    "imagenet tars": Layout("imagenet", _imagenet_tars),
    "imagenet tgz": Layout("imagenet", written(imagenet.write)),
    "lsun": Layout("lsun", written(lsun.write)),
    "lsun stored zips": Layout("lsun", written(lsun.write), partial(lsun.in_zips, method=zipfile.ZIP_STORED)),
    "lsun deflated zip": Layout("lsun", written(lsun.write), lsun.in_zips, options=("category=cat",)),
    "mpi3d": Layout("mpi3d", _mpi3d(False)),
    "mpi3d deflated": Layout("mpi3d", _mpi3d(True)),
    "multiview": Layout("multiview", written(_posed)),
    "nmr": Layout("nmr", nmr.files),
    "nmr zip": Layout("nmr", lambda: nmr.below("NMR_Dataset/", nmr.files()), in_zip("NMR_Dataset.zip")),
    "nmr tar": Layout("nmr", nmr.files, in_tar("nmr.tar"), "nmr.tar"),
    "parquet": Layout("parquet", written(parquet.write)),
    "parquet texts": Layout("parquet", written(_texts), options=("unlabelled=import",)),
    "shapenet": Layout("shapenet", written(kubric.write)),
    "shapes3d": Layout("shapes3d", written(shapes3d.write)),
    "shapes3d flat": Layout("shapes3d", lambda: {"3dshapes.h5": shapes3d.file()}),
    "smallnorb": Layout("smallnorb", written(smallnorb.write_plain)),
    "smallnorb gz": Layout("smallnorb", written(smallnorb.write_plain), gzipped),
    "webdataset": Layout("webdataset", written(webdataset.write)),
    "webdataset of others": Layout("webdataset", _samples_of_others),
    "webdataset json": Layout("webdataset", written(webdataset.write), options=("label=json:label",)),
}


def small() -> ExitStack:
    """While it is open, MPI3D and 3D Shapes have the few values of their miniatures."""
    with ExitStack() as stack:
        sizes = {name: len(values) for name, values in shapes3d.VALUES.items()}
        stack.enter_context(mock.patch.object(shapes3d_source, "SIZES", sizes))
        stack.enter_context(mock.patch.dict(mpi3d_source.FACTORS, {"real": mpi3d.FACTORS}))
        return stack.pop_all()
