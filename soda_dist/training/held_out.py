"""What a run measures on held-out images while it trains: `train.validation_every_steps`, `stop` and `keep_best`."""

from collections.abc import Sequence
from typing import Protocol

from soda_dist.config.schema import RunConfig
from soda_dist.data.storage.folder import Folder
from soda_dist.runs.folder import validation_picture
from soda_dist.training.early_stop import Patience
from soda_dist.training.engines.engine import Engine
from soda_dist.training.observers.observer import Observer
from soda_dist.training.validation import Findings

PICTURE = "validation"
"""Name of the picture for observers."""


class Measure(Protocol):
    """Measures an engine's EMA weights, as `Validation` does."""

    def measure(self, engine: Engine, metrics: Sequence[str], *, picture: bool) -> Findings:
        """Compute metrics by name and, on the first rank, draw a picture; call on every rank."""


class HeldOut:
    """Knows what is due at a step, keeps the pictures and tells `patience`.

    Args:
        validation: None = nothing is measured.
        patience: None = `train.stop` is off.
        end: the last step of this start, which is checkpointed.
    """

    def __init__(
        self,
        validation: Measure | None,
        patience: Patience | None,
        config: RunConfig,
        run: Folder,
        observer: Observer | None,
        end: int,
    ) -> None:
        self._validation, self.patience = validation, patience
        self._config, self._run, self._observer, self._end = config, run, observer, end

    @property
    def stopped(self) -> bool:
        """Whether `train.stop` has ended the run."""
        return self.patience is not None and self.patience.stopped

    def due(self, step: int) -> bool:
        """Whether something is measured after `step`."""
        return self._validation is not None and (self._watched(step) or self._judged(step) or self._compared(step))

    def facts(self, step: int, engine: Engine) -> dict[str, float]:
        """Measure what is due, for the log line of `step`; call on every rank."""
        if self._validation is None or not self.due(step):
            return {}
        train, names = self._config.train, list[str]()
        if self._watched(step):
            names += ["loss", "probe_accuracy"] if train.online_probe else ["loss"]
        if self._judged(step):
            names.append(train.stop.metric)
        if self._compared(step):
            names.append(train.keep_best)
        found = self._validation.measure(engine, list(dict.fromkeys(names)), picture=self._watched(step))
        if found.picture is not None:
            self._run.write(validation_picture(step), found.picture)
            if self._observer is not None:
                self._observer.picture(step, PICTURE, found.picture)
        facts = {f"validation_{name}": value for name, value in found.values.items()}
        if self._judged(step):
            assert self.patience is not None
            self.patience.add(found.values[train.stop.metric], train.stop)
            facts["stopped"] = self.patience.stopped
        return facts

    def _watched(self, step: int) -> bool:
        every = self._config.train.validation_every_steps
        return every is not None and step % every == 0

    def _compared(self, step: int) -> bool:
        train = self._config.train
        return train.keep_best != "none" and (step % train.checkpoint_every_steps == 0 or step == self._end)

    def _judged(self, step: int) -> bool:
        return self.patience is not None and step % self._config.train.stop.every_steps == 0
