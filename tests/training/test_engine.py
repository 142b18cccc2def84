import copy
from itertools import count

import pytest
import torch

from soda_dist.training.build import build_objective, torch_engine
from soda_dist.training.engines.engine import KINDS
from soda_dist.training.to_device import to_device
from tests.tiny import pairs_at, tiny_config
from tests.training.labelled import ATTRIBUTES, labelled_feed
from tests.training.poisoned import in_steps, poison

CPU = torch.device("cpu")


def engine_of(config):
    objective = build_objective(config)
    return torch_engine(config, objective)


def test_a_step_is_clipped_adam_with_decoupled_decay_and_an_ema():
    config = tiny_config(
        optim={"lr": 1e-3, "clip_norm": 0.05, "warmup_steps": 0, "ema_decay": 0.9, "weight_decay": 0.05}
    )
    engine = engine_of(config)
    reference = copy.deepcopy(engine.objective)
    batch = to_device(pairs_at(config, 0, 8), CPU)
    engine.step([batch], 1e-3)

    reference(*batch).backward()
    norm = torch.sqrt(sum(p.grad.double().square().sum() for p in reference.parameters()))
    assert norm > 0.05, "the clip must be at work here"
    for (name, now), before in zip(engine.objective.named_parameters(), reference.parameters(), strict=True):
        gradient = before.grad.double() * 0.05 / norm
        update = gradient / (gradient.abs() + 1e-8)  # Adam's first update, bias-corrected
        expected = before.double() * (1 - 1e-3 * 0.05) - 1e-3 * update
        moved = gradient.abs() > 1e-6  # elsewhere eps decides and float32 rounds
        torch.testing.assert_close(now.double()[moved], expected[moved], rtol=0, atol=2e-6, msg=name)
    for piece, before in zip(engine.fragments(), reference.parameters(), strict=True):
        blend = 0.9 * before.detach().view(-1) + 0.1 * piece.tensors["param"]
        torch.testing.assert_close(piece.tensors["ema"], blend)


def test_micro_batches_add_up_to_the_batch():
    whole = engine_of(tiny_config())
    split = engine_of(tiny_config(train={"micro_batch": 2}))
    config = tiny_config()
    for step in range(3):
        parts = [to_device(pairs_at(config, 8 * step + 2 * j, 8 * step + 2 * j + 2), CPU) for j in range(4)]
        one = whole.step([to_device(pairs_at(config, 8 * step, 8 * step + 8), CPU)], 1e-3)
        four = split.step(parts, 1e-3)
        torch.testing.assert_close(one.loss, four.loss, rtol=1e-5, atol=0)
        torch.testing.assert_close(one.grad_norm, four.grad_norm, rtol=1e-4, atol=0)


@pytest.mark.parametrize("sources", [(1, 1), (1, 3)])
def test_with_batch_norm_micro_batches_of_whole_groups_add_up_to_the_batch(sources):
    data = {"sources": sources, "views": "object", "source_noise": 0.1}
    engines = {
        size: engine_of(tiny_config(data=data, encoder={"norm": "batch"}, train={"micro_batch": size, "norm_batch": 2}))
        for size in (8, 4, 2)
    }
    config = tiny_config(data=data)
    for step in range(2):
        results = {}
        for size, engine in engines.items():
            starts = range(8 * step, 8 * step + 8, size)
            parts = [to_device(pairs_at(config, start, start + size), CPU) for start in starts]
            results[size] = engine.step(parts, 1e-3)
        for size in (4, 2):
            torch.testing.assert_close(results[size].loss, results[8].loss, rtol=1e-5, atol=0)
            torch.testing.assert_close(results[size].grad_norm, results[8].grad_norm, rtol=1e-4, atol=0)
    whole = dict(engines[8].objective.model.named_buffers())
    assert float(whole["encoder.backbone.norm.num_batches_tracked"]) == 2
    for size in (4, 2):
        for name, buffer in engines[size].objective.model.named_buffers():
            torch.testing.assert_close(buffer, whole[name], rtol=1e-3, atol=1e-5, msg=name)


