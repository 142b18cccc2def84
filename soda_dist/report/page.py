"""Self-contained HTML report of a run, built from its folder alone."""

import base64
import json
import statistics
from dataclasses import dataclass
from typing import Any

from soda_dist.config.load import parse_yaml
from soda_dist.data.storage.folder import Folder
from soda_dist.data.storage.metadata import read_limited
from soda_dist.errors import UserError
from soda_dist.plots.curves import CURVES, curve_svg
from soda_dist.report.figures import figures
from soda_dist.runs.folder import CONFIG, EVALUATIONS, REPORT, attempts, config_text, open_run
from soda_dist.runs.metrics_log import METRICS, QUARANTINE, read_lines
from soda_dist.runs.results import ENCODERS, MEASURES, TASKS, Result, at, pictures, read_results

Results = dict[tuple[int, str], Result]
"""(step, task) -> result."""
SHOWN_QUARANTINED = 20
PICTURE_BYTES = 64 << 20
"""Size limit of an embedded picture."""
SIMILARITY = ("psnr", "ssim")
SHOWN_FIELDS = ("images", "epoch", "loss", "images_per_second")
"""Fields of every line of metrics.jsonl that the page shows."""
NEEDS = {
    **dict.fromkeys(TASKS, ("encoders", "counts.train", "counts.test", "counts.unreadable_train",
                            "counts.unreadable_test", "splits.train", "splits.test", "label", "classes", "majority")),
    "reconstruction": ("guidance", "images"),
}  # fmt: skip
"""Task -> facts of its result without which it cannot be shown."""
PICTURES = {
    "reconstruction.png": (
        "Columns: the source view, its reconstructions from the same noise with increasing guidance, another sample "
        "from the same latent, and a sample without a latent."
    ),
    "sweep.png": (
        "Similarity of reconstructions to the originals, by guidance and number of sampling steps. The filled dot is "
        "the run's own setting; bars are one standard error over images. All points share images and noise."
    ),
    "samples.png": "Unconditional samples.",
    "importance.png": "Importance of each latent dimension for each factor.",
    "sections.png": "Share of each factor's importance in each section of the latent.",
    "denoising.png": "Denoising steps: the noisy state and the clean image predicted from it.",
    "novel_views.png": "Held-out objects: the source views, the sampled novel views and, below, the ground truth.",
    "interpolation.png": "Interpolation between latents of two images, linear and spherical; each row uses one noise.",
    "directions.png": "Latents moved along principal directions, in standard deviations (with explained variance).",
    "sections_traversal.png": (
        "Latents moved along the first principal direction of each section; section 0 modulates the outermost layers. "
        "In brackets: its share of the section's variance."
    ),
    "mixing.png": "Sections of A's latent replaced by B's one by one: outermost layers first, and in reverse order.",
    "resampled.png": "One section of each latent replaced by that of a random training image.",
    "masking.png": "Samples with parts of the latent masked; each row uses the same noise.",
    "attributes.png": "Latents moved along the linear probe's direction of an attribute, in standard deviations.",
}


@dataclass(frozen=True)
class Row:
    """One measure of one task at one step, with a cell per encoder."""

    step: int
    task: str
    measure: str
    cells: list[dict[str, Any] | None]


def write_report(run_uri: str) -> str:
    """Write `report.html`, which also gives commands for missing parts, into the run's folder; return its URI."""
    run = open_run(run_uri)
    run.write(REPORT, render(run).encode())
    return run.file_uri(REPORT)


def render(run: Folder) -> str:
    """Render the report as self-contained HTML."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    lines = sorted(read_lines(run, METRICS, SHOWN_FIELDS), key=lambda line: line["step"])
    results, embedded = _latest_first(run), _pictures(run)
    configuration = config_text(run)
    page = Environment(loader=PackageLoader("soda_dist.report", ""), autoescape=True, undefined=StrictUndefined)
    return page.get_template(REPORT).render(
        run=run.uri,
        name=run.uri.rstrip("/").rsplit("/", 1)[-1],
        facts=_facts(lines, results, _planned_steps(run, configuration)),
        curves=_curves(lines),
        encoders=list(ENCODERS.values()),
        rows=_rows(results),
        notes=_notes(results),
        reconstructions=_reconstructions(results),
        figures=figures(results),
        pictures=embedded,
        configuration=configuration,
        attempts=_attempts(run),
        quarantined=_quarantined(run),
    )


def _latest_first(run: Folder) -> Results:
    """Read the results, latest step first; within a step, tasks in the order of `TASKS`."""
    found = {(step, task): result for step, tasks in read_results(run).items() for task, result in tasks.items()}
    for (step, task), result in found.items():
        missing = _missing(task, result)
        if missing:
            where = run.file_uri(f"{EVALUATIONS}/{step}/{task}.json")
            raise UserError(where, f"no {missing[0]}", f"a result of {task}, as written", "evaluate again")
    return dict(sorted(found.items(), key=lambda item: (-item[0][0], _place(item[0][1], TASKS))))


def _missing(task: str, result: Result) -> list[str]:
    """List the facts without which a result cannot be shown."""
    missing = [path for path in NEEDS.get(task, ()) if at(result, path) is None]
    if missing:
        return missing
    shown: dict[str, Any] = {}
    if task in TASKS:
        for encoder, scores in result["encoders"].items():
            shown |= {f"{encoder} {name}": estimate for name, estimate in scores["estimates"].items()}
    elif task == "reconstruction":
        shown = {f"{name} at {w}": scores.get(name) for w, scores in result["guidance"].items() for name in SIMILARITY}
    ends = ("value", "standard_error")
    return [f"{name}: {end}" for name, estimate in shown.items() for end in ends if at(estimate, end) is None]


def _planned_steps(run: Folder, text: str) -> int | None:
    tree = parse_yaml(text, run.file_uri(CONFIG))
    steps = at(tree, "train.steps")
    return steps if isinstance(steps, int) else None


def _place(name: str, table: dict[str, str]) -> int:
    """Return a name's position in a table; unknown names come last."""
    return list(table).index(name) if name in table else len(table)


