"""One trainer at a time: who is refused, who takes over, and who may not write any more."""

import os
import pickle
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from soda_dist.data.storage.folder import Folder, open_folder
from soda_dist.errors import UserError
from soda_dist.runs import lease
from soda_dist.runs.lease import LeaseLostError, held
from soda_dist.runs.results import write_result

LOOKS = round(lease.DEAD_S / lease.LOOK_S)


@pytest.fixture
def run(tmp_path: Path) -> Folder:
    return open_folder(str(tmp_path / "run"))


def never(seconds: float) -> None:
    """Seconds that pass at once."""


def silent(line: str) -> None:
    """Says nothing."""


class Pauses:
    """Counts pauses and acts in some of them."""

    def __init__(self, acts: dict[int, Callable[[], object]] | None = None) -> None:
        self.seconds: list[float] = []
        self._acts = acts or {}

    def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)
        self._acts.get(len(self.seconds), lambda: None)()


def put(run: Folder, **fields: Any) -> None:
    """A lease of another machine."""
    known = {
        "token": "theirs", "beat": 4, "host": "node-7", "job": "Ray job 02", "process": 12, "started": "99",
        "machine": "another", "since": "2026-01-02T03:04:05Z", "time": "2026-01-02T03:05:05Z",
    }  # fmt: skip
    run.write_json("lease.json", known | fields)


def test_it_names_its_holder_while_held_and_is_gone_after(every_uri: str) -> None:
    run = open_folder(every_uri)
    for error in (None, ValueError("x")):
        try:
            with held(run, silent, "Ray job 01", never) as mine:
                found = run.read_json("lease.json")
                assert (found["job"], found["process"]) == ("Ray job 01", os.getpid()) and found["host"]
                mine.child("checkpoints").write("a", b"1")
                if error is not None:
                    raise error
        except ValueError as raised:
            assert raised is error
        assert not run.exists("lease.json") and run.read("checkpoints/a") == b"1"


def test_a_second_trainer_is_refused_in_one_line_at_the_first_heartbeat(run: Folder) -> None:
    put(run)
    pauses, said = Pauses({3: lambda: put(run, beat=5)}), list[str]()
    with pytest.raises(UserError) as caught, held(run, said.append, "x", pauses):
        pytest.fail("two trainers")
    assert str(caught.value) == (
        f"--run: got {run.uri}, held by node-7 (Ray job 02, process 12, since 2026-01-02T03:04:05Z), alive at "
        "2026-01-02T03:05:05Z; allowed: one trainer at a time; stop that one, wait for its end, or use another --run"
    )
    assert len(pauses.seconds) == 3 and run.read_json("lease.json")["token"] == "theirs"
    assert said == [f"{run.uri} is held by node-7 (Ray job 02, process 12, since 2026-01-02T03:04:05Z): watching for a "
                    "heartbeat, up to 60 s"]  # fmt: skip


def test_without_a_heartbeat_it_is_taken_over_whatever_the_clocks_say(run: Folder) -> None:
    put(run, time="2999-01-01T00:00:00Z")
    pauses, said = Pauses(), list[str]()
    with held(run, said.append, "x", pauses):
        assert run.read_json("lease.json")["job"] == "x"
    assert pauses.seconds == [lease.LOOK_S] * LOOKS + [lease.SETTLE_S]
    assert said[1].startswith(f"taking over {run.uri} from node-7 ") and said[1].endswith("no heartbeat in 60 s")


def test_a_lease_that_ends_while_it_is_watched_is_taken_at_once(run: Folder) -> None:
    put(run)
    pauses = Pauses({2: lambda: run.remove("lease.json")})
    with held(run, silent, "x", pauses):
        assert len(pauses.seconds) == 3


@contextmanager
def child() -> Iterator[int]:
    """A process that waits; at the end it is killed, if it lives, and reaped."""
    reads, writes = os.pipe()
    process = os.fork()
    if process == 0:
        os.read(reads, 1)
        os._exit(0)
    try:
        yield process
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        os.close(reads)
        os.close(writes)


