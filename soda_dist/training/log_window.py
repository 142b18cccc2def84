"""Metrics between two log lines."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from soda_dist.config.schema import RunConfig
from soda_dist.data.pairs import Pairs
from soda_dist.data.storage.folder import Folder
from soda_dist.errors import UserError
from soda_dist.runs.metrics_log import METRICS, QUARANTINE, JsonLines
from soda_dist.training.context import WorkerContext
from soda_dist.training.engines.engine import MicroBatch, StepResult
from soda_dist.training.guard import Skips
from soda_dist.training.observers.observer import Observer
from soda_dist.training.ticker import Ticker, duration, rate_text
from soda_dist.training.to_device import to_device

FLUSH_SECONDS = 20.0


@dataclass
class LogWindow:
    """Losses, norms, waiting time, unreadable rows and retries since the last log line; syncs the device only then."""

    context: WorkerContext
    config: RunConfig
    run: Folder
    rows: int
    first_step: int
    observer: Observer | None = None
    _results: list[StepResult] = field(default_factory=list)
    _bad: list[dict[str, Any]] = field(default_factory=list)
    _waited: float = 0.0
    _retries: int = 0
    _unreadable: int = 0
    _paused: float = 0.0

    def __post_init__(self) -> None:
        self._metrics, self._quarantine = JsonLines(self.run, METRICS), JsonLines(self.run, QUARANTINE)
        if self.context.rank == 0:
            self._metrics.resume(self.first_step)
            self._quarantine.resume(self.first_step)
        train = self.config.train
        self.ticker = Ticker(self.context.say, step=self.first_step, total=train.steps, batch=train.global_batch)
        self._since = self._flushed = time.perf_counter()
        self._step = self._logged = self.first_step

    @contextmanager
    def shown_by_time(self) -> Iterator[Ticker]:
        """Show lines by time, on the first rank, until the block ends; store those that lead to a `UserError`."""
        with self.ticker.running() if self.context.rank == 0 else nullcontext():
            try:
                yield self.ticker
            except UserError:
                self.flush()
                raise

    def timed(self, batches: Iterator[Pairs], count: int) -> Iterator[MicroBatch]:
        """Yield the next `count` micro-batches on the device and record the time spent waiting for them."""
        for _ in range(count):
            start = time.perf_counter()
            self.ticker.doing("waiting for rows")
            pairs = next(batches)
            self._waited += time.perf_counter() - start
            self.ticker.doing("in this step")
            self._retries += int(pairs.retries.sum())
            for row, name, reason in pairs.unreadable():
                self._bad.append({"step": self._step + 1, "key": row, "name": name, "reason": reason})
            yield to_device(pairs, self.context.device)

    def add(self, result: StepResult) -> None:
        self._results.append(result)
        self._step += 1
        self.ticker.stepped()

    def paused(self, seconds: float) -> None:
        """Record a pause for a checkpoint, which the next line shows as `checkpoint_pause`."""
        self._paused += seconds

    def log(
        self, step: int, lr: float, facts: Mapping[str, float] = MappingProxyType({}), *, last: bool = False
    ) -> Skips:
        """Write the window's line with these further facts, and show it as `Ticker.log` does; call on every worker.

        Loss and gradient norm are means over the steps that were not skipped, None if all were. Lines with `facts` and
        the `last` one are shown at once.
        """
        steps = step - self._logged
        own = torch.tensor([self._waited, self._retries], device=self.context.device)
        waits, retries = self.context.sum(own).tolist()
        waited = waits / (self.context.world * steps)
        loss, norm, skips = self._means(step)
        bad = [row for rows in self.context.gather(self._bad) for row in rows]
        now = time.perf_counter()
        seconds = now - self._since
        batch = self.config.train.global_batch
        line = {
            "step": step,
            "images": step * batch,
            "epoch": round(step * batch / self.rows, 4),
            "loss": loss,
            "grad_norm": norm,
            "lr": lr,
            "skipped": skips.skipped,
            **self._probed(),
            **facts,
            "images_per_second": round(steps * batch / seconds, 2),
            "wait_fraction": round(min(1.0, waited * steps / seconds), 4),
            "unreadable": len(bad),
            "store_retries": int(retries),
            "time": round(time.time(), 1),
        }
        if self._paused:
            line["checkpoint_pause"], self._paused = round(self._paused, 4), 0.0
        if self.context.rank == 0:
            self._metrics.append(line)
            if self.observer is not None:
                self.observer.metrics(step, line)
            for row in bad:
                self._quarantine.append(row)
            if now - self._flushed > FLUSH_SECONDS:
                self.flush()
            shown = _shown(line, self.config.train.steps, self.ticker.remaining())
            self.ticker.log(shown, now=last or bool(facts))
        self._unreadable += len(bad)
        self._check_share(step)
        self._results, self._bad, self._waited, self._retries = [], [], 0.0, 0
        self._since, self._logged = now, step
        return skips

    def earlier(self) -> list[Skips]:
        """Return the windows before the first step, from the first rank's file; call on every worker."""
        lines = self._metrics.lines if self.context.rank == 0 else []
        starts = [0, *(line["step"] for line in lines)]
        own = [Skips(s, line["step"], int(line.get("skipped") or 0)) for s, line in zip(starts, lines, strict=False)]
        return [Skips(*window) for window in self.context.gather(own)[0]]

    def _means(self, step: int) -> tuple[float | None, float | None, Skips]:
        """Average loss and gradient norm over the finite steps; waits for the device."""
        columns = zip(*((r.loss, r.grad_norm, r.finite.float()) for r in self._results), strict=True)
        losses, norms, finite = torch.stack([torch.stack(column) for column in columns]).cpu().double().numpy()
        kept = finite > 0
        losses_lost, norms_lost = (int((~np.isfinite(values)).sum()) for values in (losses, norms))
        skips = Skips(self._logged, step, int((~kept).sum()), losses_lost, norms_lost, not kept[-1])
        if not kept.any():
            return None, None, skips
        return float(losses[kept].mean()), float(norms[kept].mean()), skips

    def _check_share(self, step: int) -> None:
        """Raise `UserError` on every worker if too many of the rows seen since the start could not be read."""
        seen, most = (step - self.first_step) * self.config.train.global_batch, self.config.train.max_unreadable
        if self._unreadable > most * seen:
            self.flush()
            got, allowed = f"{self._unreadable:,} of {seen:,} rows with unreadable images", f"at most {most:.2%}"
            remedy = f"see {self.run.file_uri(QUARANTINE)}; repair the data, or raise the limit"
            raise UserError("train.max_unreadable", got, allowed, remedy)

    def _probed(self) -> dict[str, float]:
        """Average the online probe's loss and accuracy over the window; empty without a probe."""
        probe = [result.probe for result in self._results if result.probe is not None]
        if not probe:
            return {}
        loss, hits, labels = torch.stack(probe).double().sum(0).tolist()
        return {"probe_loss": loss / max(labels, 1), "probe_accuracy": hits / max(labels, 1)}

    def flush(self) -> None:
        """Write pending lines to storage; from any thread."""
        if self.context.rank == 0:
            self._metrics.flush()
            self._quarantine.flush()
            self._flushed = time.perf_counter()


def _shown(line: dict[str, Any], total: int, remaining: float) -> str:
    loss = "none" if line["loss"] is None else f"{line['loss']:.4f}"
    text = (
        f"step {line['step']}/{total}  epoch {line['epoch']:.2f}  loss {loss}  lr {line['lr']:.2e}  "
        f"{rate_text(line['images_per_second'])}  waiting {line['wait_fraction']:.0%}  left {duration(remaining)}"
    )
    if "probe_accuracy" in line:
        text += f"  probe {line['probe_accuracy']:.1%}"
    text += "".join(f"  {name} {value:.4f}" for name, value in line.items() if name.startswith("validation_"))
    text += f"  skipped steps {line['skipped']}" if line["skipped"] else ""
    text += f"  unreadable rows {line['unreadable']}" if line["unreadable"] else ""
    return text + (f"  {line['store_retries']} storage retries" if line["store_retries"] else "")
