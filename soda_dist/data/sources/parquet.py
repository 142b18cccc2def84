"""Any Parquet table with a column of encoded images, in the layouts of the Hugging Face hub.

Splits come from file names, `train-00000-of-00005.parquet` or `train.parquet`, or from folders, `train/0000.parquet`;
without them, or on request, rows are split 80/10/10 by a hash of their names. The schema of files written by `datasets`
declares image columns, class columns and class names (https://huggingface.co/docs/datasets: `info.features` in the key
`huggingface`); otherwise columns are found by name and type. Labels are whole numbers, texts, dictionaries or booleans.
Names of numbers may be in `classes.txt`, one per line beside the tables, or in the option `names`; else classes are
called by their numbers. A null, an empty text or -1 is no label: a split of these alone, such as the test split of
imagenet-1k, is left out or imported without labels (`unlabelled`).

Example:
    python jobs/prepare_data.py parquet --source tables --data data/tables label=species
"""

import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BeforeValidator, Field

from soda_dist.data import source as contract
from soda_dist.data.formats.class_texts import CLASS_NAMES
from soda_dist.data.formats.hashed_splits import SHARES, split_called
from soda_dist.data.formats.listing import list_files, refuse_repeats
from soda_dist.data.formats.parquet_tables import IMAGE_COLUMNS, LABEL_COLUMNS, ImageTables, open_table
from soda_dist.data.formats.table_labels import KINDS, MAX_CLASSES, LabelColumn, find_classes, is_label_type, plain
from soda_dist.data.formats.text_lines import text_lines
from soda_dist.data.shards import COMMON_COLUMNS
from soda_dist.data.source import READERS, Part, Source, printable_text
from soda_dist.data.storage.folder import Folder, locate, open_folder
from soda_dist.errors import UserError

NUMBERED = re.compile(r"(\w+)-\d{5}-of-\d{5}(?:-[0-9a-f]+)?")
LAYOUTS = "data/SPLIT-00000-of-00001.parquet, SPLIT/*.parquet, or one .parquet file"
NONE = "none"


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _as_texts(value: Any) -> Any:
    return tuple(map(str, value)) if isinstance(value, tuple | list) else _as_tuple(value)


class Options(contract.LabelOptions):
    image: str | None = None
    """Column of images; None = detect by schema or name."""
    label: str | None = None
    """Column of the main label, or `none`; None = detect by schema or name, if any."""
    labels: Annotated[tuple[str, ...], BeforeValidator(_as_tuple), Field(max_length=100)] = ()
    """Further columns of labels: labels=NAME or labels=[NAME,NAME]."""
    names: Annotated[tuple[str, ...], BeforeValidator(_as_texts), Field(max_length=MAX_CLASSES)] = ()
    """Class names of the main label's numbers, from 0: names=[cat,dog]; empty = by the schema or `classes.txt`."""
    resplit: bool = False
    """Replace the files' splits by drawn ones, 80/10/10."""
    shuffle: bool = False
    """Shuffle rows, needed if they are sorted by class. Each shard then reads nearly every row group, so raise
    `groups_per_shard` too."""


class Table(NamedTuple):
    """Files of one table, the schema of one of training, and the column features that `datasets` wrote, if it did."""

    folder: Folder
    names: Sequence[str]
    schema: pa.Schema
    features: dict[str, dict[str, Any]]


def open_source(uri: str, options: Options) -> Source:
    """Open the table at `uri`, a folder of Parquet files or one file.

    Raises:
        UserError: no Parquet, several tables, or ambiguous or unsuitable columns.
    """
    folder, names = _files(uri)
    files = _split_files(folder, names, resplit=options.resplit)
    with open_table(folder, files[0].name if files else names[0]) as file:
        schema = file.schema_arrow  # of training: another split may lack labels
    table = Table(folder, names, schema, _features(schema))
    image = _image_column(table, options.image)
    labels, notes = _labels(table, options)
    return ImageTables(
        folder,
        files or tuple(Part(split, name) for split in SHARES for name in names),
        images=(image,),
        labels=labels,
        main_label=next((c.name for c in labels if c.name == options.label or c.name not in options.labels), None),
        seed=None if files else options.seed,
        shuffled=options.shuffle,
        unlabelled=options.unlabelled == "import",
        notes=(*notes, *_unused(table, image, labels)),
    )


