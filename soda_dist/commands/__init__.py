"""Commands as functions of their arguments; `jobs/` runs them in a checkout, `soda-dist` where it is installed."""

from importlib import import_module
from pkgutil import iter_modules
from typing import NoReturn

from soda_dist.cli import CONSOLE, run
from soda_dist.errors import UserError


def command_names() -> list[str]:
    """Return the commands, one for each module of this package."""
    return sorted(module.name for module in iter_modules(__path__))


def main() -> NoReturn:
    """Run `soda-dist`, with the exit codes of `run`."""
    run(dispatch)


def dispatch(argv: list[str]) -> str:
    """Run the command that the first argument names, with `-` or `_` in its name, and return its result.

    Raises:
        UserError: no command, an unknown one, or what the command raises.
    """
    if argv[:1] in (["-h"], ["--help"]):
        return _help()
    if argv[:1] == ["--version"]:
        from soda_dist import __version__

        return f"{CONSOLE} {__version__}"
    name = argv[0].replace("-", "_") if argv else "nothing"
    if name not in command_names():
        raise UserError("command", name, ", ".join(command_names()), f"see {CONSOLE} --help")
    return import_module(f"{__name__}.{name}").main(argv[1:])


def _help() -> str:
    lines = [f"usage: {CONSOLE} COMMAND ...", "", f"commands ({CONSOLE} COMMAND --help shows the options of one):"]
    for name in command_names():
        first = (import_module(f"{__name__}.{name}").__doc__ or "").partition("\n")[0]
        lines.append(f"  {name:18}{first}")
    return "\n".join([*lines, "", "--version prints the version."])
