"""WebDataset: tars in which consecutive members form samples (https://github.com/webdataset/webdataset).

    SPLIT/*.tar, NAME-SPLIT-000000.tar, ...     train, val or test, also `valid`, `validation`, `training`, `testing`
    *.tar                                       80/10/10 by a hash of the samples' keys

A sample's members share the key, their path up to the first dot of the file name. A sample has an image (`jpg`, `jpeg`,
`png` or `webp`, also `input.png` and the like), and optionally a class (`cls`, also `target.cls`) or a `json` with one
in a field. The number of classes is not in the tars: set `classes=1000`, or write class names, one per line, to
`classes.txt` next to the tars. A class is a number from 0 or a name; where names are numbers too, all members decide
which is meant. Rows keep the order of the tars, usually shuffled already; `shuffle=true` shuffles them again.

Example:
    python jobs/prepare_data.py webdataset --source s3://BUCKET/tars --data data/tars classes=1000
"""

import json
import re
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby, islice
from typing import Annotated, Any

import pyarrow as pa
from pydantic import Field

from soda_dist.data import source as contract
from soda_dist.data.formats.archive import Member, tar_texts
from soda_dist.data.formats.class_texts import CLASS_NAMES, JSON, ClassTexts
from soda_dist.data.formats.hashed_splits import SHARES, split_called, split_of
from soda_dist.data.formats.listing import list_files, refuse_repeats
from soda_dist.data.formats.text_lines import decode_text, text_lines
from soda_dist.data.shards import Label
from soda_dist.data.source import READERS, Contents, Part, Row, Source
from soda_dist.data.storage.folder import Folder, open_folder
from soda_dist.errors import UserError

IMAGES = ("jpg", "jpeg", "png", "webp")
USUAL_IMAGES, USUAL_LABELS = ("", "input", "image", "img"), ("", "target", "label", "class")
"""What may stand before the kind of a member, the preferred one first."""
LAYOUTS = "SPLIT/*.tar, NAME-SPLIT-000000.tar, or *.tar"
MAX_BYTES = 256 * 2**20
"""Larger members are not read."""
FIRST_SAMPLES = 16
"""Samples of a split's first tar that tell what samples hold."""
OPEN_TARS = 16
"""Open tars cached per task; a shuffled shard has samples of many."""


Firsts = Sequence[Mapping[str, bytes]]
"""Members of the first samples by extension, empty but for JSON."""


class Options(contract.LabelOptions):
    label: Annotated[str, Field(pattern=r"^((.+\.)?cls|none|json:.+)$")] | None = None
    """`cls` or `NAME.cls`, `json:FIELD`, or `none`; None = `cls` if the first samples have one, else no label."""
    image: Annotated[str, Field(pattern=r"^[^/]+$")] | None = None
    """Image of samples with several, such as `input.png`; None = the usual one."""
    classes: Annotated[int, Field(ge=2, le=100_000)] | None = None
    """Number of classes; None = by `classes.txt`."""
    shuffle: bool = False
    """Shuffle rows, needed if the tars are sorted by class."""


def open_source(uri: str, options: Options) -> Source:
    """Open the tars in the folder `uri`, at any depth.

    Raises:
        UserError: no tars, split names in some tars only, samples without images, a label without classes, or classes
            without a label.
    """
    folder = open_folder(uri)
    tars = [entry.name for entry in list_files(folder) if entry.name.endswith(".tar")]
    if not tars:
        raise UserError(uri, "no .tar files", LAYOUTS, "correct the path, or unpack .tar.gz files to .tar")
    refuse_repeats(folder, tars)
    splits = [(_split(folder, name), name) for name in tars]
    if None in (named := {split for split, _ in splits}) and len(named) > 1:
        name = next(name for split, name in splits if split is None)
        raise UserError(folder.file_uri(name), "a tar without a split in its name", LAYOUTS, "rename or move it")
    splits.sort(key=lambda pair: [*SHARES, None].index(pair[0]))
    firsts = [sample for first in dict(reversed(splits)).values() for sample in _first_samples(folder, first)]
    label = _label(firsts, options)
    source = Samples(
        folder,
        tuple((split or "", name) for split, name in splits),
        _image(folder, firsts, options.image),
        label,
        None if label == "none" else ClassTexts(_classes(folder, options.classes), label.partition(JSON)[2]),
        options,
        _unread(folder, firsts, options) if label == "none" else (),
    )
    either = source.texts and source.texts.ambiguous
    return _settled(source, source.texts, either) if source.texts and either else source


