"""The probe that is trained along: against a plain loop, beside a run without it, and over a resume."""

import json
from contextlib import suppress

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from soda_dist.config.schema import RunConfig
from soda_dist.data.labels import ProbeLabels
from soda_dist.data.storage.folder import open_folder
from soda_dist.errors import UserError
from soda_dist.metrics.classification import headline
from soda_dist.training import checkpoint
from soda_dist.training.build import build_objective, torch_engine
from soda_dist.training.context import LocalContext
from soda_dist.training.engines.torch_engine import TorchEngine
from soda_dist.training.loop import fit
from soda_dist.training.to_device import to_device
from tests.tiny import tiny_config
from tests.training.labelled import ATTRIBUTES, CLASS, STEPS, labelled, labelled_feed
from tests.training.test_checkpoint import state_of

CPU = torch.device("cpu")
STILL = {"norm": "batch", "dropout": 0.0, "drop_path": 0.0}
"""An encoder whose latents tell the label, if it hardly learns meanwhile."""


def config_of(online: bool = True, probe: dict | None = None, lr: float = 1e-3, **sections) -> RunConfig:
    train = {**STEPS, "online_probe": online, **sections.pop("train", {})}
    evaluation = {"probe": {"dropout": 0.1, **(probe or {})}}
    optim = {"lr": lr, "warmup_steps": 0, "clip_norm": 0.05, "ema_decay": 0.9}
    return tiny_config(train=train, evaluation=evaluation, optim=optim, **sections)


def engine_of(config: RunConfig, labels: ProbeLabels = CLASS) -> TorchEngine:
    objective = build_objective(config, labels if config.train.online_probe else None)
    return torch_engine(config, objective)


def train(run, config, labels=CLASS, stop=None) -> TorchEngine:
    engine, columns = engine_of(config, labels), max(labels.heads, 1)

    def batches(first):
        for number, pairs in enumerate(labelled_feed(config, 0, columns)(first), start=first * config.accumulation):
            if stop is not None and number >= stop * config.accumulation:
                raise KeyboardInterrupt
            yield pairs

    with suppress(KeyboardInterrupt):
        fit(LocalContext(), engine, config, batches, run, rows=100)
    return engine


def lines_of(path) -> list[dict]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_the_model_is_bit_for_bit_that_of_a_run_without_it(tmp_path):
    """Ten steps with clipping at work, batch norm, dropout and accumulation; and what is exported."""
    sections = {"encoder": {"norm": "batch"}}
    ways = {}
    for online in (True, False):
        config = config_of(online, train={"micro_batch": 4, "norm_batch": 4}, **sections)
        ways[online] = train(open_folder(str(tmp_path / str(online))), config)
    with_it, without = (state_of(ways[online]) for online in (True, False))
    assert with_it.keys() == without.keys()
    assert all(torch.equal(with_it[name], without[name]) for name in without)
    one, other = (lines_of(tmp_path / str(online)) for online in (True, False))
    assert [line["grad_norm"] for line in one] == [line["grad_norm"] for line in other]
    assert min(line["grad_norm"] for line in one) > 0.05, "the clip must be at work"
    assert not any("probe" in key for line in other for key in line)
    exported = [
        load_file(tmp_path / str(online) / "checkpoints/000000010/model.safetensors") for online in (True, False)
    ]
    assert exported[0].keys() == exported[1].keys()
    assert all(torch.equal(exported[0][name], exported[1][name]) for name in exported[0])
    assert not (tmp_path / "False/checkpoints/000000010/online_probe.safetensors").exists()


def test_no_gradient_reaches_the_model_and_the_probe_moves():
    config = config_of()
    objective = build_objective(config, CLASS)
    assert not any("probe" in name for name, _ in objective.named_parameters())
    before = objective.online_probe.layer.clone()
    objective(*to_device(labelled(config, 0, 8), CPU))
    objective.online_probe.update()
    assert all(parameter.grad is None for parameter in objective.parameters())
    assert not torch.equal(before, objective.online_probe.layer)


