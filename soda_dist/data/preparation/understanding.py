"""What an import understood of a source: said, and checked for contradictions, before any image is copied.

The rows of every split are listed by now, with their class labels where a list holds them.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from soda_dist.data.formats.listing import refuse_repeats
from soda_dist.data.shards import Label
from soda_dist.data.source import Contents, LabelOptions, Options
from soda_dist.errors import UserError
from soda_dist.parallel.progress import Say

SHOWN = 5
WITHOUT = "complete the data, or import it without labels (label=none, or classes=false for folders)"


def understand(contents: Contents, indices: Mapping[str, pa.Table], options: Options, say: Say) -> dict[str, pa.Table]:
    """Say what the listed rows are, and return those to import, by split.

    Raises:
        UserError: a split without rows; no labels where they were found or asked for, in training or anywhere; a class
            that training lacks; a file that symbolic links list twice.
    """
    lines = list[str]()
    kept = _without_empty(contents, indices, lines)
    if contents.files:
        refuse_repeats(contents.files, (name for index in kept.values() for name in index["name"].to_pylist()))
    # By a limit, as by drawn splits, training may miss a class by chance.
    strict = isinstance(options, LabelOptions) and not contents.drawn and options.limit is None
    for name, label in _class_labels(contents, kept).items():
        kept = _without_unlabelled(name, kept, options, lines)
        lines += _check_classes(name, label, contents, kept, strict=strict)
    rows = ", ".join(f"{len(index):,} {split}" for split, index in kept.items())
    drawn = ", splits drawn" if contents.drawn else ""
    if options.limit is not None:
        how = "the first rows" if contents.by_object else f"drawn by name with seed {options.seed}"
        lines.append(f"limit: at most {options.limit:,} rows of a split, {how}")
    for line in (f"found {rows} rows{drawn}; {describe_labels(contents)}; {_views(contents)}", *lines, *contents.notes):
        say(line)
    return kept


def _without_empty(contents: Contents, indices: Mapping[str, pa.Table], lines: list[str]) -> dict[str, pa.Table]:
    empty = [split for split, index in indices.items() if not len(index)]
    if not indices or "train" in empty or len(empty) == len(indices) or (empty and not contents.drawn):
        where = empty[0] if empty else "any split"
        raise UserError("--source", f"no images in {where}", "at least one image", "correct the path")
    if empty:
        lines.append(f"no {' and no '.join(empty)} split: too few rows for one to be drawn")
    return {split: index for split, index in indices.items() if len(index)}


def _class_labels(contents: Contents, indices: Mapping[str, pa.Table]) -> dict[str, Label]:
    """Class labels whose values the lists hold."""
    listed = [set(index.column_names) for index in indices.values()]
    names = set[str].intersection(*listed)
    return {name: label for name, label in contents.labels.items() if label.kind == "class" and name in names}


def _without_unlabelled(
    name: str, indices: Mapping[str, pa.Table], options: Options, lines: list[str]
) -> dict[str, pa.Table]:
    """Leave out the splits of which no row has the label, or say that they have none."""
    lacking = [split for split, index in indices.items() if index[name].null_count == len(index)]
    policy = options.unlabelled if isinstance(options, LabelOptions) else None
    if not lacking:
        return dict(indices)
    if len(lacking) == len(indices) or policy is None or (policy == "skip" and "train" in lacking):
        got = f"no {name} in any row of {', '.join(lacking)}{_reason(indices[lacking[0]])}"
        more = ", or set unlabelled=import" if policy and len(lacking) < len(indices) else ""
        raise UserError("--source", got, f"a {name} in each split, or in none", WITHOUT + more)
    for split in lacking:
        done = "imported without" if policy == "import" else "left out; unlabelled=import imports it without"
        lines.append(f"{split}: none of its {len(indices[split]):,} rows has a {name}{_reason(indices[split])}: {done}")
    return {split: index for split, index in indices.items() if policy == "import" or split not in lacking}


def _reason(index: pa.Table) -> str:
    """The first problem of an index that lists its rows' problems, in brackets."""
    names = [name for name in index.column_names if name.endswith("problem")]
    found = [text for name in names if (text := pc.first(index[name].drop_null()).as_py())]
    return f" ({found[0]})" if found else ""


def _check_classes(
    name: str, label: Label, contents: Contents, indices: Mapping[str, pa.Table], *, strict: bool
) -> list[str]:
    """Check that training has every class; return what is worth a line."""
    seen = {split: np.unique(index[name].drop_null().to_numpy()) for split, index in indices.items()}
    lines = [
        f"{split}: {index[name].null_count:,} of {len(index):,} rows have no {name}{_reason(index)}"
        for split, index in indices.items()
        if 0 < index[name].null_count < len(index)
    ]
    train = seen.get("train", np.zeros(0))
    for split, found in seen.items() if len(train) else ():
        unknown = [label.names[number] for number in np.setdiff1d(found, train).tolist()]
        if unknown:
            lines.append(f"{split} has {_shown(unknown, 'class')} of {name}, which train lacks")
            if strict:
                raise UserError("--source", lines[-1], "classes of train in every split", WITHOUT)
    if 0 < len(train) < len(label.names):
        lines.append(f"train has {len(train):,} of the {len(label.names):,} classes of {name}")
    return lines


def describe_labels(contents: Contents) -> str:
    """Describe the labels in a few words: classes and factors by name, attributes by number."""
    described = [
        f"{name}: {_shown(label.names, 'class' if label.kind == 'class' else 'value')}"
        for name, label in contents.labels.items()
        if label.kind != "attribute"
    ]
    attributes = sum(label.kind == "attribute" for label in contents.labels.values())
    return "; ".join([*described, *([f"{attributes} attributes"] if attributes else [])]) or "no labels"


def _shown(names: Sequence[str], noun: str) -> str:
    plural = noun if len(names) == 1 else noun + ("es" if noun.endswith("s") else "s")
    return f"{len(names):,} {plural} ({', '.join(names[:SHOWN])}{', ...' * (len(names) > SHOWN)})"


def _views(contents: Contents) -> str:
    columns = {column.name for column in contents.columns}
    if not contents.by_object:
        return "no cameras"
    return "objects with cameras" if "camera_to_world" in columns else "objects without cameras"
