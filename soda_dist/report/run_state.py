"""What a run is and how far it has come: the head of its page."""

import statistics
from dataclasses import dataclass, field
from typing import Any

from soda_dist.config.provenance import utc
from soda_dist.config.schema import RunConfig
from soda_dist.report.measures import plain_text

METHODS = {
    "soda": "SODA",
    "encdec": "An encoder-decoder",
    "unconditional": "An unconditional diffusion model",
    "palette": "Palette",
}


@dataclass(frozen=True)
class State:
    """How far a run has come.

    Attributes:
        word: `training`, `finished`, `stopped`, `evaluated` (an encoder, not trained here) or `not trained`.
        reason: a sentence on the word; may be empty.
        sentence: what was trained on what.
        facts: titles and values.
        share: of the steps that are done, in [0, 1]; None if unknown.
    """

    word: str
    reason: str
    sentence: str
    facts: list[tuple[str, str]] = field(default_factory=list)
    share: float | None = None


def run_state(
    config: RunConfig | None, attempts: list[dict[str, Any]], lines: list[dict[str, Any]], steps: list[int], kind: str
) -> State:
    """Say what a run is and how far it has come.

    Args:
        config: of the run; None if it cannot be read.
        attempts: the provenance of each start.
        lines: of metrics.jsonl, by step.
        steps: of the complete checkpoints.
        kind: of the data, if a result names it.
    """
    reached = max([0, *steps, *(line["step"] for line in lines)])
    total = config.train.steps if config else None
    word, reason = _word(attempts, steps, reached, total, kind)
    share = min(1.0, reached / total) if total and (reached or attempts) else None
    return State(word, reason, _sentence(config, attempts, kind), _facts(config, lines, reached, total), share)


def _word(
    attempts: list[dict[str, Any]], steps: list[int], reached: int, total: int | None, kind: str
) -> tuple[str, str]:
    last = attempts[-1] if attempts else {}
    ended, stopped = last.get("ended"), next((each["stopped"] for each in attempts if "stopped" in each), None)
    if isinstance(stopped, dict):
        return (
            "finished",
            f"Stopped early at step {plain_text(stopped.get('step'))}: {plain_text(stopped.get('reason'))}.",
        )
    if total is not None and steps and steps[-1] >= total:
        return "finished", ""
    if not attempts and not reached:
        return "evaluated" if kind else "not trained", ""
    resumed = f"Rerun the same command to resume from step {steps[-1]:,}." if steps else ""
    if isinstance(ended, dict):
        return "stopped", f"{plain_text(ended.get('reason')).capitalize()}. {resumed}".strip()
    if attempts:
        return "training", ""
    return "stopped", resumed


def _sentence(config: RunConfig | None, attempts: list[dict[str, Any]], kind: str) -> str:
    data: dict[str, Any] = next((each["data"] for each in reversed(attempts) if isinstance(each.get("data"), dict)), {})
    rows = data.get("rows")
    of = f"{rows:,} rows" if isinstance(rows, int) else ""
    of += (" of " if of and kind else "") + plain_text(kind or "")
    where = f" ({plain_text(data['uri'])})" if data.get("uri") else ""
    if config is None:
        return f"Trained on {of}{where}." if data else ""
    sizes = f"source {config.data.source_size} px, target {config.data.target_size} px"
    encoder = f"{config.encoder.arch}, latent of {config.encoder.latent_dim}"
    on = f" on {of}{where}" if data or kind else ""
    return f"{METHODS.get(config.method, config.method)} ({encoder}; {sizes}){on}."


def _facts(
    config: RunConfig | None, lines: list[dict[str, Any]], reached: int, total: int | None
) -> list[tuple[str, str]]:
    facts = []
    if reached:
        facts.append(("step", f"{reached:,}" + (f" of {total:,}" if total else "")))
    if reached and config:
        facts.append(("image pairs seen", f"{reached * config.train.global_batch:,}"))
    for name, title, form in (("epoch", "epochs", "{:.2f}"), ("loss", "loss", "{:.4f}")):
        if (value := last_value(lines, name)) is not None:
            facts.append((title, form.format(value)))
    if rates := [line["images_per_second"] for line in lines if line.get("images_per_second") is not None]:
        facts.append(("pairs per second, median", f"{statistics.median(rates):.1f}"))
    for name in dict.fromkeys(name for line in lines for name in line if name.startswith("validation_")):
        if (value := last_value(lines, name)) is not None:
            facts.append((plain_text(name.replace("_", " ")), f"{value:.4g}"))
    if (time := last_value(lines, "time")) is not None and 0 < time < 1e11:
        facts.append(("last line logged", utc(time)[:16].replace("T", " ") + " UTC"))
    return facts


def last_value(lines: list[dict[str, Any]], name: str) -> float | None:
    """Return the last number of a field of the lines, or None."""
    return next((line[name] for line in reversed(lines) if line.get(name) is not None), None)
