"""Judge the test suite by mutants: small faults, each run against the tests that run its line.

    python -m tests.mutation record --scratch DIR                trace the suite: which test runs which line
    python -m tests.mutation choose --scratch DIR --mutants FILE --area NAME=COUNT:GLOB,GLOB ...
    python -m tests.mutation judge  --scratch DIR --mutants FILE   run each mutant until a test fails
    python -m tests.mutation repeat --scratch DIR --mutants FILE --before RESULTS
                  record and judge another commit by the mutants that RESULTS says were killed, and list those that
                  no test kills any more; exit status 1 if any was lost

The mutants are written for one commit and found again in another by the text of their statement within its function,
so files and functions may move. `locate` lists those not found; `--by-hand FILE` then maps an id to
{"file": ..., "old": ..., "new": ...}, where `old` occurs once in the file. Only a copy of `--commit` under `--scratch`
is changed: `scratch/tree`, made by `git archive`. Records and results lie beside it under the commit's hash; a part
of the suite that is recorded is not recorded again. Results are appended to `results-HASH.jsonl` as they come; a run
that was stopped resumes after the last one.

Lines that run only in other processes, such as Ray's actors, leave no trace. `--actor-tests FILE` maps their source
file to test files, whose tests marked `ray` are recorded too and judge those lines.

`record` needs the package `coverage`, which the project itself does not: `pip install --target SITE coverage`, and
PYTHONPATH=SITE before the command.
"""

import argparse
import json
import sys
from pathlib import Path

from . import judge, mutants
from .copies import Copy
from .mutants import Area, Mutant, Tree
from .records import Record

WITHOUT_ACTORS, WITH_ACTORS = "not ray and not learn and not long", "ray and not long"


def main() -> int:
    arguments = _arguments()
    copy = Copy(arguments.scratch, arguments.package, arguments.python, arguments.nice)
    commit = copy.unpack(arguments.repository, arguments.commit)
    match arguments.command:
        case "record":
            _record(copy, commit, arguments)
        case "choose":
            tree = Tree(copy.tree, copy.package)
            unseen = set(_json(arguments.actor_tests))
            found = mutants.choose(tree, arguments.area, _read_record(copy, commit), unseen, arguments.seed)
            mutants.write(found, arguments.mutants)
        case "locate":
            _locate(copy, commit, arguments)
        case "judge":
            _judge(mutants.read(arguments.mutants), copy, commit, arguments)
        case "repeat":
            return _repeat(copy, commit, arguments)
    return 0


def _record(copy: Copy, commit: str, arguments: argparse.Namespace) -> None:
    """Record part by part, so that a stopped run loses one part only."""
    inits, files = copy.tree.glob("tests/*/__init__.py"), copy.tree.glob("tests/test_*.py")
    whole = sorted(str(path.relative_to(copy.tree)) for path in [*(init.parent for init in inits), *files])
    of_actors = sorted({tests for several in _json(arguments.actor_tests).values() for tests in several})
    parts = [(WITHOUT_ACTORS, arguments.tests or whole), (WITH_ACTORS, of_actors)]
    for marker, tests in ((marker, tests) for marker, several in parts for tests in several):
        name = f"{marker} {tests}".replace(" ", "-").replace("/", ".")
        path = copy.scratch / f"record-{commit}" / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            copy.record(path, ["-m", marker, tests])
    recorded = _read_record(copy, commit).tests
    unusable = [f"{test}: {about['outcome']}" for test, about in recorded.items() if about["outcome"] != "passed"]
    print(f"recorded {len(recorded)} tests; these did not pass and judge nothing:", *unusable, sep="\n  ")


def _read_record(copy: Copy, commit: str) -> Record:
    paths = sorted((copy.scratch / f"record-{commit}").glob("*.json"))
    if not paths:
        raise SystemExit(f"{copy.scratch}: no record of {commit}; run `record` first")
    return Record.read(paths)


def _locate(copy: Copy, commit: str, arguments: argparse.Namespace) -> None:
    tree, bench = Tree(copy.tree, copy.package), _bench(copy, commit, arguments)
    for mutant in mutants.read(arguments.mutants):
        place = mutants.locate(mutant, tree, bench.renames, bench.given)
        where = f"{place.file}:{place.lines.start} ({place.found_by})" if place else "NOT FOUND"
        print(f"{mutant.id} {mutant.file}:{mutant.line} {mutant.function}: {where}\n    {mutant.old.strip()}")


def _judge(found: list[Mutant], copy: Copy, commit: str, arguments: argparse.Namespace) -> list[dict]:
    results = copy.scratch / f"results-{commit}.jsonl"
    bench = _bench(copy, commit, arguments)
    judge.judge(found, bench, results, arguments.cpu_minutes, lambda line: print(line, flush=True))
    print(judge.table(judge.read_results(results)))
    return judge.read_results(results)


def _bench(copy: Copy, commit: str, arguments: argparse.Namespace) -> judge.Bench:
    renamed = judge.renames(arguments.repository, arguments.since, arguments.commit) if arguments.since else {}
    given, actor_tests = _json(arguments.by_hand), _json(arguments.actor_tests)
    return judge.Bench(copy, _read_record(copy, commit), renamed, given, actor_tests)


def _repeat(copy: Copy, commit: str, arguments: argparse.Namespace) -> int:
    found = mutants.read(arguments.mutants)
    before = judge.read_results(arguments.before)
    killed = {entry["id"] for entry in before if entry["verdict"] == judge.KILLED}
    _record(copy, commit, arguments)
    after = _judge([mutant for mutant in found if mutant.id in killed], copy, commit, arguments)
    text, lost = judge.compare(before, after, found)
    print(text)
    return int(lost > 0)


def _json(path: Path | None) -> dict:
    return json.loads(path.read_text()) if path else {}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("record", "choose", "locate", "judge", "repeat"))
    parser.add_argument("--scratch", type=Path, required=True, help="folder of the copy, the record and the results")
    parser.add_argument("--repository", type=Path, default=Path(), help="default: the current folder")
    parser.add_argument("--commit", default="HEAD", help="whose tests are judged; default: HEAD")
    parser.add_argument("--since", help="the mutants' own commit, for git's renames from it to --commit")
    parser.add_argument("--package", default="soda_dist")
    parser.add_argument("--python", default=sys.executable, help="interpreter of the tests")
    parser.add_argument("--nice", type=int, default=15)
    parser.add_argument("--mutants", type=Path, help="JSON file of the mutants")
    parser.add_argument("--area", type=Area.parse, action="append", default=[], help="NAME=COUNT:GLOB,GLOB")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--actor-tests", type=Path, help="JSON: source file to its test files, for traceless lines")
    parser.add_argument("--by-hand", type=Path, help="JSON: mutant id to its place, where none is found")
    parser.add_argument("--before", type=Path, help="results of the mutants' own commit")
    parser.add_argument("--cpu-minutes", type=float, default=60.0, help="judge no more mutants after these")
    parser.add_argument(
        "--tests", nargs="*", default=[], help="record these test folders or files; default: all folders"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
