"""The probe that is trained along, under every engine and number of workers."""

import pytest
import torch

from soda_dist.data.storage.folder import open_folder
from soda_dist.training.build import build_engine
from soda_dist.training.checkpoint import restore
from soda_dist.training.collectives import ProcessGroupContext
from soda_dist.training.to_device import to_device
from tests.distributed.spawned import run_processes
from tests.distributed.test_deepspeed_engine import ENGINES, names_of, pieces_of
from tests.sizes import sized
from tests.tiny import tiny_config
from tests.training.labelled import ATTRIBUTES, labelled_feed
from tests.training.saved import save

CPU = torch.device("cpu")
STEPS, SAVED = 2, 1
LR = 1e-6
"""Of the model: engines differ in its rounding, which a larger one would amplify to 1e-4 of the probe's loss."""


def config_of(engine: str, stage: int, world: int, online: bool):
    return tiny_config(
        encoder={"norm": "batch"},
        data={"sources": (1, 2), "views": "object"},
        scale={"engine": engine, "zero_stage": stage, "workers": world, "data_memory_mb": 64},
        train={
            "global_batch": 8, "micro_batch": 4 // world, "norm_batch": 4, "steps": STEPS, "online_probe": online,
            "online_probe_lr": 0.02,
        },
        optim={"warmup_steps": 2, "clip_norm": 0.2, "ema_decay": 0.9, "lr": 1e-3},
    )  # fmt: skip


def advance(engine, config, rank, first, last) -> list[torch.Tensor]:
    batches = labelled_feed(config, rank, 2)(first)
    results = []
    for _ in range(first, last):
        results.append(engine.step((to_device(next(batches), CPU) for _ in range(config.accumulation)), LR).probe)
    return results


def _both_ways(rank, world, root, engines):
    """STEPS steps of each engine with the probe, from the checkpoint at SAVED again, and without it."""
    results = {}
    for kind, stage in engines:
        config = config_of(kind, stage, world, True)
        context = ProcessGroupContext(CPU, print)
        run = open_folder(f"{root}/{kind}-{stage}")
        engine = build_engine(config, CPU, ATTRIBUTES)
        facts = advance(engine, config, rank, 0, SAVED)
        save(run, SAVED, engine, context, config)
        facts += advance(engine, config, rank, SAVED, STEPS)
        straight = {name: value.clone() for name, value in engine.objective.online_probe.state_dict().items()}
        one = pieces_of(engine)
        again = build_engine(config, CPU, ATTRIBUTES)
        restore(run, SAVED, again, context)
        resumed_facts = advance(again, config, rank, SAVED, STEPS)
        resumed = again.objective.online_probe.state_dict()
        bare = config_of(kind, stage, world, False)
        without = build_engine(bare, CPU)
        advance(without, bare, rank, 0, STEPS)
        other = pieces_of(without)
        results[f"{kind}-{stage}"] = {
            "state": straight,
            "facts": torch.stack(facts),
            "resumes": all(torch.equal(straight[name], resumed[name]) for name in straight)
            and all(torch.equal(a, b) for a, b in zip(facts[SAVED:], resumed_facts, strict=True)),
            "apart": one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one),
        }
    return results


SOME = {1: [("torch", 0), ("deepspeed", 2)], 2: [("torch", 0), ("deepspeed", 1)]}
"""By the number of workers; the long form has all engines with both."""


@pytest.mark.slow
@sized("engines", SOME, long=dict.fromkeys((1, 2), ENGINES))
def test_every_engine_and_two_workers_have_the_probe_of_one_plain_process_and_the_model_of_a_run_without(
    engines, tmp_path
):
    found = {w: run_processes(_both_ways, w, tmp_path / f"{w}", str(tmp_path), engines[w]) for w in (1, 2)}
    reference = found[1][0]["torch-0"]
    assert float(reference["state"]["updates"]) == STEPS
    for world, ranks in found.items():
        for rank, results in enumerate(ranks):
            assert list(results) == names_of(engines[world])
            for name, result in results.items():
                label = (world, rank, name)
                assert result["apart"], label
                assert result["resumes"], label
                torch.testing.assert_close(result["facts"], reference["facts"], rtol=1e-4, atol=1e-4, msg=str(label))
                for key, value in reference["state"].items():
                    torch.testing.assert_close(result["state"][key], value, rtol=1e-3, atol=2e-4, msg=f"{label} {key}")
