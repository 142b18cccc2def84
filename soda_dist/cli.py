"""Command line of the jobs: arguments, progress lines, exit codes. Imports nothing heavy."""

import argparse
import os
import re
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from soda_dist.config.load import dump_config, load_config, parse_config, preset_names
from soda_dist.config.schema import RunConfig
from soda_dist.errors import MachineError, UserError
from soda_dist.interrupts import RESUME, Interrupted, ending
from soda_dist.parallel.heartbeat import Heartbeat, ticking

CONSOLE = "soda-dist"
"""Name of the command of an installed package; a checkout has jobs/NAME.py for each of its commands."""
URI_HELP = "local path, s3://BUCKET/PREFIX or gs://BUCKET/PREFIX"
_HEARTBEAT = Heartbeat()


class _Help(argparse.RawDescriptionHelpFormatter):
    """Adds a flag's default to its help, unless it has none or the help names it."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        told = action.help or ""
        named = action.default and action.default is not argparse.SUPPRESS and "default" not in told
        return f"{told} (default: {action.default})" if named else told


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError("arguments", message, f"see {self.prog} --help", "correct the command")


def parser(description: str | None) -> argparse.ArgumentParser:
    """Create an argument parser that raises `UserError` and names the command as it was started."""
    prog = f"{CONSOLE} {sys.argv[1]}" if _installed() else None
    text = as_started(description or "")
    return _Parser(prog=prog, description=text, formatter_class=_Help)


def as_started(text: str) -> str:
    """Return help text whose `python jobs/NAME.py` is `soda-dist NAME` if the process was started by that name."""
    return re.sub(r"python jobs/(\w+)\.py", rf"{CONSOLE} \1", text) if _installed() else text


def _installed() -> bool:
    return Path(sys.argv[0]).stem == CONSOLE and len(sys.argv) > 1


def add_uri(arguments: argparse.ArgumentParser, flag: str, meaning: str, required: bool = True) -> None:
    """Add a flag for a local path or an object-store URI, which parsing validates."""
    arguments.add_argument(flag, required=required, metavar="URI", type=_uri, help=f"{meaning} ({URI_HELP})")


def _uri(text: str) -> str:
    from soda_dist.data.storage.folder import open_folder

    open_folder(text)
    return text


def count_or_all(text: str) -> int | None:
    """Parse a flag's count; None = all."""
    if text != "all" and not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"got {text}; allowed: a number above 0, or all")
    return None if text == "all" else int(text)


def add_config(arguments: argparse.ArgumentParser, preset: str | None) -> None:
    """Add `--preset`, `--print-config` and the overrides `a.b=value`; `preset` is the default, None = required."""
    names = ", ".join(preset_names())
    arguments.add_argument(
        "--preset", default=preset, required=preset is None, metavar="NAME|FILE", help=f"{names}, or a YAML file"
    )
    arguments.add_argument("--print-config", action="store_true", help="print the whole configuration and exit")
    arguments.add_argument("overrides", nargs="*", metavar="a.b=value", help="override single fields")


def config_of(args: argparse.Namespace) -> RunConfig:
    """Load the configuration of the arguments; the preset may be a YAML file in an object store."""
    if "://" in args.preset:
        from soda_dist.data.storage.folder import locate

        folder, name = locate(args.preset)
        try:
            return parse_config(folder.read(name), args.preset, args.overrides)
        except FileNotFoundError:
            raise UserError("--preset", args.preset, "an existing YAML file", "check the URI") from None
    return load_config(args.preset, args.overrides)


def parse(arguments: argparse.ArgumentParser, argv: list[str]) -> argparse.Namespace:
    """Parse the arguments; `--print-config`, which needs no URIs, prints and exits."""
    if "--print-config" in argv:
        config_parser = _Parser(add_help=False)
        default = arguments.get_default("preset")
        config_parser.add_argument("--preset", default=default, required=default is None)
        config_parser.add_argument("--print-config", action="store_true")
        known, rest = config_parser.parse_known_args(argv)
        say(dump_config(load_config(known.preset, [item for item in rest if "=" in item and not item.startswith("-")])))
        raise SystemExit(0)
    return arguments.parse_intermixed_args(argv)


def say(line: str) -> None:
    """Print a progress line without buffering; if the pipe is closed, as by `| head`, exit cleanly with code 141."""
    try:
        print(line, flush=True)
        _HEARTBEAT.heard()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes again at exit
        raise SystemExit(141) from None


def _beat(line: str) -> None:
    """Print a line of the heartbeat; a closed pipe is left to the next `say` of the main thread."""
    with suppress(BrokenPipeError):
        print(line, flush=True)


def run(main: Callable[[list[str]], str]) -> NoReturn:
    """Run a job and print the URI of its result as the last line.

    Once the job has shown a line, its silences end after `pause_s` with a line that says so.

    Exit codes: 0 done, 2 the user's mistake, 130 and 143 interrupted by SIGINT and SIGTERM, 141 output pipe closed,
    1 everything else.
    """
    try:
        with ending(), ticking(lambda: _HEARTBEAT.tick(_beat)):
            result = main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    except MachineError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(1)
    except Interrupted as error:
        print(error, file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print(f"interrupted: {RESUME}", file=sys.stderr, flush=True)
        sys.exit(130)
    except Exception:
        traceback.print_exc()
        sys.exit(1)
    if result:
        say(result)
    sys.exit(0)
