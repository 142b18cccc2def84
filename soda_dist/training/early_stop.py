"""When a run ends before `train.steps`: a metric of held-out images that no longer improves (`train.stop`)."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import TypeAdapter

from soda_dist.config.fields import CountOrZero, Node
from soda_dist.config.sections import Stop
from soda_dist.data.storage.metadata import check


class _State(Node):
    best: float | None
    since: CountOrZero
    stopped: bool


_STATE: TypeAdapter[Any] = TypeAdapter(_State)


@dataclass
class Patience:
    """Best value so far and evaluations since; part of a checkpoint, so that a resumed run stops at the same step."""

    best: float | None = None
    since: int = 0
    stopped: bool = False

    def add(self, value: float, settings: Stop) -> None:
        """Take an evaluation's value. One that is not finite, or better by at most `min_delta`, is no improvement."""
        sign = -1.0 if settings.metric == "loss" else 1.0
        better = self.best is None or sign * (value - self.best) > settings.min_delta
        if better and math.isfinite(value):
            self.best, self.since = value, 0
        else:
            self.since += 1
        self.stopped = self.since >= settings.patience

    def state(self) -> dict[str, Any]:
        """Return JSON values for `restored`."""
        return asdict(self)


def restored(state: Any, where: str) -> Patience:
    """Make a `Patience` from its state, read from the file `where`; a `UserError` if it is damaged."""
    check(_STATE, state, where, "the state of train.stop, as written")
    return Patience(**state)
