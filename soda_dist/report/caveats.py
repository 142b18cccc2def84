"""Differences between our figures and the paper's: data, sizes, budget, splits, weights, sampling."""

from typing import Any

from soda_dist.report.paper import Block, Column, DataSet, Paper
from soda_dist.report.paper_columns import OURS, SAMPLING, WEIGHTS, scored_set
from soda_dist.runs.results import Evaluated, at, data_of

WHOLE = 0.95
"""Fraction of the paper's rounded image count (table 10) from which a data set counts as complete."""


def uses_data_set(run: Evaluated, data_set: DataSet) -> bool:
    return run.data is not None and run.data.kind in data_set.kinds


def run_caveats(run: Evaluated, block: Block, paper: Paper) -> list[str]:
    """List the differences of the whole run, a sentence each."""
    data_set = paper.data_sets[block.data]
    return [*_data(run, data_set), *_sizes(run, data_set, block.encoder), _budget(run, data_set, paper)]


def cell_caveats(run: Evaluated, block: Block, column: Column, paper: Paper) -> list[str]:
    """List the differences of one measured figure, a sentence each."""
    data_set = paper.data_sets[block.data]
    result = run.results[OURS[column.ours].task]
    parts = _parts(result, scored_set(run, column) or {})
    caveats = [*_other_data(run, result), *_split(run, data_set, result), *parts]
    if remark := paper.metrics[column.metric].remark:
        caveats.append(f"{remark}.")
    if column.metric in WEIGHTS:
        caveats += _weights(result, column.metric, paper)
    if OURS[column.ours].task in SAMPLING and run.field("method") != "encdec":
        caveats += _sampling(at(result, SAMPLING[OURS[column.ours].task]) or {}, data_set, paper)
    for field, wanted in column.expects.items():
        if run.field(field) != wanted:
            ours, theirs = format_override(field, run.field(field)), format_override(field, wanted)
            caveats.append(f"trained with {ours}; the paper's with {theirs}.")
    return caveats


def budget(run: Evaluated) -> str:
    """Say how long a run was trained."""
    batch = run.field("train.global_batch")
    epochs = "an unknown number of" if run.epochs is None else f"{run.epochs:,.1f}"
    return f"trained for {run.step:,} steps of {batch:,} pairs ({epochs} epochs)"


def part_caveats(run: Evaluated, column: Column) -> list[str]:
    """List the splits of which the figure of a column used only a part, a sentence each."""
    return _parts(run.results[OURS[column.ours].task], scored_set(run, column) or {})


def format_override(field: str, value: Any) -> str:
    """Format a field and its value as a command-line override."""
    if isinstance(value, bool) or value is None:
        return f"{field}={'null' if value is None else str(value).lower()}"
    if isinstance(value, list):
        return f"{field}=[{','.join(format_override('', each)[1:] for each in value)}]"
    return f"{field}={value:g}" if isinstance(value, float) else f"{field}={value}"


def _data(run: Evaluated, data_set: DataSet) -> list[str]:
    if run.data is None:
        return [f"unknown data set: no result names it; the paper's is {data_set.name}."]
    if not uses_data_set(run, data_set):
        return [f"different data set: {run.data.kind}; the paper's is {data_set.name}."]
    caveats = [f"{data_set.remark}."] if data_set.remark else []
    total = sum(run.data.rows.values())
    if data_set.images and total < WHOLE * data_set.images:
        caveats.append(f"subset of the data: {total:,} images; the paper's has {data_set.images:,}.")
    if run.data.reencoded:
        side, quality = run.data.reencoded["max_side"], run.data.reencoded["quality"]
        size = "" if side is None else f" of at most {side} px a side"
        caveats.append(f"images re-encoded as JPEG{size}, quality {quality}; the paper's are as published.")
    return caveats


def _sizes(run: Evaluated, data_set: DataSet, encoder: str) -> list[str]:
    caveats = []
    source, target = run.field("data.source_size"), run.field("data.target_size")
    if (source, target) != (data_set.source, data_set.target):
        paper_sizes = f"{data_set.source} and {data_set.target} px"
        caveats.append(f"source {source} px, target {target} px; the paper's {paper_sizes}.")
    arch, width = run.field("encoder.arch"), run.field("encoder.width")
    if run.field("method") in ("soda", "encdec") and (arch != encoder or width not in (1, None)):
        at_width = "" if width in (1, None) else f" at width {width:g}"
        caveats.append(f"encoder {arch}{at_width}; the paper's is {encoder}.")
    return caveats


