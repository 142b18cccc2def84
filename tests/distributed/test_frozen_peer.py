"""A worker that stands still, as a machine that swaps or hangs does, ends the others' wait with an error."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing import ProcessExitedException

from soda_dist.training.build import build_engine
from soda_dist.training.collectives import set_collective_timeout
from soda_dist.training.to_device import to_device
from tests.distributed.spawned import run_processes
from tests.tiny import feed, tiny_config

LIMIT_S, PATIENCE_S = 3.0, 45.0


def _step_beside_a_frozen_peer(rank: int, world: int, kind: str, report: str) -> None:
    """Rank 1 stops itself after an update; rank 0 reports how its next update ended, and ends rank 1."""
    config = tiny_config(
        scale={"engine": kind, "zero_stage": 1, "workers": world, "data_memory_mb": 64},
        train={"global_batch": 4, "steps": 4},
    )
    engine = build_engine(config, torch.device("cpu"))
    set_collective_timeout(LIMIT_S)
    batches = (to_device(pairs, torch.device("cpu")) for pairs in feed(config, rank)(0))
    engine.step([next(batches)], 1e-4)
    pids = [0] * world
    dist.all_gather_object(pids, os.getpid())
    if rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    rescue = threading.Timer(PATIENCE_S, os.kill, (pids[1], signal.SIGKILL))
    rescue.start()
    start, failed = time.monotonic(), None
    try:
        engine.step([next(batches)], 1e-4)
    except RuntimeError as error:
        failed = str(error)
    rescue.cancel()
    Path(report).write_text(json.dumps({"error": failed, "seconds": time.monotonic() - start}))
    os.kill(pids[1], signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["deepspeed", "torch"])
def test_a_frozen_peer_is_an_error_within_the_limit(tmp_path, kind):
    report = tmp_path / "report.json"
    with pytest.raises(ProcessExitedException, match="SIGKILL"):
        run_processes(_step_beside_a_frozen_peer, 2, tmp_path / "out", kind, str(report))
    seen = json.loads(report.read_text())
    assert seen["error"] is not None, "the update went through without the peer"
    assert LIMIT_S / 2 < seen["seconds"] < PATIENCE_S / 2, seen
