"""One self-contained page about a run, from nothing but the run's folder."""

import base64
import json
import statistics
from dataclasses import dataclass
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from soda_dist.data.storage.folder import Folder, open_folder
from soda_dist.plots.curves import CURVES, curve_svg
from soda_dist.runs.folder import REPORT, attempts, config_text
from soda_dist.runs.metrics_log import METRICS, QUARANTINE, read_lines
from soda_dist.runs.results import ENCODERS, MEASURES, TASKS, Result, pictures, read_results

Results = dict[tuple[int, str], Result]
"""By step and task."""
SHOWN_QUARANTINED = 20
PICTURES = {
    "reconstruction.png": (
        "Each row starts from one image: the source view, its reconstructions at rising guidance from the same noise, "
        "another sample from the same latent, and a sample without any latent."
    ),
    "sweep.png": (
        "How like their originals reconstructions of test images are, against guidance and the number of sampling "
        "steps. The full dot is the run's own way; bars are a standard error over the images, which are the same, "
        "with the same noise, at every point."
    ),
    "samples.png": "Images drawn without any source, each from its own noise.",
    "importance.png": "How much each number of the latent tells of each factor.",
    "sections.png": "Which section of the latent holds which factor.",
    "denoising.png": "From noise to image: the state, and the clean image that the network predicts from it.",
    "novel_views.png": (
        "Held-out objects: what the encoder was given, what was drawn for the cameras asked for, and the truth beneath."
    ),
    "interpolation.png": (
        "Between two images: drawn from latents on the way from one to the other, along a line and along a great "
        "circle; the noise is the same along a row."
    ),
    "directions.png": (
        "Images moved along the principal directions of the latents, by standard deviations; in brackets the share of "
        "the variance that lies along the direction."
    ),
    "sections_traversal.png": (
        "Images moved along the first principal direction of each section of the latent; section 0 modulates the "
        "outermost layers. In brackets its share of the section's variance."
    ),
    "mixing.png": (
        "Sections of B's latent put into A's one after another, from the outermost layers inwards and the other way."
    ),
    "resampled.png": "One section of each image's latent replaced by that of a random training image.",
    "masking.png": "Parts of the latent masked and so drawn freely, each row with the same draws of noise.",
    "attributes.png": "Images moved along the linear probe's direction of an attribute, by standard deviations.",
}


@dataclass(frozen=True)
class Row:
    """One measure of one task at one step, a cell for each encoder."""

    step: int
    task: str
    measure: str
    cells: list[dict[str, Any] | None]


def write_report(run_uri: str) -> str:
    """Writes `report.html` into the run's folder from what is there, and returns its URI.

    Parts that are not there are named on the page, with the command that makes them.
    """
    run = open_folder(run_uri)
    run.write(REPORT, render(run).encode())
    return run.file_uri(REPORT)


def render(run: Folder) -> str:
    """The page as HTML; it refers to nothing outside itself."""
    lines = sorted(read_lines(run, METRICS), key=lambda line: line["step"])
    results = _latest_first(run)
    configuration = config_text(run)
    page = Environment(loader=PackageLoader("soda_dist.report", ""), autoescape=True, undefined=StrictUndefined)
    return page.get_template(REPORT).render(
        run=run.uri,
        name=run.uri.rstrip("/").rsplit("/", 1)[-1],
        facts=_facts(lines, results, configuration),
        curves=_curves(lines),
        encoders=list(ENCODERS.values()),
        rows=_rows(results),
        notes=_notes(results),
        reconstructions=_reconstructions(results),
        pictures=_pictures(run),
        configuration=configuration,
        attempts=_attempts(run),
        quarantined=_quarantined(run),
    )


def _latest_first(run: Folder) -> Results:
    """The results by step and task, the latest step first, and of a step the tasks of the table first."""
    found = {(step, task): result for step, tasks in read_results(run).items() for task, result in tasks.items()}
    return dict(sorted(found.items(), key=lambda item: (-item[0][0], _place(item[0][1], TASKS))))


def _place(name: str, table: dict[str, str]) -> int:
    """Of a name in a table's order; the last where the table lacks it."""
    return list(table).index(name) if name in table else len(table)


