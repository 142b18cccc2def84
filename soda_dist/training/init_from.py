"""A run's initial weights: the EMA of another run's checkpoint, or an exported model (`--init-from URI@STEP`).

The source is read until the run's first checkpoint; later it may be gone.
"""

import hashlib
from typing import Any

from torch import Tensor

from soda_dist.data.storage.folder import Folder, open_folder
from soda_dist.errors import UserError
from soda_dist.models.lr_equalization import load_plain_state_dict, plain_state_dict
from soda_dist.models.method import Method
from soda_dist.runs.folder import begun_from, chosen_steps, complete_steps, config_text
from soda_dist.training.build import Fill
from soda_dist.training.checkpoint import MODEL, load_exported, load_model, weights_digest

FLAG = "--init-from"


def initial_weights(run: Folder, asked: str | None) -> dict[str, Any] | None:
    """Resolve what a run begins with: `asked`, `uri`, `step` (None = exported) and `digest`; None = random weights.

    Args:
        asked: URI@STEP, or URI = its latest step, or an exported folder; None = as the run began.

    Raises:
        UserError: no such weights, or the run has begun with others.
    """
    if not config_text(run):
        return None if asked is None else _resolved(asked)
    known = begun_from(run)
    names = [] if known is None else [known["asked"], f"{known['uri']}@{known['step']}"]
    if asked is not None and asked not in names:
        began = "random weights" if known is None else known["asked"]
        raise UserError(FLAG, f"{asked}, but the run at {run.uri} began with {began}", began, "use another --run")
    return known


def filling(run: Folder, initial: dict[str, Any] | None) -> Fill | None:
    """Return what fills the new model of a run, after reading it; None with a checkpoint, or without initial weights.

    Raises:
        UserError: the source is gone, damaged, or has changed since the run's first start.
    """
    if initial is None or complete_steps(run):
        return None
    source, step = open_folder(initial["uri"]), initial["step"]
    if _digest(source, step) != initial["digest"]:
        raise UserError(FLAG, f"{initial['uri']}, changed since the run began", "the same weights", "restore them")
    weights = plain_state_dict(load_exported(source)[0] if step is None else load_model(source, step)[0])
    return lambda model: _fill(model, weights, initial["asked"])


def _resolved(asked: str) -> dict[str, Any]:
    uri, step = asked, "latest"
    head, _, tail = asked.rpartition("@")
    if head and (tail == "latest" or tail.isdecimal()):
        uri, step = head, tail
    source = open_folder(uri)
    exported = uri == asked and not complete_steps(source) and source.exists(MODEL)
    number = None if exported else chosen_steps(source, step, FLAG)[0]
    return {"asked": asked, "uri": source.uri, "step": number, "digest": _digest(source, number)}


def _digest(source: Folder, step: int | None) -> str:
    if step is not None:
        chosen_steps(source, str(step), FLAG)
        return weights_digest(source, step, ema=True)
    try:
        return hashlib.sha256(source.read(MODEL)).hexdigest()
    except FileNotFoundError:
        raise UserError(FLAG, f"{source.uri} without {MODEL}", "an exported model", "restore it") from None


def _fill(model: Method, weights: dict[str, Tensor], asked: str) -> None:
    """Copy in the weights; raise a `UserError` that names the first that does not fit."""
    own = plain_state_dict(model)
    for name in (*own, *weights):
        ours, theirs = (list(found[name].shape) if name in found else None for found in (own, weights))
        if ours != theirs:
            got = (
                f"{asked}, which has {'no ' if theirs is None else ''}{name}{'' if theirs is None else f' of {theirs}'}"
            )
            allowed = f"the run's model, which has {'none' if ours is None else ours}"
            raise UserError(FLAG, got, allowed, "use weights of the same architecture")
    load_plain_state_dict(model, weights)
