"""Import of a published data set to shards and a manifest, over a pool.

Every part of the source is listed first; the list gives the row order of a split. What was understood is said, and
contradictions are refused, before an image is read. Then one task makes each shard from its range of the list, so keys,
row groups and shards depend only on the source and the options. Unreadable rows are skipped: the shard's later rows
move up, its last group is short, and later shards are rewritten with new keys.

The data folder's `_import/` holds the lists and a record of each finished shard; an interrupted import resumes from it.
"""

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from soda_dist.config.fields import Node
from soda_dist.data.preparation.reencode import Reencoded, reencoding
from soda_dist.data.preparation.shard_jobs import (
    IMPORT,
    Record,
    ShardJob,
    ShardTask,
    find_finished,
    index_part,
    make_shard,
    rewrite_keys,
)
from soda_dist.data.preparation.understanding import understand
from soda_dist.data.shards import (
    MANIFEST,
    SHARD_FILE,
    VERSION,
    Manifest,
    Reencoding,
    Shard,
    Split,
    check_shards,
    read_manifest,
    write_manifest,
)
from soda_dist.data.source import Options, Part, Source
from soda_dist.data.sources import SOURCES, parse_options
from soda_dist.data.storage.folder import Folder, open_folder
from soda_dist.errors import UserError
from soda_dist.parallel.local_pool import LocalPool
from soda_dist.parallel.pool import Held, Pool
from soda_dist.parallel.progress import Progress, Say, silent

CLAIM, INDEX = f"{IMPORT}/import.json", f"{IMPORT}/index"
REJECTED = "rejected.jsonl"
APPEND = "_append"
"""Like IMPORT, of an addition that is not finished."""
LATER = ("limit", "unlabelled", "image", "all", "names", "setting")
"""Options that imports of earlier releases lacked: at their defaults they are no part of an import's identity."""
IMPORT_FILES = re.compile(rf"({IMPORT}|{APPEND})/.*|{re.escape(MANIFEST)}|{re.escape(REJECTED)}|{SHARD_FILE.pattern}")


class Claim(Node):
    """Identity of the import that a folder belongs to."""

    version: int
    kind: str
    source: str
    options: dict[str, Any]
    fingerprint: str


def check_arguments(kind: str | None, options: Sequence[str], data_uri: str | None) -> None:
    """Check what needs no worker: a kind's options; without a kind, that `data_uri` is a prepared folder.

    Raises:
        UserError: a wrong kind or option, or no prepared folder.
    """
    if kind:
        parse_options(kind, options)
    elif data_uri:
        read_manifest(open_folder(data_uri))


def prepare(
    kind: str,
    source_uri: str | None,
    data_uri: str,
    options: Sequence[str] = (),
    pool: Pool | None = None,
    say: Say = silent,
) -> str:
    """Import a published data set into the folder `data_uri` and return its URI; resumes if interrupted.

    Args:
        kind: one of SOURCES.
        source_uri: the data set as published; None for synthetic.
        data_uri: an empty folder, or one in which the same import was started or finished.
        options: `option=value` texts for this kind.
        pool: workers; None = this process.
        say: receives progress lines.

    Raises:
        UserError: a wrong kind, option or source, a folder with other contents, a source without images, or one whose
            splits and labels contradict each other.
    """
    parsed = parse_options(kind, options)
    folder = open_folder(data_uri)
    claim = _claim(kind, source_uri, parsed)
    if _is_finished(folder, claim, say):
        return folder.uri
    say(f"opening {claim.source or kind}")
    source = SOURCES[kind].open_source(claim.source, parsed)
    settings = reencoding(parsed)
    source = source if settings is None else Reencoded(source, settings)
    folder.write_json(CLAIM, claim.model_dump())
    with (pool or LocalPool()).with_state(Held((source, folder))) as workers:
        listed = list_rows(source, folder, parsed, workers, say)
        try:
            indices = understand(source.contents, listed, parsed, say)
        except UserError:
            folder.remove_tree(INDEX)  # so that a corrected source is listed anew
            raise
        per_group = parsed.rows_per_group or source.contents.rows_per_group
        jobs = [job for split, index in indices.items() for job in plan_shards(split, index, per_group, parsed)]
        records = make_shards(workers, folder, jobs, indices, per_group, say)
    _write_results(folder, claim, source, records, settings, say)
    return folder.uri


def survey(
    kind: str, source_uri: str | None, options: Sequence[str] = (), pool: Pool | None = None, say: Say = silent
) -> str:
    """Say what an import with these arguments would find, and write nothing; returns the source's URI.

    Raises:
        UserError: what `prepare` would refuse before it reads an image.
    """
    parsed = parse_options(kind, options)
    claim = _claim(kind, source_uri, parsed)
    say(f"opening {claim.source or kind}")
    source = SOURCES[kind].open_source(claim.source, parsed)
    with (pool or LocalPool()).with_state(Held((source, None))) as workers:
        understand(source.contents, list_rows(source, None, parsed, workers, say), parsed, say)
    return claim.source or kind