def _budget(run: Evaluated, data_set: DataSet, paper: Paper) -> str:
    return f"{budget(run)}; the paper's, in batches of {data_set.batch:,}, {paper.training}."


def _other_data(run: Evaluated, result: dict[str, Any]) -> list[str]:
    """Report a result on another data set than that of the run's latest result, which the table shows."""
    data = data_of(result)
    if data is None or run.data is None or data.kind == run.data.kind:
        return []
    return [f"measured on {data.kind}; the latest result of this run is of {run.data.kind}."]


def _split(run: Evaluated, data_set: DataSet, result: dict[str, Any]) -> list[str]:
    if not uses_data_set(run, data_set):
        return []
    split = at(result, "splits.test") or result.get("split")
    if split != data_set.test:
        return [f"measured on the split {split}; the paper's is {data_set.test}."]
    if data_set.own_split:
        return ["the paper made its own 80/10/10 splits and does not publish them."]
    return []


def _parts(result: dict[str, Any], scored: dict[str, Any]) -> list[str]:
    """List the splits of which this result used only a part; `scored`: the entry of the figure's own set, if any."""
    covered = scored.get("coverage") or result.get("coverage")
    if covered and "of_views" in covered:
        return _views(covered, at(result, "splits.test"))
    data = data_of(result)
    counts = scored.get("counts") or result.get("counts") or {}
    tested = counts.get("test", counts.get("images"))
    failed = counts.get("unreadable_test", counts.get("unreadable", 0))
    used = {
        "measured on": (at(result, "splits.test") or result.get("split"), tested, failed),
        "fitted on": (at(result, "splits.train"), counts.get("train"), counts.get("unreadable_train", 0)),
    }
    caveats = []
    for verb, (split, count, unreadable) in used.items():
        if split is None or count is None:
            continue
        rows = data.rows.get(split) if data else None
        if rows is None:
            caveats.append(f"{verb} {count:,} images of {split}, whose size is unknown.")
        elif count + unreadable < rows:
            caveats.append(f"{verb} {count:,} of the {rows:,} images of {split}.")
    return caveats


def _views(covered: dict[str, int], split: str | None) -> list[str]:
    """Report target views that were left out; those which no number of sources leaves over are no part of them."""
    if covered["views"] >= covered["of_views"]:
        return []
    views, objects = (f"{covered[part]:,} of the {covered[f'of_{part}']:,}" for part in ("views", "objects"))
    return [f"measured on {views} target views of {split}, of {objects} objects."]


def _weights(result: dict[str, Any], metric: str, paper: Paper) -> list[str]:
    name = paper.metrics[metric].name
    facts = next((result[key] for key in WEIGHTS[metric] if isinstance(result.get(key), dict)), None)
    if facts is None:
        return [f"the result does not record which weights {name} used."]
    caveats = []
    if not facts.get("published"):
        caveats.append(f"{name} used non-standard weights; not comparable with published values.")
    ours, theirs = facts.get("net"), paper.metrics[metric].network
    if theirs and ours != theirs:
        caveats.append(f"{name} by {ours or 'an unrecorded network'}; the paper's is taken to be by {theirs}.")
    return caveats


def _sampling(settings: dict[str, Any], data_set: DataSet, paper: Paper) -> list[str]:
    caveats = []
    if settings.get("guidance") != data_set.guidance:
        caveats.append(f"guidance {_format_number(settings.get('guidance'))}; the paper's is {data_set.guidance:g}.")
    fewest, most = paper.sampling.steps
    if settings.get("method") != paper.sampling.method or not fewest <= (settings.get("steps") or 0) <= most:
        ours = f"{settings.get('method')} in {_format_number(settings.get('steps'))} steps"
        caveats.append(f"sampled by {ours}; the paper's by {paper.sampling.method} in {fewest} to {most}.")
    return caveats


def _format_number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:g}"
