"""Reconstructions from an image's own latent (section 4.2.1) at several guidance scales and steps; free samples."""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from soda_dist.config.schema import RunConfig
from soda_dist.config.sections import Sampling
from soda_dist.errors import UserError
from soda_dist.evaluation.context import Context, Result
from soda_dist.evaluation.images.generated_sets import ImageSet, SetPiece, folder_of, generate_set, plan_images
from soda_dist.evaluation.images.judges import check_weights, facts_of, set_moments
from soda_dist.evaluation.images.sampling import STRIP_IMAGES, SampleJob, SampleOutput, pick_inputs, sample_all
from soda_dist.evaluation.images.set_scores import check_lpips, lpips_facts, score_line, set_scores
from soda_dist.metrics.distributions import fid
from soda_dist.parallel.pool import Pool
from soda_dist.parallel.progress import Say
from soda_dist.plots.guidance_sweep import sweep_png
from soda_dist.plots.image_grid import image_grid

GUIDANCE = (1.0, 2.0, 3.0)
"""Scales at which reconstructions are shown: plain conditional sampling and the paper's range."""
FREE_COLUMNS = 4
"""Samples in a row of the sheet of samples without a source."""


def check(context: Context) -> None:
    """Raise a `UserError` for a method without a source."""
    if context.config.method == "unconditional":
        raise UserError("--tasks", "reconstruction of an unconditional run", "samples, fid", "leave it out")
    check_lpips(context)
    if context.config.evaluation.inception.weights is not None:
        check_weights(context.config, "inception")


def check_samples(context: Context) -> None:
    """Raise a `UserError` for a method that cannot draw without a source."""
    if context.config.method not in ("soda", "unconditional"):
        got = f"samples of method {context.config.method}"
        raise UserError("--tasks", got, "methods soda and unconditional", "leave it out")


def reconstruct(context: Context) -> Result:
    """Write `reconstruction.json`, `reconstruction.png`, `denoising.png` and, for several samplings, `sweep.png`."""
    began = time.monotonic()
    config = context.config
    ways = _ways(config)
    rows = [scored(context, sampling) for sampling in ways]
    inception = _add_fid(context, ways, rows) if config.evaluation.inception.weights is not None else None
    facts: dict[str, Any] = {
        "split": config.evaluation.test_split,
        "splits": {"test": config.evaluation.test_split},
        "counts": rows[0]["counts"],
        "limits": {"test": config.evaluation.reconstruction.images},
        "images": rows[0]["counts"]["images"],
        "metric": "psnr",
        **rows[0]["psnr"],
        "guidance": {f"{row['guidance']:g}": row for row in rows if row["steps"] == config.sampling.steps},
        "sweep": rows,
        "settings": config.sampling.model_dump(mode="json"),
        "lpips": lpips_facts(context),
        "inception": inception,
    }
    pictures, curves = show(context.workers, config, context.say), sweep_png(rows)
    return context.record("reconstruction", facts, pictures | ({"sweep.png": curves} if curves else {}), began)


def scored(context: Context, sampling: Sampling) -> dict[str, Any]:
    """Reconstruct images of the test split and score their similarity to the originals."""
    what = f"reconstructions at {_way(sampling)}"
    pieces = _members(context, sampling)
    scores, counts = set_scores(context, generate_set(context, pieces, what), pieces)
    context.say(f"{what}: {score_line(scores)}")
    return {"guidance": sampling.guidance, "steps": sampling.steps, "counts": counts, **scores}