def _split(folder: Folder, name: str) -> str | None:
    named = {split for word in re.split(r"[-_/.]", name) if (split := split_called(word))}
    if len(named) > 1:
        raise UserError(folder.file_uri(name), f"a name with {' and '.join(sorted(named))}", "one split", "rename it")
    return next(iter(named), None)


def _first_samples(folder: Folder, name: str) -> list[dict[str, bytes]]:
    """Read the extensions of the first samples, with the contents of JSON members."""
    with closing(_grouped(folder, name, lambda kind: kind.endswith("json"))) as samples:
        return [{kind: text for kind, _, text in members} for _, members in islice(samples, FIRST_SAMPLES)]


def _grouped(
    folder: Folder, name: str, wanted: Callable[[str], bool]
) -> Generator[tuple[str, list[tuple[str, Member, bytes]]]]:
    """List samples: their key, and their members' extensions, places and, if wanted, contents."""
    found = tar_texts(folder, name, lambda member: wanted(_parts(member)[1]))
    for key, members in groupby(found, key=lambda pair: _parts(pair[0].name)[0]):
        if not _is_meta(key):
            yield key, [(_parts(member.name)[1], member, text) for member, text in members]


def _is_meta(key: str) -> bool:
    """Whether this is a member such as __key__, which webdataset's readers skip, too."""
    base = key.rpartition("/")[2]
    return base.startswith("__") and base.endswith("__")


def _parts(name: str) -> tuple[str, str]:
    """Split a name into key and extension."""
    place, slash, base = name.removeprefix("./").rpartition("/")
    stem, _, extension = base.partition(".")
    return f"{place}{slash}{stem}", extension.lower()


def _prefix(extension: str, kinds: Sequence[str]) -> str | None:
    """What stands before the kind: empty for png, `input` for input.png; None = another kind."""
    prefix, _, kind = extension.rpartition(".")
    return prefix if kind in kinds else None


def _choose(firsts: Firsts, kinds: Sequence[str], usual: Sequence[str], option: str) -> str | None:
    """Choose the members of these kinds by what stands before the kind; None without any."""
    prefixes = {prefix for sample in firsts for kind in sample if (prefix := _prefix(kind, kinds)) is not None}
    known = next((prefix for prefix in usual if prefix in prefixes), None)
    if known is not None or len(prefixes) < 2:
        return known if known is not None else next(iter(prefixes), None)
    names = sorted({kind for sample in firsts for kind in sample if _prefix(kind, kinds) is not None})
    raise UserError(option, f"nothing, and samples with {', '.join(names)}", "one of them", f"set {option}={names[0]}")


def _image(folder: Folder, firsts: Firsts, wanted: str | None) -> str:
    kinds = ", ".join(sorted({kind for sample in firsts for kind in sample})) or "nothing"
    found = _choose(firsts, IMAGES, USUAL_IMAGES, "image") if wanted is None else None
    if wanted is not None:
        found = _prefix(wanted.lower(), IMAGES)
        if not any(_prefix(kind, IMAGES) == found is not None for sample in firsts for kind in sample):
            raise UserError("image", wanted, f"a member of the first samples: {kinds}", "choose one of them")
    if found is None and firsts:
        raise UserError(folder.uri, f"samples of {kinds}", f"an image in each: {', '.join(IMAGES)}", "correct the path")
    return found or ""


def _label(firsts: Firsts, options: Options) -> str:
    """Choose the label member, and refuse options about classes that nothing would use."""
    label = options.label
    if label is None:
        prefix = _choose(firsts, ("cls",), USUAL_LABELS, "label")
        label = "none" if prefix is None else f"{prefix}.cls".lstrip(".")
    if label == "none" and options.classes is not None:
        fields = _json_fields(firsts)
        got = f"{options.classes}, but " + ("label=none" if options.label else "the first samples have no cls")
        raise UserError("classes", got, "a number of classes with labels", _remedy(fields) or "leave classes out")
    member = "json" if label.startswith(JSON) else label.lower()
    kinds = {kind for sample in firsts for kind in sample}
    if label != "none" and kinds and member not in kinds:
        raise UserError("label", label, f"members of the first samples: {', '.join(sorted(kinds))}", "set label=none")
    return label


def _json_fields(firsts: Firsts) -> list[str]:
    for sample in firsts:
        try:
            found = json.loads(decode_text(sample["json"]))
            return [name for name, value in found.items() if isinstance(value, int | str)][:6]
        except (KeyError, ValueError, AttributeError, RecursionError):
            continue
    return []


def _remedy(fields: Sequence[str]) -> str:
    return f"set label=json:{fields[0]}, or another of {', '.join(fields)}" if fields else ""


