"""A step whose gradient or loss is not finite, under every engine: skipped alike, without a wait for the device."""

import json
from collections import Counter
from contextlib import nullcontext
from itertools import count
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from soda_dist.config.load import leaves, with_fields
from soda_dist.data.storage.folder import open_folder
from soda_dist.parallel.progress import silent
from soda_dist.runs.folder import complete_steps, rollbacks
from soda_dist.training.build import build_engine
from soda_dist.training.collectives import ProcessGroupContext
from soda_dist.training.guard import remove_after
from soda_dist.training.loop import fit
from soda_dist.training.schedule import learning_rate
from soda_dist.training.to_device import to_device
from tests.distributed.spawned import run_processes
from tests.distributed.test_deepspeed_engine import ENGINES, assert_same, names_of, pieces_of, whole
from tests.sizes import sized
from tests.tiny import feed, tiny_config
from tests.training.poisoned import in_steps, poison

CPU = torch.device("cpu")
STEPS, NO_GRADIENT, NO_LOSS = 5, 3, 4
"""Steps count from 1: one has a gradient that is not finite, one a loss."""


def config_of(engine: str, stage: int, world: int):
    return tiny_config(
        encoder={"norm": "batch"},
        scale={"engine": engine, "zero_stage": stage, "workers": world, "data_memory_mb": 64},
        train={
            "global_batch": 8, "micro_batch": 4 // world, "norm_batch": 4, "steps": STEPS, "log_every_steps": STEPS,
            "checkpoint_every_steps": STEPS,
        },
        optim={"warmup_steps": 2, "clip_norm": 0.2, "ema_decay": 0.9, "lr": 1e-3},
    )  # fmt: skip


class Waits(TorchDispatchMode):
    """Count the operations that make the host wait for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name()
        if name in ("aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::equal"):
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


def _disturbed(rank, world, root, engines):
    """A run of `fit` on each engine; at NO_GRADIENT and NO_LOSS one worker's micro-batch is spoilt."""
    results = {"left out": _left_out(rank, world)}  # first: ZeRO 3 replaces torch's linear layer for good
    for kind, stage in engines:
        config = config_of(kind, stage, world)
        engine, waits = build_engine(config, CPU), Waits()
        poison(engine.objective, in_steps(NO_GRADIENT, batch=8, row=7), value=False, gradient=True)
        poison(engine.objective, in_steps(NO_LOSS, batch=8, row=0), value=True, gradient=False)
        step = engine.step

        def watched(micro_batches, lr, step=step, waits=waits, number=count(1)):
            with waits if next(number) == NO_GRADIENT else nullcontext():  # ZeRO 3 compares ranks at its first step
                return step(micro_batches, lr)

        engine.step = watched
        run = open_folder(f"{root}/{world}-{kind}-{stage}")
        fit(ProcessGroupContext(CPU, silent), engine, config, feed(config, rank), run, rows=40)
        results[f"{kind}-{stage}"] = _state(engine) | {"waits": dict(waits.found)}
    return results | ({"rolled back": _rolled_back(rank, world, root)} if engines == ENGINES else {})


def _state(engine):
    buffers = {name: value.clone() for name, value in engine.objective.model.named_buffers()}
    return {"pieces": pieces_of(engine), "updates": engine.updates, "buffers": buffers}


def _rolled_back(rank, world, root):
    """ZeRO 3 goes back from step 4 to step 2 in the live engine; a fresh engine resumes from that checkpoint."""
    found = []
    train = {"steps": 4, "log_every_steps": 1, "checkpoint_every_steps": 2, "guard": {"skipped_steps": 0}}
    base = config_of("deepspeed", 3, world)
    config = with_fields(base, leaves({"train": {**base.train.model_dump(), **train}}))
    context, run = ProcessGroupContext(CPU, silent), open_folder(f"{root}/back-{world}")
    for spoilt in (True, False):
        engine = build_engine(config, CPU)
        hit = in_steps(4, batch=8)
        poison(
            engine.objective,
            lambda index, hit=hit, o=engine.objective, on=spoilt: on and hit(index) and o.seed == config.seed,
            value=False,
            gradient=True,
        )
        fit(context, engine, config, feed(config, rank), run, rows=40)
        found.append(pieces_of(engine))
        steps = complete_steps(run)
        context.barrier()
        if rank == 0:
            remove_after(run, 2)
        context.barrier()
    live, fresh = found
    same = all(torch.equal(live[key], fresh[key]) for key in live)
    return {"same": same, "steps": steps, "to": [entry["step"] for entry in rollbacks(run)]}


def _left_out(rank, world):
    """The plain engine without the spoilt steps; the others keep their data and learning rates."""
    config = config_of("torch", 0, world)
    engine = build_engine(config, CPU)
    for step in range(STEPS):
        if step + 1 not in (NO_GRADIENT, NO_LOSS):
            batches = feed(config, rank)(step)
            micro = [to_device(next(batches), CPU) for _ in range(config.accumulation)]
            engine.step(micro, learning_rate(step, config.optim, STEPS))
    return _state(engine)


@pytest.mark.slow
@sized("engines", [each for each in ENGINES if each != ("deepspeed", 1)], long=ENGINES)
def test_every_engine_skips_the_step_and_goes_on_as_if_it_had_not_been(tmp_path, engines):
    world = 2
    ranks = run_processes(_disturbed, world, tmp_path / "out", str(tmp_path), engines)
    plain = [rank["left out"] for rank in ranks]
    reference = whole([rank["pieces"] for rank in plain])
    assert all(torch.equal(a, b) for rank in ranks for a, b in _same(rank))
    if engines == ENGINES:
        assert [rank["rolled back"] for rank in ranks] == [{"same": True, "steps": [2, 4], "to": [2]}] * world
    rows = {}
    for name in names_of(engines):
        results = [rank[name] for rank in ranks]
        assert [result["updates"] for result in results] == [STEPS - 2] * world, name
        assert_same(whole([result["pieces"] for result in results]), reference, name)
        for key, value in plain[0]["buffers"].items():
            torch.testing.assert_close(results[0]["buffers"][key], value, rtol=1e-4, atol=1e-6, msg=f"{name} {key}")
        assert [result["waits"] for result in results] == [{}] * world, name
        (row,) = _rows(tmp_path / f"{world}-{name}")
        rows[name] = {key: row[key] for key in ("step", "images", "epoch", "loss", "grad_norm", "lr", "skipped")}
    expected = rows["torch-0"]
    assert expected["skipped"] == 2
    for name, row in rows.items():
        assert row == {
            **expected,
            "loss": pytest.approx(expected["loss"], rel=1e-5),
            "grad_norm": pytest.approx(expected["grad_norm"], rel=1e-3),
        }, name


def _same(rank):
    """The plain engine's pieces and buffers, disturbed and not."""
    for kind in ("pieces", "buffers"):
        yield from ((value, rank["left out"][kind][key]) for key, value in rank["torch-0"][kind].items())


def _rows(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