def _facts(lines: list[dict[str, Any]], results: Results, total: int | None) -> list[tuple[str, str]]:
    facts = []
    if lines:
        last = lines[-1]
        rate = statistics.median(line["images_per_second"] for line in lines)
        facts += [
            ("step", f"{last['step']:,}" + (f" of {total:,}" if total else "")),
            ("image pairs seen", f"{last['images']:,}"),
            ("epochs", f"{last['epoch']:.2f}"),
            ("loss", f"{last['loss']:.4f}"),
            ("pairs per second, median", f"{rate:.1f}"),
        ]
    for row in _rows(results)[:1]:
        facts.extend(
            (f"{row.task}, {row.measure}, {name}", cell["text"])
            for name, cell in zip(ENCODERS.values(), row.cells, strict=True)
            if cell is not None
        )
    return facts


def _curves(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    from markupsafe import Markup

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
    """Format a fraction in [0, 1] as a percentage with its standard error."""
    if estimate is None:
        return None
    value, error = estimate["value"], estimate["standard_error"]
    return {"value": value, "text": f"{100 * value:.1f}%", "error": f"± {100 * error:.1f}"}


def _notes(results: Results) -> list[str]:
    """Describe each result of the table: label, classes, number of images."""
    notes = []
    for (step, task), result in results.items():
        if task not in TASKS:
            continue
        counts, splits = result["counts"], result["splits"]
        unreadable = counts["unreadable_train"] + counts["unreadable_test"]
        note = (
            f"Step {step:,}, {TASKS[task]}: {result['label']} ({result['classes']} classes) from "
            f"{counts['train']:,} images of {splits['train']}, measured on {counts['test']:,} of {splits['test']}; "
            f"the most frequent class makes up {100 * result['majority']:.1f}%."
        )
        notes.append(note + (f" {unreadable:,} images could not be read." if unreadable else ""))
    return notes


def _reconstructions(results: Results) -> list[dict[str, Any]]:
    """Collect guidance, PSNR and SSIM of reconstructions, at the latest step that has them."""
    rows: list[dict[str, Any]] = []
    for (step, task), result in results.items():
        if task == "reconstruction" and all(row["step"] == step for row in rows):
            for guidance, scores in result["guidance"].items():
                measures = {name: scores[name] for name in SIMILARITY}
                rows.append({"step": step, "guidance": guidance, "images": result["images"], **measures})
    return rows


def _pictures(run: Folder) -> list[dict[str, Any]]:
    """Embed the pictures of the latest step that has any as data URIs, in the order of `PICTURES`."""
    found = pictures(run)
    if not found:
        return []
    latest = max(found)
    embedded = []
    for name, file in found[latest].items():
        title = f"{name}.png"
        data = base64.b64encode(read_limited(run, file, PICTURE_BYTES)).decode()
        caption = PICTURES.get(title, title)
        embedded.append({"step": latest, "title": title, "caption": caption, "source": f"data:image/png;base64,{data}"})
    return sorted(embedded, key=lambda picture: _place(picture["title"], PICTURES))


def _attempts(run: Folder) -> list[dict[str, str]]:
    return [{name: _format_value(value) for name, value in attempt.items()} for attempt in attempts(run)]


def _format_value(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_format_value(inner)}" for name, inner in value.items())
    if isinstance(value, list):
        return ", ".join(map(_format_value, value))
    return value if isinstance(value, str) else json.dumps(value)


def _quarantined(run: Folder) -> dict[str, Any]:
    """Count the images that could not be read in training and list the first."""
    lines = read_lines(run, QUARANTINE)
    names = list(dict.fromkeys(str(line.get("name") or line.get("key")) for line in lines))
    return {"images": len(names), "meetings": len(lines), "first": names[:SHOWN_QUARANTINED]}
