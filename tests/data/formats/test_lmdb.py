"""Our reader of LMDB's pages against databases written by the lmdb package."""

import hashlib
import pickle
import struct
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import lmdb
import numpy as np
import pytest

from soda_dist.data.formats.byte_range import ByteRange
from soda_dist.data.formats.lmdb import Database, collect_tree, open_database
from soda_dist.data.storage.folder import Folder, open_folder
from soda_dist.errors import UserError
from tests.data.written.lsun import database

PAGE = 4096


def found(folder: Folder, wanted: int = 16) -> list[tuple[bytes, bytes]]:
    """Keys and values by our reader, as tasks read them: a subtree each."""
    opened = pickle.loads(pickle.dumps(open_database(ByteRange(folder, "data.mdb"))))
    data = folder.read("data.mdb")
    records = [record for page in opened.subtrees(wanted) for record in opened.records(page)]
    return [(record.key, data[record.offset : record.offset + record.size]) for record in records]


def hashed(count: int, size: Callable[[int], int]) -> dict[bytes, bytes]:
    records = {}
    for number in range(count):
        digest = hashlib.sha1(str(number).encode()).hexdigest().encode()
        records[digest] = (digest * (size(number) // 40 + 1))[: size(number)]
    return records


def check(folder: Folder, records: Mapping[bytes, bytes], wanted: int = 16) -> None:
    assert found(folder, wanted) == sorted(records.items())


@pytest.mark.parametrize("count", [0, 1, 2, 40])
def test_small_databases(count: int, any_uri: str) -> None:
    folder = open_folder(any_uri)
    records = hashed(count, lambda number: 3000 * number)
    folder.write("data.mdb", database(records))
    check(folder, records)


def test_many_thousands_of_keys_in_three_levels(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    records = hashed(20_000, lambda number: 5000 if number % 50 == 0 else number % 90)
    folder.write("data.mdb", database(records, per_transaction=3000))
    opened = open_database(ByteRange(folder, "data.mdb"))
    assert depth(tmp_path) == 3
    assert len(opened.subtrees(1)) == 1
    assert len(opened.subtrees(2)) < 20 < len(opened.subtrees(200)), "a level further down where few are not enough"
    assert opened.subtrees(10**6) == opened.subtrees(10**7), "no further than the leaves"
    for wanted in (1, 2, 200):
        check(folder, records, wanted)


def depth(place: Path) -> int:
    with lmdb.open(str(place), readonly=True, lock=False) as environment:
        return environment.stat()["depth"]


def test_on_s3_subtrees_are_read_by_ranges(s3_uri: str) -> None:
    folder = open_folder(s3_uri)
    records = hashed(1500, lambda number: 100 + 30 * (number % 100))
    folder.write("data.mdb", database(records))
    check(folder, records)


def test_deleted_and_overwritten_keys(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    records = hashed(6000, lambda number: number % 3000)
    deleted = [name for at, name in enumerate(records) if at % 7 < 5]
    folder.write("data.mdb", database(records, deleted))
    left = {name: value for name, value in records.items() if name not in set(deleted)}
    check(folder, left)
    with lmdb.open(str(tmp_path), map_size=2**28, sync=False) as environment, environment.begin(write=True) as writer:
        writer.put(min(left), b"anew" * 3000)
    check(folder, {**left, min(left): b"anew" * 3000})
    folder.write("data.mdb", database(records, list(records)))
    assert found(folder) == []


def test_an_aborted_and_an_appended_transaction(tmp_path: Path) -> None:
    records = {f"{number:06d}".encode(): b"x" * (number % 9000) for number in range(3000)}
    with lmdb.open(str(tmp_path), map_size=2**28, sync=False) as environment:
        with environment.begin(write=True) as writer:
            for name, value in records.items():
                writer.put(name, value, append=True)
        writer = environment.begin(write=True)
        writer.put(b"000000", b"never")
        writer.abort()
    check(open_folder(str(tmp_path)), records)


def test_pages_beyond_the_65536th(tmp_path: Path) -> None:
    """Written by hand, since a database that large would take long: a root that names a leaf far away."""
    far, value = 70_001, b"value"
    tree = struct.pack("<IHH5Q", 0, 0, 2, 1, 2, 0, 2, 2)
    meta = struct.pack("<IIQQ", 0xBEEFC0DE, 1, 0, 2**30) + struct.pack("<IHH5Q", PAGE, 8, 0, 0, 0, 0, 0, 2**64 - 1)
    branch = [struct.pack("<HHHH", 3, 0, 0, 0), struct.pack("<HHHH", far & 0xFFFF, far >> 16, 0, 4) + b"key "]
    leaves = [struct.pack("<HHHH", len(value), 0, 0, 4) + name + value + b"\0" for name in (b"key ", b"key!")]
    with (tmp_path / "data.mdb").open("wb") as file:
        for number in (0, 1):
            file.seek(number * PAGE)
            file.write(struct.pack("<QHHHH", number, 0, 8, 0, 0) + meta + tree + struct.pack("<QQ", far, number))
        for number, flags, nodes in ((2, 1, branch), (3, 2, leaves[:1]), (far, 2, leaves[1:])):
            places = [PAGE - sum(len(node) for node in nodes[: at + 1]) for at in range(len(nodes))]
            head = struct.pack("<QHHHH", number, 0, flags, 16 + 2 * len(nodes), places[-1])
            pointers = struct.pack(f"<{len(nodes)}H", *places)
            file.seek(number * PAGE)
            file.write((head + pointers).ljust(places[-1], b"\0") + b"".join(reversed(nodes)))
    with lmdb.open(str(tmp_path), readonly=True, lock=False) as environment, environment.begin() as reader:
        assert [*reader.cursor()] == [(b"key ", value), (b"key!", value)], "the package reads it too"
    opened = open_database(ByteRange(open_folder(str(tmp_path)), "data.mdb"))
    assert opened.subtrees(1) == [2] and opened.subtrees(2) == [3, far]
    places = [page * PAGE + PAGE - 1 - len(value) for page in (3, far)]
    assert [*opened.records(2)] == [(b"key ", places[0], len(value)), (b"key!", places[1], len(value))]


def refused(folder: Folder, data: bytes, says: str) -> None:
    folder.write("data.mdb", data)
    with pytest.raises(UserError, match=rf"data\.mdb: got {says}"):
        found(folder)


def test_other_files_and_other_databases(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    for data in (b"", b"text" * 5000, b"\0" * 9000):
        refused(folder, data, "no LMDB database")
    good = database(hashed(10, lambda number: 10))
    refused(folder, good[: PAGE + 100], "no second meta page")
    refused(folder, good[:20] + struct.pack("<I", 999) + good[24:], "no LMDB database")
    flags = [page * PAGE + 16 + 24 + 48 + 4 for page in (0, 1)]
    several = bytearray(good)
    for at in flags:
        several[at] = 4
    refused(folder, bytes(several), "a database with several values")
    with tempfile.TemporaryDirectory() as place:
        with lmdb.open(place, max_dbs=1) as environment:
            inner = environment.open_db(b"inner")
            with environment.begin(write=True, db=inner) as writer:
                writer.put(b"key", b"value")
        refused(folder, Path(place, "data.mdb").read_bytes(), "a database inside the database")


def pages_of(data: bytes, kind: int) -> list[int]:
    """The numbers of pages with this flag that name themselves."""
    numbers = range(2, len(data) // PAGE)
    heads = {number: struct.unpack_from("<Q2xH", data, number * PAGE) for number in numbers}
    return [number for number, (own, flags) in heads.items() if own == number and flags == kind]


def test_damaged_pages(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    good = database(hashed(800, lambda number: 50), per_transaction=10**6)
    root = open_database(ByteRange(folder_with(folder, good), "data.mdb")).root
    leaf = open_database(ByteRange(folder, "data.mdb")).subtrees(2)[3]
    refused(folder, good[: leaf * PAGE + 100], r"\d[\d,]* bytes, too few for page \d+")
    for page, at, value in (
        (leaf, 0, struct.pack("<Q", leaf + 1)),  # the number of another page
        (leaf, 10, struct.pack("<H", 0x04)),  # another kind of page
        (leaf, 12, struct.pack("<H", 0xFFFF)),  # pointers beyond the page
        (leaf, 16, struct.pack("<H", 8)),  # a node in the header
        (root, 16, struct.pack("<H", 0xFFFE)),
        (root, 10, struct.pack("<H", 0x20)),
    ):
        place = page * PAGE + at
        refused(folder, good[:place] + value + good[place + len(value) :], f"a damaged page {page}")


def folder_with(folder: Folder, data: bytes) -> Folder:
    folder.write("data.mdb", data)
    return folder


def node_at(data: bytes, page: int, number: int) -> int:
    return page * PAGE + struct.unpack_from("<H", data, page * PAGE + 16 + 2 * number)[0]


def test_a_ring_of_branches_ends(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    good = database(hashed(20_000, lambda number: 10), per_transaction=10**6)
    root = open_database(ByteRange(folder_with(folder, good), "data.mdb")).root
    at, second = node_at(good, root, 0), node_at(good, root, 1)
    itself = struct.pack("<HHH", root & 0xFFFF, root >> 16, 0)
    refused(folder, good[:at] + itself + good[at + 6 :], f"a damaged page {root}")
    refused(folder, good[:at] + good[second : second + 6] + good[at + 6 :], "a damaged page")


def test_random_damage_is_a_message_or_other_records_but_never_a_crash(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    good = np.frombuffer(database(hashed(300, lambda number: 20 * number), per_transaction=10**6), np.uint8)
    small = [page for page in range(len(good) // PAGE) if page < 2 or page in {*pages_of(good.tobytes(), 2)}]
    for seed in range(60):
        rng = np.random.default_rng(seed)
        data = good.copy()
        places = rng.choice(small, 3) * PAGE + rng.integers(0, 200, 3)
        data[places] = rng.integers(0, 256, 3)
        folder.write("data.mdb", data.tobytes())
        try:
            opened = open_database(ByteRange(folder, "data.mdb"))
            records = [record for page in opened.subtrees(16) for record in opened.records(page)]
        except UserError as error:
            assert "data.mdb" in str(error)
        else:
            assert isinstance(opened, Database) and len(records) <= 300


@pytest.mark.parametrize("step", [10**9, PAGE, 5000, 3 * PAGE + 1])
def test_a_tree_kept_from_one_pass_lists_what_the_file_does(step: int, tmp_path: Path) -> None:
    records = hashed(3000, lambda number: 9000 if number % 40 == 0 else number % 90)
    looks = b"\x02" * 9000  # like leaves, but for their numbers
    records |= dict.fromkeys(list(records)[:5], looks)
    data = database(records, per_transaction=500)
    folder = folder_with(open_folder(str(tmp_path)), data)
    tree = collect_tree("data.mdb", len(data), (data[at : at + step] for at in range(0, len(data), step)))
    kept, whole = open_database(tree), open_database(ByteRange(folder, "data.mdb"))
    assert [*kept.records(kept.root)] == [*whole.records(whole.root)]
    assert set(tree.pages) == {0, 1, *pages_of(data, 1), *pages_of(data, 2)}
    assert len(tree.pages) < len(data) // PAGE
    assert tree.size() == len(data)


def test_a_kept_tree_that_lacks_pages_is_damaged(tmp_path: Path) -> None:
    data = database(hashed(800, lambda number: 50), per_transaction=10**6)
    whole = open_database(ByteRange(folder_with(open_folder(str(tmp_path)), data), "data.mdb"))
    leaf = whole.subtrees(2)[3]
    for end, got in (
        (leaf * PAGE, rf"{leaf * PAGE:,} bytes, too few for page \d+"),
        (len(data), "a damaged page"),
    ):
        spoiled = data[: leaf * PAGE] + bytes(PAGE) + data[(leaf + 1) * PAGE :]
        kept = open_database(collect_tree("data.mdb", end, [spoiled[:end]]))
        with pytest.raises(UserError, match=rf"data\.mdb: got {got}"):
            [*kept.records(kept.root)]
    with pytest.raises(UserError, match="got no LMDB database"):
        open_database(collect_tree("data.mdb", 0, []))
