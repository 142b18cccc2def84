"""Sizes of property runs: one body of a test serves the short run of every day and the long one."""

from typing import Any

import pytest


def sized(name: str, short: Any, *, long: Any) -> pytest.MarkDecorator:
    """Run a test with the argument `name` as `short`, and as `long` in `make test-long` only."""
    return pytest.mark.parametrize(
        name, [pytest.param(short, id="short"), pytest.param(long, id="long", marks=pytest.mark.long)]
    )
