"""`--results FILE`, where the figures of these runs are written; and one thread for all of them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.learn.results import Results


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--results", type=Path, default=None, help="page to write the figures of the learn tests to")


@pytest.fixture(scope="session")
def results(request: pytest.FixtureRequest) -> Iterator[Results]:
    found = Results(request.config.getoption("--results", default=None))
    yield found
    found.write()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """So small networks are no faster with more, and figures then do not depend on their number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
