"""Results of pieces on storage: addressed by the facts they depend on, done once, checked when they are read."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from soda_dist.data.storage.folder import Folder, open_folder
from soda_dist.errors import UserError
from soda_dist.evaluation.piece_cache import address, load, store
from soda_dist.parallel.pool import Held
from tests.evaluation.local import Recording


@dataclass(frozen=True)
class Numbers:
    """A piece of so many equal numbers."""

    number: int
    rows: int

    @property
    def file(self) -> str:
        return f"{self.number}.parquet"


def _columns(state: int, piece: Numbers) -> pa.Table:
    return pa.table({"value": [state + piece.number] * piece.rows, "other": [0] * piece.rows})


def _too_short(state: int, piece: Numbers) -> pa.Table:
    return _columns(state, piece).slice(1)


PIECES = [Numbers(number, 2 + number) for number in range(4)]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return open_folder(str(tmp_path))


def _store(folder: Folder, pieces: list[Numbers], said: list[str], job: Any = _columns) -> list[Numbers]:
    pool = Recording(setup=Held(100))
    store(pool, folder, job, pieces, said.append, "numbers")
    return pool.done


def test_equal_facts_have_equal_names_whatever_their_order() -> None:
    assert address({"a": 1, "b": [2]}) == address({"b": [2], "a": 1})
    assert len({address(facts) for facts in ({"a": 1}, {"a": 2}, {"b": 1}, {"a": [1]}, {})}) == 5


def test_a_piece_that_is_stored_is_not_done_again(folder: Folder) -> None:
    said: list[str] = []
    assert _store(folder, PIECES[:2], said) == PIECES[:2] and "numbers: 5 of 5 images" in said[-1]
    assert not any(" of 14 " in line for line in said)
    assert _store(folder, PIECES, said) == PIECES[2:]
    assert "numbers: reusing 5 of 14 cached images" in said and "numbers: 14 of 14 images" in said[-1]
    count = len(said)
    assert _store(folder, PIECES, said) == [] and said[count] == "numbers: reusing 14 of 14 cached images"
    for piece in PIECES:
        assert load(folder, piece).column("value").to_pylist() == [100 + piece.number] * piece.rows
        assert load(folder, piece, ["other"]).column_names == ["other"]


def test_a_job_that_loses_rows_and_a_file_of_another_length_are_noticed(folder: Folder) -> None:
    with pytest.raises(RuntimeError, match=r"1\.parquet became 2 rows, not 3"):
        _store(folder, PIECES[1:2], [], _too_short)
    assert folder.list() == []
    _store(folder, PIECES, [])
    folder.write(PIECES[2].file, folder.read(PIECES[1].file))
    with pytest.raises(UserError, match="3 rows, not 4"):
        load(folder, PIECES[2])


def test_a_damaged_file_is_noticed(folder: Folder) -> None:
    _store(folder, PIECES[:1], [])
    content = bytearray(folder.read(PIECES[0].file))
    content[20:40] = bytes(20)
    folder.write(PIECES[0].file, bytes(content))
    with pytest.raises(UserError, match=r"damaged file \(.*(Invalid|checksum|CRC)"):
        load(folder, PIECES[0])
