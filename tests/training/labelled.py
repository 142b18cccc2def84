"""Pairs whose label a random encoder's latents tell: red images, and blue ones."""

from dataclasses import replace

import numpy as np

from soda_dist.config import RunConfig
from soda_dist.data.labels import ProbeLabels
from soda_dist.data.pairs import Pairs
from tests.tiny import pairs_at

CLASS = ProbeLabels(("blue",), 2, 0)
ATTRIBUTES = ProbeLabels(("blue", "large"), 2, 2)
STEPS = {"steps": 10, "log_every_steps": 5, "checkpoint_every_steps": 5}


def labelled(config: RunConfig, start: int, stop: int, columns: int = 1) -> Pairs:
    """`pairs_at` in the colour that the first label says; a second label is of nothing that is seen."""
    pairs = pairs_at(config, start, stop)
    label = np.array([np.random.default_rng([7, i]).integers(0, 2, columns) for i in range(start, stop)])
    colours = np.array([[220, 0, 0], [0, 0, 220]], np.uint8)[label[:, 0], None, None, None]
    source = (pairs.source // 8 + colours) * pairs.present[..., None, None, None]
    return replace(pairs, source=source, label=label.astype(np.int64))


def labelled_feed(config: RunConfig, rank: int = 0, columns: int = 1):
    """As `tests.tiny.feed`; without labels where the configuration has no online probe."""
    micro, workers, batch = config.micro_batch, config.scale.workers, config.train.global_batch
    nothing = np.zeros((micro, 0), np.int64)

    def batches(first_step: int):
        for step in range(first_step, config.train.steps):
            for j in range(config.accumulation):
                start = step * batch + j * micro * workers + rank * micro
                pairs = labelled(config, start, start + micro, columns)
                yield pairs if config.train.online_probe else replace(pairs, label=nothing)

    return batches
