"""Run a function in W real processes that share a gloo group; each writes its result to a file.

They are forked from a server process that has imported torch and DeepSpeed and done nothing else, so that all groups
cost one import.
"""

import multiprocessing
import os
import socket
import traceback
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

multiprocessing.set_forkserver_preload(["tests.distributed.preloaded"])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _main(rank: int, function: Any, world: int, port: int, folder: str, args: tuple) -> None:
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": str(world),
        "LOCAL_RANK": str(rank), "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world)
    try:
        torch.save(function(rank, world, *args), Path(folder) / f"{rank}.pt")
    except Exception:
        traceback.print_exc()
        raise
    finally:
        dist.destroy_process_group()


def run_processes(function: Any, world: int, folder: Path, *args: Any) -> list:
    """`function(rank, world, *args)` on every rank; their results in the order of ranks."""
    folder.mkdir(parents=True, exist_ok=True)
    mp.start_processes(
        _main, args=(function, world, free_port(), str(folder), args), nprocs=world, start_method="forkserver"
    )
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world)]