def _claim(kind: str, source_uri: str | None, options: Options) -> Claim:
    source = open_folder(source_uri).uri if source_uri else ""
    if not source and kind != "synthetic":
        raise UserError("--source", "nothing", "the published data set", "name its folder or file")
    chosen, defaults = options.model_dump(mode="json"), type(options)().model_dump(mode="json")
    told = {name: value for name, value in chosen.items() if name not in LATER or value != defaults[name]}
    identity = json.dumps([VERSION, kind, source, told], sort_keys=True)
    fingerprint = hashlib.sha256(identity.encode()).hexdigest()
    return Claim(version=VERSION, kind=kind, source=source, options=chosen, fingerprint=fingerprint)


def _is_finished(folder: Folder, claim: Claim, say: Say) -> bool:
    """Check whether the folder holds this import, complete; a `UserError` if it holds anything else."""
    names = [entry.name for entry in folder.list()]
    foreign = next((name for name in names if not IMPORT_FILES.fullmatch(name)), None)
    if foreign or (names and CLAIM not in names and MANIFEST not in names):
        _refuse(folder, f"a folder that holds {foreign or names[0]}")
    if CLAIM in names:
        existing = folder.read_json(CLAIM)
        if all(name.startswith((CLAIM, INDEX)) for name in names) and _differs(existing, claim):
            folder.remove_tree(IMPORT)  # lists alone, of an import that was refused or stopped before its first image
            return False
        _check_claim(folder, claim, existing)
        folder.discard_temporary()
    if MANIFEST not in names:
        return False
    manifest = read_manifest(folder)
    _check_claim(folder, claim, manifest.model_dump())
    try:
        for split in manifest.splits:
            check_shards(folder, manifest, split)
    except UserError as error:
        if manifest.parent:
            allowed, remedy = "shards as written", "restore it from a copy: the source lacks what was added and removed"
            raise UserError(error.field, error.got, allowed, remedy) from None
        say(f"rebuilding {error.field}: found {error.got}")
        folder.remove(MANIFEST)
        return False
    rows = ", ".join(f"{split.rows:,} {name} rows" for name, split in manifest.splits.items())
    say(f"already prepared: {rows}, {manifest.rejected:,} rejected")
    return True


def _differs(existing: dict[str, Any], claim: Claim) -> bool:
    return existing.get("fingerprint") != claim.fingerprint and existing.get("version") == VERSION


def _check_claim(folder: Folder, claim: Claim, existing: dict[str, Any]) -> None:
    if existing.get("fingerprint") == claim.fingerprint:
        return
    if existing.get("version") != VERSION:
        _refuse(folder, f"an import of format version {existing.get('version')}")
    origin = f" from {existing['source']}" if existing.get("source") else ""
    same = (existing.get("kind"), existing.get("source")) == (claim.kind, claim.source)
    _refuse(folder, f"an import of {existing.get('kind')}{origin}" + (" with other options" if same else ""))


def _refuse(folder: Folder, got: str) -> None:
    raise UserError(folder.uri, got, "an empty folder, or one with the same import", "choose another --data")


def list_rows(
    source: Source, folder: Folder | None, options: Options, workers: Pool, say: Say, staging: str = IMPORT
) -> dict[str, pa.Table]:
    """List the rows of each split, or read the lists of an earlier run in `staging`; without `folder`, keep none."""
    parts = defaultdict(list)
    for part in source.parts():
        parts[part.split].append(part)
    indices = {}
    for split, listed in parts.items():
        name = f"{staging}/index/{split}.parquet"
        if folder and folder.exists(name):
            indices[split] = pq.read_table(pa.BufferReader(folder.read(name)))
            continue
        indices[split] = _list_split(source, listed, options, workers, say)
        if folder:
            sink = pa.BufferOutputStream()
            pq.write_table(indices[split], sink, compression="zstd")
            folder.write(name, sink.getvalue())
    return indices


def _list_split(source: Source, parts: list[Part], options: Options, workers: Pool, say: Say) -> pa.Table:
    split = parts[0].split
    tables = workers.map(index_part, parts, Progress(say, f"listing {split}", "parts"))
    index = pa.concat_tables(tables).combine_chunks()
    if source.contents.shuffled:
        # A batch mixes only a few row groups: sorted by class, it would hold few classes.
        index = index.take(np.random.default_rng([options.seed, *split.encode()]).permutation(len(index)))
    return index if options.limit is None else _limited(index, split, options, by_object=source.contents.by_object)


def _limited(index: pa.Table, split: str, options: Options, *, by_object: bool) -> pa.Table:
    """Keep `options.limit` rows in their order: those whose names have the smallest hashes.

    New files hardly change which these are. Views of an object are neighbours, so by object the first rows are kept.
    """
    limit = options.limit or len(index)
    if by_object or limit >= len(index):
        return index.slice(0, limit).combine_chunks()
    names = (f"{options.seed} {split} {name}".encode() for name in index["name"].to_pylist())
    ranks = np.array([int.from_bytes(hashlib.sha256(name).digest()[:8], "big") for name in names], np.uint64)
    return index.take(np.sort(np.argsort(ranks, kind="stable")[:limit])).combine_chunks()


