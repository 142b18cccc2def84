"""Ray's own autoscaler, on one machine: worker nodes come up for a submitted job, and go when it is done."""

import json
import secrets
import sys
import urllib.error
from collections.abc import Iterator
from pathlib import Path

import pytest

from soda_dist.config import dump_config
from tests.evaluation.small_run import small_data
from tests.system.head import FakeNodes, Head, running_head, wait_for
from tests.tiny import tiny_config

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1200)]

ROOT = Path(__file__).parents[2]
FAKE = FakeNodes(count=2, cpus=2)
"""Two workers, each with a data task beside it: four CPUs that a head without any cannot give."""


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with running_head(0, FAKE) as head:
        yield head


def test_without_the_token_nothing_is_answered(head: Head) -> None:
    for token in (None, secrets.token_hex(32)):
        with pytest.raises(urllib.error.HTTPError) as refusal:
            head.request("/api/v0/nodes", token)
        assert refusal.value.code in (401, 403)


def test_nodes_come_for_a_pretraining_job_and_go_afterwards(head: Head, tmp_path: Path) -> None:
    before = head.alive()
    assert len(before) == 1
    small_data(tmp_path / "data")
    config = tiny_config(scale={"engine": "deepspeed", "workers": 2, "data_memory_mb": 64})
    (tmp_path / "tiny.yaml").write_text(dump_config(config))
    command = [sys.executable, "jobs/pretrain.py", "--preset", str(tmp_path / "tiny.yaml")]
    job = head.start(ROOT, [*command, "--data", str(tmp_path / "data"), "--run", str(tmp_path / "run")])

    def more() -> bool:
        assert job.succeeded() is None, job.output()
        return len(head.alive()) > 1

    wait_for(more, 300, lambda: job.output() + head.logs())
    printed = job.wait(480)
    wait_for(lambda: head.alive() == before, 120, lambda: f"{head.nodes()}\n{head.logs()}")

    added = {node for node, state in head.nodes().items() if state == "DEAD"}
    assert 1 <= len(added) <= FAKE.count
    assert "waiting for the autoscaler: the run needs 4 CPU, the cluster has 0 CPU now" in printed
    manifest = json.loads((tmp_path / "run/checkpoints/000000006/manifest.json").read_text())
    assert (manifest["step"], manifest["world"]) == (6, 2)
