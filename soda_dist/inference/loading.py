"""From a URI to a model: a run, a checkpoint, an exported folder, an encoder's file, or timm."""

from collections.abc import Sequence
from os import PathLike, fspath

import torch

from soda_dist.config.load import with_overrides
from soda_dist.data.storage.folder import Folder, open_folder
from soda_dist.errors import UserError
from soda_dist.evaluation.model_sources import TIMM, Checkpoint, Exported, ModelSource, encoder_source
from soda_dist.inference.model import Model
from soda_dist.runs.folder import CHECKPOINTS, CONFIG, chosen_steps, open_run, parse_step
from soda_dist.training.checkpoint import MODEL
from soda_dist.training.context import chosen_device

ALLOWED = f"a run, its {CHECKPOINTS}/STEP, a folder with {MODEL} and config.json, encoder.safetensors, or timm:NAME"
FREE_SECTIONS = ("sampling", "evaluation")
"""What may be overridden when a model is loaded."""


def load(
    uri: str | PathLike[str],
    *,
    step: int | None = None,
    ema: bool = True,
    device: str | torch.device | None = None,
    overrides: Sequence[str] = (),
    weights: str | None = None,
    weights_sha256: str | None = None,
) -> Model:
    """Load a trained model.

    Args:
        uri: a run's folder, a checkpoint's (`RUN/checkpoints/STEP`), a folder with `model.safetensors` and
            `config.json`, an `encoder.safetensors` with the `config.json` beside it, or `timm:NAME`.
        step: of a run's complete checkpoint; None = the latest.
        ema: the moving average of the weights, rather than the weights that training resumes from; of runs only.
        device: `cpu`, `cuda` or `cuda:N`; None = `cuda` where it is available.
        overrides: `a.b=value` of the sections sampling and evaluation, such as `sampling.method=ddim`.
        weights, weights_sha256: a file of weights for a timm model and its digest; None = those that timm downloads.

    Raises:
        UserError: no such model, a damaged file, or arguments that do not belong together.
    """
    place = chosen_device(device)
    source = model_source(fspath(uri), step=step, ema=ema, weights=weights, weights_sha256=weights_sha256, flag="load")
    config = with_overrides(source.configuration(), overrides, FREE_SECTIONS, "the weights fix all other settings")
    return Model(source, config, place)


def model_source(
    uri: str,
    *,
    step: int | None = None,
    ema: bool = True,
    weights: str | None = None,
    weights_sha256: str | None = None,
    flag: str = "--encoder",
) -> ModelSource:
    """Find what `uri` names, reading names of files alone; arguments as those of `load`, `flag` names `uri` in errors.

    Raises:
        UserError: as `load`.
    """
    alone = uri.startswith(TIMM) or uri.endswith(".safetensors")
    if alone or weights is not None or weights_sha256 is not None:
        _refuse_choice(uri, step, ema)
        return encoder_source(uri, weights, weights_sha256)
    folder = open_folder(uri)
    run, inner = _run_of(folder)
    if run is None:
        if not folder.exists(MODEL):
            got = f"{folder.uri}, which has neither {CONFIG} nor {MODEL}"
            raise UserError(flag, got, ALLOWED, "check the URI")
        _refuse_choice(uri, step, ema)
        return Exported(folder)
    if inner is not None and step not in (None, inner):
        raise UserError("step", f"{step} with {uri}", "the step of that folder", "leave it out")
    wanted = step if inner is None else inner
    (chosen,) = chosen_steps(run, "latest" if wanted is None else str(wanted), flag)
    return Checkpoint(run, chosen, ema)


def _run_of(folder: Folder) -> tuple[Folder | None, int | None]:
    """Return the run that `folder` is, or holds the checkpoint of, and that checkpoint's step; None = not so."""
    if folder.exists(CONFIG):
        return open_run(folder.uri), None
    above, _, name = folder.uri.rpartition("/")
    root, _, middle = above.rpartition("/")
    step = parse_step(name)
    if middle == CHECKPOINTS and step is not None and Folder(root).exists(CONFIG):
        return open_run(root), step
    return None, None


def _refuse_choice(uri: str, step: int | None, ema: bool) -> None:
    """Raise a `UserError` for a choice that only runs have."""
    for field, got, default in (("step", step, None), ("ema", ema, True)):
        if got != default:
            raise UserError(field, f"{got} with {uri}", f"{default}, since only runs keep several weights", "remove it")
