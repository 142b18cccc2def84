"""Why a figure of ours and one of the paper's can not be compared: data, sizes, budget, splits, weights, sampling."""

from typing import Any

from soda_dist.report.paper import Block, Column, DataSet, Paper
from soda_dist.report.paper_columns import OURS, SAMPLING, WEIGHTS
from soda_dist.runs.results import Evaluated, at, data_of

WHOLE = 0.95
"""Share of the paper's images from which on a prepared data set counts as whole: table 10 rounds them."""


def is_of(run: Evaluated, data_set: DataSet) -> bool:
    """Whether a run was evaluated on this data set."""
    return run.data is not None and run.data.kind in data_set.kinds


def run_reasons(run: Evaluated, block: Block, paper: Paper) -> list[str]:
    """What sets a whole run apart from the paper's, a sentence each."""
    data_set = paper.data_sets[block.data]
    return [*_data(run, data_set), *_sizes(run, data_set, block.encoder), _budget(run, data_set, paper)]


def cell_reasons(run: Evaluated, block: Block, column: Column, paper: Paper) -> list[str]:
    """What sets one measured figure apart, a sentence each."""
    data_set = paper.data_sets[block.data]
    result = run.results[OURS[column.ours].task]
    reasons = [*_other_data(run, result), *_split(run, data_set, result), *_parts(result)]
    if column.metric in WEIGHTS:
        reasons += _weights(result, column.metric, paper)
    if OURS[column.ours].task in SAMPLING and run.field("method") != "encdec":
        reasons += _sampling(at(result, SAMPLING[OURS[column.ours].task]) or {}, data_set, paper)
    for field, wanted in column.expects.items():
        if run.field(field) != wanted:
            reasons.append(f"trained with {shown(field, run.field(field))}; the paper's with {shown(field, wanted)}.")
    return reasons


def shown(field: str, value: Any) -> str:
    """A field and its value, as on a command line."""
    if isinstance(value, bool) or value is None:
        return f"{field}={'null' if value is None else str(value).lower()}"
    if isinstance(value, list):
        return f"{field}=[{','.join(shown('', each)[1:] for each in value)}]"
    return f"{field}={value:g}" if isinstance(value, float) else f"{field}={value}"


def _data(run: Evaluated, data_set: DataSet) -> list[str]:
    if run.data is None:
        return [f"the data set is not known: no result says what it is; the paper's is {data_set.name}."]
    if not is_of(run, data_set):
        return [f"another data set: {run.data.kind}; the paper's is {data_set.name}."]
    reasons = [f"{data_set.remark}."] if data_set.remark else []
    total = sum(run.data.rows.values())
    if data_set.images and total < WHOLE * data_set.images:
        reasons.append(f"a part of the data set: {total:,} images; the paper's has {data_set.images:,}.")
    if run.data.reencoded:
        side, quality = run.data.reencoded["max_side"], run.data.reencoded["quality"]
        size = "" if side is None else f" of at most {side} px a side"
        reasons.append(f"images encoded anew as JPEG{size}, quality {quality}; the paper's are as published.")
    return reasons


def _sizes(run: Evaluated, data_set: DataSet, encoder: str) -> list[str]:
    reasons = []
    sizes = run.field("data.source_size"), run.field("data.target_size")
    if sizes != (data_set.source, data_set.target):
        reasons.append(
            f"source {sizes[0]} px, target {sizes[1]} px; the paper's {data_set.source} and {data_set.target} px."
        )
    arch, width = run.field("encoder.arch"), run.field("encoder.width")
    if run.field("method") in ("soda", "encdec") and (arch != encoder or width not in (1, None)):
        at_width = "" if width in (1, None) else f" at width {width:g}"
        reasons.append(f"encoder {arch}{at_width}; the paper's is {encoder}.")
    return reasons


def _budget(run: Evaluated, data_set: DataSet, paper: Paper) -> str:
    batch = run.field("train.global_batch")
    epochs = "an unknown number of" if run.epochs is None else f"{run.epochs:,.1f}"
    ours = f"trained for {run.step:,} steps of {batch:,} pairs ({epochs} epochs)"
    return f"{ours}; the paper's, in batches of {data_set.batch:,}, {paper.training}."


def _other_data(run: Evaluated, result: dict[str, Any]) -> list[str]:
    """A result on another kind of data than the run's latest, which the run stands for in the table."""
    data = data_of(result)
    if data is None or run.data is None or data.kind == run.data.kind:
        return []
    return [f"measured on {data.kind}; the latest result of this run is of {run.data.kind}."]


def _split(run: Evaluated, data_set: DataSet, result: dict[str, Any]) -> list[str]:
    if not is_of(run, data_set):
        return []
    split = at(result, "splits.test") or result.get("split")
    if split != data_set.test:
        return [f"measured on the split {split}; the paper's is {data_set.test}."]
    if data_set.own_split:
        return ["the paper cut its own splits (80/10/10) and does not publish which image is where."]
    return []


def _parts(result: dict[str, Any]) -> list[str]:
    """Splits of which a part was used, of the data that this result is of."""
    data = data_of(result)
    counts = result.get("counts") or {}
    tested, lost = counts.get("test", counts.get("images")), counts.get("unreadable_test", counts.get("unreadable", 0))
    used = {
        "measured on": (at(result, "splits.test") or result.get("split"), tested, lost),
        "fitted on": (at(result, "splits.train"), counts.get("train"), counts.get("unreadable_train", 0)),
    }
    reasons = []
    for what, (split, count, unreadable) in used.items():
        if split is None or count is None:
            continue
        rows = data.rows.get(split) if data else None
        if rows is None:
            reasons.append(f"{what} {count:,} images of {split}, whose size is not known.")
        elif count + unreadable < rows:
            reasons.append(f"{what} {count:,} of the {rows:,} images of {split}.")
    return reasons


def _weights(result: dict[str, Any], metric: str, paper: Paper) -> list[str]:
    name = paper.metrics[metric].name
    facts = next((result[key] for key in WEIGHTS[metric] if isinstance(result.get(key), dict)), None)
    if facts is None:
        return [f"the result does not say whose weights {name} stands on."]
    if not facts.get("published"):
        return [f"{name} by test weights, not by the published network: it can be compared with no other figure."]
    return []


def _sampling(how: dict[str, Any], data_set: DataSet, paper: Paper) -> list[str]:
    reasons = []
    if how.get("guidance") != data_set.guidance:
        reasons.append(f"guidance {_number(how.get('guidance'))}; the paper's is {data_set.guidance:g}.")
    fewest, most = paper.sampling.steps
    if how.get("method") != paper.sampling.method or not fewest <= (how.get("steps") or 0) <= most:
        ours = f"{how.get('method')} in {_number(how.get('steps'))} steps"
        reasons.append(f"sampled by {ours}; the paper's by {paper.sampling.method} in {fewest} to {most}.")
    return reasons


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:g}"
