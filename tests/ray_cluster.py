"""One local Ray cluster for all modules: starting one takes seconds, and its workers have imported what jobs need."""

import os
from collections.abc import Iterator
from contextlib import ExitStack

import psutil
import pytest


@pytest.fixture(scope="session")
def until_the_end() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture(scope="module")
def cluster(s3_server: str, until_the_end: ExitStack) -> None:
    """A cluster of four logical CPUs, whose workers know the S3 server; the running one, if a test left one."""
    import ray

    from soda_dist.distributed.runtime.cluster import ray_session

    if not ray.is_initialized():
        # Ray's workers are nice by default, so that other tests would leave them next to nothing.
        os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  # as Ray spells it
        until_the_end.enter_context(ray_session(cpus=4))
        # It looks through all log files ten times a second, a twentieth of a core, for lines that no test reads.
        for process in psutil.Process().children():
            if "log_monitor.py" in " ".join(process.cmdline()):
                process.kill()
                process.wait()
