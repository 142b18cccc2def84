"""Groups of batch norm on 1, 2 and 4 workers: one model, up to the order of summation."""

import pytest
import torch
import torch.distributed as dist

from soda_dist.training.build import build_engine, build_objective, torch_engine
from soda_dist.training.collectives import sum_over_neighbours
from soda_dist.training.to_device import to_device
from tests.distributed.spawned import run_processes
from tests.tiny import feed, tiny_config

CPU = torch.device("cpu")
STEPS = 2


def config_of(micro: int, workers: int):
    """Groups of four positions in a batch of eight, each sample with one to three views."""
    return tiny_config(
        data={"sources": (1, 3), "views": "object"},
        encoder={"norm": "batch"},
        train={"micro_batch": micro, "norm_batch": 4, "steps": STEPS},
        scale={"workers": workers, "engine": "torch", "data_memory_mb": 64},
    )


def trained(engine, config, rank: int) -> dict:
    """Losses and gradient norms of each step, then weights and running statistics."""
    batches = feed(config, rank)(0)
    results = []
    for _ in range(STEPS):
        results.append(engine.step((to_device(next(batches), CPU) for _ in range(config.accumulation)), 1e-4))
    return {
        "loss": torch.stack([result.loss for result in results]),
        "grad_norm": torch.stack([result.grad_norm for result in results]),
        "state": {name: value.detach().clone() for name, value in engine.objective.model.state_dict().items()},
    }


def _trained(rank: int, world: int) -> dict:
    config = config_of(8 // world, world)
    return trained(build_engine(config, CPU), config, rank)


def _neighbours(rank: int, world: int) -> list:
    """Sums and gradients over pairs and over all."""
    found = []
    for count in (2, world):
        x = torch.tensor([float(rank + 1)], requires_grad=True)
        total = sum_over_neighbours(count)(x)
        (total * (rank + 1)).sum().backward()
        found.append([total.item(), x.grad.item()])
    dist.barrier()
    return found


@pytest.mark.slow
def test_any_split_of_the_groups_is_one_model(tmp_path) -> None:
    """Two groups in a micro-batch, one after the other, one on each of two workers, and each on two of four workers."""
    ways = {}
    for micro in (8, 4):
        config = config_of(micro, 1)
        ways[f"micro {micro}"] = [trained(torch_engine(config, build_objective(config)), config, 0)]
    for world in (2, 4):
        ways[f"{world} workers"] = run_processes(_trained, world, tmp_path / f"{world}")
    (reference,) = ways.pop("micro 8")
    moved = reference["state"]["encoder.backbone.norm.running_var"]
    assert float((moved - 1).abs().max()) > 1e-3
    for way, ranks in ways.items():
        loss = torch.stack([rank["loss"] for rank in ranks]).mean(0)
        torch.testing.assert_close(loss, reference["loss"], rtol=1e-5, atol=0, msg=way)
        for rank in ranks:
            torch.testing.assert_close(rank["grad_norm"], reference["grad_norm"], rtol=1e-3, atol=0, msg=way)
            for name, value in reference["state"].items():
                torch.testing.assert_close(rank["state"][name], value, rtol=1e-3, atol=2e-5, msg=f"{way}: {name}")
            for name, value in ranks[0]["state"].items():
                assert torch.equal(rank["state"][name], value), f"{way}: {name} differs between workers"


@pytest.mark.slow
def test_neighbours_sum_among_themselves(tmp_path) -> None:
    found = run_processes(_neighbours, 4, tmp_path)
    pairs, everyone = ([rank[i] for rank in found] for i in (0, 1))
    assert pairs == [[3.0, 3.0], [3.0, 3.0], [7.0, 7.0], [7.0, 7.0]]
    assert everyone == [[10.0, 10.0]] * 4
