"""Images drawn again from their own latents (section 4.2.1), at several guidance scales and numbers of steps."""

import time
from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from soda_dist.config.schema import RunConfig, Sampling
from soda_dist.data.storage.folder import Folder
from soda_dist.errors import UserError
from soda_dist.evaluation.context import Result, Subject
from soda_dist.evaluation.images.generated_sets import DrawnSet, Members, draw_set, folder_of, image_set, load_set
from soda_dist.evaluation.images.judges import check_weights, facts_of, lpips_scores, set_moments
from soda_dist.evaluation.images.sampling import free_samples, mean_of, show
from soda_dist.metrics.distributions import fid
from soda_dist.plots.guidance_sweep import sweep_png


def check(subject: Subject) -> None:
    """Needs a method that sees a source."""
    if subject.config.method == "unconditional":
        raise UserError("--tasks", "reconstruction of an unconditional run", "samples, fid", "leave it out")
    check_lpips(subject)
    if subject.config.evaluation.inception.weights is not None:
        check_weights(subject.config, "inception")


def check_lpips(subject: Subject) -> None:
    """LPIPS is measured where its weights are named, which must then be there."""
    if subject.config.evaluation.lpips.weights is not None:
        check_weights(subject.config, "lpips")


def check_samples(subject: Subject) -> None:
    """Needs a method that draws without a source."""
    if subject.config.method not in ("soda", "unconditional"):
        got = f"samples of method {subject.config.method}"
        raise UserError("--tasks", got, "methods soda and unconditional", "leave it out")


def reconstruct(subject: Subject) -> Result:
    """`reconstruction.json`, `reconstruction.png`, `denoising.png` and, of several ways of sampling, `sweep.png`."""
    began = time.monotonic()
    config = subject.config
    ways = _ways(config)
    rows = [scored(subject, how) for how in ways]
    inception = _add_fid(subject, ways, rows) if config.evaluation.inception.weights is not None else None
    facts: dict[str, Any] = {
        "split": config.evaluation.test_split,
        "splits": {"test": config.evaluation.test_split},
        "counts": rows[0]["counts"],
        "images": rows[0]["counts"]["images"],
        "metric": "psnr",
        **rows[0]["psnr"],
        "guidance": {f"{row['guidance']:g}": row for row in rows if row["steps"] == config.sampling.steps},
        "sweep": rows,
        "settings": config.sampling.model_dump(mode="json"),
        "lpips": lpips_facts(subject),
        "inception": inception,
    }
    pictures, curves = show(subject.crew, config, subject.say), sweep_png(rows)
    return subject.record("reconstruction", facts, pictures | ({"sweep.png": curves} if curves else {}), began)


def scored(subject: Subject, how: Sampling) -> dict[str, Any]:
    """Reconstructions of the test split's images, and how like their originals they are."""
    what = f"reconstructions at {_way(how)}"
    pieces = _members(subject, how)
    scores, counts = set_scores(subject, draw_set(subject, pieces, what), pieces)
    subject.say(f"{what}: {score_line(scores)}")
    return {"guidance": how.guidance, "steps": how.steps, "counts": counts, **scores}


def _add_fid(subject: Subject, ways: Sequence[Sampling], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Puts the FID of each way's reconstructions into its row; returns what a result says about Inception's weights.

    The images that they are held against are the same for every way.
    """
    pieces = [_members(subject, how) for how in ways]
    real, _ = set_moments(subject, folder_of(subject, pieces[0][0].of), pieces[0], "target", 0)
    for how, some, row in zip(ways, pieces, rows, strict=True):
        drawn, _ = set_moments(subject, folder_of(subject, some[0].of), some, "image", 0)
        if drawn.count > 1:
            row["fid"] = {"value": fid(drawn, real), "standard_error": None}
            subject.say(f"FID of {drawn.count:,} reconstructions at {_way(how)}: {row['fid']['value']:.2f}")
    ((_, facts),) = subject.crew.share_out(facts_of, ["inception"], lambda: None)
    return facts


def _members(subject: Subject, how: Sampling) -> list[Members]:
    e = subject.config.evaluation
    return image_set(subject, DrawnSet("reconstruction", e.test_split, how), e.reconstruction.images)


def _way(how: Sampling) -> str:
    return f"guidance {how.guidance:g}, {how.steps} steps"


def _ways(config: RunConfig) -> list[Sampling]:
    """The run's own way first; the others differ from it in guidance or in the number of steps."""
    own, sweep = config.sampling, config.evaluation.reconstruction
    if config.method == "encdec":  # draws at once
        return [own.model_copy(update={"guidance": 1.0})]
    ways = [own.model_copy(update={"guidance": w}) for w in dict.fromkeys((own.guidance, *sweep.guidance))]
    return ways + [own.model_copy(update={"steps": n}) for n in dict.fromkeys(sweep.steps) if n != own.steps]


def samples(subject: Subject) -> Result:
    """`samples.json` and `samples.png`: images without any source."""
    began = time.monotonic()
    facts, pictures = free_samples(subject.crew, subject.config, subject.say)
    return subject.record("samples", facts, pictures, began)


def set_scores(
    subject: Subject, folder: Folder, pieces: Sequence[Members]
) -> tuple[dict[str, dict[str, float]], dict[str, int]]:
    """PSNR, SSIM and, where its weights are named, LPIPS of a drawn set; and how many images they are of.

    Raises:
        UserError: no image could be read.
    """
    table = load_set(folder, pieces, ["psnr", "ssim"])
    total = sum(piece.rows for piece in pieces)
    if not len(table):
        split = pieces[0].of.split
        got = f"split {split} without a readable image"
        raise UserError("evaluation.test_split", got, "readable images", "choose another split")
    values: dict[str, NDArray[Any]] = {name: table.column(name).to_numpy() for name in ("psnr", "ssim")}
    if subject.config.evaluation.lpips.weights is not None:
        values["lpips"] = lpips_scores(subject, folder, pieces)
    counts = {"images": len(table), "unreadable": total - len(table)}
    return {name: mean_of(each) for name, each in values.items()}, counts


def lpips_facts(subject: Subject) -> dict[str, Any] | None:
    """What a result says about LPIPS' weights; a line where there are none."""
    if subject.config.evaluation.lpips.weights is None:
        subject.say("LPIPS was left out: evaluation.lpips.weights names no file")
        return None
    ((_, facts),) = subject.crew.share_out(facts_of, ["lpips"], lambda: None)
    return facts


def score_line(scores: dict[str, dict[str, float]]) -> str:
    """Scores as a part of a line."""
    digits = {"psnr": ("PSNR", 2, " dB"), "ssim": ("SSIM", 3, ""), "lpips": ("LPIPS", 3, "")}
    parts = []
    for name, score in scores.items():
        title, places, unit = digits[name]
        parts.append(f"{title} {score['value']:.{places}f} ± {score['standard_error']:.{places}f}{unit}")
    return ", ".join(parts)