def _files(uri: str) -> tuple[Folder, list[str]]:
    if uri.endswith(".parquet"):
        folder, name = locate(uri)
        names = [name] if folder.exists(name) else []
    else:
        folder = open_folder(uri)
        names = [entry.name for entry in list_files(folder) if entry.name.endswith(".parquet")]
        refuse_repeats(folder, names)
    if not names:
        raise UserError(uri, "no Parquet file", LAYOUTS, "correct the path")
    return folder, names


def _split_files(folder: Folder, names: Sequence[str], *, resplit: bool) -> tuple[Part, ...]:
    """Assign files to splits by name; empty with `resplit` or without split names."""
    named = {name: _named_split(name) for name in names}
    splits = {split for split, _ in named.values() if split}
    if resplit or not splits:
        return ()
    unnamed = next((name for name, (split, _) in named.items() if not split), None)
    if unnamed:
        raise UserError(folder.file_uri(unnamed), "a name without a split", LAYOUTS, "rename it, or set resplit=true")
    tables = sorted({table for _, table in named.values()})
    if len(tables) > 1:
        remedy = f"give the folder of one, such as {folder.file_uri(tables[-1])}"
        raise UserError(folder.uri, f"several tables: {', '.join(table or '.' for table in tables)}", "one", remedy)
    order = [*(split for split in SHARES if split in splits), *sorted(splits - set(SHARES))]
    return tuple(Part(split, name) for split in order for name in names if named[name][0] == split)


def _named_split(name: str) -> tuple[str, str]:
    """Split in a file's path, or empty, and folder of its table."""
    *parents, base = name.removesuffix(".parquet").split("/")
    numbered = NUMBERED.fullmatch(base)
    stem = numbered[1] if numbered else base
    if split := split_called(stem):
        return split, "/".join(parents)
    for at, parent in reversed([*enumerate(parents)]):
        if split := split_called(parent):
            return split, "/".join(parents[:at])
    return stem if numbered else "", "/".join(parents)


