"""Mutants of a tiny run and its data, each read by an entry point: the run is read, or refused in one line.

python -m tests.hostile.fuzz_runs --mutants 1000 --seed 0
"""

import argparse
import json
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from soda_dist.errors import UserError
from tests.data.written.mutated import damaged
from tests.hostile.tiny_run import ENTRIES, make, seal

READ, REFUSED = "read", "refused"
SECONDS, MEMORY = 2.0, 1 << 30
"""What a mutant may take above the sound run: CPU time, and address space above what the process had."""
READERS = {
    "run/checkpoints/": ("resume", "model", "encoder", "evaluate"),
    "run/config.yaml": ("resume", "evaluate", "report", "compare"),
    "run/provenance.json": ("resume", "report"),
    "run/metrics.jsonl": ("resume", "report", "compare"),
    "run/quarantine.jsonl": ("resume", "report"),
    "run/eval/": ("report", "compare"),
    "run/latents/": ("evaluate",),
    "data/": ("data", "evaluate"),
}
"""Beginning of a file's name -> entry points that read it."""
VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 10**6, 10**20, 1e308, float("nan"), float("inf"), "", "x", "9" * 5000, "../../x", "a\nb"),
    *("\x1b[2J", "/etc/passwd", [], {}, [[]], {"x": 1}, [1, "x"], ["x"] * 3),
)
"""What is written in place of a value."""
TENSORS: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda t: t.double(),
    lambda t: t.half(),
    lambda t: t.long(),
    lambda t: t.bool(),
    lambda t: t[None].contiguous(),
    lambda t: t.flatten()[:-1].clone(),
    lambda t: torch.full_like(t, float("nan")) if t.is_floating_point() else t - 10**9,
    lambda t: t.new_zeros(0),
    lambda t: torch.full_like(t, 3e38) if t.is_floating_point() else t + 1,
)
"""What is done to a tensor."""


def mutate(files: dict[str, bytes], seed: int) -> tuple[dict[str, bytes], str, bool]:
    """Damage one file of a run.

    Returns:
        The files, the name of the damaged one, and whether the checkpoint's manifest is to agree with it.
    """
    rng = random.Random(seed)
    group = rng.choice(list(READERS))
    name = rng.choice(sorted(name for name in files if name.startswith(group)))
    changed = dict(files)
    draw = rng.random()
    if draw < 0.04:
        del changed[name]
    elif draw < 0.5:
        changed[name] = damaged(files[name], rng)
    else:
        changed[name] = _by_format(name, files[name], rng)
    sealed = group == "run/checkpoints/" and not name.endswith("manifest.json") and rng.random() < 0.8
    return changed, name, sealed


def _by_format(name: str, content: bytes, rng: random.Random) -> bytes:
    if name.endswith(".safetensors"):
        return _tensors(content, rng)
    if name.endswith(".jsonl"):
        lines = content.splitlines()
        at = rng.randrange(len(lines))
        return b"\n".join([*lines[:at], _tree(lines[at], rng), *lines[at + 1 :]]) + b"\n"
    if name.endswith(".json"):
        return _tree(content, rng)
    return damaged(content, rng)


def _tree(content: bytes, rng: random.Random) -> bytes:
    """Replace, remove or repeat one value of a JSON tree."""
    tree = {"": json.loads(content)}
    places = [*_places(tree)]
    parent, key = rng.choice(places)
    draw = rng.random()
    if draw < 0.15 and parent is not tree:
        del parent[key]
    elif draw < 0.3 and isinstance(parent, list):
        parent.append(parent[key])
    elif draw < 0.4 and isinstance(parent[key], dict):
        parent[key]["unknown"] = rng.choice(VALUES)
    else:
        parent[key] = rng.choice(VALUES)
    return json.dumps(tree[""]).encode()


def _places(tree: Any) -> Any:
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)):
        yield tree, key
        if isinstance(tree[key], dict | list):
            yield from _places(tree[key])


def _tensors(content: bytes, rng: random.Random) -> bytes:
    tensors = load(content)
    name = rng.choice(sorted(tensors))
    draw = rng.random()
    if draw < 0.15:
        del tensors[name]
    elif draw < 0.3:
        tensors[rng.choice(("x", name + "x", "param/x/0", "param/model/9", "ema//0"))] = tensors.pop(name)
    elif draw < 0.4:
        tensors[name.rpartition("/")[0] + "/1"] = tensors[name].clone()
    else:
        tensors[name] = rng.choice(TENSORS)(tensors[name])
    return save(tensors)


def contents(place: Path) -> dict[str, bytes]:
    """All files below a place."""
    return {str(p.relative_to(place)): p.read_bytes() for p in sorted(place.rglob("*")) if p.is_file()}


def run(files: dict[str, bytes], seed: int, place: Path) -> str:
    """READ or REFUSED for the mutant `seed`, read by one of its entry points; whatever else is raised is a defect."""
    changed, name, sealed = mutate(files, seed)
    shutil.rmtree(place, ignore_errors=True)
    for other, content in changed.items():
        (place / other).parent.mkdir(parents=True, exist_ok=True)
        (place / other).write_bytes(content)
    if sealed and "run/checkpoints/" in name:
        seal((place / name).parent)
    entry = random.Random(seed).choice(next(entries for start, entries in READERS.items() if name.startswith(start)))
    began, peak = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        ENTRIES[entry](place)
        outcome = READ
    except UserError as error:
        assert "\n" not in str(error) and str(error).isprintable() and len(str(error)) < 2000, "one short line"
        outcome = REFUSED
    except BaseException as error:
        error.add_note(f"seed {seed}: {name}{' (sealed)' if sealed else ''} by {entry}")
        raise
    seconds = time.process_time() - began
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) << 10
    assert seconds < SECONDS + 2 and grown < MEMORY, f"seed {seed}: {name} by {entry}: {seconds:.1f} s, {grown:,} bytes"
    return outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutants", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="of the first mutant")
    options = parser.parse_args()
    torch.set_num_threads(1)
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "sound")
        make(place)
        files = contents(place)
        for entry in ENTRIES.values():
            entry(place)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + 4 * MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        for seed in range(options.seed, options.seed + options.mutants):
            try:
                counts[run(files, seed, place)] += 1
            except Exception:
                counts["defects"] += 1
                print(traceback.format_exc(limit=-4), file=sys.stderr, flush=True)
            if counts.total() % 50 == 0 or counts.total() == options.mutants:
                print(", ".join(f"{count} {outcome}" for outcome, count in counts.items()), flush=True)
    sys.exit(1 if counts["defects"] else 0)


if __name__ == "__main__":
    main()