def _unread(folder: Folder, firsts: Firsts, options: Options) -> tuple[str, ...]:
    """Say what could have been a label."""
    if options.label == "none":
        return ()
    fields = _remedy(_json_fields(firsts))
    lines = [f"no labels, since the samples have no cls{'; json is not read: ' + fields if fields else ''}"]
    return (*lines, *([f"{CLASS_NAMES} is not used"] if folder.exists(CLASS_NAMES) else []))


def _classes(folder: Folder, count: int | None) -> tuple[str, ...]:
    names = text_lines(folder.read(CLASS_NAMES), folder.file_uri(CLASS_NAMES)) if folder.exists(CLASS_NAMES) else None
    if names is None and count is None:
        raise UserError("classes", "nothing", "a number", f"set classes=N or label=none, or write {CLASS_NAMES}")
    if names is None:
        return tuple(str(number) for number in range(count or 0))
    if (count not in (None, len(names))) or len(set(names)) != len(names):
        got = f"{len(names)} names, {len(set(names))} different"
        raise UserError(
            folder.file_uri(CLASS_NAMES), got, f"{count or 'different'} names", "correct it, or set classes=N"
        )
    return tuple(names)


@dataclass(frozen=True)
class Samples:
    """Samples of tars.

    Attributes:
        tars: (split, name); an empty split is drawn.
        image: what stands before the kind of image members.
        label: as in `Options`.
        texts: reader of classes; None = no label.
        notes: as in `Contents`.
    """

    folder: Folder
    tars: tuple[tuple[str, str], ...]
    image: str
    label: str
    texts: ClassTexts | None
    options: Options
    notes: tuple[str, ...]

    @property
    def contents(self) -> Contents:
        labels = {"label": Label(kind="class", names=self.texts.classes)} if self.texts else {}
        contents = Contents.with_labels(labels, "label" if labels else None, shuffled=self.options.shuffle)
        return replace(contents, drawn=not self.tars[0][0], notes=self.notes)

    def parts(self) -> Sequence[Part]:
        return [Part(split, name) for own, name in self.tars for split in ([own] if own else SHARES)]

    def index(self, part: Part) -> pa.Table:
        drawn, seed = ("", part.name) in self.tars, self.options.seed
        found = [
            {**sample, "tar": part.name, "name": f"{part.name}/{key}"}
            for key, sample in self._samples(part.name)
            if not drawn or split_of(f"{part.name}/{key}", seed) == part.split
        ]
        return pa.Table.from_pylist(
            found, schema=SCHEMA if self.texts else SCHEMA.remove(SCHEMA.get_field_index("label"))
        )

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

    def members(self) -> Iterator[bytes]:
        """Read the label members of all tars."""
        for _, name in self.tars:
            for _, found in _grouped(self.folder, name, self._is_label):
                yield from (text for kind, _, text in found if self._is_label(kind))

    def _is_label(self, kind: str) -> bool:
        return self.texts is not None and kind == ("json" if self.label.startswith(JSON) else self.label.lower())

    def _samples(self, tar: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """List a tar's samples: key, place of the image (None = missing), class and what is wrong with it."""
        for key, members in _grouped(self.folder, tar, self._is_label):
            images = [member for kind, member, _ in members if _prefix(kind, IMAGES) == self.image]
            labels = [text for kind, _, text in members if self._is_label(kind)]
            value, problem = self.texts.read(labels[0]) if self.texts and labels else (None, None)
            lacks = f"no {self.label.partition(':')[0]}"
            wanted = self.texts is not None and value is None and self.options.unlabelled == "skip"
            sample = {"label": value, "problem": problem or (lacks if wanted else None)}
            yield key, sample | ({"offset": images[0].offset, "size": images[0].size} if images else {})

    def _row(self, entry: Mapping[str, Any], file: pa.NativeFile) -> Row:
        labels = {"label": entry["label"]} if self.texts else {}
        problem = "no image" if entry["offset"] is None else entry["problem"]
        if not problem and entry["size"] > MAX_BYTES:
            problem = f"an image of {entry['size']:,} bytes"
        image = b"" if problem else file.read_at(entry["size"], entry["offset"])
        return Row(entry["name"], image, labels, problem)


SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("tar", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("label", pa.int32()),
        ("problem", pa.string()),
    ]
)


def _settled(source: Samples, texts: ClassTexts, name: str) -> Samples:
    """Decide by all tars whether classes are numbers or names, and say so for the name that could be either."""
    texts = texts.settled(source.members())
    means = f"numbers: {name} is class number {name}" if texts.numbers else f"names: {name} is the class named {name}"
    return replace(source, texts=texts, notes=(*source.notes, f"labels are read as {means}"))
