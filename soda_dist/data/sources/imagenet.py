"""ImageNet: `{train,val}/<wnid>/*.JPEG`, `<wnid>/*.JPEG` (one split, train), or the published tars.

The class index is the rank of the wnid among the sorted wnids, not the devkit's ILSVRC2012_ID. Rows are published
sorted by class, so the import shuffles them.

Example:
    python jobs/prepare_data.py imagenet --source ILSVRC2012 --data s3://BUCKET/imagenet --max-side 512
"""

import io
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from soda_dist.data.formats.archive import Member, tar_members
from soda_dist.data.formats.hashed_splits import split_called
from soda_dist.data.formats.listing import list_files, list_folders
from soda_dist.data.formats.matlab import read_structs
from soda_dist.data.formats.text_lines import text_lines
from soda_dist.data.shards import Label
from soda_dist.data.source import Contents, Options, Part, Row, Source, damaged_file, read_rows
from soda_dist.data.storage.folder import Folder, locate, open_folder
from soda_dist.errors import UserError

WNID = re.compile(r"n\d{8}")
SPLITS = ("train", "val")
TRAIN_TAR, VAL_TAR = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12"
TRUTH, META = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"
LAYOUTS = f"{{train,val}}/<wnid>/*.JPEG, <wnid>/*.JPEG, {TRAIN_TAR}, or a folder of the tars"


def open_source(uri: str, options: Options) -> Source:
    """Open ImageNet at `uri`, in any of its layouts.

    Raises:
        UserError: no known layout, or a validation tar without its devkit.
    """
    if uri.endswith(".tar"):
        folder, name = locate(uri)
        return _open_tars(folder, name if folder.exists(name) else "", "", uri)
    folder = open_folder(uri)
    classes = _classes(folder, "")
    if classes:
        return ImageFolders(folder, classes, (("train", "", classes),))
    named = {split_called(name): name for name in list_folders(folder)}
    splits = tuple((s, f"{named[s]}/", _classes(folder, named[s])) for s in SPLITS if s in named)
    if any(names for _, _, names in splits):
        return _open_splits(folder, splits)
    train, val = (name if folder.exists(name) else "" for name in (TRAIN_TAR, VAL_TAR))
    return _open_tars(folder, train, val, uri)


def _classes(folder: Folder, name: str) -> tuple[str, ...]:
    return tuple(found for found in list_folders(folder, name) if WNID.fullmatch(found))


def _open_splits(folder: Folder, splits: tuple[tuple[str, str, tuple[str, ...]], ...]) -> Source:
    for split, prefix, names in splits:
        if not names:
            raise UserError(folder.file_uri(prefix), "no folder <wnid>/", LAYOUTS, f"sort the {split} images by class")
    classes = splits[0][2]
    for split, prefix, names in splits[1:]:
        unknown = sorted(set(names) - set(classes))
        if unknown:
            got, allowed = f"class {unknown[0]} in {split}", f"classes of {splits[0][0]}"
            raise UserError(folder.file_uri(prefix), got, allowed, "remove it, or complete the other split")
    return ImageFolders(folder, classes, splits)


def _contents(classes: tuple[str, ...]) -> Contents:
    return Contents.with_labels({"label": Label(kind="class", names=classes)}, "label", shuffled=True)


@dataclass(frozen=True)
class ImageFolders:
    """One folder per class; `splits` has (name, prefix, classes)."""

    folder: Folder
    classes: tuple[str, ...]
    splits: tuple[tuple[str, str, tuple[str, ...]], ...]

    @property
    def contents(self) -> Contents:
        return replace(_contents(self.classes), files=self.folder)

    def parts(self) -> Sequence[Part]:
        return [Part(split, prefix + wnid) for split, prefix, names in self.splits for wnid in names]

    def index(self, part: Part) -> pa.Table:
        names = [entry.name for entry in list_files(self.folder, part.name + "/")]
        label = self.classes.index(part.name.rpartition("/")[2])
        return pa.table({"name": pa.array(names, pa.string()), "label": pa.array([label] * len(names), pa.int32())})

    def rows(self, index: pa.Table) -> Iterator[Row]:
        return read_rows(index, lambda entry: self.folder.read(entry["name"]), ["label"])