def _facts(lines: list[dict[str, Any]], results: Results, text: str) -> list[tuple[str, str]]:
    """The figures at the head of the page."""
    facts = []
    if lines:
        last = lines[-1]
        total = (yaml.safe_load(text) or {}).get("train", {}).get("steps") if text else None
        facts.append(("step", f"{last['step']:,}" + (f" of {total:,}" if total else "")))
        facts.append(("image pairs seen", f"{last['images']:,}"))
        facts.append(("epochs", f"{last['epoch']:.2f}"))
        facts.append(("loss", f"{last['loss']:.4f}"))
        facts.append(
            ("pairs per second, median", f"{statistics.median(line['images_per_second'] for line in lines):.1f}")
        )
    for row in _rows(results)[:1]:
        facts.extend(
            (f"{row.task}, {row.measure}, {name}", cell["text"])
            for name, cell in zip(ENCODERS.values(), row.cells, strict=True)
            if cell is not None
        )
    return facts


def _curves(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    curves = []
    for curve in CURVES:
        known = [line for line in lines if line.get(curve.field) is not None]
        if known:
            svg = curve_svg(curve, [line["images"] for line in known], [line[curve.field] for line in known])
            curves.append({"title": curve.title, "wide": curve.wide, "svg": Markup(svg)})
    return curves


def _rows(results: Results) -> list[Row]:
    rows = []
    for (step, task), result in results.items():
        if task not in TASKS:
            continue
        encoders = result["encoders"]
        measures = dict.fromkeys(name for scores in encoders.values() for name in scores["estimates"])
        for measure in measures:
            cells = [_cell(encoders.get(name, {}).get("estimates", {}).get(measure)) for name in ENCODERS]
            rows.append(Row(step, TASKS[task], MEASURES.get(measure, measure), cells))
    return rows


def _cell(estimate: dict[str, float] | None) -> dict[str, Any] | None:
    """A share in [0, 1] as a percentage with its standard error."""
    if estimate is None:
        return None
    value, error = estimate["value"], estimate["standard_error"]
    return {"value": value, "text": f"{100 * value:.1f}%", "error": f"± {100 * error:.1f}"}


def _notes(results: Results) -> list[str]:
    """A sentence for each result that the table shows: what was predicted, from how many images."""
    notes = []
    for (step, task), result in results.items():
        if task not in TASKS:
            continue
        counts, splits = result["counts"], result["splits"]
        unreadable = counts["unreadable_train"] + counts["unreadable_test"]
        note = (
            f"Step {step:,}, {TASKS[task]}: {result['label']} ({result['classes']} classes) from "
            f"{counts['train']:,} images of {splits['train']}, measured on {counts['test']:,} of {splits['test']}; "
            f"the most frequent class has {100 * result['majority']:.1f}%."
        )
        notes.append(note + (f" {unreadable:,} images could not be read." if unreadable else ""))
    return notes


def _reconstructions(results: Results) -> list[dict[str, Any]]:
    """Rows of the table of reconstructions: guidance, PSNR and SSIM of the latest step that has them."""
    rows: list[dict[str, Any]] = []
    for (step, task), result in results.items():
        if task == "reconstruction" and all(row["step"] == step for row in rows):
            for guidance, scores in result["guidance"].items():
                psnr, ssim = scores["psnr"], scores["ssim"]
                rows.append(
                    {"step": step, "guidance": guidance, "psnr": psnr, "ssim": ssim, "images": result["images"]}
                )
    return rows


def _pictures(run: Folder) -> list[dict[str, Any]]:
    """The pictures of the latest step that has any, as data URIs, in the order of the page's table."""
    found = pictures(run)
    if not found:
        return []
    latest = max(found)
    shown = []
    for name, file in found[latest].items():
        title = f"{name}.png"
        data = base64.b64encode(run.read(file)).decode()
        caption = PICTURES.get(title, title)
        shown.append({"step": latest, "title": title, "caption": caption, "source": f"data:image/png;base64,{data}"})
    return sorted(shown, key=lambda picture: _place(picture["title"], PICTURES))


def _attempts(run: Folder) -> list[dict[str, str]]:
    """Each start of the run, oldest first, every value as text."""
    return [{name: _text(value) for name, value in attempt.items()} for attempt in attempts(run)]


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(inner)}" for name, inner in value.items())
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return value if isinstance(value, str) else json.dumps(value)


def _quarantined(run: Folder) -> dict[str, Any]:
    """How many images could not be read in training, and the first of them."""
    lines = read_lines(run, QUARANTINE)
    names = list(dict.fromkeys(str(line.get("name") or line.get("key")) for line in lines))
    return {"images": len(names), "meetings": len(lines), "first": names[:SHOWN_QUARANTINED]}
