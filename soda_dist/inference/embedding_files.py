"""Files of embeddings, each written as a stream: Parquet, and NumPy's .npz.

Every format has three columns, a row for each image: `name`, `embedding` float32 [D], and `error`, why an image has no
embedding (then null, in .npz a row of NaN; without an error null, in .npz an empty text).
"""

import zipfile
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from soda_dist.data.storage.folder import Folder
from soda_dist.errors import UserError

NAMES = ("name", "embedding", "error")
ADDRESS = "soda_dist.embeddings"
"""Where a file says what it was made from: a key of Parquet's metadata, an array's name in .npz."""


class Embeddings(NamedTuple):
    """What a file holds.

    Attributes:
        tables: with the columns NAMES, of equal types; at least one.
        rows: of all tables together.
        address: names what they were made from.
    """

    tables: Iterator[pa.Table]
    rows: int
    address: str


def write_embeddings(folder: Folder, name: str, embeddings: Embeddings, scratch: str) -> None:
    """Create the file `name`, complete or not at all, holding one table at a time; `scratch` as of `replacing`."""
    write = FORMATS[Path(name).suffix][0]
    with folder.replacing(name, scratch) as path:
        write(path, embeddings)


def stored_address(folder: Folder, name: str) -> str | None:
    """Return the address of a file of embeddings, empty for any other file; None = no such file."""
    if not folder.exists(name):
        return None
    try:
        with folder.explained(name), folder.open(name) as file:
            return FORMATS[Path(name).suffix][1](file)
    except (pa.ArrowException, zipfile.BadZipFile, KeyError, ValueError, EOFError):
        return ""


def check_format(name: str) -> None:
    """Raise a `UserError` for a name with an ending of no format."""
    if Path(name).suffix not in FORMATS:
        raise UserError("--out", name, f"a name that ends in {', '.join(FORMATS)}", "choose a format")


def _write_parquet(path: Path, embeddings: Embeddings) -> None:
    first = next(embeddings.tables)
    schema = first.schema.with_metadata({ADDRESS: embeddings.address})
    # Vectors do not compress, and a dictionary of them would only cost time.
    with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=["error"]) as writer:
        for table in chain([first], embeddings.tables):
            writer.write_table(table.cast(schema))


def _parquet_address(file: pa.NativeFile) -> str:
    return (pq.read_schema(file).metadata or {}).get(ADDRESS.encode(), b"").decode()


def _write_npz(path: Path, embeddings: Embeddings) -> None:
    """Vectors as a stream; names and errors, which are small, at the end."""
    names, errors = list[str](), list[str]()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        first = next(embeddings.tables)
        with archive.open("embedding.npy", "w", force_zip64=True) as file:
            shape = (embeddings.rows, first.schema.field("embedding").type.list_size)
            np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
            for table in chain([first], embeddings.tables):
                file.write(_rows(table).tobytes())
                names += table["name"].to_pylist()
                errors += [error or "" for error in table["error"].to_pylist()]
        for name, values in (("name", names), ("error", errors), (ADDRESS, embeddings.address)):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.array(values, np.str_), allow_pickle=False)


def _rows(table: pa.Table) -> NDArray[np.float32]:
    """Vectors of a table, NaN where it has none."""
    column = table["embedding"].combine_chunks()
    found = np.full((len(column), column.type.list_size), np.nan, "<f4")
    found[column.is_valid().to_numpy(zero_copy_only=False)] = column.flatten().to_numpy().reshape(-1, found.shape[1])
    return found


def _npz_address(file: pa.NativeFile) -> str:
    with zipfile.ZipFile(file) as archive, archive.open(f"{ADDRESS}.npy") as member:
        return str(np.lib.format.read_array(member, allow_pickle=False))


FORMATS: dict[str, tuple[Callable[[Path, Embeddings], None], Callable[[Any], str]]] = {
    ".parquet": (_write_parquet, _parquet_address),
    ".npz": (_write_npz, _npz_address),
}
"""By ending: how a file is written, and how its address is read."""
