"""Stored configurations of older formats: what each meant by the fields that it lacks.

The folder of a run and its checkpoints store every field, so a missing one dates them. A preset or a user's file may
leave out anything, and gets the defaults.
"""

from typing import Any, NamedTuple

from soda_dist.config.load import leaves, parse_yaml, validate
from soda_dist.config.schema import RunConfig
from soda_dist.errors import UserError

FORMAT = 2
"""Format of the runs and checkpoints that this release trains."""


class _As(NamedTuple):
    """Value of another field of the same configuration."""

    field: str


_MEANT: dict[int, dict[str, Any]] = {
    1: {
        "denoiser.up_path": "mirrored",
        "denoiser.time_dim": _As("denoiser.position_dim"),
        "train.norm_batch": _As("train.micro_batch"),  # times the workers of each attempt, which nothing records
    },
}
"""By format: the fields that it lacks, and what runs of it did. Fields whose default is that need no row."""


_RENAMED = {"start_timeout_s": "max_wait_s"}
"""Fields of `scale` by earlier names."""


def parse_stored(text: str | bytes, where: str) -> RunConfig:
    """Load the configuration that a run or a checkpoint stores; raise `UserError` as `load_config` does.

    Args:
        text: YAML or JSON.
        where: names the text in errors.
    """
    tree = _tree(text, where)
    fields = leaves(tree)
    for meanings in _MEANT.values():
        for field, meaning in meanings.items():
            section, _, name = field.partition(".")
            if field not in fields and isinstance(tree.setdefault(section, {}), dict):
                tree[section][name] = fields.get(meaning.field) if isinstance(meaning, _As) else meaning
    if isinstance(scale := tree.get("scale"), dict):
        tree["scale"] = {_RENAMED.get(name, name): value for name, value in scale.items()}
    return validate(RunConfig, tree, "use the release that wrote it")


def stored_format(text: str | bytes, where: str) -> int:
    """Return the format of a stored configuration: the oldest whose fields it lacks; arguments as `parse_stored`."""
    fields = leaves(_tree(text, where))
    return next((number for number, lacked in _MEANT.items() if not fields.keys() >= lacked.keys()), FORMAT)


def refuse_to_train(uri: str, written: int) -> None:
    """Raise a `UserError` if the run at `uri`, written by format `written`, is not of this release's format."""
    if written != FORMAT:
        got = f"{uri}, a run of format {written}"
        remedy = "start a new run; evaluate and compare still read this one"
        raise UserError("--run", got, f"runs of format {FORMAT}, which this release trains", remedy)


def _tree(text: str | bytes, where: str) -> dict[str, Any]:
    tree = parse_yaml(text, where)
    if not isinstance(tree, dict):
        raise UserError(where, type(tree).__name__, "a mapping of sections", "use the release that wrote it")
    return tree
