"""Runs several command lines of jobs in forks of one process, since most of a short job's time is its imports.

Reads JSON from stdin, {"blocked": modules that must not be imported, "shared": modules imported before the forks,
"commands": lists of arguments}, and writes [exit code, stdout, stderr] of each command to stdout. A fork ends as the
interpreter ends, so its exit code is the job's.
"""

import importlib
import json
import os
import runpy
import sys
import tempfile
from typing import IO, NoReturn


def _run(argv: list[str], out: IO[bytes], err: IO[bytes]) -> NoReturn:
    os.dup2(out.fileno(), 1)
    os.dup2(err.fileno(), 2)
    sys.argv = argv
    runpy.run_path(argv[0], run_name="__main__")
    sys.exit(0)


def main() -> None:
    asked = json.load(sys.stdin)
    sys.modules.update(dict.fromkeys(asked["blocked"]))  # None: an import of it fails
    for name in asked["shared"]:
        importlib.import_module(name)
    answers = []
    for argv in asked["commands"]:
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            child = os.fork()
            if not child:
                _run(argv, out, err)
            _, status = os.waitpid(child, 0)
            for file in (out, err):
                file.seek(0)
            answers.append([os.waitstatus_to_exitcode(status), out.read().decode(), err.read().decode()])
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()
