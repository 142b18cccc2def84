"""Add to a prepared folder the files that its source has gained since the import, or those of another source."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from soda_dist.data.preparation.importer import (
    APPEND,
    REJECTED,
    list_rows,
    make_shards,
    plan_shards,
    write_rejected,
)
from soda_dist.data.preparation.reencode import Reencoded, reencoding
from soda_dist.data.preparation.revision import counts, discard_leftovers, hashed, next_number, publish, split_of_shards
from soda_dist.data.preparation.shard_jobs import Record, ShardJob
from soda_dist.data.preparation.understanding import understand
from soda_dist.data.shards import Label, Manifest, Shard, ShardReader, read_manifest, shard_schema
from soda_dist.data.source import Changed, Options, Row, Source
from soda_dist.data.sources import SOURCES, parse_options
from soda_dist.data.storage.folder import Folder, open_folder
from soda_dist.errors import UserError
from soda_dist.parallel.local_pool import LocalPool
from soda_dist.parallel.pool import Held, Pool
from soda_dist.parallel.progress import Say, silent

CLAIM = f"{APPEND}/append.json"


def append(
    kind: str,
    source_uri: str | None,
    data_uri: str,
    options: Sequence[str] = (),
    pool: Pool | None = None,
    say: Say = silent,
) -> str:
    """Add to a prepared folder the rows of a source whose names it lacks, and return the folder's URI.

    Rows that were removed stay out. New classes get the numbers after the old ones. Names of kind `parquet` do not
    tell which rows the folder has: all rows of such a source are added.

    Args:
        kind, source_uri, options: as of `prepare`; images are re-encoded as those of the folder were.
        pool: workers; None = this process.

    Raises:
        UserError: a wrong kind, option or source, no prepared folder, or rows unlike those of the folder.
    """
    if source_uri is None:
        raise UserError("--source", "nothing", "the published data set", "name its folder or file")
    parsed, folder = parse_options(kind, options), open_folder(data_uri)
    manifest, settings = read_manifest(folder), reencoding(parsed)
    if settings not in (None, manifest.reencoded):
        allowed = str(manifest.reencoded or "images as published")
        raise UserError("max_side, quality", str(settings), f"{allowed}, as in the data", "leave them out")
    opened = SOURCES[kind].open_source(open_folder(source_uri).uri, parsed)
    _check_columns(folder, manifest, opened)
    source, labels = _relabelled(opened, manifest)
    source = Reencoded(source, manifest.reencoded) if manifest.reencoded else source
    _resume(folder, manifest, {"kind": kind, "source": open_folder(source_uri).uri, "options": parsed.model_dump()})
    with (pool or LocalPool()).with_state(Held((source, folder))) as workers:
        listed = list_rows(source, folder, parsed, workers, say, APPEND)
        try:
            listed = understand(source.contents, listed, parsed, say)
        except UserError:
            folder.remove_tree(APPEND)  # so that a corrected source is listed anew
            raise
        indices = _new_rows(folder, manifest, listed, every=kind == "parquet")
        say(f"{sum(map(len, indices.values())):,} of {sum(map(len, listed.values())):,} rows of the source are new")
        per_group = parsed.rows_per_group or source.contents.rows_per_group
        jobs = [
            job
            for split, index in indices.items()
            for job in _plan_additions(manifest, split, index, per_group, parsed)
        ]
        records = make_shards(workers, folder, jobs, indices, per_group, say)
    if any(record.shard for record in records.values()):
        _finish(
            folder, manifest, labels, records, {name for i in indices.values() for name in i["name"].to_pylist()}, say
        )
    else:
        folder.remove_tree(APPEND)
        say("already up to date: nothing was added")
    return folder.uri


def _finish(
    folder: Folder,
    manifest: Manifest,
    labels: dict[str, Label],
    records: dict[ShardJob, Record],
    tried: set[str],
    say: Say,
) -> None:
    """Write the manifest with the new shards; rows rejected before that were `tried` again are listed once."""
    lines = folder.read(REJECTED).decode().splitlines() if folder.exists(REJECTED) else []
    lines = [line for line in lines if json.loads(line)["name"] not in tried]
    rejected = write_rejected(folder, records, say, lines)
    added: defaultdict[str, list[Shard]] = defaultdict(list)
    for job, record in records.items():
        added[job.split] += [record.shard] if record.shard else []
    splits = {name: split_of_shards((*split.shards, *added[name])) for name, split in manifest.splits.items()}
    changed = {"splits": splits, "labels": labels, "rejected": rejected}
    publish(folder, manifest, manifest.model_copy(update=changed))
    say(f"done: {counts(splits)}")


def _check_columns(folder: Folder, manifest: Manifest, source: Source) -> None:
    have = ShardReader(folder, manifest, next(iter(manifest.splits))).schema().remove_metadata()
    new = shard_schema(source.contents.columns)
    if not new.equals(have):
        got, allowed = (", ".join(f"{field.name} {field.type}" for field in schema) for schema in (new, have))
        raise UserError(
            "--source", f"columns {got}", f"those of the data: {allowed}", "use the import's kind and options"
        )


def _relabelled(source: Source, manifest: Manifest) -> tuple[Source, dict[str, Label]]:
    """Give the source the data's label numbers; return the labels with the new classes after the old ones."""
    numbers: dict[str, NDArray[np.int64]] = {}
    labels = dict(manifest.labels)
    for name, new in source.contents.labels.items():
        old = manifest.labels[name]
        names = tuple(dict.fromkeys((*old.names, *new.names)))
        if new.kind != old.kind or (old.kind != "class" and names != old.names):
            allowed = f"{old.kind} with {len(old.names)} names as in the data"
            raise UserError("--source", f"label {name}: {new.kind}, other names", allowed, "add data of the same kind")
        labels[name] = old.model_copy(update={"names": names})
        numbers[name] = np.array([names.index(each) for each in new.names], np.int64)
    return Relabelled(source, numbers), labels