@dataclass(frozen=True)
class ImageTars:
    """The published tars: `train` has one tar per class, `val` is flat with labels in the devkit.

    Attributes:
        inner: the tars inside `train`.
        truth: labels of the members of `val`, sorted by name.
    """

    folder: Folder
    train: str
    val: str
    classes: tuple[str, ...]
    inner: tuple[Member, ...]
    truth: tuple[int, ...]

    @property
    def contents(self) -> Contents:
        return _contents(self.classes)

    def parts(self) -> Sequence[Part]:
        train = [Part("train", member.name) for member in self.inner]
        return [*train, Part("val", self.val)] if self.val else train

    def index(self, part: Part) -> pa.Table:
        if part.split == "val":
            found = sorted(tar_members(self.folder, self.val, small=True))
            if len(found) != len(self.truth):
                got = f"{len(found)} images for {len(self.truth)} labels"
                raise UserError(self.folder.file_uri(self.val), got, "as many as the devkit", "download both again")
            return _index(self.val, found, self.truth)
        tar = next(member for member in self.inner if member.name == part.name)
        wnid = _wnid(tar)
        found = list(tar_members(self.folder, self.train, start=tar.offset, size=tar.size, small=True))
        found = [member._replace(name=f"{wnid}/{member.name}") for member in found]
        return _index(self.train, found, [self.classes.index(wnid)] * len(found))

    def rows(self, index: pa.Table) -> Iterator[Row]:
        files = {name: self.folder.open(name) for name in index["archive"].unique().to_pylist()}

        def read(entry: Mapping[str, Any]) -> bytes:
            with self.folder.explained(entry["archive"]):
                return files[entry["archive"]].read_at(entry["size"], entry["offset"])

        yield from read_rows(index, read, ["label"])


def _index(archive: str, found: Sequence[Member], labels: Sequence[int]) -> pa.Table:
    names, offsets, sizes = zip(*found, strict=True) if found else ((), (), ())
    return pa.table(
        {
            "name": pa.array(names, pa.string()),
            "archive": pa.array([archive] * len(found), pa.string()),
            "offset": pa.array(offsets, pa.int64()),
            "size": pa.array(sizes, pa.int64()),
            "label": pa.array(labels, pa.int32()),
        }
    )


def _wnid(member: Member) -> str:
    return member.name.rpartition("/")[2].removesuffix(".tar")


def _open_tars(folder: Folder, train: str, val: str, uri: str) -> Source:
    if not train and not val:
        raise UserError(uri, "none of ImageNet's layouts", LAYOUTS, "correct the path")
    inner: tuple[Member, ...] = ()
    if train:
        inner = tuple(sorted(m for m in tar_members(folder, train, small=False) if WNID.fullmatch(_wnid(m))))
        if not inner:
            allowed = "the published tar of tars"
            raise UserError(folder.file_uri(train), "a tar without <wnid>.tar", allowed, "correct the path")
    classes = tuple(_wnid(member) for member in inner)
    if not val:
        return ImageTars(folder, train, val, classes, inner, ())
    wnid_of = _wnids(folder)
    classes = tuple(sorted({*wnid_of.values(), *classes}))
    wnid_by_text = {str(number): wnid for number, wnid in wnid_of.items()}
    lines = text_lines(_devkit_file(folder, TRUTH), f"{folder.file_uri(DEVKIT)}: {TRUTH}")
    truth = [wnid_by_text.get(line) for line in lines]
    if None in truth:
        raise damaged_file(folder, DEVKIT, f"an id in {TRUTH} that {META} lacks", "one devkit")
    return ImageTars(folder, train, val, classes, inner, tuple(classes.index(str(wnid)) for wnid in truth))


def _wnids(folder: Folder) -> dict[int, str]:
    """Read the wnid of each ILSVRC2012_ID that is a class (a synset without children)."""
    try:
        found = read_structs(_devkit_file(folder, META), "synsets", ("ILSVRC2012_ID", "WNID", "num_children"))
        wnid_of = {int(number): str(wnid) for number, wnid, children in found if int(children) == 0}
    except ValueError as error:
        raise damaged_file(folder, DEVKIT, f"no synsets in {META} ({error})", "the devkit") from None
    wrong = next((wnid for wnid in wnid_of.values() if not WNID.fullmatch(wnid)), None)
    if wrong is not None:
        raise damaged_file(folder, DEVKIT, f"the wnid {wrong[:20]!r}", "the devkit")
    return wnid_of


def _devkit_file(folder: Folder, name: str) -> bytes:
    path, archive = f"{DEVKIT}/data/{name}", f"{DEVKIT}.tar.gz"
    if folder.exists(path):
        return folder.read(path)
    try:
        with tarfile.open(fileobj=io.BytesIO(folder.read(archive)), mode="r:gz") as tar:
            found = tar.extractfile(path)
            if found is not None:
                return found.read()
    except FileNotFoundError:
        pass
    except (tarfile.TarError, KeyError, EOFError, OSError, zlib.error) as error:
        raise damaged_file(folder, archive, f"no {path} ({error})", "the devkit") from None
    raise UserError(folder.uri, f"{VAL_TAR} without {path}", f"{archive} next to it", "download the devkit")