def plan_shards(
    split: str,
    index: pa.Table,
    per_group: int,
    options: Options,
    staging: str = IMPORT,
    number: int = 0,
    before: int = 0,
) -> list[ShardJob]:
    """Cut the list of a split into shards, of which the first is `number`, after `before` rows of the split."""
    size = per_group * options.groups_per_shard
    return [
        ShardJob(split, number + at, start, min(start + size, len(index)), staging, before)
        for at, start in enumerate(range(0, len(index), size))
    ]


def make_shards(
    workers: Pool, folder: Folder, jobs: list[ShardJob], indices: dict[str, pa.Table], per_group: int, say: Say
) -> dict[ShardJob, Record]:
    """Write the shards that an earlier run did not finish; return the records of all jobs, in order."""
    existing = find_finished(folder, jobs)
    missing = [job for job in jobs if job not in existing]
    total = sum(job.stop - job.start for job in jobs)
    if existing:
        say(f"reusing {len(existing):,} of {len(jobs):,} shards of an earlier run")
    progress = Progress(
        say,
        "importing",
        "rows",
        units=lambda task: len(task.index),
        size=lambda task, size: size,
        total=total,
        done=total - sum(job.stop - job.start for job in missing),
    )
    common = {split: workers.share(index.schema.metadata) for split, index in indices.items()}
    rows = {split: index.replace_schema_metadata(None) for split, index in indices.items()}
    tasks = (
        ShardTask(job, rows[job.split][job.start : job.stop].combine_chunks(), common[job.split], per_group)
        for job in missing
    )
    workers.map(make_shard, tasks, progress)
    return _renumber(workers, folder, jobs, say)


def _renumber(workers: Pool, folder: Folder, jobs: list[ShardJob], say: Say) -> dict[ShardJob, Record]:
    """Correct the keys of shards after rejected rows; return the records of all jobs, in order."""
    records = find_finished(folder, jobs)
    calls, next_key = [], {job.split: job.before for job in jobs}
    for job in jobs:
        record, first = records[job], next_key[job.split]
        if record.shard:
            next_key[job.split] += record.shard.rows
            if record.first_key != first:
                calls.append((job, record, first))
    if calls:
        workers.map(rewrite_keys, calls, Progress(say, "renumbering keys after rejected rows", "shards"))
        records = find_finished(folder, jobs)
    return {job: records[job] for job in jobs}


def write_rejected(folder: Folder, records: dict[ShardJob, Record], say: Say, before: Sequence[str] = ()) -> int:
    """Write the list of rejected rows, after the lines `before`; return its length."""
    rejected = [(job.split, row) for job, record in records.items() for row in record.rejected]
    lines = [json.dumps({"split": split, "name": row.name, "reason": row.reason}) for split, row in rejected]
    if rejected or folder.exists(REJECTED):
        folder.write(REJECTED, "".join(f"{line}\n" for line in [*before, *lines]).encode())
    if rejected:
        reasons = Counter(row.reason for _, row in rejected).most_common()
        shown = ", ".join(f"{count:,} x {reason}" for reason, count in reasons[:3]) + ", ..." * (len(reasons) > 3)
        say(f"{len(rejected):,} rows could not be read ({shown}); see {folder.file_uri(REJECTED)}")
    return len(before) + len(rejected)


def _write_results(
    folder: Folder, claim: Claim, source: Source, records: dict[ShardJob, Record], settings: Reencoding | None, say: Say
) -> None:
    rejected = write_rejected(folder, records, say)
    shards: defaultdict[str, list[Shard]] = defaultdict(list)
    for job, record in records.items():
        shards[job.split] += [record.shard] if record.shard else []
    empty = next((split for split, made in shards.items() if not made), None)
    if empty:
        reason = next(row.reason for job, record in records.items() if job.split == empty for row in record.rejected)
        got = f"no readable image in {empty} (the first: {reason})"
        raise UserError("--source", got, "JPEG, PNG or WebP images", f"see {folder.file_uri(REJECTED)}")
    contents = source.contents
    splits = {name: Split(rows=sum(s.rows for s in made), shards=tuple(made)) for name, made in shards.items()}
    manifest = Manifest(
        version=VERSION,
        kind=claim.kind,
        source=claim.source,
        fingerprint=claim.fingerprint,
        splits=splits,
        labels=contents.labels,
        main_label=contents.main_label,
        rejected=rejected,
        reencoded=settings,
    )
    write_manifest(folder, manifest)
    counts = {name: (split.rows, len(split.shards)) for name, split in splits.items()}
    said = (f"{rows:,} {name} rows in {made:,} shard{'s' * (made != 1)}" for name, (rows, made) in counts.items())
    say("done: " + ", ".join(said))