def _add_fid(context: Context, ways: Sequence[Sampling], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Add the FID of each sampling to its row; return a result's record of Inception's weights.

    The real images are the same for each.
    """
    pieces = [_members(context, sampling) for sampling in ways]
    real, _ = set_moments(context, folder_of(context, pieces[0][0].image_set), pieces[0], "target", 0)
    for sampling, some, row in zip(ways, pieces, rows, strict=True):
        drawn, _ = set_moments(context, folder_of(context, some[0].image_set), some, "image", 0)
        if drawn.count > 1:
            row["fid"] = {"value": fid(drawn, real), "standard_error": None}
            context.say(f"FID of {drawn.count:,} reconstructions at {_way(sampling)}: {row['fid']['value']:.2f}")
    return context.workers.call(facts_of, "inception")


def _members(context: Context, sampling: Sampling) -> list[SetPiece]:
    e = context.config.evaluation
    return plan_images(context, ImageSet("reconstruction", e.test_split, sampling), e.reconstruction.images)


def _way(sampling: Sampling) -> str:
    return f"guidance {sampling.guidance:g}, {sampling.steps} steps"


def _ways(config: RunConfig) -> list[Sampling]:
    """List the run's own sampling first; the others differ from it in guidance or in the number of steps."""
    own, sweep = config.sampling, config.evaluation.reconstruction
    if config.method == "encdec":  # draws at once
        return [own.model_copy(update={"guidance": 1.0})]
    ways = [own.model_copy(update={"guidance": w}) for w in dict.fromkeys((own.guidance, *sweep.guidance))]
    return ways + [own.model_copy(update={"steps": n}) for n in dict.fromkeys(sweep.steps) if n != own.steps]


def samples(context: Context) -> Result:
    """Write `samples.json` and `samples.png`: images without any source."""
    began = time.monotonic()
    facts, pictures = free_samples(context.workers, context.config, context.say)
    return context.record("samples", facts, pictures, began)


def show(workers: Pool, config: RunConfig, say: Say) -> dict[str, bytes]:
    """Draw the pictures of reconstructions, by file name: a row for each of a few images."""
    inputs = workers.call(pick_inputs, config.evaluation.images)
    if config.method == "encdec":
        (drawn,) = sample_all(workers, [SampleJob(inputs, 1.0, 0, 0)], say)
        rows = [list(row) for row in zip(inputs.target, drawn.images, strict=True)]
        return {"reconstruction.png": image_grid(rows, ["source", "decoded"])}
    own = config.sampling.guidance
    strip = min(STRIP_IMAGES, len(inputs.keys))
    reconstructed = [SampleJob(inputs, guidance, 0, 0) for guidance in GUIDANCE]
    *drawn_all, other, free = sample_all(
        workers, [*reconstructed, SampleJob(inputs, own, 1, strip), SampleJob(inputs, 0.0, 0, 0)], say
    )
    columns = ["source", *(f"guidance {w:g}" for w in GUIDANCE), f"other noise, guidance {own:g}", "no latent"]
    rows = [
        list(row)
        for row in zip(inputs.target, *(each.images for each in drawn_all), other.images, free.images, strict=True)
    ]
    return {"reconstruction.png": image_grid(rows, columns), "denoising.png": _strip(other)}


def free_samples(workers: Pool, config: RunConfig, say: Say) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Draw images without any source: facts for samples.json, and the pictures by file name."""
    inputs = workers.call(pick_inputs, config.evaluation.images)
    without = 1.0 if config.method == "unconditional" else 0.0  # it has no condition to drop
    noises = [SampleJob(inputs, without, 1 + number, 0) for number in range(FREE_COLUMNS)]
    strip = replace(noises[0], strip=min(STRIP_IMAGES, len(inputs.keys)))
    drawn = sample_all(workers, [strip, *noises[1:]], say)
    rows = [list(row) for row in zip(*(each.images for each in drawn), strict=True)]
    facts = {
        "counts": {"images": len(rows) * FREE_COLUMNS},
        "settings": config.sampling.model_dump(mode="json"),
    }
    pictures = {"samples.png": image_grid(rows, ["sample"] * FREE_COLUMNS)}
    return facts, pictures | ({"denoising.png": _strip(drawn[0])} if config.method == "unconditional" else {})


def _strip(drawn: SampleOutput) -> bytes:
    frames = zip(drawn.states, drawn.predictions, strict=True)
    rows = [list(row) for pair in frames for row in pair]
    names = ["state", "prediction"] * len(drawn.states)
    return image_grid(rows, [f"t = {time}" for time in drawn.times], names)