@dataclass(frozen=True)
class Relabelled(Changed):
    """`source` with other numbers of its labels' values. Implements `Source`."""

    numbers: Mapping[str, NDArray[np.int64]]

    def change(self, row: Row) -> Row:
        return row._replace(columns={name: self._number(name, value) for name, value in row.columns.items()})

    def _number(self, name: str, value: Any) -> Any:
        numbers = self.numbers.get(name)
        return value if numbers is None or value is None else int(numbers[value])


def _resume(folder: Folder, manifest: Manifest, claim: dict[str, Any]) -> None:
    """Keep what an interrupted addition of the same source has written; discard that of any other."""
    claim = {"parent": manifest.digest, **claim}
    if not (folder.exists(CLAIM) and folder.read_json(CLAIM) == claim):
        folder.remove_tree(APPEND)
        discard_leftovers(folder, manifest)
        folder.write_json(CLAIM, claim)


def _new_rows(folder: Folder, manifest: Manifest, listed: dict[str, pa.Table], *, every: bool) -> dict[str, pa.Table]:
    """Select the listed rows whose names are neither in the data nor removed from it."""
    unknown = next((split for split in listed if split not in manifest.splits), None)
    if unknown:
        allowed = ", ".join(manifest.splits)
        raise UserError(
            "--source", f"rows of a split {unknown}", allowed, "leave it out, or import into an empty folder"
        )
    known = set[str]()
    for split in () if every else manifest.splits:
        known.update(ShardReader(folder, manifest, split).column("name").to_pylist())
    removed = set(manifest.removed)

    def is_new(name: str) -> bool:
        return name not in known and hashed(name) not in removed

    return {
        split: index.filter(pa.array([is_new(name) for name in index["name"].to_pylist()], pa.bool_()))
        for split, index in listed.items()
    }


def _plan_additions(manifest: Manifest, name: str, index: pa.Table, per_group: int, options: Options) -> list[ShardJob]:
    split = manifest.splits[name]
    return plan_shards(name, index, per_group, options, APPEND, next_number(split), split.rows)
