"""Provenance of a run: commit, command, versions, machine; no environment variables, which may hold secrets."""

import platform
import shlex
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "soda_dist", "torch", "deepspeed", "ray", "timm", "numpy", "pyarrow", "opencv-python-headless", "simplejpeg",
)  # fmt: skip


def provenance() -> dict[str, Any]:
    """Collect the facts as JSON values."""
    return {
        "time": utc(),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": _commit(),
        "python": platform.python_version(),
        "machine": platform.platform(),
        "host": platform.node(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
    }


def utc(seconds: float | None = None) -> str:
    """Format a time since the epoch, None = the present one, as ISO 8601 in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Find HEAD of the package's repository, with `+changes` if the tree differs.

    None outside a repository, or in one that does not track this file: an environment inside another project's.
    """
    folder = Path(__file__).parent
    try:
        tracked = ["git", "ls-files", "--error-unmatch", Path(__file__).name]
        subprocess.run(tracked, cwd=folder, capture_output=True, check=True)
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True)
        status = ["git", "status", "--porcelain"]
        changes = subprocess.run(status, cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+changes" if changes.stdout.strip() else "")