def _features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """Read the column features that `datasets` wrote; empty for other files."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def _image_column(table: Table, wanted: str | None) -> str:
    fit = [field.name for field in table.schema if _holds_bytes(field.type)]
    declared = [name for name in fit if table.features.get(name, {}).get("_type") == "Image"]
    candidates = [wanted] if wanted else declared or fit
    preferred = [name for name in IMAGE_COLUMNS if name in candidates]
    found = preferred[:1] or candidates
    if len(found) == 1 and found[0] in fit:
        return found[0]
    got = wanted or f"columns {', '.join(table.schema.names)}"
    allowed = ", ".join(fit) or "a column of bytes, or of a struct with bytes"
    raise UserError("image", got, allowed, f"set image={fit[0]}" if fit else "choose another table")


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        return _holds_bytes(kind.field("bytes").type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _labels(table: Table, options: Options) -> tuple[tuple[LabelColumn, ...], tuple[str, ...]]:
    """Find the label columns, the main one first, and say why a column called like a label is none."""
    fit = _label_columns(table)
    chosen = [name for name in (options.label, *options.labels) if name and not (name == NONE and name not in fit)]
    for name in chosen:
        if name not in fit:
            allowed = ", ".join(fit) or f"none, since no column has {KINDS}"
            raise UserError("label", name, allowed, f"set label={fit[0]}" if fit else "leave it out")
    found, notes = list[LabelColumn](), list[str]()
    for name in dict.fromkeys([*([] if options.label else _detected(table, fit)), *chosen]):
        column = _column(table, name)
        if isinstance(column, LabelColumn) and not found:
            column = _renamed(table, column, options.names)
        if isinstance(column, LabelColumn):
            found.append(column)
        elif name in chosen:
            allowed = f"a column of {KINDS}, as classes"
            raise UserError("label", f"{name}, with {column}", allowed, f"choose another column, or set label={NONE}")
        else:
            notes.append(f"no labels: the column {name} has {column}")
    if options.names and not found:
        raise UserError("names", "names, but no label", "a label of numbers", "set label=COLUMN, or leave names out")
    refused = [name for name in LABEL_COLUMNS if name in table.schema.names and name not in fit]
    notes += [f"no label {name}: {table.schema.field(name).type}, not {KINDS}" for name in refused]
    return tuple(found), tuple(notes)


def _label_columns(table: Table) -> list[str]:
    reserved = [name for name, _ in COMMON_COLUMNS]
    return [field.name for field in table.schema if is_label_type(field.type) and field.name not in reserved]


def _detected(table: Table, fit: Sequence[str]) -> list[str]:
    """Find the main label by the schema, or else by its name."""
    declared = [name for name in fit if table.features.get(name, {}).get("_type") == "ClassLabel"]
    named = [name for name in LABEL_COLUMNS if name in (declared or fit)]
    found = named[:1] or declared
    if len(found) > 1:
        raise UserError("label", f"nothing, and classes {', '.join(found)}", "one of them", f"set label={found[0]}")
    return found


def _renamed(table: Table, column: LabelColumn, names: Sequence[str]) -> LabelColumn:
    """Name the classes of a column of numbers by `names`, the schema, or else `classes.txt`, if it exists."""
    where, numbers = "names", column.numbers
    if names and numbers is None:
        raise UserError(where, f"names for {column.name}, whose texts are names", "a label of numbers", "leave it out")
    if not names:
        if numbers is None or _names(table, column.name) or not table.folder.exists(CLASS_NAMES):
            return column
        where = table.folder.file_uri(CLASS_NAMES)
        names = text_lines(table.folder.read(CLASS_NAMES), where)
    if len(names) < len(numbers or ()):
        got, allowed = f"{len(names)} names", f"{len(numbers or ())}, one for each number of {column.name}"
        raise UserError(where, got, allowed, "complete it, or leave it out")
    return LabelColumn.of_names(column.name, column.candidates, names)


def _names(table: Table, name: str) -> list[str]:
    """Return the class names that the schema declares for a column of numbers."""
    declared = table.features.get(name, {}).get("names")
    if not isinstance(declared, list) or not pa.types.is_integer(table.schema.field(name).type):
        return []
    return [printable_text(str(each)) for each in declared]


def _column(table: Table, name: str) -> LabelColumn | str:
    """Make a label column: with the schema's class names, or else with the values of all files; or say why not."""
    if declared := _names(table, name):
        return LabelColumn.of_names(name, (name,), declared)
    with ThreadPoolExecutor(READERS) as pool:
        found = pool.map(lambda file: _distinct(table.folder, file, name), table.names)
        return find_classes(name, set[Any]().union(*found))


def _distinct(folder: Folder, name: str, column: str) -> set[Any]:
    """Find the different values in a file's column; none if it lacks the column."""
    with open_table(folder, name) as file:
        if column not in file.schema_arrow.names:
            return set()
        values = plain(file.read([column], use_threads=False)[column])
        return set(pc.unique(values).to_pylist())


def _unused(table: Table, image: str, labels: Sequence[LabelColumn]) -> list[str]:
    """Say which columns are left out."""
    used = {image, *(label.name for label in labels)}
    others = [f"{field.name} ({_shown(field.type)})" for field in table.schema if field.name not in used]
    fit = [name for name in _label_columns(table) if name not in used]
    more = f"; label={fit[0]} or labels={fit[0]} imports one" if fit else ""
    return [f"columns left out: {', '.join(others[:8])}{' ...' * (len(others) > 8)}{more}"] if others else []


def _shown(kind: pa.DataType) -> str:
    return "struct" if pa.types.is_struct(kind) else str(kind)[:40]
