"""Our reader of MATLAB's numbers against files written by scipy, and against damage."""

import io
import random
import struct
import zlib

import numpy as np
import pytest
from scipy.io import savemat
from scipy.sparse import csc_array

from soda_dist.data.formats import matlab
from soda_dist.data.formats.matlab import read_numbers, read_structs

HEAD = struct.pack("<124sHH", b"MATLAB 5.0", 0x0100, 0x4D49)


def written(compressed: bool = True, **variables: object) -> bytes:
    sink = io.BytesIO()
    savemat(sink, variables, do_compression=compressed)
    return sink.getvalue()


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("kind", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"])
def test_every_type_and_length(kind: str, compressed: bool) -> None:
    for count in range(10):  # up to four bytes lie in the tag
        values = np.arange(100, 100 + count).astype(kind)
        data = written(compressed, other=np.ones(3), x=values[None], name_of_some_length=values[:, None])
        for name in ("x", "name_of_some_length"):
            found = read_numbers(data, name)
            assert found.dtype == np.int64 and found.tolist() == [*range(100, 100 + count)]


def test_signs_and_columns() -> None:
    assert read_numbers(written(x=np.array([[-1.0, 2.0], [-3.0, 4.0]])), "x").tolist() == [-1, -3, 2, 4]
    assert read_numbers(written(x=np.array([[-5]], np.int16)), "x").tolist() == [-5]


def element(order: str, kind: int, data: bytes) -> bytes:
    return struct.pack(f"{order}II", kind, len(data)) + data.ljust(-(-len(data) // 8) * 8, b"\0")


def matrix(order: str, kind: int, values: bytes, shape: tuple[int, ...]) -> bytes:
    """A double matrix `x` whose values are stored in another type, as MATLAB does with whole numbers."""
    flags, name = struct.pack(f"{order}II", 6, 0), element(order, 1, b"x")
    sizes = struct.pack(f"{order}{len(shape)}i", *shape)
    parts = element(order, 6, flags) + element(order, 5, sizes) + name + element(order, kind, values)
    return element(order, 14, parts)


@pytest.mark.parametrize("order", ["<", ">"])
def test_either_byte_order_and_a_smaller_type_than_the_matrixs(order: str) -> None:
    head = struct.pack(f"{order}124sHH", b"MATLAB 5.0", 0x0100, 0x4D49)
    assert read_numbers(head + matrix(order, 4, struct.pack(f"{order}3H", 1, 513, 7), (1, 3)), "x").tolist() == [
        1,
        513,
        7,
    ]
    packed = zlib.compress(matrix(order, 2, bytes([9, 8]), (2, 1)))
    assert read_numbers(head + struct.pack(f"{order}II", 15, len(packed)) + packed, "x").tolist() == [9, 8]


def bomb() -> bytes:
    packed = zlib.compress(bytes(matlab.MAX_BYTES + 1), 9)
    return HEAD + struct.pack("<II", 15, len(packed)) + packed


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "not a MATLAB file of version 5 or 7"),
        (b"<html>" * 100, "not a MATLAB file"),
        (written(y=np.ones(3)), "no such variable"),
        (written(xx=np.ones(3)), "no such variable"),
        (written(x="text"), "not a matrix of real numbers"),
        (written(x=np.array([1j])), "not a matrix of real numbers"),
        (written(x={"a": 1}), "not a matrix of real numbers"),
        (written(x=np.array(["a", 1], object)), "not a matrix of real numbers"),
        (written(x=csc_array(np.eye(3))), "not a matrix of real numbers"),
        (written(x=np.array([1.0, np.nan])), "numbers out of range"),
        (written(x=np.array([1.0, np.inf])), "numbers out of range"),
        (written(x=np.array([2**63], np.uint64)), "numbers out of range"),
        (written(x=np.array([1.0, 2.5])), "numbers that are not integers"),
        (HEAD + matrix("<", 2, bytes(3), (1, 2)), r"3 bytes in a matrix of \[1, 2\]"),
        (HEAD + matrix("<", 2, b"", ()), r"0 bytes in a matrix of \[\]"),
        (HEAD + matrix("<", 2, bytes(3), (-1, -3))[:-8], "a truncated element"),
        (HEAD + matrix("<", 99, bytes(3), (1, 3)), "not a matrix of real numbers"),
        (HEAD + struct.pack("<HHI", 14, 5, 0), "a damaged element"),
        (written(x=np.arange(99))[:-10], "a truncated element"),
        (bomb(), "damaged compression: no end"),
    ],
    ids=range(20),
)
def test_what_is_no_matrix_of_whole_numbers(data: bytes, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        read_numbers(data, "x")


@pytest.mark.parametrize("compressed", [True, False])
def test_damage_is_an_error_or_other_numbers(compressed: bool) -> None:
    """Of the same bytes, scipy's reader ends the process."""
    good = written(compressed, y=np.arange(5), x=np.arange(40, dtype=np.uint16))
    for seed in range(2000):
        rng, data = random.Random(seed), bytearray(good)
        for _ in range(rng.choice([1, 1, 2, 5])):
            data[rng.randrange(124, len(data))] = rng.choice([0, 1, 255, rng.randrange(256)])
        try:
            read_numbers(bytes(data[: rng.choice([len(data), rng.randrange(len(data))])]), "x")
        except ValueError as error:
            assert type(error) is ValueError, error


ROWS = [(3, "n01440764", "tench, Tinca tinca", 0), (-7, "", "caf\xe9 \u03b1", 12), (70000, "x" * 300, "of four", 4)]


def structs(compressed: bool = True, **changes: object) -> bytes:
    kinds = [("number", float), ("name", object), ("words", object), ("count", object)]
    many = [(*row[:3], np.array([[row[3]]], np.uint8)) for row in ROWS]
    return written(compressed, **{"before": np.ones(3), "x": np.array(many, kinds).reshape(-1, 1), **changes})


@pytest.mark.parametrize("compressed", [True, False])
def test_fields_of_structs(compressed: bool) -> None:
    data = structs(compressed)
    assert read_structs(data, "x", ("number", "name", "words", "count")) == ROWS
    assert read_structs(data, "x", ("count", "number")) == [(count, number) for number, _, _, count in ROWS]


def matrix_of(order: str, word: int, shape: tuple[int, ...], name: bytes, *values: bytes) -> bytes:
    sizes = struct.pack(f"{order}{len(shape)}i", *shape)
    parts = element(order, 6, struct.pack(f"{order}II", word, 0)) + element(order, 5, sizes) + element(order, 1, name)
    return element(order, 14, parts + b"".join(values))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("kind", "encoding"), [(1, "latin-1"), (2, "latin-1"), (4, "utf-16"), (16, "utf-8"), (17, "utf-16")]
)
def test_texts_in_every_type_and_byte_order(kind: int, encoding: str, order: str) -> None:
    encoding += {"<": "-le", ">": "-be"}[order] if encoding == "utf-16" else ""
    text = matrix_of(order, 4, (1, 4), b"", element(order, kind, "caf\xe9".encode(encoding)))
    number = matrix_of(order, 6, (1, 1), b"", element(order, 2, b"\x05"))
    fields = element(order, 5, struct.pack(f"{order}i", 4)), element(order, 1, b"one\0two\0")
    head = struct.pack(f"{order}124sHH", b"MATLAB 5.0", 0x0100, 0x4D49)
    data = head + matrix_of(order, 2, (1, 2), b"x", *fields, text, number, number, text)
    assert read_structs(data, "x", ("one", "two")) == [("caf\xe9", 5), (5, "caf\xe9")]


