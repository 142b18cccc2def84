"""Run mutants one by one against the tests that run their lines, and compare two such judgements."""

import json
import re
import subprocess
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import mutants
from .copies import Copy, Outcome
from .mutants import Mutant, Place, Tree
from .records import Record

KILLED, SURVIVED, NOT_FOUND, NOT_COVERED = "killed", "survived", "not found", "not covered"


@dataclass(frozen=True)
class Bench:
    """Where mutants are judged: the copy, who runs which line, and what helps to find a mutant's place.

    `actor_tests` names, for a file whose lines run in other processes where no trace sees them, its test files.
    """

    copy: Copy
    record: Record
    renames: dict[str, str]
    given: dict[str, dict[str, str]]
    actor_tests: dict[str, list[str]]

    def tests(self, place: Place) -> tuple[list[str], bool]:
        """The tests of a place, and whether they are those of its actors."""
        seen = place.tests(self.record)
        return (seen, False) if seen else (self.record.of_files(self.actor_tests.get(place.file, [])), True)


def judge(found: list[Mutant], bench: Bench, results: Path, cpu_minutes: float, say: Callable[[str], None]) -> None:
    """Append each mutant's verdict to `results`, cheap ones first and those of actors last; skip what is there."""
    tree = Tree(bench.copy.tree, bench.copy.package)
    places = {mutant.id: mutants.locate(mutant, tree, bench.renames, bench.given) for mutant in found}
    done = {entry["id"] for entry in read_results(results)}
    spent = sum(entry.get("cpu", 0.0) for entry in read_results(results))
    for mutant in sorted(found, key=lambda mutant: _cost(places[mutant.id], bench)):
        if mutant.id in done:
            continue
        if spent > 60 * cpu_minutes:
            say(f"stopped after {spent / 60:.1f} CPU-minutes; {len(found) - len(done)} mutants are left")
            return
        entry = {"id": mutant.id, "area": mutant.area, "kind": mutant.kind, **_verdict(places[mutant.id], bench)}
        with results.open("a") as file:
            file.write(json.dumps(entry) + "\n")
        done.add(mutant.id)
        spent += entry.get("cpu", 0.0)
        say(f"{mutant.id} {mutant.file}:{mutant.line} {mutant.kind}: {entry['verdict']} {entry.get('by', '')}")


def _cost(place: Place | None, bench: Bench) -> tuple[bool, float]:
    tests, of_actors = bench.tests(place) if place else ([], False)
    return of_actors, bench.record.seconds(tests)["cpu"]


def _verdict(place: Place | None, bench: Bench) -> dict:
    if place is None:
        return {"verdict": NOT_FOUND}
    tests, of_actors = bench.tests(place)
    facts = {"file": place.file, "line": place.lines.start, "found_by": place.found_by, "tests": len(tests)}
    if not tests:
        return {"verdict": NOT_COVERED, **facts}
    with bench.copy.with_text(place.file, place.text):
        outcome = bench.copy.run(tests, bench.record.seconds(tests))
    return {**_judged(outcome, len(tests)), **facts, "of_actors": of_actors, **outcome.seconds}


def _judged(outcome: Outcome, asked: int) -> dict:
    if outcome.failed:
        return {"verdict": KILLED, "by": outcome.failed, "message": outcome.message}
    if outcome.limit:
        return {"verdict": KILLED, "by": f"limit of {outcome.limit} time"}
    if outcome.status == 0 and outcome.collected == asked:
        return {"verdict": SURVIVED}
    if outcome.status == 0:
        return {"verdict": SURVIVED, "message": f"only {outcome.collected} tests had the recorded names"}
    return {"verdict": KILLED, "by": f"exit status {outcome.status}"}


def read_results(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(results: list[dict]) -> str:
    """Verdicts by area."""
    counts = Counter((entry["area"], entry["verdict"]) for entry in results)
    verdicts = [v for v in (KILLED, SURVIVED, NOT_FOUND, NOT_COVERED) if any(v == verdict for _, verdict in counts)]
    rows = [["area", *verdicts, "in all"]]
    for area in dict.fromkeys(entry["area"] for entry in results):
        row = [counts[area, verdict] for verdict in verdicts]
        rows.append([area, *map(str, row), str(sum(row))])
    totals = [sum(entry["verdict"] == verdict for entry in results) for verdict in verdicts]
    rows.append(["all", *map(str, totals), str(sum(totals))])
    return "\n".join("| " + " | ".join(row) + " |" for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]])


def compare(before: list[dict], after: list[dict], found: list[Mutant]) -> tuple[str, int]:
    """The mutants killed before and not after, as a table, and how many they are."""
    now, about = {entry["id"]: entry for entry in after}, {mutant.id: mutant for mutant in found}
    killed = [entry for entry in before if entry["verdict"] == KILLED]
    lost = [(entry, now.get(entry["id"], {"verdict": "not run"})) for entry in killed]
    lost = [(entry, other) for entry, other in lost if other["verdict"] != KILLED]
    lines = [f"{len(killed)} mutants killed before; {len(killed) - len(lost)} of them killed after"]
    if lost:
        lines += ["| mutant | before | change | killed before by | after | place |", "|---|---|---|---|---|---|"]
    for entry, other in lost:
        mutant = about[entry["id"]]
        change = f"`{mutant.expression}` -> `{mutant.becomes}`".replace("|", "\\|")
        place = f"{other['file']}:{other['line']}" if "file" in other else ""
        before_at = f"{mutant.file}:{mutant.line} {mutant.function}"
        lines.append(f"| {mutant.id} | {before_at} | {change} | {entry['by']} | {other['verdict']} | {place} |")
    return "\n".join(lines), len(lost)


def renames(repository: Path, commit: str, later: str) -> dict[str, str]:
    """Files that git says were renamed between the commits: from the old name to the new one."""
    printed = subprocess.run(
        ["git", "-C", str(repository), "diff", "--name-status", "-M40%", "--diff-filter=R", commit, later],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout
    return dict(re.findall(r"^R\d+\t(\S+)\t(\S+)$", printed, re.MULTILINE))
