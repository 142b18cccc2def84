"""Importable data sets: one file, and one row of `SOURCES`, each."""

import sys
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args, get_origin

from soda_dist.config.fields import as_yaml
from soda_dist.config.load import parse_yaml, validate
from soda_dist.data import source as contract
from soda_dist.data.source import Options, Source
from soda_dist.data.sources import (
    afhq,
    celebahq,
    cifar10,
    cifar100,
    cub,
    flowers102,
    folder,
    imagenet,
    kubric,
    lsun,
    mpi3d,
    multiview,
    nmr,
    parquet,
    shapes3d,
    smallnorb,
    synthetic,
    webdataset,
)
from soda_dist.errors import UserError

__all__ = ["SOURCES", "Kind", "describe", "parse_options"]


class Kind(NamedTuple):
    """A kind of source: `open_source(uri, options)` opens it, with options of this type."""

    options: type[Options]
    open_source: Callable[[str, Any], Source]


SOURCES = {
    "afhq": Kind(contract.Options, afhq.open_source),
    "celebahq": Kind(celebahq.Options, celebahq.open_source),
    "cifar10": Kind(contract.Options, cifar10.open_source),
    "cifar100": Kind(contract.Options, cifar100.open_source),
    "cub": Kind(cub.Options, cub.open_source),
    "flowers102": Kind(flowers102.Options, flowers102.open_source),
    "folder": Kind(folder.Options, folder.open_source),
    "gso": Kind(kubric.Options, kubric.open_gso),
    "imagenet": Kind(contract.Options, imagenet.open_source),
    "lsun": Kind(lsun.Options, lsun.open_source),
    "mpi3d": Kind(mpi3d.Options, mpi3d.open_source),
    "multiview": Kind(contract.Options, multiview.open_source),
    "nmr": Kind(contract.Options, nmr.open_source),
    "parquet": Kind(parquet.Options, parquet.open_source),
    "shapenet": Kind(kubric.Options, kubric.open_shapenet),
    "shapes3d": Kind(shapes3d.Options, shapes3d.open_source),
    "smallnorb": Kind(smallnorb.Options, smallnorb.open_source),
    "synthetic": Kind(synthetic.Options, synthetic.open_source),
    "webdataset": Kind(webdataset.Options, webdataset.open_source),
}


def parse_options(kind: str, options: Sequence[str]) -> Options:
    """Parse `option=value` texts as the options of a kind of source.

    Raises:
        UserError: an unknown kind or option, or a wrong value.
    """
    model, tree = _find(kind).options, {}
    for option in options:
        name, equals, text = option.partition("=")
        if not equals or not name:
            raise UserError("option", option, "option=value", "write, for example, seed=1")
        tree[name] = parse_yaml(text, name)
    return validate(model, tree)


def describe(kind: str) -> str:
    """Return the documentation of a kind: layouts and options with their defaults.

    Raises:
        UserError: an unknown kind.
    """
    found = _find(kind)
    lines = [(sys.modules[found.open_source.__module__].__doc__ or "").strip(), "", "Options:"]
    for name, field in found.options.model_fields.items():
        default = "" if field.default is None else as_yaml(field.default)
        words = [*(field.description or "").split(), *_choices(field.annotation)]
        lines.append(f"  {name}={default}".ljust(22) + " ".join(words))
    return "\n".join(lines)


def _choices(annotation: Any) -> list[str]:
    """Return the values that a field allows, in brackets; empty unless it is a choice of texts."""
    choices = [
        value for each in (annotation, *get_args(annotation)) if get_origin(each) is Literal for value in get_args(each)
    ]
    return [f"({', '.join(choices)})"] if choices else []


def _find(kind: str) -> Kind:
    if kind not in SOURCES:
        raise UserError("kind", kind, ", ".join(SOURCES), "choose one of them")
    return SOURCES[kind]
