"""Every module of the package imports, and so do the libraries that it imports on use."""

from importlib import import_module
from pkgutil import walk_packages

import pytest

import soda_dist

MODULES = sorted(module.name for module in walk_packages(soda_dist.__path__, "soda_dist."))


@pytest.mark.parametrize("name", [*MODULES, "deepspeed", "ray.train.torch", "ray.tune", "torch_fidelity"])
def test_it_imports(name: str) -> None:
    import_module(name)
