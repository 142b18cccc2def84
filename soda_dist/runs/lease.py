"""One trainer at a time: a lease on a run's folder, which names its holder and shows that it is alive.

The holder rewrites `lease.json` every `BEAT_S`. No clock of another machine is trusted: whoever finds a lease watches
whether it changes. It is taken over when it has not for `DEAD_S`, or at once when its process on this machine is gone.

Every write of training into the folder first compares the lease's token (`HeldFolder`), so a trainer that was frozen
or cut off, and replaced meanwhile, stops before it writes again. Neither disks nor object stores let pyarrow write on a
condition, so two races remain. Two trainers that start within `SETTLE_S` of each other may both train until the first
write of the one whose lease was replaced. A write that has passed its comparison may land after a takeover: a
checkpoint whose files two trainers wrote does not agree with its manifest, and a resume passes it over.
"""

import os
import platform
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from soda_dist.config.fields import CountOrZero, Node
from soda_dist.config.provenance import utc
from soda_dist.data.storage.folder import Folder, Writable
from soda_dist.data.storage.metadata import ContentError, check, read_json
from soda_dist.errors import UserError
from soda_dist.runs.folder import LEASE

BEAT_S, DEAD_S, LOOK_S, SETTLE_S = 5.0, 60.0, 1.0, 0.5
"""Between two heartbeats; until a holder without any counts as dead (a store's retries take up to 46 s); between two
looks at its lease; from writing a lease to reading it back."""
ONE = "one trainer at a time"
Text = Annotated[str, Field(max_length=300)]


class _Lease(Node):
    token: Text
    beat: CountOrZero
    host: Text
    job: Text
    process: CountOrZero
    started: Text
    machine: Text
    since: Text
    time: Text

    @property
    def holder(self) -> str:
        """Name who holds it, for a line."""
        return f"{self.host} ({self.job}, process {self.process}, since {self.since})"


_LEASE: TypeAdapter[Any] = TypeAdapter(_Lease)


class LeaseLostError(UserError):
    """Another trainer has the run now; nothing more may be written into it."""


@dataclass(frozen=True)
class HeldFolder(Folder):
    """A run's folder, or one below it, that is written and removed from only while the lease has this token.

    Picklable, so that it goes to training processes. Writing raises `LeaseLostError`.
    """

    root: str = ""
    token: str = ""

    def child(self, name: str) -> "HeldFolder":
        return HeldFolder(super().child(name).uri, self.root, self.token)

    def write(self, name: str, data: Writable) -> None:
        self._check()
        super().write(name, data)

    @contextmanager
    def replacing(self, name: str, scratch: str = "") -> Iterator[Path]:
        self._check()
        with super().replacing(name, scratch) as path:
            yield path

    def remove(self, name: str) -> None:
        self._check()
        super().remove(name)

    def remove_tree(self, name: str) -> None:
        self._check()
        super().remove_tree(name)

    def _check(self) -> None:
        found = _read(Folder(self.root))
        if found is None or found.token != self.token:
            raise _lost(self.root, found)


def _lost(uri: str, found: _Lease | None) -> LeaseLostError:
    got = f"{uri}, which {found.holder} has taken over" if found else f"{uri}, whose {LEASE} was removed"
    return LeaseLostError("--run", got, ONE, "stop one of the trainers; the same command resumes the run")


@contextmanager
def held(
    run: Folder, say: Callable[[str], None], job: str, pause: Callable[[float], object] = time.sleep
) -> Iterator[HeldFolder]:
    """Hold the lease of a run until the block ends; give the folder as its holder writes to it.

    Args:
        say: shows a line when an existing lease is watched or taken over, and when this one is lost.
        job: what the process belongs to, for messages of others.
        pause: waits some seconds.

    Raises:
        UserError: another trainer holds it and is alive.
    """
    lease = _acquired(run, say, job, pause)
    done = threading.Event()
    beating = threading.Thread(target=_beat, args=(run, lease, say, done), daemon=True)
    beating.start()
    try:
        yield HeldFolder(run.uri, run.uri, lease.token)
    finally:
        done.set()
        beating.join()
        _release(run, lease)