@pytest.mark.parametrize("labels", [CLASS, ATTRIBUTES], ids=["class", "attributes"])
def test_the_probe_is_torchs_batch_norm_linear_layer_and_adam(labels):
    """Over micro-batches: statistics, loss and step are of the global batch."""
    columns = max(labels.heads, 1)
    config = config_of(
        probe={"dropout": 0.0, "label_smoothing": 0.1, "bias": -1.0}, train={"micro_batch": 2, "online_probe_lr": 0.02}
    )
    engine = engine_of(config, labels)
    probe = engine.objective.online_probe
    norm, linear = nn.BatchNorm1d(12, eps=1e-10, affine=False), nn.Linear(12, 2 * columns)
    linear.load_state_dict({"weight": probe.layer[:, :-1], "bias": probe.layer[:, -1]})
    assert torch.all(linear.bias == -1.0)
    adam = torch.optim.Adam(linear.parameters(), lr=0.02)
    seen: list[torch.Tensor] = []
    engine.objective.model.aggregation.register_forward_hook(lambda _, __, z: seen.append(z.detach()))
    for step in range(4):
        parts = [labelled(config, 8 * step + at, 8 * step + at + 2, columns) for at in (0, 2, 4, 6)]
        truth = torch.cat([torch.from_numpy(part.label) for part in parts])
        result = engine.step([to_device(part, CPU) for part in parts], 1e-3)
        logits = linear(norm(torch.cat(seen))).view(8, columns, 2).flatten(0, 1)
        seen.clear()
        loss = nn.functional.cross_entropy(logits, truth.flatten(), label_smoothing=0.1)
        hits = int((logits.argmax(1) == truth.flatten()).sum())
        adam.zero_grad()
        loss.backward()
        adam.step()
        expected = torch.tensor([loss.item() * 8 * columns, hits, 8 * columns])
        torch.testing.assert_close(result.probe, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(probe.layer[:, :-1], linear.weight, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(probe.layer[:, -1], linear.bias, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(probe.mean, norm.running_mean)
    unbiased = 1 - 0.1 * sum(0.9**n for n in range(4))  # of the initial one
    torch.testing.assert_close(probe.variance - unbiased, (norm.running_var - unbiased) * 7 / 8, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_accuracy_rises_where_the_latents_tell_the_label_and_the_log_says_so(tmp_path):
    config = config_of(
        lr=1e-6,
        encoder=STILL,
        data={"sources": (1, 3), "views": "object"},
        train={"steps": 60, "log_every_steps": 10, "checkpoint_every_steps": 60, "online_probe_lr": 0.05},
    )
    run, said = open_folder(str(tmp_path)), []
    engine = engine_of(config)
    fit(LocalContext(say=said.append), engine, config, labelled_feed(config), run, rows=100)
    lines = lines_of(tmp_path)
    assert all(0 <= line["probe_accuracy"] <= 1 and line["probe_loss"] > 0 for line in lines)
    assert lines[-1]["probe_accuracy"] > 0.9 and lines[-1]["probe_loss"] < 0.7 * lines[0]["probe_loss"]
    assert f"probe {lines[-1]['probe_accuracy']:.1%}" in said[-1]
    probe = checkpoint.load_online_probe(run, 60)
    seen: list[torch.Tensor] = []
    engine.objective.model.aggregation.register_forward_hook(lambda _, __, z: seen.append(z.detach()))
    pairs = labelled(config, 1000, 1100)
    engine.objective.eval()(*to_device(pairs, CPU))
    assert headline(probe.predict(seen[0]), torch.from_numpy(pairs.label[:, 0])) > 0.9


@pytest.mark.slow
def test_attributes_are_counted_each_and_what_is_not_seen_stays_at_chance():
    config = config_of(
        lr=1e-6,
        encoder=STILL,
        train={"steps": 60, "online_probe_lr": 0.05},
        denoiser={"conditioning": "grid_attention", "layer_mask_rate": 0.0},
    )
    engine = engine_of(config, ATTRIBUTES)
    batches = labelled_feed(config, 0, 2)(0)
    results = [engine.step([to_device(next(batches), CPU)], 1e-6).probe for _ in range(60)]
    assert all(int(result[2]) == 16 for result in results)
    late = torch.stack(results[-20:]).sum(0)
    assert 0.68 < float(late[1] / late[2]) < 0.82, "one of two attributes is seen"


@pytest.mark.parametrize("stop", [7])
@pytest.mark.slow
def test_an_interrupted_run_ends_bit_for_bit_as_the_uninterrupted_one(tmp_path, stop):
    config = config_of(train={"micro_batch": 4})
    straight = train(open_folder(str(tmp_path / "a")), config)
    run = open_folder(str(tmp_path / "b"))
    train(run, config, stop=stop)
    resumed = train(run, config)
    state = straight.objective.online_probe.state_dict()
    assert float(state["updates"]) == 10 and float(state["exp_avg"].abs().max()) > 0
    for name, value in resumed.objective.online_probe.state_dict().items():
        assert torch.equal(value, state[name]), name
    one, other = ([(line["probe_loss"], line["probe_accuracy"]) for line in lines_of(tmp_path / name)] for name in "ab")
    assert one == other and len(one) == 2


def test_an_unreadable_row_has_no_part():
    config = config_of()
    whole, rest = (build_objective(config, CLASS) for _ in range(2))
    batch = to_device(labelled(config, 0, 8), CPU)
    ok = batch.ok.clone()
    ok[3] = False
    whole(*batch._replace(ok=ok))
    rest(*(torch.cat([part[:3], part[4:]]) for part in batch))
    torch.testing.assert_close(whole.online_probe.update(), rest.online_probe.update())
    torch.testing.assert_close(whole.online_probe.layer, rest.online_probe.layer)


@pytest.mark.slow
def test_a_checkpoint_without_its_probe_or_with_another_is_refused(tmp_path):
    run = open_folder(str(tmp_path))
    train(run, config_of(False))
    with pytest.raises(UserError, match="no online probe"):
        checkpoint.load_online_probe(run, 10)
    with pytest.raises(UserError, match="no online probe"):
        checkpoint.restore(run, 10, engine_of(config_of()), LocalContext())
    other = open_folder(str(tmp_path / "other"))
    train(other, config_of())
    with pytest.raises(UserError, match="got no attributes, 2 classes; allowed: 2 attributes, 2 classes"):
        checkpoint.restore(other, 10, engine_of(config_of(), ATTRIBUTES), LocalContext())


def test_labels_and_the_switch_belong_together():
    with pytest.raises(ValueError, match=r"train\.online_probe=True needs"):
        build_objective(config_of())
    with pytest.raises(ValueError, match=r"train\.online_probe=False needs"):
        build_objective(config_of(False), CLASS)