def test_the_size_of_the_groups_makes_another_model():
    batch = to_device(pairs_at(tiny_config(), 0, 8), CPU)
    engines = [engine_of(tiny_config(encoder={"norm": "batch"}, train={"norm_batch": size})) for size in (2, 4)]
    for engine in engines:
        engine.step([batch], 1e-3)
    two, four = (dict(engine.objective.model.named_buffers()) for engine in engines)
    last = [name for name in two if name.endswith("running_var")][-1]
    assert float((two[last] / four[last] - 1).abs().max()) > 1e-2


def test_an_unreadable_row_neither_counts_nor_moves_the_others():
    config = tiny_config()
    objective = build_objective(config)
    batch = to_device(pairs_at(config, 0, 8), CPU)
    losses = torch.stack([objective(*(part[i : i + 1] for part in batch)) for i in range(8)])
    ok = batch.ok.clone()
    ok[3] = False
    batch.source[3] = 0
    masked = objective(*batch._replace(ok=ok))
    torch.testing.assert_close(masked, (losses.sum() - losses[3]) / 8)


def test_data_without_poses_gives_the_method_none(monkeypatch):
    config = tiny_config()
    objective, seen = build_objective(config), []
    loss = objective.model.loss
    monkeypatch.setattr(
        objective.model, "loss", lambda batch, **draws: seen.append((batch, draws)) or loss(batch, **draws)
    )
    objective(*to_device(pairs_at(config, 0, 2), CPU))
    [(batch, draws)] = seen
    assert batch.pose is batch.sources.poses is draws["pose_keep"] is None


@pytest.mark.parametrize("fault", ["gradient", "loss", "activations"])
def test_a_step_that_is_not_finite_changes_nothing_and_the_next_one_counts(fault):
    config = tiny_config(
        encoder={"norm": "batch"},
        data={"sources": (1, 2), "views": "object"},
        train={"micro_batch": 4, "norm_batch": 4, "online_probe": True},
    )
    engine = torch_engine(config, build_objective(config, ATTRIBUTES))
    if fault != "activations":
        poison(engine.objective, in_steps(2, batch=8), value=fault == "loss", gradient=fault == "gradient")
    batches, number = labelled_feed(config, 0, 2)(0), count(1)

    def step():
        spoilt = fault == "activations" and next(number) == 2
        first = next(m for m in engine.objective.model.encoder.modules() if isinstance(m, torch.nn.Conv2d))
        hook = first.register_forward_pre_hook(lambda _, args: (args[0] * float("nan"),) if spoilt else None)
        result = engine.step([to_device(next(batches), CPU) for _ in range(2)], 1e-3)
        hook.remove()
        return result

    def state():
        pieces = {f"{kind}/{p.name}": value.clone() for p in engine.fragments() for kind, value in p.tensors.items()}
        return pieces | {name: value.clone() for name, value in engine.objective.named_buffers()}

    assert step().finite
    before = state()
    skipped = step()
    assert not skipped.finite and skipped.probe.tolist() == [0.0, 0.0, 0.0]
    after = state()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    assert engine.updates == 1
    assert step().finite and engine.updates == 2 and float(engine.objective.online_probe.updates) == 2
    moved = state()
    still = [name for name in moved if torch.equal(after[name], moved[name])]
    assert not any(name.startswith(("ema/", "exp_avg/")) or "running_" in name for name in still), still


def test_fragments_cover_every_element_and_are_live():
    config = tiny_config()
    engine = engine_of(config)
    pieces = list(engine.fragments())
    assert sum(piece.length for piece in pieces) == sum(p.numel() for p in engine.objective.parameters())
    assert all(set(piece.tensors) == set(KINDS) for piece in pieces)
    pieces[0].tensors["param"].fill_(7.0)
    assert (next(engine.objective.parameters()) == 7.0).all()
    assert engine.updates == 0
    engine.step([to_device(pairs_at(config, 0, 8), CPU)], 1e-3)
    assert engine.updates == 1
