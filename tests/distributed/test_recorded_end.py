"""How an attempt ends is noted in the run's provenance, whatever ends it."""

from pathlib import Path

import pytest

from soda_dist.data.storage.folder import open_folder
from soda_dist.distributed.pretrain import MOST_REASON, _recorded
from soda_dist.runs.folder import attempts, claim
from tests.tiny import tiny_config

ENDS = {
    "reached the last step that was asked for": None,
    "interrupted": KeyboardInterrupt(),
    "failed: loss is nan": RuntimeError("loss is nan"),
    "failed: " + "x" * (MOST_REASON - 8): RuntimeError("x" * 10_000),
}


@pytest.mark.parametrize("reason", ENDS, ids=lambda reason: reason[:20])
def test_the_end_of_an_attempt_is_noted(reason: str, tmp_path: Path) -> None:
    run, error = open_folder(str(tmp_path)), ENDS[reason]
    claim(run, tiny_config())
    try:
        with _recorded(run):
            if error is not None:
                raise error
    except type(error) if error is not None else () as raised:
        assert raised is error
    (attempt,) = attempts(run)
    assert attempt["ended"]["reason"] == reason


def test_a_note_that_cannot_be_written_hides_no_error(tmp_path: Path) -> None:
    run = open_folder(str(tmp_path))
    run.write("provenance.json", b"{")
    with pytest.raises(RuntimeError, match="loss is nan"), _recorded(run):
        raise RuntimeError("loss is nan")