def _acquired(run: Folder, say: Callable[[str], None], job: str, pause: Callable[[float], object]) -> _Lease:
    found = _read(run)
    if found is not None:
        _wait_until_dead(run, found, say, pause)
    now = utc()
    mine = _Lease(
        token=secrets.token_hex(16),
        beat=0,
        host=platform.node(),
        job=job,
        process=os.getpid(),
        started=_started(os.getpid()) or "",
        machine=_machine(),
        since=now,
        time=now,
    )
    _write(run, mine)
    pause(SETTLE_S)
    found = _read(run)
    if found is None or found.token != mine.token:
        raise _refused(run, found)
    return mine


def _wait_until_dead(run: Folder, found: _Lease, say: Callable[[str], None], pause: Callable[[float], object]) -> None:
    """Return when the holder of the lease `found` is gone; raise `UserError` if it shows that it is alive."""
    if _process_is_gone(found):
        say(f"taking over {run.uri} from {found.holder}, whose process has ended")
        return
    say(f"{run.uri} is held by {found.holder}: watching for a heartbeat, up to {DEAD_S:.0f} s")
    for _ in range(round(DEAD_S / LOOK_S)):
        pause(LOOK_S)
        now = _read(run)
        if now is None:
            return
        if (now.token, now.beat) != (found.token, found.beat):
            raise _refused(run, now)
    say(f"taking over {run.uri} from {found.holder}: no heartbeat in {DEAD_S:.0f} s")


def _refused(run: Folder, found: _Lease | None) -> UserError:
    by = f"{found.holder}, alive at {found.time}" if found else "another trainer"
    return UserError("--run", f"{run.uri}, held by {by}", ONE, "stop that one, wait for its end, or use another --run")


def _beat(run: Folder, lease: _Lease, say: Callable[[str], None], done: threading.Event) -> None:
    """Renew the lease until `done`, or until another has it."""
    while not done.wait(BEAT_S):
        try:
            found = _read(run)
            if found is None or found.token != lease.token:
                say(str(_lost(run.uri, found)))
                return
            lease = lease.model_copy(update={"beat": lease.beat + 1, "time": utc()})
            _write(run, lease)
        except UserError as error:  # of the store; the next heartbeat may come through
            say(f"no heartbeat for {run.uri}: {error}")


def _release(run: Folder, lease: _Lease) -> None:
    """Remove the lease if it is still this one; an error would hide why training ended."""
    with suppress(Exception):
        found = _read(run)
        if found is not None and found.token == lease.token:
            run.remove(LEASE)


def _read(run: Folder) -> _Lease | None:
    """Read the lease; None = no one holds the run."""
    try:
        found = read_json(run, LEASE)
        check(_LEASE, found, run.file_uri(LEASE), "a lease, as written")
    except FileNotFoundError:
        return None
    except ContentError as error:
        remedy = "remove it if no trainer of this run is alive"
        raise UserError(error.field, error.got, error.allowed, remedy) from None
    return _Lease(**found)


def _write(run: Folder, lease: _Lease) -> None:
    run.write_json(LEASE, lease.model_dump())


def _machine() -> str:
    """Name this machine, its boot and its namespace of process numbers; empty where they are unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{platform.node()} {boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _process_is_gone(lease: _Lease) -> bool:
    """Whether the holder was a process of this machine that has ended; False = not known."""
    return bool(lease.machine) and lease.machine == _machine() and _started(lease.process) != lease.started


def _started(process: int) -> str | None:
    """Return when a process started, in the kernel's ticks; None if it has ended or the system does not tell."""
    try:
        text = Path(f"/proc/{process}/stat").read_text(errors="replace")
    except OSError:
        return None
    state, *fields = text.rpartition(")")[2].split()  # behind the program's name, which may hold anything
    return None if state in ("Z", "X") else fields[18]
