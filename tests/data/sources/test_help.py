"""`prepare_data.py KIND --help`: each kind's layout, options and an example that its own options accept."""

import re
import shlex

import pytest

from soda_dist.data.sources import SOURCES, describe, parse_options

EXAMPLE = re.compile(r"^    python jobs/prepare_data\.py (.+)$", re.MULTILINE)
FLAGS = {"--max-side": "max_side", "--quality": "quality"}


@pytest.mark.parametrize("kind", SOURCES)
def test_help_shows_an_example_that_is_right(kind: str) -> None:
    page = describe(kind)
    examples = [shlex.split(line) for line in EXAMPLE.findall(page)]
    own = [words for words in examples if words[0] == kind]
    assert own, page
    for words in own:
        rest = iter(words[1:])
        options, given = list[str](), set[str]()
        for word in rest:
            if word in FLAGS:
                options.append(f"{FLAGS[word]}={next(rest)}")
            elif word.startswith("--"):
                given.add(word)
                next(rest)
            else:
                options.append(word)
        parse_options(kind, options)
        assert given == ({"--data"} if kind == "synthetic" else {"--source", "--data"})


@pytest.mark.parametrize("kind", SOURCES)
def test_help_describes_every_option_and_fits_a_terminal(kind: str) -> None:
    text, _, options = describe(kind).partition("\nOptions:\n")
    listed = dict(re.findall(r"^  (\w+)=\S* *(.*)$", options, re.MULTILINE))
    assert list(listed) == list(SOURCES[kind].options.model_fields)
    assert all(listed.values()), [name for name, meaning in listed.items() if not meaning]
    assert max(map(len, text.splitlines())) <= 120