@pytest.mark.parametrize("what", ["killed", "another with its number", "alive", "of another machine"])
def test_only_a_process_known_to_have_ended_is_replaced_without_a_wait(what: str, run: Folder) -> None:
    """The killed one is a zombie still: no one has asked how it ended."""
    with child() as process:
        started = lease._started(process)
        assert started is not None
        machine = "another" if what == "of another machine" else lease._machine()
        put(run, process=process, started="1" if what.startswith("another") else started, machine=machine)
        if what in ("killed", "of another machine"):
            os.kill(process, signal.SIGKILL)
            os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT)
        pauses, said = Pauses(), list[str]()
        with held(run, said.append, "x", pauses):
            pass
    at_once = what in ("killed", "another with its number")
    assert pauses.seconds[0] == (lease.SETTLE_S if at_once else lease.LOOK_S)
    assert at_once == said[0].endswith("whose process has ended")


def test_of_two_that_start_together_one_is_refused(run: Folder) -> None:
    with pytest.raises(UserError, match=r"held by node-7"), held(run, silent, "x", Pauses({1: lambda: put(run)})):
        pytest.fail("two trainers")
    assert run.read_json("lease.json")["token"] == "theirs"


WRITES: dict[str, Callable[[Folder], object]] = {
    "write": lambda run: run.write("metrics.jsonl", b"x"),
    "write JSON": lambda run: run.write_json("provenance.json", []),
    "write below": lambda run: run.child("checkpoints/000000003").write("manifest.json", b"x"),
    "remove": lambda run: run.remove("kept"),
    "remove a folder": lambda run: run.child("old").remove_tree(""),
    "replace": lambda run: run.replacing("kept").__enter__(),
    "in another process": lambda run: pickle.loads(pickle.dumps(run)).write("metrics.jsonl", b"x"),
}


@pytest.mark.parametrize("what", WRITES)
@pytest.mark.parametrize("by", ["another", "nobody"])
def test_who_has_lost_it_changes_nothing_any_more(what: str, by: str, run: Folder) -> None:
    with held(run, silent, "x", never) as mine:
        for name in ("kept", "old/file"):
            mine.write(name, b"1")
        put(run) if by == "another" else run.remove("lease.json")
        before = {entry.name: run.read(entry.name) for entry in run.list()}
        with pytest.raises(LeaseLostError, match="node-7 .* has taken over" if by == "another" else "was removed"):
            WRITES[what](mine)
        assert {entry.name: run.read(entry.name) for entry in run.list()} == before
        assert mine.read("kept") == b"1"
    assert run.exists("lease.json") == (by == "another"), "another's lease is left alone"


class Beats:
    """An event that is not set in the first looks; in each something may happen."""

    def __init__(self, *acts: Callable[[], object]) -> None:
        self._acts = list(acts)

    def wait(self, seconds: float) -> bool:
        assert seconds == lease.BEAT_S
        if not self._acts:
            return True
        self._acts.pop(0)()
        return False


def test_it_beats_until_another_has_it(run: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    said, beats = list[str](), list[int]()
    look = lambda: beats.append(run.read_json("lease.json")["beat"])  # noqa: E731
    own = lease._acquired(run, silent, "x", never)
    write = lease._write

    def fails() -> None:
        def refuse(*_: object) -> None:
            monkeypatch.setattr(lease, "_write", write)
            raise UserError("store", "no answer", "an answer", "wait")

        monkeypatch.setattr(lease, "_write", refuse)

    lease._beat(run, own, said.append, Beats(look, look, fails, look, look, lambda: put(run), pytest.fail))
    assert beats == [0, 1, 2, 4] and len(said) == 2
    assert "no heartbeat for" in said[0] and "node-7" in said[1] and "has taken over" in said[1]
    assert run.read_json("lease.json")["token"] == "theirs"


@pytest.mark.parametrize("content", ["{", "[]", '{"token": 1}', "[" * 10**5])
def test_a_damaged_lease_is_named(content: str, run: Folder) -> None:
    run.write("lease.json", content.encode())
    with pytest.raises(UserError, match=r"lease\.json: got .*remove it if no trainer"), held(run, silent, "x", never):
        pytest.fail("held")


def test_evaluation_needs_no_lease(run: Folder) -> None:
    with held(run, silent, "x", never):
        write_result(open_folder(run.uri), 3, {"task": "knn"}, {"a.png": b"x"}, ema=True)
        assert run.exists("eval/3/knn.json")
