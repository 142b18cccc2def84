"""The wheel: every file that the package reads, the licence, and the command."""

import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from soda_dist import __version__

ROOT = Path(__file__).parents[2]
BUILD = """
import sys
from setuptools import build_meta
print(build_meta.build_wheel(sys.argv[1]))
"""


def tracked(*folders: str) -> list[str]:
    """Files of the repository, those not yet added included."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *folders]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [name for name in listed if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> ZipFile:
    """A wheel of this tree, built in a copy, so that no file of an older build gets into it."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    for name in tracked("soda_dist", "pyproject.toml", "README.md", "LICENSE"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-c", BUILD, str(out)]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return ZipFile(out / done.stdout.splitlines()[-1])


def test_the_wheel_holds_every_file_of_the_package(wheel: ZipFile) -> None:
    inside = {name for name in wheel.namelist() if name.startswith("soda_dist/")}
    assert inside == set(tracked("soda_dist"))
    assert {Path(name).suffix for name in inside} >= {".py", ".yaml", ".html", ".tex"}


def test_the_wheel_names_its_command_version_and_licence(wheel: ZipFile) -> None:
    facts = f"soda_dist-{__version__}.dist-info"
    assert "soda-dist = soda_dist.commands:main" in wheel.read(f"{facts}/entry_points.txt").decode().splitlines()
    metadata = wheel.read(f"{facts}/METADATA").decode().splitlines()
    assert {f"Version: {__version__}", "License-Expression: Apache-2.0"} <= set(metadata)
    assert wheel.read(f"{facts}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
