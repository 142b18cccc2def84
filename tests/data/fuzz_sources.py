"""Importers against damaged archives, each in a process of its own: `python -m tests.data.fuzz_sources --mutants 2000`.

A mutant must be imported, be refused by a `UserError` of one line, or have rows with a problem. What else happens, a
crash, a hang or want of memory too, is printed with the layout and the seed.
"""

import argparse
import os
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from soda_dist.data.shards import Label, shard_schema
from soda_dist.data.source import Contents, Row, Source, check_image
from soda_dist.data.views.decode import decode, read_header
from soda_dist.errors import UserError
from tests.data.written.importing import opened
from tests.data.written.layouts import LAYOUTS, Files, small
from tests.data.written.mutated import mutant

SECONDS, MEMORY = 20, 3 * 2**30
"""What a mutant may take: wall time, and address space above what the process had. A thread's stack and its arena of
malloc reserve some 100 MB, used or not."""
IMPORTED, REFUSED, PROBLEM = "imported", "refused", "a problem"
OUTCOMES = (IMPORTED, REFUSED, PROBLEM)
MOST_PIXELS = 4 * 2**20
"""Larger images are not decoded here: what a decoder does with a header of gigabytes is tested elsewhere."""


def outcome(kind: str, uri: str, options: Sequence[str] = ()) -> str:
    """One of OUTCOMES; whatever else is raised is a defect."""
    try:
        source = opened(kind, uri, *options)
        contents = source.contents
        check_contents(contents)
        splits: dict[str, list[pa.Table]] = defaultdict(list)
        for part in source.parts():
            splits[part.split].append(source.index(part))
        problems = [problem for tables in splits.values() for problem in _problems(source, contents, tables)]
    except UserError as error:
        assert "\n" not in str(error) and str(error).encode(), "one line that can be printed"
        return REFUSED
    return PROBLEM if any(problems) else IMPORTED


def check_contents(contents: Contents) -> None:
    """Columns and labels that a manifest and a shard can have."""
    names = shard_schema(contents.columns).names
    assert len(set(names)) == len(names), "a column twice"
    assert set(contents.labels) <= set(names), "a label that is no column"
    for label in contents.labels.values():
        assert Label.model_validate_json(label.model_dump_json()) == label


def _problems(source: Source, contents: Contents, tables: list[pa.Table]) -> list[str | None]:
    index = pa.concat_tables(tables).combine_chunks()
    rows = list(source.rows(index))
    assert len(rows) == len(index)
    assert all(f"{row.name}{row.problem}".encode() for row in rows), "texts that can be written"
    good = [row for row in rows if not (row.problem or check_image(row.image))]
    _shard(good, contents)
    return [row.problem or check_image(row.image) or _undecodable(row) for row in rows]


def _shard(rows: list[Row], contents: Contents) -> pa.Table:
    """As an import makes it."""
    common: dict[str, Any] = {"key": range(len(rows)), "image": [r.image for r in rows], "name": [r.name for r in rows]}
    schema = shard_schema(contents.columns)
    made = [common.get(f.name) or [row.columns[f.name] for row in rows] for f in schema]
    return pa.table([pa.array(v, f.type) for v, f in zip(made, schema, strict=True)], schema=schema)


def _undecodable(row: Row) -> str | None:
    header = read_header(row.image)
    if header is None:
        return "no header"
    if header.height * header.width > MOST_PIXELS:
        return None
    return None if decode(row.image, header, 1) is not None else "an image that cannot be decoded"


def put(files: Files, place: Path) -> None:
    """Files in a new folder, without waiting for the disk."""
    for name, data in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(data)


def run(name: str, seed: int, place: str) -> str:
    """The outcome of the mutant `seed` of a layout, which is written below an empty place."""
    layout = LAYOUTS[name]
    put(mutant(layout, seed), Path(place))
    return outcome(layout.kind, f"{place}/{layout.name}".rstrip("/"), layout.options)


def watched(name: str, seed: int) -> str:
    """As `run`, in a process that is stopped if it takes too long or too much."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as place:
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            os.close(reading)
            _serve(name, seed, place, writing)
        os.close(writing)
        with os.fdopen(reading, "rb") as answer:
            ready, _, _ = select.select([answer], [], [], SECONDS)
            if not ready:
                os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)  # the answer is shorter than a pipe holds
            text = answer.read().decode("utf-8", "replace")
    if not ready:
        return f"no answer within {SECONDS} s"
    return text or f"the process ended by {signal.Signals(status & 0x7F).name if status & 0x7F else status >> 8}"


def _serve(name: str, seed: int, place: str, writing: int) -> None:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        text = run(name, seed, place)
    except BaseException:  # whatever it is, it is the answer
        text = traceback.format_exc()
    os.write(writing, text.encode("utf-8", "replace")[-60_000:])
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutants", type=int, default=2000, help="over all layouts")
    parser.add_argument("--seed", type=int, default=0, help="of the first mutant of each layout")
    parser.add_argument("--layouts", nargs="*", default=list(LAYOUTS), help="some of: " + ", ".join(LAYOUTS))
    options = parser.parse_args()
    defects = 0
    each = -(-options.mutants // len(options.layouts))
    with small():
        for name in options.layouts:
            counts, began = Counter[str](), time.monotonic()
            for seed in range(options.seed, options.seed + each):
                found = watched(name, seed)
                counts[found if found in OUTCOMES else "defects"] += 1
                if found not in OUTCOMES:
                    defects += 1
                    print(f"{name}, seed {seed}: {found.strip()}", file=sys.stderr)
            told = ", ".join(f"{counts[told]} {told}" for told in (*OUTCOMES, "defects"))
            print(f"{name}: {each} mutants, {told}, {time.monotonic() - began:.1f} s", flush=True)
    sys.exit(1 if defects else 0)


if __name__ == "__main__":
    main()
