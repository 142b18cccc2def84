"""Numbers in a MATLAB file of version 5 or 7, read by hand: scipy's reader ends the process on damaged bytes.

The format: 128 bytes, the last two of which tell the byte order, then elements of a type, a size and as many bytes,
each from a multiple of 8 on. A matrix is an element of elements: flags, dimensions, name, values; values may be stored
in a smaller type than the matrix is of. Version 7 compresses whole elements. Described in "MAT-File Format",
https://www.mathworks.com/help/pdf_doc/matlab/matfile_format.pdf.
"""

import math
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

START = 128
ORDERS = {b"IM": "<", b"MI": ">"}
INT8, INT32, MATRIX, COMPRESSED = 1, 5, 14, 15
TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
COMPLEX = 0x0800
NUMERIC = range(6, 16)
"""Classes of a matrix: double, single and the integers."""
MOST_BYTES = 64 * 2**20
"""Of an inflated element: a file of this size is another one."""


class _Element(NamedTuple):
    kind: int
    data: bytes


def read_numbers(data: bytes, name: str) -> NDArray[np.int64]:
    """The whole numbers of a variable, int64 [n], column by column.

    Raises:
        ValueError: no such variable, other values, or damaged bytes; the message is a few words.
    """
    order = ORDERS.get(data[START - 2 : START])
    if order is None:
        raise ValueError("no MATLAB file of version 5 or 7")
    for element in _elements(data[START:], order, padded=False):
        found = element
        if element.kind == COMPRESSED:
            found = next(_elements(_inflated(element.data), order), element)
        if found.kind == MATRIX:
            flags, shape, label, values = ([*_elements(found.data, order)] + 4 * [_Element(0, b"")])[:4]
            if label.kind == INT8 and label.data.rstrip(b"\0") == name.encode():
                return _numbers(flags, shape, values, order)
    raise ValueError("it is not there")


def _elements(data: bytes, order: str, *, padded: bool = True) -> Iterator[_Element]:
    at = 0
    while len(data) - at >= 8:
        kind, size = (int(number) for number in np.frombuffer(data, f"{order}u4", 2, at))
        if kind >> 16:  # up to four bytes lie in the tag itself
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
        content = inflater.decompress(data, MOST_BYTES)
    except zlib.error as error:
        raise ValueError(f"damaged compression: {error}") from None
    if not inflater.eof:
        raise ValueError("damaged compression: it does not end")
    return content


def _numbers(flags: _Element, shape: _Element, values: _Element, order: str) -> NDArray[np.int64]:
    word = int(np.frombuffer(flags.data[:4], f"{order}u4")[0]) if len(flags.data) >= 4 else 0
    if word & 0xFF not in NUMERIC or word & COMPLEX or values.kind not in TYPES or shape.kind != INT32:
        raise ValueError("no matrix of real numbers")
    kind = np.dtype(order + TYPES[values.kind])
    sizes = np.frombuffer(shape.data[: len(shape.data) // 4 * 4], f"{order}i4").tolist()
    if len(values.data) != math.prod(sizes) * kind.itemsize or not sizes:
        raise ValueError(f"{len(values.data)} bytes in a matrix of {sizes}")
    numbers = np.frombuffer(values.data, kind)
    if numbers.size and not -(2**31) <= numbers.min() <= numbers.max() < 2**31:  # NaN neither
        raise ValueError("numbers out of range")
    if (numbers != np.trunc(numbers)).any():
        raise ValueError("numbers that are not whole")
    return numbers.astype(np.int64)
