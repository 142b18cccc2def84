"""Private names of Ray, DeepSpeed and torch stay in one file each, checked against the installed version.

As in `test_structure`, the rule is a function of a tree's root, silent on the repository and not on a tree that breaks
it.
"""

import ast
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import pytest
from torch import nn

ROOT = Path(__file__).parents[2]
OWNERS = {
    "ray": "soda_dist/distributed/runtime/ray_internals.py",
    "deepspeed": "soda_dist/training/engines/deepspeed_engine.py",
    "torch": "soda_dist/torch_internals.py",
}
"""Library -> the file that may use its private names."""
TESTS = {
    "ray": "tests/distributed",
    "deepspeed": "tests/distributed/test_deepspeed_engine.py",
    "torch": "tests/diffusion tests/distributed/test_frozen_peer.py",
}
"""Library -> the tests that fail where a private name has changed its meaning."""
INTERNAL = ("ray.core", "ray.experimental")
"""Packages without an underscore that no library promises to keep."""
PUBLIC = {"_asdict", "_fields", "_make", "_replace"}
"""Public methods of named tuples."""
OF_MODULES = {name for name in (*dir(nn.Module), *vars(nn.Module())) if name.startswith("_") and name[1] != "_"}
"""Private names of torch's modules, which a subclass reaches through `self`."""


def _private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in PUBLIC


def _imported(tree: ast.Module) -> Iterator[str]:
    """Internal or private modules and names that a file imports."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            internal = any(name == package or name.startswith(f"{package}.") for package in INTERNAL)
            if internal or any(map(_private, name.split("."))):
                yield name


def _defined(tree: ast.Module) -> set[str]:
    """Private names that the file itself defines: functions, classes, fields and what it assigns to `self`."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _of_self(node):
            found.add(node.attr)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
    return found


def _of_self(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")


def _reached(tree: ast.Module) -> Iterator[str]:
    """Private attributes of objects whose class another file defines, and overrides of torch's private methods."""
    own = _defined(tree) - OF_MODULES
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and _private(node.attr):
            foreign = node.attr not in own and not _of_self(node)
            if foreign or node.attr in OF_MODULES:
                yield ast.unparse(node)
        elif isinstance(node, ast.ClassDef):
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and method.name in OF_MODULES:
                    yield f"{node.name}.{method.name}"


def private_names_stay_in_their_files(root: Path) -> list[str]:
    files = [path for folder in ("soda_dist", "jobs") for path in sorted((root / folder).rglob("*.py"))]
    complaints = []
    for path in files:
        name = str(path.relative_to(root))
        if name not in OWNERS.values():
            tree = ast.parse(path.read_text())
            complaints += [f"{name}: uses the private name {found}" for found in (*_imported(tree), *_reached(tree))]
    return complaints


def test_the_repository_keeps_the_rule() -> None:
    assert private_names_stay_in_their_files(ROOT) == []


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("from ray._private.state import state", "ray._private.state.state"),
        ("import ray.data._internal.stats", "ray.data._internal.stats"),
        ("def f():\n    from ray.core.generated import gcs_pb2", "ray.core.generated.gcs_pb2"),
        ("from ray.experimental.internal_kv import get", "ray.experimental.internal_kv.get"),
        ("import ray\nray._private.state.state", "ray._private"),
        ("def f(actor):\n    return actor._actor_id", "actor._actor_id"),
        ("def f(parameter):\n    return parameter._hp_mapping", "parameter._hp_mapping"),
        ("import torch\ntorch._foreach_lerp_([], [], 1)", "torch._foreach_lerp_"),
        ("from torch._C import Graph", "torch._C.Graph"),
        ("def f(module):\n    del module._parameters['a']", "module._parameters"),
        ("class A:\n    def f(self):\n        return self._modules", "self._modules"),
        ("class A:\n    def f(self):\n        self._buffers = {}", "self._buffers"),
        ("class A:\n    def _apply(self, fn):\n        return self", "A._apply"),
    ],
)
def test_the_rule_speaks_of_a_private_name(line: str, name: str, tmp_path: Path) -> None:
    (tmp_path / "soda_dist/models").mkdir(parents=True)
    (tmp_path / "jobs").mkdir()
    path = tmp_path / "soda_dist/models/extra.py"
    path.write_text(f"{line}\n")
    assert f"soda_dist/models/extra.py: uses the private name {name}" in private_names_stay_in_their_files(tmp_path)


@pytest.mark.parametrize("library", OWNERS)
def test_the_file_that_owns_the_names_may_use_them(library: str, tmp_path: Path) -> None:
    path = tmp_path / OWNERS[library]
    path.parent.mkdir(parents=True)
    path.write_text(f"from {library}._private import state\n")
    assert private_names_stay_in_their_files(tmp_path) == []
    path.rename(path.with_name("other.py"))
    assert len(private_names_stay_in_their_files(tmp_path)) == 1


def test_names_of_the_file_itself_are_no_concern_of_the_rule(tmp_path: Path) -> None:
    (tmp_path / "soda_dist").mkdir()
    (tmp_path / "soda_dist/own.py").write_text(
        "class A:\n    _of: int\n    def __init__(self):\n        self._a = 1\n    def _f(self, other):\n"
        "        return self._a + other._a + other._of + other._f(self)\nrow._replace(a=1)\nA.__name__\n"
    )
    assert private_names_stay_in_their_files(tmp_path) == []


@pytest.mark.parametrize("library", OWNERS)
def test_private_names_were_checked_against_the_installed_version(library: str) -> None:
    file = OWNERS[library]
    checked = import_module(file.removesuffix(".py").replace("/", ".")).CHECKED_AGAINST
    installed = ".".join(version(library).split(".")[:2])
    assert checked == installed, (
        f"{library} {installed} is installed, and the private names in {file} were checked against {checked}: "
        f"run `pytest {TESTS[library]}`, mend what fails, then set CHECKED_AGAINST to {installed}"
    )