@pytest.mark.parametrize(
    ("data", "field", "says"),
    [
        (b"<html>" * 100, "name", "not a MATLAB file"),
        (written(y=np.ones(3)), "name", "no such variable"),
        (structs(x=np.ones(3)), "name", "not an array of structs"),
        (structs(), "nome", "no field nome"),
        (structs(False)[:-40], "name", "a truncated element"),
        (structs(x={"name": np.ones(3)}), "name", "3 numbers in a field"),
        (structs(x={"name": np.array([1.5])}), "name", "numbers that are not integers"),
        (structs(x={"name": {"deeper": 1}}), "name", "not a matrix of real numbers"),
    ],
    ids=range(8),
)
def test_what_has_no_such_field(data: bytes, field: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        read_structs(data, "x", (field,))


@pytest.mark.parametrize("compressed", [True, False])
def test_damage_to_structs_is_an_error_or_other_values(compressed: bool) -> None:
    """Of the same bytes, scipy's reader ends the process."""
    good, other = structs(compressed), 0
    for seed in range(2000):
        rng, data = random.Random(seed), bytearray(good)
        for _ in range(rng.choice([1, 1, 2, 5])):
            data[rng.randrange(124, len(data))] = rng.choice([0, 1, 255, rng.randrange(256)])
        try:
            found = read_structs(
                bytes(data[: rng.choice([len(data), rng.randrange(len(data))])]), "x", ("name", "count")
            )
            other += found != [(name, count) for _, name, _, count in ROWS]
        except ValueError as error:
            assert isinstance(error, ValueError) and "\n" not in str(error), error
            other += 1
    assert other > 500
