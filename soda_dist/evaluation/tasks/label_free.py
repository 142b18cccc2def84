"""Quality of latents without labels, for data that have none: `metrics.label_free` on two views of each test image."""

import time
from dataclasses import replace

import numpy as np
import torch

from soda_dist.errors import UserError
from soda_dist.evaluation.context import Context, Result
from soda_dist.evaluation.features.extraction import collect
from soda_dist.evaluation.features.read_point import needs_point
from soda_dist.metrics.label_free import collapse, measure
from soda_dist.runs.results import ENCODERS


def check(context: Context) -> None:
    """Raise a `UserError` for a method without an encoder, views without cameras, or fewer than two images."""
    data = context.config.data
    if needs_point(context.config):
        remedy = "leave out label_free: the layer of a denoiser is chosen by labels"
        raise UserError("--tasks", "label_free of a denoiser's activations", "latents of an encoder", remedy)
    if data.pose == "cameras" and data.augmentation.flip:
        got = "label_free with data.pose=cameras and data.augmentation.flip=true"
        raise UserError("--tasks", got, "views that are not mirrored", "leave it out: a mirrored view has no camera")
    context.check_readable("test", context.rows("test", context.config.evaluation.label_free.images))


def judge(context: Context) -> Result:
    """Write `label_free.json`: the scores of each encoder, and a warning if the trained one's latents collapsed."""
    began = time.monotonic()
    e = context.config.evaluation
    pieces = context.pieces("test", limit=e.label_free.images)
    place = context.latents(e.test_split, (), passes=True)
    one, other = (
        collect(context.workers, place, [replace(piece, number=number) for piece in pieces], context.say)
        for number in range(2)
    )
    context.check_readable("test", len(one))
    encoders = {}
    for name in (name for name in ENCODERS if name in one.arrays):
        views = (torch.from_numpy(each.arrays[name].astype(np.float32)) for each in (one, other))
        encoders[name] = measure(*views)
    warning = collapse(encoders["trained"])
    facts = {
        "splits": {"test": e.test_split},
        "counts": {"images": len(one), "unreadable": len(one.unreadable)},
        "metric": "retrieval",
        "value": encoders["trained"]["retrieval"],
        "encoders": encoders,
        "warning": warning,
        "settings": e.label_free.model_dump(mode="json"),
    }
    context.say(f"label-free measures at step {context.step}: two views of {len(one):,} images")
    for name, scores in encoders.items():
        shown = f"retrieval {scores['retrieval']:6.1%}, effective rank {scores['effective_rank']:.1f}"
        context.say(f"  {ENCODERS[name]:12}{shown} of {scores['dimension']:.0f}")
    if warning:
        context.say(f"warning: the latents have collapsed: {warning}")
    return context.record("label_free", facts, {}, began)
