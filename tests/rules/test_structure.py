"""The house rules as tests: who may import what, how long things are, where printing is allowed.

Each rule is a function of a tree's root that lists complaints, `path: what is wrong`. It must be silent on the
repository and must speak on a small tree that breaks it, so that no rule can pass by looking at nothing.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from soda_dist.config import load_config
from soda_dist.errors import UserError

ROOT = Path(__file__).parents[2]
PACKAGE = "soda_dist"

ROOMS: dict[str, set[str]] = {
    "errors": set(),
    "torch_internals": set(),
    "interrupts": set(),
    "config": {"errors"},
    "parallel": {"errors"},
    "weights": {"errors"},
    "diffusion": {"errors", "torch_internals"},
    "models": {"errors", "weights", "diffusion", "torch_internals"},
    "metrics": {"errors", "weights", "models", "torch_internals"},
    "plots": {"metrics"},
    "data": {"errors", "config", "parallel"},
    "runs": {"errors", "config", "data.storage"},
    "training": {
        "errors", "torch_internals", "config", "parallel", "weights", "diffusion", "models", "metrics", "plots", "data",
        "runs",
    },
    "evaluation": {
        "errors", "torch_internals", "config", "parallel", "weights", "diffusion", "models", "metrics", "plots", "data",
        "runs", "training",
    },
    "inference": {
        "errors", "config", "parallel", "models", "data", "runs", "training", "evaluation",
    },
    "report": {"errors", "config", "plots", "runs", "data.storage"},
    "export": {
        "errors", "config", "parallel.progress", "models", "data", "runs", "training", "evaluation", "report",
    },
    "distributed": {
        "errors", "interrupts", "config", "parallel", "plots", "data", "runs", "training", "evaluation", "inference",
        "report",
    },
    "benchmarks": {
        "errors", "torch_internals", "config", "parallel", "diffusion", "models", "metrics", "data", "runs", "training",
        "evaluation", "inference", "distributed",
    },
    "cli": {"errors", "interrupts", "config", "data.storage", "parallel"},
    "commands": {
        "errors", "cli", "config", "data", "runs", "training", "evaluation", "inference", "report", "export",
        "distributed", "benchmarks",
    },
    PACKAGE: {"inference", "training"},
}  # fmt: skip
"""Which rooms the files of a room may import, beside their own; PACKAGE: those whose names the package itself lends."""
LIBRARIES: dict[str, set[str]] = {
    "ray": {"distributed", "benchmarks"},
    "deepspeed": {"training/engines/deepspeed_engine.py"},
    "torch": {"torch_internals.py", "weights.py", "diffusion", "models", "metrics", "training", "evaluation",
              "inference", "export", "distributed", "benchmarks"},
    "timm": {"models", "evaluation/model_sources.py", "export/timm_folder.py"},
    "matplotlib": {"plots", "report"},
    "boto3": {"data/storage"},
    "botocore": {"data/storage"},
    "tensorboard": {"training/observers"},
    "wandb": {"training/observers"},
    "mlflow": {"training/observers"},
    "onnx": {"export/onnx_file.py"},
    "onnxruntime": {"export/onnx_file.py"},
    "huggingface_hub": {"export/push.py"},
}  # fmt: skip
"""Rooms or files that may import a library, even inside a function."""
ON_USE = {
    "deepspeed", "boto3", "botocore", "tensorboard", "wandb", "mlflow", "onnx", "onnxruntime", "huggingface_hub",
}  # fmt: skip
"""Libraries that are imported where they are used, never with the file."""
VAGUE_NAMES = {"utils", "util", "misc", "helpers", "helper", "common"}

FILE_LINES, FUNCTION_LINES, COMMAND_LINES = 400, 60, 59
COMMAND = re.compile(r"^#\s+(?:make|python jobs/\w+\.py)\b", re.MULTILINE)


def _python(root: Path, *folders: str) -> Iterator[tuple[str, Path]]:
    for folder in folders:
        for path in sorted((root / folder).rglob("*.py")):
            yield str(path.relative_to(root)), path


def _module(name: str) -> str:
    return name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _imports(name: str, path: Path) -> Iterator[tuple[str, bool]]:
    """(module, whether the import runs when the file is imported), relative and dynamic imports resolved."""
    tree = ast.parse(path.read_text())
    later = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) or _is_for_type_checkers(node)]
    on_use = {id(node) for part in later for node in ast.walk(part)}
    package = _module(name) if path.name == "__init__.py" else _module(name).rpartition(".")[0]
    for node in ast.walk(tree):
        found: list[str] = []
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found = [f"{base}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "__import__"):
            found = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
        for module in found:
            yield module, id(node) not in on_use


def _is_for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def _is(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


def libraries_stay_in_their_rooms(root: Path) -> list[str]:
    return [
        f"{name}: imports {module}" + (" with the file" if inside else "")
        for name, path in _python(root, PACKAGE, "jobs")
        for module, at_import in _imports(name, path)
        for library, places in LIBRARIES.items()
        if _is(module, library) and (not (inside := _within(name, places)) or (at_import and library in ON_USE))
    ]


def _within(name: str, places: set[str]) -> bool:
    inner = name.removeprefix(f"{PACKAGE}/")
    return any(inner == place or inner.startswith(f"{place}/") for place in places)


def rooms_import_no_other_rooms(root: Path) -> list[str]:
    complaints = []
    for name, path in _python(root, PACKAGE):
        room = _room(_module(name))
        if room not in ROOMS and _module(name) != PACKAGE:
            complaints.append(f"{name}: belongs to no room")
        for module, _ in _imports(name, path):
            if not _is(module, PACKAGE):
                continue
            inner = module.removeprefix(PACKAGE).lstrip(".")
            allowed = {room, *ROOMS.get(room or PACKAGE, set())}
            if _room(module) in ROOMS and not any(_is(inner, each) for each in allowed):
                complaints.append(f"{name}: imports {module}, which its room may not")
    return complaints


def _room(module: str) -> str:
    return module.removeprefix(PACKAGE).lstrip(".").split(".")[0]


def tasks_never_import_each_other(root: Path) -> list[str]:
    return [
        f"{name}: imports {module}"
        for name, path in _python(root, f"{PACKAGE}/evaluation/tasks")
        for module, _ in _imports(name, path)
        if path.name != "__init__.py" and _is(module, f"{PACKAGE}.evaluation.tasks")
    ]


def no_file_imports_itself_in_a_circle(root: Path) -> list[str]:
    files = {_module(name): (name, path) for name, path in _python(root, PACKAGE)}
    graph = {
        module: {
            found
            for imported, _ in _imports(name, path)
            for found in (imported, imported.rpartition(".")[0])
            if found in files and found != module
        }
        for module, (name, path) in files.items()
    }
    # A package's __init__ runs before its modules, but they do not depend on it.
    graph = {module: {d for d in found if not module.startswith(f"{d}.")} for module, found in graph.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [f"{files[error.args[1][0]][0]}: a circle of imports, {' <- '.join(error.args[1])}"]
    return []


def the_package_imports_lazily(root: Path) -> list[str]:
    path = root / PACKAGE / "__init__.py"
    return [
        f"{path.relative_to(root)}: imports {module} with the package"
        for module, at_import in _imports(str(path.relative_to(root)), path)
        if at_import and _is(module, PACKAGE, *LIBRARIES, "numpy", "pyarrow")
    ]


def commands_are_short(root: Path) -> list[str]:
    lines = {name: len(path.read_text().splitlines()) for name, path in _python(root, f"{PACKAGE}/commands", "jobs")}
    return [f"{name}: {count} lines" for name, count in lines.items() if count > COMMAND_LINES]


def files_can_be_held_in_mind(root: Path) -> list[str]:
    lines = {name: len(path.read_text().splitlines()) for name, path in _python(root, PACKAGE, "jobs", "tests")}
    return [f"{name}: {count} lines" for name, count in lines.items() if count > FILE_LINES]


def functions_can_be_held_in_mind(root: Path) -> list[str]:
    return [
        f"{name}: {node.name} has {count} lines"
        for name, path in _python(root, PACKAGE, "jobs")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (count := (node.end_lineno or node.lineno) - node.lineno + 1) > FUNCTION_LINES
    ]


def the_library_does_not_print(root: Path) -> list[str]:
    return [
        f"{name}: prints in line {node.lineno}"
        for name, path in _python(root, PACKAGE)
        if name != "soda_dist/cli.py"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "sys.stdout.write", "sys.stderr.write")
    ]


def names_say_what_is_inside(root: Path) -> list[str]:
    return [
        f"{name}: a name that says nothing"
        for name, _ in _python(root, PACKAGE, "jobs", "tests")
        if VAGUE_NAMES & {part.strip("_") for part in name.removesuffix(".py").split("/")}
    ]


def presets_load_and_name_their_command(root: Path) -> list[str]:
    complaints = []
    for path in sorted((root / "soda_dist/config/presets").glob("*.yaml")):
        name, text = str(path.relative_to(root)), path.read_text()
        try:
            load_config(str(path))
        except UserError as error:
            complaints.append(f"{name}: {error}")
        heading = text[: re.search(r"^(?!#)", text, re.MULTILINE).start()]
        if not COMMAND.search(heading):
            complaints.append(f"{name}: the heading names no command")
        for job, preset in re.findall(r"python (jobs/\w+\.py)(?:.*--preset ([\w-]+))?", heading):
            if not (root / job).is_file():
                complaints.append(f"{name}: the heading names {job}, which is not there")
            if preset and preset != path.stem:
                complaints.append(f"{name}: the heading's command is for the preset {preset}")
    return complaints


def light_modules_stay_light(root: Path) -> list[str]:
    """A job's `--help` and a wrong option are answered without torch and Ray: what they import must not import them."""
    light = [
        "soda_dist.errors",
        "soda_dist.config",
        *(["soda_dist.cli"] if (root / "soda_dist/cli.py").exists() else []),
    ]
    heavy = "[name for name in ('torch', 'ray', 'deepspeed', 'timm', 'pyarrow') if name in sys.modules]"
    complaints = []
    for module in light:
        code = f"import sys; sys.path.insert(0, {str(root)!r}); import {module}; print(*{heavy})"
        result = subprocess.run(
            [sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=60, check=True
        )
        complaints += [f"{module}: imports {name}" for name in result.stdout.split()]
    return complaints


_PRESET = "soda_dist/config/presets/small.yaml"
_LONG = "x = 1\n"
BROKEN: list[tuple[Callable[[Path], list[str]], dict[str, str], str]] = [
    # rule, a tree that breaks it, what the rule says of it
    (libraries_stay_in_their_rooms, {"soda_dist/training/loop.py": "import ray.train"}, "imports ray.train"),
    (libraries_stay_in_their_rooms, {"soda_dist/data/a.py": "def f():\n    from ray import data"}, "imports ray.data"),
    (
        libraries_stay_in_their_rooms,
        {"jobs/tune.py": "import importlib\nimportlib.import_module('ray')"},
        "imports ray",
    ),
    (libraries_stay_in_their_rooms, {"soda_dist/distributed/a.py": "import deepspeed"}, "imports deepspeed"),
    (libraries_stay_in_their_rooms, {"soda_dist/training/engines/deepspeed_engine.py": "import deepspeed"}, "with the"),
    (libraries_stay_in_their_rooms, {"soda_dist/data/shards.py": "def f():\n    import boto3"}, "imports boto3"),
    (libraries_stay_in_their_rooms, {"soda_dist/runs/a.py": "import torch"}, "imports torch"),
    (libraries_stay_in_their_rooms, {"soda_dist/evaluation/worker.py": "import timm"}, "imports timm"),
    (rooms_import_no_other_rooms, {"soda_dist/data/a.py": "from soda_dist.training import b"}, "may not"),
    (rooms_import_no_other_rooms, {"soda_dist/models/a.py": "from ..data.views import b"}, "may not"),
    (rooms_import_no_other_rooms, {"soda_dist/models/a.py": "from soda_dist.config import RunConfig"}, "RunConfig"),
    (rooms_import_no_other_rooms, {"soda_dist/config/__init__.py": "from .. import models"}, "may not"),
    (rooms_import_no_other_rooms, {"soda_dist/training/a.py": "import soda_dist.cli"}, "may not"),
    (rooms_import_no_other_rooms, {"soda_dist/report/a.py": "from soda_dist.data import shards"}, "shards"),
    (rooms_import_no_other_rooms, {"soda_dist/evaluation/a.py": "def f():\n  import soda_dist.distributed"}, "may not"),
    (rooms_import_no_other_rooms, {"soda_dist/__init__.py": "from soda_dist.distributed import a"}, "may not"),
    (rooms_import_no_other_rooms, {"soda_dist/inference/a.py": "from soda_dist.distributed import b"}, "may not"),
    (rooms_import_no_other_rooms, {"soda_dist/extra/a.py": ""}, "belongs to no room"),
    (
        tasks_never_import_each_other,
        {"soda_dist/evaluation/tasks/a.py": "from soda_dist.evaluation.tasks import fid"},
        "tasks.fid",
    ),
    (
        no_file_imports_itself_in_a_circle,
        {"soda_dist/data/a.py": "from soda_dist.data import b", "soda_dist/data/b.py": "import soda_dist.data.a"},
        "soda_dist.data.a <-",
    ),
    (
        no_file_imports_itself_in_a_circle,
        {
            "soda_dist/data/a.py": "from soda_dist.data.b import X",
            "soda_dist/data/b.py": "def f():\n    from soda_dist.data.a import y",
        },
        "soda_dist.data.b <-",
    ),
    (the_package_imports_lazily, {"soda_dist/__init__.py": "from soda_dist.errors import UserError"}, "UserError"),
    (the_package_imports_lazily, {"soda_dist/__init__.py": "if True:\n    import torch"}, "torch"),
    (commands_are_short, {"soda_dist/commands/tune.py": _LONG * 60}, "60 lines"),
    (commands_are_short, {"jobs/tune.py": _LONG * 60}, "60 lines"),
    (files_can_be_held_in_mind, {"soda_dist/data/a.py": _LONG * 401}, "401 lines"),
    (functions_can_be_held_in_mind, {"soda_dist/data/a.py": "def f():\n" + "    x = 1\n" * 60}, "f has 61 lines"),
    (functions_can_be_held_in_mind, {"jobs/a.py": "class A:\n  def f(self):\n" + "    x = 1\n" * 60}, "f has 61 lines"),
    (the_library_does_not_print, {"soda_dist/metrics/knn.py": "def f():\n    print('x')"}, "prints in line 2"),
    (names_say_what_is_inside, {"soda_dist/data/utils.py": ""}, "says nothing"),
    (names_say_what_is_inside, {"tests/helpers/a.py": ""}, "says nothing"),
    (presets_load_and_name_their_command, {_PRESET: "#   make demo\nseeed: 1\n"}, "did you mean seed?"),
    (presets_load_and_name_their_command, {_PRESET: "# A small one.\nseed: 1\n#   make demo\n"}, "names no command"),
    (presets_load_and_name_their_command, {_PRESET: "#   python jobs/none.py\nseed: 1\n"}, "which is not there"),
    (presets_load_and_name_their_command, {_PRESET: "#   python jobs/a.py --preset big\nseed: 1\n"}, "preset big"),
    (light_modules_stay_light, {"soda_dist/config/__init__.py": "import torch", "torch.py": ""}, "imports torch"),
    (light_modules_stay_light, {"soda_dist/cli.py": "import ray", "ray.py": ""}, "soda_dist.cli: imports ray"),
]
RULES = list(dict.fromkeys(rule for rule, _, _ in BROKEN))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_repository_keeps_the_rule(rule: Callable[[Path], list[str]]) -> None:
    assert rule(ROOT) == []


@pytest.mark.parametrize(("rule", "tree", "says"), BROKEN, ids=lambda value: getattr(value, "__name__", None))
def test_the_rule_speaks_when_it_is_broken(
    rule: Callable[[Path], list[str]], tree: dict[str, str], says: str, tmp_path: Path
) -> None:
    sound = {"soda_dist/__init__.py": "", "soda_dist/errors.py": "", "soda_dist/config/__init__.py": ""}
    for name, text in {**sound, **tree}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    complaints = rule(tmp_path)
    assert any(says in complaint for complaint in complaints), complaints
    for name in tree:
        (tmp_path / name).unlink()
    for name, text in sound.items():
        (tmp_path / name).write_text(text)
    assert rule(tmp_path) == []


def test_every_function_that_looks_like_a_rule_is_tried() -> None:
    here = ast.parse(Path(__file__).read_text())
    looks = {f.name for f in here.body if isinstance(f, ast.FunctionDef) and f.name[0] != "_" and "test_" not in f.name}
    assert looks == {rule.__name__ for rule in RULES}
