"""Remove rows from a prepared folder, as when consent is withdrawn: no shard keeps their images or names."""

import hashlib
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from soda_dist.data.formats.published_names import one_form
from soda_dist.data.formats.text_lines import text_lines
from soda_dist.data.preparation.revision import counts, discard_leftovers, hashed, next_number, publish, split_of_shards
from soda_dist.data.preparation.shard_jobs import rewrite_shard
from soda_dist.data.shards import Manifest, Shard, ShardReader, Split, read_manifest
from soda_dist.data.storage.folder import Folder, locate, open_folder
from soda_dist.errors import UserError
from soda_dist.parallel.local_pool import LocalPool
from soda_dist.parallel.pool import Held, Pool
from soda_dist.parallel.progress import Progress, Say, silent

KEY = re.compile(r"(\w+)/(\d+)")
MAX_SHOWN = 20
"""Removed rows that are logged by name."""


def remove(data_uri: str, rows: Sequence[str], pool: Pool | None = None, say: Say = silent) -> str:
    """Remove rows from a prepared folder and return its URI; the keys of later rows move up.

    Args:
        rows: each `SPLIT/KEY`, or the name of rows. Unless it is a key, a name may mean several rows.
        pool: workers; None = this process.

    Raises:
        UserError: no prepared folder, unknown rows, or all rows of a split.
    """
    folder = open_folder(data_uri)
    manifest = read_manifest(folder)
    discard_leftovers(folder, manifest)
    chosen = _find(folder, manifest, rows)
    for split, found in chosen.items():
        if len(found) == manifest.splits[split].rows:
            raise UserError("--remove", f"all rows of {split}", "some of them", f"import the data without {split}")
        for key, name in list(found.items())[:MAX_SHOWN]:
            say(f"removing {split}/{key} ({name})")
    plans = {split: _plan_rewrites(split, manifest.splits[split], sorted(found)) for split, found in chosen.items()}
    tasks = [task for plan in plans.values() for task in plan if isinstance(task, Rewrite)]
    progress = Progress(say, "rewriting", "shards", size=lambda task, shard: task.shard.bytes)
    with (pool or LocalPool()).with_state(Held(folder)) as workers:
        made = iter(workers.map(_rewrite, tasks, progress))
    splits = dict(manifest.splits)
    for split, plan in plans.items():
        kept = [next(made) if isinstance(task, Rewrite) else task for task in plan]
        splits[split] = split_of_shards(shard for shard in kept if shard)
    names = {hashed(name) for found in chosen.values() for name in found.values()}
    removed = tuple(sorted({*manifest.removed, *names}))
    publish(folder, manifest, manifest.model_copy(update={"splits": splits, "removed": removed}))
    say(f"done: removed {sum(map(len, chosen.values())):,} rows; {counts(splits)}")
    return folder.uri


def parse_rows(text: str) -> list[str]:
    """Split rows at commas, or read `@FILE`, a local path or URI of a text file with a row per line.

    Raises:
        UserError: no such file, or no text.
    """
    if not text.startswith("@"):
        return [row for row in text.split(",") if row]
    folder, name = locate(text[1:])
    try:
        return text_lines(folder.read(name), folder.file_uri(name))
    except FileNotFoundError:
        raise UserError(
            "--remove", f"{text}, which does not exist", "@FILE with a row per line", "correct it"
        ) from None


def _find(folder: Folder, manifest: Manifest, rows: Sequence[str]) -> dict[str, dict[int, str]]:
    """Find the chosen rows: of each split that has some, their names by key."""
    names = {split: ShardReader(folder, manifest, split).column("name").to_pylist() for split in manifest.splits}
    chosen: defaultdict[str, dict[int, str]] = defaultdict(dict)
    wanted, places = {one_form(row) for row in rows}, defaultdict[str, list[tuple[str, int]]](list)
    for split, found in names.items():
        for key, name in enumerate(found):
            if (composed := one_form(name)) in wanted:
                places[composed].append((split, key))
    unknown = []
    for row in rows:
        split, number = match.groups() if (match := KEY.fullmatch(row)) else ("", "")
        is_key = split in names and int(number) < len(names[split])
        located = [(split, int(number))] if is_key else places.get(one_form(row), [])
        unknown += [] if located else [row]
        for where, at in located:
            chosen[where][at] = names[where][at]
    if unknown or not rows:
        got = f"{unknown[0]}, which is no row" if unknown else "no rows"
        more = f" (and {len(unknown) - 1:,} more)" if len(unknown) > 1 else ""
        raise UserError("--remove", got + more, "SPLIT/KEY, or the name of a row", "correct it; nothing was removed")
    return dict(chosen)


class Rewrite(NamedTuple):
    """A shard to be written anew as `path`, without the rows `dropped` of it, with keys from `first_key` on."""

    shard: Shard
    path: str
    first_key: int
    dropped: tuple[int, ...]


def _plan_rewrites(name: str, split: Split, keys: Sequence[int]) -> list[Shard | Rewrite]:
    """Plan each shard of a split: as it is, or rewritten because it loses rows or their keys move."""
    plan: list[Shard | Rewrite] = []
    chosen, first, lost, number = np.asarray(keys), 0, 0, next_number(split)
    for shard in split.shards:
        inside = chosen[(chosen >= first) & (chosen < first + shard.rows)] - first
        if lost or len(inside):
            plan.append(Rewrite(shard, f"{name}/{number:05d}.parquet", first - lost, tuple(inside.tolist())))
            number += 1
        else:
            plan.append(shard)
        first, lost = first + shard.rows, lost + len(inside)
    return plan


def _rewrite(folder: Folder, task: Rewrite) -> Shard | None:
    data = folder.read(task.shard.path)
    if hashlib.sha256(data).hexdigest() != task.shard.sha256:
        uri = folder.file_uri(task.shard.path)
        raise UserError(uri, "an altered shard", "the shard as written", "restore it, then rerun")
    return rewrite_shard(folder, data, task.path, task.first_key, task.dropped)
