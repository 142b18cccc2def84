"""Every ZeRO stage against the plain engine, and restores across stages and numbers of workers.

The short form has ZeRO 2 and 3 with two workers and ZeRO 2 alone, each beside the plain engine.
"""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from soda_dist.data.storage.folder import open_folder
from soda_dist.training.build import build_engine
from soda_dist.training.checkpoint import load_model, restore
from soda_dist.training.collectives import ProcessGroupContext
from soda_dist.training.to_device import to_device
from tests.distributed.spawned import run_processes
from tests.tiny import feed, tiny_config
from tests.training.saved import save

CPU = torch.device("cpu")
LONG = pytest.mark.long
ENGINES = [("torch", 0), ("deepspeed", 0), ("deepspeed", 1), ("deepspeed", 2), ("deepspeed", 3)]
SOME = {1: [("torch", 0), ("deepspeed", 2)], 2: [("torch", 0), ("deepspeed", 2), ("deepspeed", 3)]}
"""By the number of workers, in the short form; the probe that is trained along has ZeRO 1."""
ALL = dict.fromkeys((1, 2), ENGINES)
STEPS, SAVED = 3, 2


def config_of(engine: str, stage: int, world: int):
    scale = {"engine": engine, "zero_stage": stage, "workers": world, "data_memory_mb": 64}
    return tiny_config(
        encoder={"norm": "batch"},
        scale=scale,
        train={"global_batch": 8, "micro_batch": 4 // world, "norm_batch": 4, "steps": STEPS},
        optim={"warmup_steps": 2, "clip_norm": 0.2, "ema_decay": 0.9, "lr": 1e-3},
    )


def advance(engine, config, rank, first, last):
    batches = feed(config, rank)(first)
    losses = []
    for _ in range(first, last):
        micro = (to_device(next(batches), CPU) for _ in range(config.accumulation))
        losses.append(engine.step(micro, 1e-3))
    return [(float(r.loss), float(r.grad_norm)) for r in losses]


def pieces_of(engine):
    return {f"{k}/{p.name}/{p.start}": p.tensors[k].clone() for p in engine.fragments() if p.owned for k in p.tensors}


def names_of(engines) -> list[str]:
    return [f"{kind}-{stage}" for kind, stage in engines]


def _straight(rank, world, root, engines):
    """STEPS steps on each engine, a checkpoint at SAVED; then each engine again from its own checkpoint."""
    results = {}
    for kind, stage in engines:
        config = config_of(kind, stage, world)
        context = ProcessGroupContext(CPU, print)
        run = open_folder(f"{root}/{kind}-{stage}")
        engine = build_engine(config, CPU)
        first = advance(engine, config, rank, 0, SAVED)
        save(run, SAVED, engine, context, config)
        history = first + advance(engine, config, rank, SAVED, STEPS)
        straight = pieces_of(engine)
        fresh = build_engine(config, CPU)
        restore(run, SAVED, fresh, context)
        again = advance(fresh, config, rank, SAVED, STEPS)
        resumed = pieces_of(fresh)
        results[f"{kind}-{stage}"] = {
            "history": history,
            "bit": again == history[SAVED:] and all(torch.equal(straight[k], resumed[k]) for k in straight),
            "pieces": straight,
        }
    return results


def _crossed(rank, world, root, cases):
    """STEPS - SAVED steps of each (source checkpoint, engine, stage), from the checkpoint."""
    results = {}
    for source, kind, stage in cases:
        config = config_of(kind, stage, world)
        engine = build_engine(config, CPU)
        restore(open_folder(f"{root}/{source}"), SAVED, engine, ProcessGroupContext(CPU, print))
        advance(engine, config, rank, SAVED, STEPS)
        results[f"{source}>{kind}-{stage}"] = pieces_of(engine)
    return results


def whole(results: list[dict], kinds=("param", "exp_avg", "exp_avg_sq", "ema")) -> dict[str, torch.Tensor]:
    """The ranks' owned pieces put together, by KIND/PARAMETER."""
    parts: dict[str, list] = {}
    for pieces in results:
        for key, values in pieces.items():
            name, start = key.rsplit("/", 1)
            parts.setdefault(name, []).append((int(start), values))
    joined = {}
    for name, found in parts.items():
        found.sort(key=lambda part: part[0])
        position = 0
        for start, values in found:
            assert start == position, f"{name} has a gap or an overlap at {position}"
            position += values.numel()
        joined[name] = torch.cat([values for _, values in found])
    return joined


def distance(one: dict, other: dict, kind: str) -> float:
    """Relative l2 distance over all parameters."""
    assert one.keys() == other.keys()
    names = [n for n in one if n.startswith(f"{kind}/")]
    difference = sum((one[n].double() - other[n].double()).square().sum() for n in names)
    return float((difference / sum(other[n].double().square().sum() for n in names)).sqrt())


def assert_same(state: dict, reference: dict, label: object) -> None:
    """Equal to summation order: measured 1e-7 for parameters, more for moments, which hold squares of small numbers."""
    for kind, limit in (("param", 2e-5), ("ema", 2e-5), ("exp_avg", 2e-4), ("exp_avg_sq", 4e-4)):
        assert distance(state, reference, kind) < limit, (label, kind)


@dataclass(frozen=True)
class Runs:
    """Of some engines for each number of workers: their names, results by rank, and where the checkpoints lie."""

    root: Path
    engines: dict[int, list[str]]
    results: dict[int, list[dict]]


@pytest.fixture(scope="module", params=[pytest.param(SOME, id="short"), pytest.param(ALL, id="long", marks=LONG)])
def runs(request, tmp_path_factory) -> Runs:
    """Batch norm, dropout, accumulation and clipping are all at work."""
    root = tmp_path_factory.mktemp("engines")
    engines = request.param
    results = {w: run_processes(_straight, w, root / f"out{w}", str(root / f"w{w}"), engines[w]) for w in (1, 2)}
    return Runs(root, {w: names_of(engines[w]) for w in (1, 2)}, results)


@pytest.mark.slow
def test_all_engines_and_two_workers_equal_one_plain_process(runs):
    results = runs.results
    reference = whole([results[1][0]["torch-0"]["pieces"]])
    plain = results[1][0]["torch-0"]["history"]
    for world in (1, 2):
        for name in runs.engines[world]:
            ranks = [rank[name] for rank in results[world]]
            assert_same(whole([rank["pieces"] for rank in ranks]), reference, (world, name))
            losses = [sum(rank["history"][s][0] for rank in ranks) / world for s in range(STEPS)]
            assert losses == pytest.approx([loss for loss, _ in plain], rel=1e-5), (world, name)
            norms = [norm for _, norm in ranks[0]["history"]]
            assert norms == pytest.approx([norm for _, norm in plain], rel=1e-3), (world, name)
            assert min(norms) > 0.2, "the clip must be at work"


@pytest.mark.slow
def test_a_restore_at_the_same_number_of_workers_is_bit_identical(runs):
    for world, names in runs.engines.items():
        for rank in runs.results[world]:
            assert {name: rank[name]["bit"] for name in names} == dict.fromkeys(names, True), world


@pytest.mark.slow
def test_the_exported_weights_of_all_engines_agree(runs):
    places = [f"{runs.root}/w{world}/{name}" for world, names in runs.engines.items() for name in names]
    models = [load_model(open_folder(place))[0].state_dict() for place in places]
    for model in models[1:]:
        for name, values in model.items():
            torch.testing.assert_close(values, models[0][name], rtol=1e-3, atol=2e-5, msg=name)


CROSSED = {
    ("short", 2): [("deepspeed-2", "deepspeed", 1), ("deepspeed-3", "torch", 0)],
    ("short", 1): [("torch-0", "deepspeed", 3)],
    ("long", 2): [("deepspeed-2", "deepspeed", 3), ("deepspeed-3", "torch", 0)],
    ("long", 1): [("torch-0", "deepspeed", 1), ("deepspeed-3", "deepspeed", 3)],
}
"""By the form and the number of workers that wrote the checkpoint."""


@pytest.mark.slow
@pytest.mark.parametrize(("wrote", "world"), [(2, 1), (1, 2)])
def test_a_checkpoint_goes_on_with_other_workers_and_stages(runs, tmp_path, wrote, world):
    cases = CROSSED["short" if len(runs.engines[1]) == len(SOME[1]) else "long", wrote]
    crossed = run_processes(_crossed, world, tmp_path, f"{runs.root}/w{wrote}", cases)
    for source, kind, stage in cases:
        state = whole([rank[f"{source}>{kind}-{stage}"] for rank in crossed])
        assert_same(state, whole([rank[source]["pieces"] for rank in runs.results[wrote]]), (source, kind, stage))
