"""Damaged archives of every kind: the import ends well, in a message of one line, or with rows that have a problem.

Short runs in this process, of which `make test-long` makes the longer; `python -m tests.data.fuzz_sources` makes one of
thousands, in which crashes are survived.
"""

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from soda_dist.data.sources import SOURCES
from tests.data import fuzz_sources
from tests.data.fuzz_sources import IMPORTED, PROBLEM, outcome, put, run, watched
from tests.data.written.layouts import LAYOUTS, small
from tests.data.written.mutated import CHANGES, mutant
from tests.sizes import sized

DEFECTS: dict[str, tuple[int, ...]] = {
    "celebahq": (244, 282),
    "cifar10": (1014,),
    "cub": (198, 337, 458),
    "folder zip": (1031,),
    "imagenet tars": (1, 2, 3, 4, 5, 6, 15, 18, 25, 26, 27, 31, 33, 34, 35, 42, 48, 58, 69, 91),
    "imagenet tgz": (15, 28, 37, 44),
    "mpi3d": (2, 87, 152),
    "mpi3d deflated": (9, 93, 140),
    "shapes3d": (0, 3, 16, 20, 39, 88, 93),
    "shapes3d flat": (21, 72),
    "webdataset": (0, 8),
}
"""Seeds of mutants that once ended otherwise."""


@pytest.fixture(autouse=True)
def few_values() -> Iterator[None]:
    with small():
        yield


@sized("mutants", 4, long=25)
@pytest.mark.parametrize("name", LAYOUTS)
def test_damage_is_said(name: str, mutants: int, tmp_path: Path) -> None:
    """At least so many mutants of a kind, and those that once ended otherwise."""
    layouts = Counter(layout.kind for layout in LAYOUTS.values())
    each = -(-mutants // layouts[LAYOUTS[name].kind])
    for seed in (*range(each), *DEFECTS.get(name, ())):
        try:
            run(name, seed, str(tmp_path / str(seed)))
        except Exception as error:
            error.add_note(f"of the layout {name} with seed {seed}")
            raise


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_is_not_damaged_is_imported(name: str, tmp_path: Path) -> None:
    layout = LAYOUTS[name]
    put(layout.packed(layout.files()), tmp_path)
    found = outcome(layout.kind, f"{tmp_path}/{layout.name}".rstrip("/"), layout.options)
    # The tree of the kind `folder` has files that are no images.
    assert found == (PROBLEM if layout.kind == "folder" else IMPORTED)


def test_every_published_kind_is_damaged() -> None:
    assert {layout.kind for layout in LAYOUTS.values()} == set(SOURCES) - {"synthetic"}


def test_a_seed_is_one_mutant_and_damages_one_file() -> None:
    layout = LAYOUTS["celebahq"]
    sound, lengths = layout.files(), set()
    for seed in range(100):
        files = mutant(layout, seed)
        assert files == mutant(layout, seed)
        changed = [name for name in sound if files.get(name) != sound[name]]
        assert len(changed) <= 1 and set(files) <= set(sound)
        lengths |= {len(files.get(name, b"")) - len(sound[name]) for name in changed}
    assert min(lengths) < 0 < max(lengths) and 0 in lengths
    assert len(CHANGES) == 8


ENDINGS: dict[str, tuple[Callable[..., str], str]] = {
    "a crash": (lambda *of: os.kill(os.getpid(), signal.SIGKILL), "the process ended by SIGKILL"),
    "a hang": (lambda *of: signal.pause(), "no answer within 0.5 s"),
    "an exit": (lambda *of: os._exit(3), "the process ended by 3"),
    "memory": (lambda *of: str(len(bytes(2**40))), "MemoryError"),
    "a foreign error": (lambda *of: {}["key"], "KeyError: 'key'"),
    "a good end": (lambda *of: IMPORTED, IMPORTED),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_process_of_its_own_shows_how_it_ended(ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    does, says = ENDINGS[ending]
    monkeypatch.setattr(fuzz_sources, "run", does)
    monkeypatch.setattr(fuzz_sources, "SECONDS", 0.5 if ending == "a hang" else 60)
    assert watched("afhq", 0).strip().endswith(says)
