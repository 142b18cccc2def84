"""WebDataset: tars in which consecutive members form samples (https://github.com/webdataset/webdataset).

    SPLIT/*.tar, NAME-SPLIT-000000.tar, ...     train, val or test, also `valid`, `validation`, `training`, `testing`
    *.tar                                       80/10/10 by a hash of the samples' keys

A sample's members share the key, their path up to the first dot of the file name. A sample has an image (`jpg`, `jpeg`,
`png` or `webp`), and optionally a class number (`cls`) or a `json` with one in a field. The number of classes is not in
the tars: set `classes=1000`, or write class names, one per line, to `classes.txt` next to the tars. Rows keep the order
of the tars, usually shuffled already; `shuffle=true` shuffles them again.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import Annotated, Any

import pyarrow as pa
from pydantic import Field

from soda_dist.data import source as contract
from soda_dist.data.formats.archive import Member, tar_members
from soda_dist.data.formats.hashed_splits import SHARES, SPLIT_NAMES, split_of
from soda_dist.data.shards import Label
from soda_dist.data.source import READERS, Contents, Part, Row, Source
from soda_dist.data.storage.folder import Folder, open_folder
from soda_dist.errors import UserError

IMAGES = ("jpg", "jpeg", "png", "webp")
NAMES = "classes.txt"
LAYOUTS = "SPLIT/*.tar, NAME-SPLIT-000000.tar, or *.tar"
MAX_BYTES = 256 * 2**20
"""Larger members are not read."""
DIGITS = re.compile(r"\s*[0-9]+\s*")
OPEN_TARS = 16
"""Open tars cached per task; a shuffled shard has samples of many."""


class Options(contract.Options):
    label: Annotated[str, Field(pattern=r"^(cls|none|json:.+)$")] | None = None
    """`cls`, `json:FIELD`, or `none`; None = `cls` if the first sample has one, else no label."""
    classes: Annotated[int, Field(ge=2, le=100_000)] | None = None
    """Number of classes; None = by `classes.txt`."""
    shuffle: bool = False
    """Shuffle rows, needed if the tars are sorted by class."""


def open_source(uri: str, options: Options) -> Source:
    """Open the tars in the folder `uri`, at any depth.

    Raises:
        UserError: no tars, split names in some tars only, or a label without classes.
    """
    folder = open_folder(uri)
    tars = [entry.name for entry in folder.list() if entry.name.endswith(".tar")]
    if not tars:
        raise UserError(uri, "no .tar files", LAYOUTS, "correct the path, or unpack .tar.gz files to .tar")
    splits = [(_split(folder, name), name) for name in tars]
    if None in (named := {split for split, _ in splits}) and len(named) > 1:
        name = next(name for split, name in splits if split is None)
        raise UserError(folder.file_uri(name), "a tar without a split in its name", LAYOUTS, "rename or move it")
    label = options.label or ("cls" if _has_class(folder, tars[0]) else "none")
    return Samples(
        folder,
        tuple((split or "", name) for split, name in splits),
        label,
        () if label == "none" else _classes(folder, options.classes),
        options.seed,
        options.shuffle,
    )


def _split(folder: Folder, name: str) -> str | None:
    named = {SPLIT_NAMES[word] for word in re.split(r"[-_/.]", name.lower()) if word in SPLIT_NAMES}
    if len(named) > 1:
        raise UserError(folder.file_uri(name), f"a name with {' and '.join(sorted(named))}", "one split", "rename it")
    return next(iter(named), None)


def _has_class(folder: Folder, name: str) -> bool:
    """Whether the first sample has a class; reads no further."""
    for _, found in groupby(tar_members(folder, name, small=True), key=lambda member: _parts(member)[0]):
        return "cls" in {_parts(member)[1] for member in found}
    return False


def _classes(folder: Folder, count: int | None) -> tuple[str, ...]:
    names = _class_names(folder) if folder.exists(NAMES) else None
    if names is None and count is None:
        raise UserError("classes", "nothing", "a number", f"set classes=N or label=none, or write {NAMES}")
    if names is None:
        return tuple(str(number) for number in range(count or 0))
    if (count not in (None, len(names))) or len(set(names)) != len(names):
        got = f"{len(names)} names, {len(set(names))} different"
        raise UserError(folder.file_uri(NAMES), got, f"{count or 'different'} names", "correct it, or set classes=N")
    return tuple(names)


def _class_names(folder: Folder) -> list[str]:
    try:
        return folder.read(NAMES).decode().splitlines()
    except UnicodeDecodeError:
        raise UserError(folder.file_uri(NAMES), "text that is not UTF-8", "a name per line", "save as UTF-8") from None


def _parts(member: Member) -> tuple[str, str]:
    """Split a name into key and extension."""
    place, slash, base = member.name.rpartition("/")
    stem, _, extension = base.partition(".")
    return f"{place}{slash}{stem}", extension.lower()


@dataclass(frozen=True)
class Samples:
    """Samples of tars.

    Attributes:
        tars: (split, name); an empty split is drawn.
        label: as in `Options`.
        classes: class names; empty = no label.
    """

    folder: Folder
    tars: tuple[tuple[str, str], ...]
    label: str
    classes: tuple[str, ...]
    seed: int
    shuffled: bool

    @property
    def contents(self) -> Contents:
        if not self.classes:
            return Contents((), shuffled=self.shuffled)
        labels = {"label": Label(kind="class", names=self.classes)}
        return Contents.with_labels(labels, "label", shuffled=self.shuffled)

    def parts(self) -> Sequence[Part]:
        return [Part(split, name) for own, name in self.tars for split in ([own] if own else SHARES)]

    def index(self, part: Part) -> pa.Table:
        drawn = ("", part.name) in self.tars
        found = [sample for sample in _samples(self, part.name) if not drawn or part.split == sample["split"]]
        schema = pa.schema([("name", pa.string()), ("tar", pa.string()), *((name, pa.int64()) for name in PLACES)])
        return pa.Table.from_pylist([{**sample, "tar": part.name} for sample in found], schema=schema)

    def rows(self, index: pa.Table) -> Iterator[Row]:
        @lru_cache(maxsize=OPEN_TARS)
        def opened(name: str) -> pa.NativeFile:
            return self.folder.open(name)

        def row(entry: Mapping[str, Any]) -> Row:
            with self.folder.explained(entry["tar"]):
                return self._row(entry, opened(entry["tar"]))

        with ThreadPoolExecutor(READERS) as pool:
            for batch in index.to_batches(max_chunksize=8 * READERS):
                yield from pool.map(row, batch.to_pylist())

    def _row(self, entry: Mapping[str, Any], file: pa.NativeFile) -> Row:
        labels = {"label": None} if self.classes else {}
        if entry["image_offset"] is None:
            return Row(entry["name"], b"", labels, "no image")
        if entry["image_size"] > MAX_BYTES:
            return Row(entry["name"], b"", labels, f"an image of {entry['image_size']:,} bytes")
        image = file.read_at(entry["image_size"], entry["image_offset"])
        if not self.classes:
            return Row(entry["name"], image, {})
        if entry["label_offset"] is None:
            return Row(entry["name"], b"", labels, f"no {self.label.partition(':')[0]}")
        value = self._value(file.read_at(min(entry["label_size"], MAX_BYTES), entry["label_offset"]))
        if value is None:
            return Row(entry["name"], b"", labels, f"a label outside the {len(self.classes)} classes")
        return Row(entry["name"], image, {"label": value})

    def _value(self, data: bytes) -> int | None:
        """Parse a member as a class number or a class name; None = neither."""
        try:
            value: Any = data.decode().strip()
            if self.label != "cls":
                value = json.loads(value)[self.label.partition(":")[2]]
            if value in self.classes:
                return self.classes.index(value)
            if isinstance(value, str) and DIGITS.fullmatch(value):
                value = int(value)
        except (ValueError, TypeError, KeyError, RecursionError):
            return None
        # Accepts 3.0, but neither 1.7 nor true.
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return int(value) if number and 0 <= value < len(self.classes) and value % 1 == 0 else None


PLACES = ("image_offset", "image_size", "label_offset", "label_size")


def _samples(source: Samples, tar: str) -> Iterator[dict[str, Any]]:
    """List a tar's samples: name, split by hash, and the locations of image and label (None = missing)."""
    wanted = "cls" if source.label == "cls" else "json"
    for key, found in groupby(tar_members(source.folder, tar, small=True), key=lambda member: _parts(member)[0]):
        sample = dict.fromkeys(PLACES) | {"name": f"{tar}/{key}", "split": split_of(f"{tar}/{key}", source.seed)}
        for member in found:
            kind = _parts(member)[1]
            role = "image" if kind in IMAGES else "label" if kind == wanted else None
            if role and sample[f"{role}_offset"] is None:
                sample |= {f"{role}_offset": member.offset, f"{role}_size": member.size}
        yield sample
