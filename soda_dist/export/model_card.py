"""The model card: what was trained on what, every figure of the run's evaluation, and what it does not say."""

from collections.abc import Sequence
from typing import Any

import yaml

from soda_dist.config.schema import RunConfig
from soda_dist.evaluation.tasks import TASKS
from soda_dist.export.card_figures import Headline, cell, escaped, every_figure, headlines
from soda_dist.report.caveats import budget, cell_caveats, run_caveats, uses_data_set
from soda_dist.report.markdown_table import pad_table
from soda_dist.report.paper import read_paper
from soda_dist.report.paper_columns import figure
from soda_dist.runs.results import Evaluated

PAPER = "https://arxiv.org/abs/2311.17901"
CITATION = """@article{hudson2023soda,
  title = {SODA: Bottleneck Diffusion Models for Representation Learning},
  author = {Hudson, Drew A. and Zoran, Daniel and Malinowski, Mateusz and Lampinen, Andrew K. and Jaegle, Andrew and
            McClelland, James L. and Matthey, Loic and Hill, Felix and Lerchner, Alexander},
  journal = {arXiv preprint arXiv:2311.17901},
  year = {2023},
}"""
TYPES = {"top1": "accuracy", "top5": "accuracy", "accuracy": "accuracy", "macro_f1": "f1"}
"""Measure -> its name among the Hub's metrics; others keep theirs."""
PIPELINE = "image-feature-extraction"
CONTENTS = {
    "model.safetensors": "EMA weights of the whole model",
    "encoder.safetensors": "the encoder alone, `backbone.*` and `projection.*`",
    "config.json": "the run's configuration",
    "preprocessing.json": "the encoder's input: size, crop, mean and standard deviation",
    "README.md": "this card, made from the run's results",
}


def model_card(
    run: Evaluated,
    config: RunConfig,
    parameters: dict[str, int],
    starts: Sequence[dict[str, Any]],
    *,
    license_id: str | None,
    repository: str | None,
    files: Sequence[str],
) -> str:
    """Format the card as Markdown with the Hub's metadata.

    Args:
        run: the exported step with its results; none if it was not evaluated.
        parameters: their number in each part of the model.
        starts: provenance of the run's last start, or nothing.
        license_id: the Hub's name of the weights' license; None = not stated.
        repository: OWNER/NAME; None = named after the run's folder.
        files: names of the files beside the card.
    """
    name = repository or run.uri.rstrip("/").rpartition("/")[2]
    parts = [
        f"# {name}",
        _introduction(config),
        "## Use",
        _use(repository, files),
        "## Model",
        _bullets(_model(config, parameters)),
        "## Training",
        _bullets(_training(run, config, starts)),
        "## Results",
        _results(run),
        "## Limits",
        _bullets(_limits(run)),
        "## License",
        f"`{license_id}`" if license_id else "Not stated.",
        "## Citation",
        f"```bibtex\n{CITATION}\n```",
    ]
    return f"---\n{_metadata(run, name.rpartition('/')[2], license_id)}---\n\n" + "\n\n".join(parts) + "\n"


def _metadata(run: Evaluated, name: str, license_id: str | None) -> str:
    shown = _headlines(run)
    kind = run.data.kind if run.data else "unknown"
    results = [
        {
            "task": {"type": PIPELINE, "name": row.of},
            "dataset": {"type": kind, "name": kind, **({"split": row.split} if row.split else {})},
            "metrics": [{"type": TYPES.get(row.measure, row.measure), "name": row.title, "value": row.trained.value}],
        }
        for row in shown
    ]
    facts = {
        "library_name": "soda_dist",
        "pipeline_tag": PIPELINE,
        "tags": ["soda", "diffusion", "representation-learning", "self-supervised"],
        "license": license_id,
        "datasets": [run.data.kind] if run.data else [],
        "metrics": list(dict.fromkeys(TYPES.get(row.measure, row.measure) for row in shown)),
        "model-index": [{"name": name, "results": results}] if results else [],
    }
    return yaml.safe_dump({key: value for key, value in facts.items() if value}, sort_keys=False, allow_unicode=True)


def _headlines(run: Evaluated) -> list[Headline]:
    return [row for task, result in run.results.items() for row in headlines(task, result)]


