"""Writing checkpoints beside training, which stops for a copy of the state in memory alone.

Ranks share nothing but the folder: each writes its files and a list of them, and the first rank waits for the lists
before it writes the manifest. No collective runs in the background.
"""

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from types import MappingProxyType, TracebackType
from typing import Any

from soda_dist.config.older import FORMAT
from soda_dist.config.schema import RunConfig
from soda_dist.data.storage.folder import Folder
from soda_dist.data.storage.metadata import read_json
from soda_dist.runs.folder import BEST, MANIFEST, begun_steps, checkpoint_folder, complete_steps, remove_checkpoint
from soda_dist.runs.metrics_log import METRICS, read_lines
from soda_dist.training.build import COLLECTIVE_TIMEOUT_S
from soda_dist.training.checkpoint_exports import Exports, pieces, stored_pieces
from soda_dist.training.checkpoint_files import BUFFERS, ONLINE_PROBE, STOP, state_prefix
from soda_dist.training.context import WorkerContext
from soda_dist.training.early_stop import Patience
from soda_dist.training.engines.engine import Engine
from soda_dist.training.finite import UnstableError, refuse_not_finite
from soda_dist.training.keep import best_step, kept
from soda_dist.training.snapshot import Snapshot

LOOK_S = 0.25
"""Between two looks at the folder for other ranks' lists."""
ABANDON_S = 3.0
"""How long a rank that fails leaves its last checkpoint to be written."""
Entry = dict[str, Any]
"""A file in the manifest: name, bytes, sha256."""


