"""Damage to an archive, drawn from a seed: bytes changed, cut, moved or put in, in one of its files."""

import random
import re
from collections.abc import Callable

from tests.data.written.layouts import Files, Layout

NUMBERS = (b"-1", b"0", b"1.5", b"65536", b"99999999999999999999", b"1e999", b"NaN", b"null")
NUMBERS = (*NUMBERS, b"9" * 5000, "٣".encode(), "²".encode())
"""What is written in place of a number; the last are an Arabic three and a superscript two."""
DIGITS = re.compile(rb"[0-9]+(?:\.[0-9]+)?")
TAR_BLOCK = 512


def mutant(layout: Layout, seed: int) -> Files:
    """The files of a layout with one of them damaged; of an archive half of the time before it is packed."""
    rng = random.Random(seed)
    files = layout.files()
    if rng.random() < 0.5:
        return layout.packed(_with_damage(files, rng))
    return _with_damage(layout.packed(files), rng)


def _with_damage(files: Files, rng: random.Random) -> Files:
    # By the end of its name first: there are many images for each table.
    end = rng.choice(sorted({name.rpartition(".")[2] for name in files}))
    name = rng.choice(sorted(name for name in files if name.rpartition(".")[2] == end))
    draw = rng.random()
    if draw < 0.03:
        return {other: data for other, data in files.items() if other != name}
    data = b"" if draw < 0.06 else damaged(files[name], rng)
    return {**files, name: data}


def damaged(data: bytes, rng: random.Random) -> bytes:
    """One to four changes; a tar's checksums are then right again, half of the time."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        data = rng.choice(CHANGES)(data, rng)
    return _with_checksums(data) if rng.random() < 0.5 else data


def _run(data: bytes, rng: random.Random) -> tuple[int, int]:
    """Where a run of a few or of many bytes begins and ends; near the beginning or the end more often."""
    most = rng.choice((1, 4, 16, 100, 2000))
    where = rng.random()
    if where < 0.25:
        start = rng.randrange(min(len(data), 600) + 1)
    elif where < 0.5:
        start = len(data) - rng.randrange(min(len(data), 600) + 1)
    else:
        start = rng.randrange(len(data) + 1)
    return start, min(len(data), start + rng.randint(1, most))


def flip(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8)) if data else 0):
        at = min(_run(data, rng)[0], len(data) - 1)
        changed[at] ^= 1 << rng.randrange(8)
    return bytes(changed)


def overwrite(data: bytes, rng: random.Random) -> bytes:
    start, stop = _run(data, rng)
    kind = rng.randrange(3)
    new = rng.randbytes(stop - start) if kind == 2 else (b"\0", b"\xff")[kind] * (stop - start)
    return data[:start] + new + data[stop:]


def truncate(data: bytes, rng: random.Random) -> bytes:
    return data[: _run(data, rng)[0]]


def duplicate(data: bytes, rng: random.Random) -> bytes:
    start, stop = _run(data, rng)
    return data[:stop] + data[start:]


def delete(data: bytes, rng: random.Random) -> bytes:
    start, stop = _run(data, rng)
    return data[:start] + data[stop:]


def swap(data: bytes, rng: random.Random) -> bytes:
    """Two runs that do not overlap change places."""
    one, two = sorted((_run(data, rng), _run(data, rng)))
    if one[1] > two[0]:
        return data
    return data[: one[0]] + data[slice(*two)] + data[one[1] : two[0]] + data[slice(*one)] + data[two[1] :]


def extend(data: bytes, rng: random.Random) -> bytes:
    start, stop = _run(data, rng)
    return data + rng.choice((data[start:stop], bytes(stop - start), rng.randbytes(stop - start)))


def renumber(data: bytes, rng: random.Random) -> bytes:
    """Another number in place of one that is written in digits."""
    found = [match.span() for match in DIGITS.finditer(data[:100_000])]
    if not found:
        return data
    start, stop = rng.choice(found)
    return data[:start] + rng.choice(NUMBERS) + data[stop:]


CHANGES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    flip,
    overwrite,
    truncate,
    duplicate,
    delete,
    swap,
    extend,
    renumber,
)


def _with_checksums(data: bytes) -> bytes:
    """The headers of a tar as a writer of them would have them: so damage gets past the first look."""
    changed = bytearray(data)
    for start in range(0, len(data) - TAR_BLOCK + 1, TAR_BLOCK):
        header = changed[start : start + TAR_BLOCK]
        if header[257:262] == b"ustar":
            header[148:156] = b" " * 8
            changed[start + 148 : start + 156] = b"%06o\0 " % sum(header)
    return bytes(changed)
