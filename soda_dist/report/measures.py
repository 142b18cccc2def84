"""How numbers of results are written: titles, units and digits of the known measures."""

from dataclasses import dataclass
from typing import Any

LONGEST = 160
"""Characters of a shown text; longer ones are cut."""


@dataclass(frozen=True)
class Measure:
    """A measure's title, and how its value is written."""

    title: str
    percent: bool = False
    digits: int | None = None
    """Decimals; None = four significant digits."""
    unit: str = ""


def _share(title: str) -> Measure:
    return Measure(title, percent=True, digits=1)


MEASURES = {
    "top1": _share("top-1"),
    "top5": _share("top-5"),
    "macro_f1": _share("macro F1"),
    "accuracy": _share("accuracy"),
    "majority": _share("most frequent class"),
    "retrieval": _share("retrieval of the other view"),
    "effective_rank": Measure("effective rank", digits=1),
    "disentanglement": _share("disentanglement"),
    "completeness": _share("completeness"),
    "informativeness": _share("informativeness"),
    "informativeness_train": _share("informativeness on training images"),
    "mig": Measure("MIG"),
    "sap": Measure("SAP"),
    "factor_vae": Measure("FactorVAE score"),
    "psnr": Measure("PSNR", digits=2, unit="dB"),
    "ssim": Measure("SSIM", digits=3),
    "lpips": Measure("LPIPS", digits=3),
    "angle": Measure("angle to the nearest source", digits=1, unit="°"),
    "fid": Measure("FID", digits=2),
    "kid": Measure("KID", digits=4),
    "precision": Measure("precision", digits=3),
    "recall": Measure("recall", digits=3),
}
"""By key in a result."""
TITLES = {
    "probe": "Linear probe",
    "knn": "Nearest neighbours",
    "label_free": "Without labels",
    "dci": "Disentanglement",
    "reconstruction": "Reconstruction",
    "samples": "Samples",
    "novel_views": "Novel views",
    "fid": "FID and relatives",
    "latents": "Latent tools",
}
"""By task, in the order of the page."""


@dataclass(frozen=True)
class Cell:
    """A value of a result, as it is stored and as it is shown.

    Attributes:
        value: the stored number; None for a text.
        error: the stored standard error; None if there is none.
        error_text: the error in the units and digits of `text`.
    """

    text: str
    value: float | None = None
    error: float | None = None
    error_text: str = ""


def cell(name: str, value: Any, error: float | None = None) -> Cell:
    """Write the value of the measure or field `name`."""
    if not _is_number(value):
        return Cell(plain_text(value))
    measure = MEASURES.get(name)
    error_text = "" if error is None or not _is_number(error) else f"± {_written(error, measure, unit=False)}"
    return Cell(_written(value, measure), value, error if error_text else None, error_text)


def plain_text(value: Any) -> str:
    """Write a value that is no number in one line of at most LONGEST characters."""
    if isinstance(value, bool):
        text = "yes" if value else "no"
    elif value is None:
        text = "none"
    elif _is_number(value):
        text = _written(value, None)
    elif isinstance(value, dict):
        text = ", ".join(f"{name} {plain_text(inner)}" for name, inner in list(value.items())[:LONGEST]) or "none"
    elif isinstance(value, list | tuple):
        text = ", ".join(map(plain_text, value[:LONGEST])) or "none"
    else:
        text = " ".join(str(value).split())
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def title_of(name: str) -> str:
    """Return the title of a measure or a field."""
    return MEASURES[name].title if name in MEASURES else plain_text(name.replace("_", " "))


def task_title(task: str, *, ema: bool = True) -> str:
    """Return the title of a task's results."""
    return TITLES.get(task, plain_text(task)) + ("" if ema else ", without EMA")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _written(value: float, measure: Measure | None, *, unit: bool = True) -> str:
    if isinstance(value, int) and not (measure and measure.percent):
        return f"{value:,}" if abs(value) < 10**15 else f"{value:.3e}" if abs(value) < 10**300 else "huge"
    if measure is None or measure.digits is None or abs(value) > 10**9:
        return f"{value:.4g}"
    text = f"{100 * value if measure.percent else value:.{measure.digits}f}"
    return text + ((" %" if measure.percent else f" {measure.unit}" if measure.unit else "") if unit else "")