def _introduction(config: RunConfig) -> str:
    return (
        f"A model of the method `{config.method}`, trained with `soda_dist`, an implementation of "
        f"[SODA: Bottleneck Diffusion Models for Representation Learning]({PAPER}). "
        "The paper's authors released neither code nor weights; these weights are not theirs."
    )


def _use(repository: str | None, files: Sequence[str]) -> str:
    folder = '"FOLDER"' if repository is None else f'snapshot_download("{repository}")'
    lines = ["import soda_dist", f"model = soda_dist.load({folder})"]
    if repository is not None:
        lines.insert(0, "from huggingface_hub import snapshot_download")
    table = pad_table([["file", "holds"], *([f"`{name}`", CONTENTS[name]] for name in files)], 2)
    return "```python\n" + "\n".join(lines) + "\n```\n\n" + "\n".join(table)


def _model(config: RunConfig, parameters: dict[str, int]) -> list[str]:
    e = config.encoder
    encoder = e.model if e.arch == "pretrained" else f"{e.arch} at width {e.width:g}"
    facts = [f"{name}: {count:,} parameters" for name, count in parameters.items()]
    if config.method in ("soda", "encdec"):
        facts.append(f"encoder: {encoder}, {config.data.source_size} px, z of {e.latent_dim} numbers")
    return [*facts, f"images of the decoder: {config.data.target_size} px"]


def _training(run: Evaluated, config: RunConfig, starts: Sequence[dict[str, Any]]) -> list[str]:
    facts = [
        budget(run),
        f"seed {config.seed}, precision {config.train.precision}, peak learning rate {config.optim.lr:g}",
    ]
    if run.data:
        rows = ", ".join(f"{split} {count:,}" for split, count in run.data.rows.items())
        facts.append(f"data: {run.data.kind} ({rows} rows), trained on the split {config.data.train_split}")
    for start in starts:
        trained = start.get("data")
        if isinstance(trained, dict):
            facts.append(f"training data: digest {str(trained.get('digest'))[:12]}, {trained.get('rows')} rows")
        packages = start.get("packages")
        if isinstance(packages, dict):
            facts.append("versions: " + ", ".join(f"{name} {version}" for name, version in packages.items()))
        if start.get("commit"):
            facts.append(f"commit {start['commit']}")
    return facts


def _results(run: Evaluated) -> str:
    if not run.results:
        return "This checkpoint was not evaluated."
    rows = _headlines(run)
    heads = ["task", "measure", "trained", "untrained encoder", "raw pixels", "images", "split"]
    table = [[r.of, r.title, *map(cell, (r.trained, r.untrained, r.pixels)), r.images, r.split] for r in rows]
    lines = [*pad_table([heads, *table], 2), "", "± is one standard error over the test images."] if rows else []
    for task, result in run.results.items():
        whole = [[f.name, f"{f.value:.6g}", "" if f.error is None else f"{f.error:.3g}"] for f in every_figure(result)]
        summary = f"<details>\n<summary>Every figure of <code>{task}</code></summary>\n"
        lines += ["", summary, *pad_table([["figure", "value", "standard error"], *whole], 1), "\n</details>"]
    return "\n".join(lines)


def _limits(run: Evaluated) -> list[str]:
    missing = [task for task in TASKS if task not in run.results]
    limits = [f"not measured: {', '.join(missing)}"] if missing else []
    limits.append("one training run with one seed: the errors above do not cover what another seed would change")
    paper = read_paper()
    blocks = [block for table in paper.tables.values() for block in table.blocks]
    same = [block for block in blocks if uses_data_set(run, paper.data_sets[block.data])]
    for block in same:
        limits += [f"against the paper: {caveat}" for caveat in run_caveats(run, block, paper)]
        for column in paper.columns[block.columns]:
            if figure(run, column) is not None:
                said = cell_caveats(run, block, column, paper)
                limits += [f"{paper.metrics[column.metric].name}, against the paper: {caveat}" for caveat in said]
    if not same:
        limits.append("the data is none of the paper's, so no figure can be compared with its tables")
    return list(dict.fromkeys(limits))


def _bullets(facts: Sequence[str]) -> str:
    return "\n".join(f"- {escaped(fact)}" for fact in facts)
