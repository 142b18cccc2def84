"""Any Parquet table with a column of encoded images, in the layouts of the Hugging Face hub.

Splits come from file names, `train-00000-of-00005.parquet` or `train.parquet`, or from folders, `train/0000.parquet`;
without them, or on request, rows are split 80/10/10 by a hash of their names. The schema of files written by `datasets`
declares image columns, class columns and class names (https://huggingface.co/docs/datasets: `info.features` in the key
`huggingface`); otherwise columns are found by name and type, and classes are named by number.
"""

import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from soda_dist.data import source as contract
from soda_dist.data.formats.hashed_splits import SHARES, SPLIT_NAMES
from soda_dist.data.formats.parquet_tables import IMAGE_COLUMNS, LABEL_COLUMNS, ImageTables, LabelColumn, open_table
from soda_dist.data.shards import COMMON_COLUMNS
from soda_dist.data.source import READERS, Part, Source, printable_text
from soda_dist.data.storage.folder import Folder, locate, open_folder
from soda_dist.errors import UserError

NUMBERED = re.compile(r"(\w+)-\d{5}-of-\d{5}(?:-[0-9a-f]+)?")
LAYOUTS = "data/SPLIT-00000-of-00001.parquet, SPLIT/*.parquet, or one .parquet file"
MAX_CLASSES = 100_000


class Options(contract.Options):
    image: str | None = None
    """Column of images; None = detect by schema or name."""
    label: str | None = None
    """Column of class numbers for the main label; None = detect by schema or name, if any."""
    labels: Annotated[tuple[str, ...], Field(max_length=100)] = ()
    """Additional columns of class numbers."""
    resplit: bool = False
    """Replace the files' splits by drawn ones, 80/10/10."""
    shuffle: bool = False
    """Shuffle rows, needed if they are sorted by class. Each shard then reads nearly every row group, so raise
    `groups_per_shard` too."""


def open_source(uri: str, options: Options) -> Source:
    """Open the table at `uri`, a folder of Parquet files or one file.

    Raises:
        UserError: no Parquet, several tables, or ambiguous or unsuitable columns.
    """
    folder, names = _files(uri)
    files = _split_files(folder, names, resplit=options.resplit)
    with open_table(folder, names[0]) as file:
        schema = file.schema_arrow
    features = _features(schema)
    image = _image_column(schema, features, options.image)
    main = _main_label(schema, features, options.label)
    chosen = dict.fromkeys([*([main] if main else []), *options.labels])
    labels = tuple(LabelColumn(name, (name,), _classes(folder, names, schema, features, name)) for name in chosen)
    return ImageTables(
        folder,
        files or tuple(Part(split, name) for split in SHARES for name in names),
        images=(image,),
        labels=labels,
        main_label=main,
        seed=None if files else options.seed,
        shuffled=options.shuffle,
    )


def _files(uri: str) -> tuple[Folder, list[str]]:
    if uri.endswith(".parquet"):
        folder, name = locate(uri)
        names = [name] if folder.exists(name) else []
    else:
        folder = open_folder(uri)
        names = [entry.name for entry in folder.list() if entry.name.endswith(".parquet")]
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
    if stem in SPLIT_NAMES:
        return SPLIT_NAMES[stem], "/".join(parents)
    for at, parent in reversed([*enumerate(parents)]):
        if parent in SPLIT_NAMES:
            return SPLIT_NAMES[parent], "/".join(parents[:at])
    return stem if numbered else "", "/".join(parents)


def _features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """Read the column features that `datasets` wrote; empty for other files."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def _image_column(schema: pa.Schema, features: dict[str, dict[str, Any]], wanted: str | None) -> str:
    fit = [field.name for field in schema if _holds_bytes(field.type)]
    declared = [name for name in fit if features.get(name, {}).get("_type") == "Image"]
    candidates = [wanted] if wanted else declared or fit
    preferred = [name for name in IMAGE_COLUMNS if name in candidates]
    found = preferred[:1] or candidates
    if len(found) == 1 and found[0] in fit:
        return found[0]
    got = wanted or f"columns {', '.join(schema.names)}"
    allowed = ", ".join(fit) or "a column of bytes, or of a struct with bytes"
    raise UserError("image", got, allowed, "set image=NAME" if fit else "choose another table")


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        return _holds_bytes(kind.field("bytes").type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _main_label(schema: pa.Schema, features: dict[str, dict[str, Any]], wanted: str | None) -> str | None:
    if wanted:
        return wanted
    declared = [name for name in schema.names if features.get(name, {}).get("_type") == "ClassLabel"]
    named = [name for name in LABEL_COLUMNS if name in declared or (name in schema.names and _is_number(schema, name))]
    found = named[:1] or declared
    if len(found) > 1:
        raise UserError("label", f"nothing, and classes {', '.join(found)}", "one of them", f"set label={found[0]}")
    return found[0] if found else None


def _is_number(schema: pa.Schema, name: str) -> bool:
    return pa.types.is_integer(schema.field(name).type)


def _classes(
    folder: Folder, names: Sequence[str], schema: pa.Schema, features: dict[str, dict[str, Any]], column: str
) -> tuple[str, ...]:
    """Class names of a column: the schema's, or numbers up to the largest in any file."""
    reserved = [name for name, _ in COMMON_COLUMNS]
    numbers = [name for name in schema.names if _is_number(schema, name) and name not in reserved]
    if column not in numbers:
        raise UserError("label", column, ", ".join(numbers) or "a column of integers", "choose one of them")
    declared = features.get(column, {}).get("names")
    if isinstance(declared, list) and declared:
        return tuple(printable_text(str(name)) for name in declared)
    with ThreadPoolExecutor(READERS) as pool:
        largest = max(pool.map(lambda name: _largest(folder, name, column), names))
    if not 0 <= largest < MAX_CLASSES:
        allowed = f"class numbers, 0..{MAX_CLASSES - 1}"
        raise UserError("label", f"{column}, whose largest number is {largest}", allowed, "choose another column")
    return tuple(str(number) for number in range(largest + 1))


def _largest(folder: Folder, name: str, column: str) -> int:
    """Find the largest number in a file's column, or -1."""
    with open_table(folder, name) as file:
        if column not in file.schema_arrow.names:
            got = f"columns {', '.join(file.schema_arrow.names)}"
            raise UserError(folder.file_uri(name), got, f"the column {column} in every file", "choose another column")
        batches = file.iter_batches(columns=[column], use_threads=False)
        return max((value for batch in batches if (value := pc.max(batch[column]).as_py()) is not None), default=-1)