class CheckpointWriter:
    """Writes a run's checkpoints, one at a time, from one thread of each rank; a context manager around the loop.

    Leaving the block waits for the last checkpoint; leaving it by an error on one of several ranks waits `ABANDON_S`,
    since another may be lost.
    """

    def __init__(self, run: Folder, engine: Engine, context: WorkerContext, config: RunConfig) -> None:
        self._run, self._engine, self._context, self._config = run, engine, context, config
        self._snapshot = Snapshot()
        self._exports = Exports(engine) if context.rank == 0 else None
        self._values = _measured(run, config) if context.rank == 0 else {}
        self._begun = set(context.gather(begun_steps(run) if context.rank == 0 else [])[0])
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._abandoned = threading.Event()

    def save(
        self,
        step: int,
        patience: Patience | None = None,
        facts: Mapping[str, float] = MappingProxyType({}),
        first: Callable[[], None] = lambda: None,
    ) -> float:
        """Copy the state of `step` and begin to write it; call on every rank.

        Args:
            patience: the state of `train.stop`; None = off.
            facts: what was measured at the step, as in `metrics.jsonl`.
            first: called in the background before the checkpoint is complete, on the first rank.

        Returns:
            The seconds that training stood still, with those for the checkpoint before to be written.

        Raises:
            UnstableError: a value is not finite; nothing is written.
            Exception: what stopped the one before.
        """
        began = time.perf_counter()
        self.wait()
        self._raise()
        refuse_not_finite(self._engine, self._context, step)
        if step in self._begun:  # by an attempt that was interrupted, or one that found it damaged
            if self._context.rank == 0:
                remove_checkpoint(self._run, step)
            self._context.barrier()
        self._begun.add(step)
        if (value := facts.get(_measure(self._config))) is not None:
            self._values[step] = value
        self._snapshot.take(self._engine, first=self._context.rank == 0)
        updates, state = self._engine.updates, None if patience is None else patience.state()
        self._thread = threading.Thread(target=self._guarded, args=(step, updates, state, first), daemon=True)
        self._thread.start()
        return time.perf_counter() - began

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is None or isinstance(error, UnstableError):  # on every rank
            self._finish()
        else:
            self.wait(None if self._context.world == 1 else ABANDON_S)
            self._abandoned.set()

    def _finish(self) -> None:
        """Wait until every rank has written its part; raise on every rank what stopped one."""
        self.wait()
        error = self._error
        told = self._context.gather(None if error is None else f"{type(error).__name__}: {error}")
        self._raise()
        others = [text for text in told if text is not None]
        if others:
            raise RuntimeError(f"another worker could not write its part of the last checkpoint: {others[0]}")

    def wait(self, seconds: float | None = None) -> None:
        """Wait, at most `seconds`, until this rank has written its part of the last checkpoint."""
        if self._thread is not None:
            self._thread.join(seconds)

    def _raise(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _guarded(self, *args: Any) -> None:
        try:
            self._write(*args)
        except BaseException as error:  # shown where training meets it
            self._error = error

    def _write(self, step: int, updates: int, patience: dict[str, Any] | None, first: Callable[[], None]) -> None:
        folder, rank, world = checkpoint_folder(self._run, step), self._context.rank, self._context.world
        own, copied = state_prefix(rank, world), self._snapshot
        files = [_put(folder, f"{own}{n:05d}.safetensors", part.content) for n, part in enumerate(copied.parts)]
        if rank > 0:
            folder.write_json(_list_name(rank, world), files)
            return
        assert self._exports is not None and copied.buffers is not None
        first()
        files += self._small_files(folder, patience)
        lists = dict(self._lists(folder))
        theirs = [entry for _, entries in sorted(lists.items()) for entry in entries]
        ema = [pieces(part.tensors) for part in copied.parts] + [stored_pieces(folder, e["name"]) for e in theirs]
        made = self._exports.make(chain.from_iterable(ema), copied.buffers.tensors | copied.frozen)
        files += theirs + [_put(folder, name, file.content) for name, file in made.items()]
        manifest = {"version": FORMAT, "step": step, "world": world, "updates": updates, "files": files}
        folder.write(MANIFEST, json.dumps(manifest, indent=1).encode())
        for other in lists:
            folder.remove(_list_name(other, world))
        self._clear()

    def _clear(self) -> None:
        """Remove the checkpoints that no rule keeps, and note which is the best."""
        steps, train, values = complete_steps(self._run), self._config.train, self._values
        if (best := best_step(steps, train, values)) is not None:
            self._run.write_json(BEST, {"step": best, "metric": train.keep_best, "value": values[best]})
        for old in sorted(set(steps) - kept(steps, train, values)):
            remove_checkpoint(self._run, old)

    def _small_files(self, folder: Folder, patience: dict[str, Any] | None) -> Iterator[Entry]:
        copied = self._snapshot
        assert copied.buffers is not None
        yield _put(folder, BUFFERS, copied.buffers.content)
        yield _put(folder, "config.json", json.dumps(self._config.model_dump(), indent=1).encode())
        if copied.probe is not None:
            yield _put(folder, ONLINE_PROBE, copied.probe.content)
        if patience is not None:
            yield _put(folder, STOP, json.dumps(patience).encode())

    def _lists(self, folder: Folder) -> Iterator[tuple[int, list[Entry]]]:
        """Wait for the other ranks' files."""
        world, began = self._context.world, time.monotonic()
        waiting = set(range(1, world))
        while waiting:
            there = {entry.name for entry in folder.files()}
            for rank in sorted(waiting):
                if _list_name(rank, world) in there:
                    yield rank, read_json(folder, _list_name(rank, world))
                    waiting.remove(rank)
            if waiting and self._abandoned.wait(LOOK_S):
                raise RuntimeError(f"{folder.uri}: left incomplete, since training ended by an error")
            if waiting and time.monotonic() - began > COLLECTIVE_TIMEOUT_S:
                raise RuntimeError(f"{folder.uri}: no files of worker {min(waiting)} in {COLLECTIVE_TIMEOUT_S:.0f} s")


def _measure(config: RunConfig) -> str:
    """Name the metric of `train.keep_best` in `metrics.jsonl`."""
    return f"validation_{config.train.keep_best}"


def _measured(run: Folder, config: RunConfig) -> dict[int, float]:
    """Read the values that earlier starts measured for `train.keep_best`, by step."""
    name = _measure(config)
    lines = [] if config.train.keep_best == "none" else read_lines(run, METRICS)
    return {line["step"]: line[name] for line in lines if isinstance(line.get(name), float | int)}


def _list_name(rank: int, world: int) -> str:
    return f"files-{rank:05d}-of-{world:05d}.json"


def _put(folder: Folder, name: str, content: bytes | memoryview) -> Entry:
    folder.write(name, content)
    return {"name": name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
