"""Reader of numbers and structs in MATLAB files of versions 5 and 7; scipy's reader crashes on damaged bytes.

A header of 128 bytes ends in the byte order; elements of type, size and data follow, aligned to 8 bytes. A matrix
contains elements: flags, dimensions, name, values, where values may be stored in a smaller type. The values of a struct
array are the length of field names, the names, and a matrix per field of each struct. Version 7 compresses whole
elements. Format: https://www.mathworks.com/help/pdf_doc/matlab/matfile_format.pdf.
"""

import math
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

START = 128
ORDERS = {b"IM": "<", b"MI": ">"}
INT8, INT32, MATRIX, COMPRESSED = 1, 5, 14, 15
TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
ENCODINGS = {1: "latin-1", 2: "latin-1", 16: "utf-8"}
UTF16_TYPES = (4, 17)
COMPLEX = 0x0800
STRUCT, CHARACTERS, NUMERIC = 2, 4, range(6, 16)
"""Matrix classes; the last are double, single and the integers."""
MAX_BYTES = 64 * 2**20
"""Limit of an inflated element, far above the published files."""


class _Element(NamedTuple):
    kind: int
    data: bytes


class _Matrix(NamedTuple):
    """The elements of a matrix: flags, dimensions, name, values."""

    word: int
    shape: tuple[int, ...]
    name: bytes
    values: tuple[_Element, ...]


def read_numbers(data: bytes, name: str) -> NDArray[np.int64]:
    """Read a variable of whole numbers, int64 [n], in column-major order.

    Raises:
        ValueError: no such variable, other values, or damaged bytes, in a few words.
    """
    order = _order(data)
    return _numbers(_variable(data, name, order), order)


def read_structs(data: bytes, name: str, fields: Sequence[str]) -> list[tuple[int | str, ...]]:
    """Read fields of each struct of an array: text or whole numbers.

    Raises:
        ValueError: as in `read_numbers`, or a missing field or one of another type.
    """
    order = _order(data)
    found = _variable(data, name, order)
    if found.word & 0xFF != STRUCT or len(found.values) < 2:
        raise ValueError("not an array of structs")
    length, labels, *cells = found.values
    names = _field_names(length, labels, order)
    missing = next((field for field in fields if field not in names), None)
    if missing or len(cells) != math.prod(found.shape) * len(names):
        raise ValueError(f"no field {missing}" if missing else f"{len(cells)} values in {[*found.shape]} structs")
    places = [names.index(field) for field in fields]
    starts = range(0, len(cells), len(names))
    return [tuple(_cell(cells[start + place], order) for place in places) for start in starts]


def _order(data: bytes) -> str:
    order = ORDERS.get(data[START - 2 : START])
    if order is None:
        raise ValueError("not a MATLAB file of version 5 or 7")
    return order


def _variable(data: bytes, name: str, order: str) -> _Matrix:
    for element in _elements(data[START:], order, padded=False):
        found = element
        if element.kind == COMPRESSED:
            found = next(_elements(_inflated(element.data), order), element)
        if found.kind == MATRIX:
            matrix = _matrix(found, order)
            if matrix.name == name.encode():
                return matrix
    raise ValueError("no such variable")


def _matrix(element: _Element, order: str) -> _Matrix:
    parts = [*_elements(element.data, order)]
    flags, shape, label, *values = parts + [_Element(0, b"")] * (3 - len(parts))
    word = int(np.frombuffer(flags.data[:4], f"{order}u4")[0]) if len(flags.data) >= 4 else 0
    sizes = np.frombuffer(shape.data[: len(shape.data) // 4 * 4], f"{order}i4").tolist() if shape.kind == INT32 else []
    return _Matrix(word, tuple(sizes), label.data.rstrip(b"\0") if label.kind == INT8 else b"", tuple(values))


def _field_names(length: _Element, labels: _Element, order: str) -> list[str]:
    each = int(np.frombuffer(length.data, f"{order}i4")[0]) if len(length.data) == 4 else 0
    if each < 1 or not labels.data or len(labels.data) % each:
        raise ValueError("damaged field names")
    names = (labels.data[start : start + each] for start in range(0, len(labels.data), each))
    return [name.partition(b"\0")[0].decode("latin-1") for name in names]


def _cell(element: _Element, order: str) -> int | str:
    if element.kind != MATRIX:
        raise ValueError("a field without a matrix")
    matrix = _matrix(element, order)
    if matrix.word & 0xFF == CHARACTERS:
        values = matrix.values[0] if matrix.values else _Element(0, b"")
        wide = "utf-16-le" if order == "<" else "utf-16-be"
        encoding = wide if values.kind in UTF16_TYPES else ENCODINGS.get(values.kind)
        if encoding is None:
            raise ValueError("text in an unknown encoding")
        return values.data.decode(encoding)
    numbers = _numbers(matrix, order)
    if len(numbers) != 1:
        raise ValueError(f"{len(numbers)} numbers in a field")
    return int(numbers[0])


def _elements(data: bytes, order: str, *, padded: bool = True) -> Iterator[_Element]:
    at = 0
    while len(data) - at >= 8:
        kind, size = (int(number) for number in np.frombuffer(data, f"{order}u4", 2, at))
        if kind >> 16:  # a small element: up to four bytes in the tag itself
            kind, size, start, stop = kind & 0xFFFF, kind >> 16, at + 4, at + 8
            if size > 4:
                raise ValueError("a damaged element")
        else:
            start = at + 8
            stop = start + (-(-size // 8) * 8 if padded else size)
        if start + size > len(data):
            raise ValueError("a truncated element")
        yield _Element(kind, data[start : start + size])
        at = stop


def _inflated(data: bytes) -> bytes:
    inflater = zlib.decompressobj()
    try:
        content = inflater.decompress(data, MAX_BYTES)
    except zlib.error as error:
        raise ValueError(f"damaged compression: {error}") from None
    if not inflater.eof:
        raise ValueError("damaged compression: no end")
    return content


def _numbers(matrix: _Matrix, order: str) -> NDArray[np.int64]:
    values = matrix.values[0] if matrix.values else _Element(0, b"")
    if matrix.word & 0xFF not in NUMERIC or matrix.word & COMPLEX or values.kind not in TYPES:
        raise ValueError("not a matrix of real numbers")
    kind = np.dtype(order + TYPES[values.kind])
    if len(values.data) != math.prod(matrix.shape) * kind.itemsize or not matrix.shape:
        raise ValueError(f"{len(values.data)} bytes in a matrix of {[*matrix.shape]}")
    numbers = np.frombuffer(values.data, kind)
    if numbers.size and not -(2**31) <= numbers.min() <= numbers.max() < 2**31:  # also false for NaN
        raise ValueError("numbers out of range")
    if (numbers != np.trunc(numbers)).any():
        raise ValueError("numbers that are not integers")
    return numbers.astype(np.int64)
