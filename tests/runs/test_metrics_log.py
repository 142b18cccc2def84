"""A run's JSON-lines files: what a later attempt keeps, and when the file is written."""

import json
from pathlib import Path

import pytest

from soda_dist.data.storage.folder import Folder, open_folder
from soda_dist.runs.metrics_log import METRICS, JsonLines, read_lines


@pytest.fixture
def run(tmp_path: Path) -> Folder:
    """The folder of a run that logged steps 1 to 4."""
    folder = open_folder(str(tmp_path / "run"))
    log = JsonLines(folder, METRICS)
    for step in range(1, 5):
        log.append({"step": step})
    log.flush()
    return folder


@pytest.mark.parametrize(("step", "kept"), [(0, []), (2, [1, 2]), (4, [1, 2, 3, 4])])
def test_lines_after_the_resumed_step_are_dropped_from_the_file(run: Folder, step: int, kept: list[int]) -> None:
    log = JsonLines(run, METRICS)
    log.resume(step)
    log.flush()
    assert [line["step"] for line in read_lines(run, METRICS)] == kept


def test_as_many_new_lines_as_were_dropped_are_written(run: Folder) -> None:
    log = JsonLines(run, METRICS)
    log.resume(2)
    log.append({"step": 3, "new": True})
    log.append({"step": 4, "new": True})
    log.flush()
    assert read_lines(run, METRICS)[2:] == [{"step": 3, "new": True}, {"step": 4, "new": True}]


def test_a_flush_without_news_writes_nothing(run: Folder, tmp_path: Path) -> None:
    log = JsonLines(run, METRICS)
    log.resume(4)
    (tmp_path / "run" / METRICS).write_text(json.dumps({"step": 9}) + "\n")
    log.flush()
    assert read_lines(run, METRICS) == [{"step": 9}]


def test_a_file_that_was_never_written_has_no_lines(tmp_path: Path) -> None:
    assert read_lines(open_folder(str(tmp_path)), METRICS) == []
