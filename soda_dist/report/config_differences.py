"""Configurations as differences: from the preset and the defaults, and between runs."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from soda_dist.config.load import leaves, load_config, preset_names
from soda_dist.config.schema import RunConfig
from soda_dist.report.caveats import format_override

ABSENT = "–"


@dataclass(frozen=True)
class FieldValues:
    """A field of the configuration with its value in each column of a table."""

    field: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Differences:
    """Fields that differ, under their columns.

    Attributes:
        own: fields in which the run differs from its preset, or from the defaults if the preset is unknown.
        of_preset: fields in which the preset, as the run has them, differs from the defaults.
    """

    preset: str | None
    own: list[FieldValues]
    of_preset: list[FieldValues]


def preset_of(attempts: Sequence[dict[str, Any]]) -> str | None:
    """Find the shipped preset of the run's first start in its command; None if it had none."""
    for attempt in attempts[:1]:
        try:
            words = shlex.split(str(attempt.get("command") or ""))
        except ValueError:
            return None
        default = "imagenet" if words and "pretrain_imagenet" in words[0] else None
        given = [after for word, after in pairwise(words) if word == "--preset"]
        given += [word.removeprefix("--preset=") for word in words if word.startswith("--preset=")]
        name = given[-1] if given else default
        return name if name in preset_names() else None
    return None


def from_preset(config: RunConfig, preset: str | None) -> Differences:
    """Compare a run's configuration with its preset and with the defaults of the schema."""
    run, default = leaves(config.model_dump()), leaves(RunConfig().model_dump())
    base = leaves(load_config(preset).model_dump()) if preset else default
    own = [_values(field, run, base) for field in run if run[field] != base.get(field)]
    of_preset = [
        _values(field, run, default)
        for field in run
        if run[field] == base.get(field) and run[field] != default.get(field)
    ]
    return Differences(preset, own, of_preset)


def between(configs: Sequence[dict[str, Any]]) -> list[FieldValues]:
    """List the fields in which configurations differ from each other."""
    flat = [leaves(config) for config in configs]
    fields = dict.fromkeys(field for each in flat for field in each)
    return [
        _values(field, *flat)
        for field in fields
        if any(each.get(field, ABSENT) != flat[0].get(field, ABSENT) for each in flat)
    ]


def _values(field: str, *trees: dict[str, Any]) -> FieldValues:
    return FieldValues(field, tuple(_shown(tree[field]) if field in tree else ABSENT for tree in trees))


def _shown(value: Any) -> str:
    return format_override("", list(value) if isinstance(value, tuple) else value).removeprefix("=")
