import hashlib
import json
from contextlib import suppress
from itertools import product

import pytest
import timm
import torch
from safetensors.torch import load_file, save

from soda_dist.config.older import FORMAT
from soda_dist.data.storage.folder import open_folder
from soda_dist.errors import DivergedError, UserError
from soda_dist.evaluation.model_sources import EncoderFile
from soda_dist.models.condition import Sources
from soda_dist.models.encoder import Encoder
from soda_dist.runs.folder import checkpoint_folder, claim, complete_steps, read_config, write_config
from soda_dist.training import checkpoint, snapshot, ticker
from soda_dist.training.checkpoint_writer import _put
from soda_dist.training.context import LocalContext
from soda_dist.training.engines.engine import Fragment
from soda_dist.training.loop import fit
from soda_dist.training.to_device import to_device
from tests.tiny import feed, pairs_at, tiny_config
from tests.training.older_run import FORMAT_1, age
from tests.training.saved import save as write_checkpoint
from tests.training.test_engine import engine_of

CPU = torch.device("cpu")


def state_of(engine):
    return {f"{k}/{p.name}": p.tensors[k].clone() for p in engine.fragments() for k in p.tensors}


def train(run, config, steps=None):
    """Train in `run` as far as `steps` (the schedule stays that of the whole run)."""
    engine = engine_of(config)

    def batches(first):
        for number, pairs in enumerate(feed(config)(first), start=first * config.accumulation):
            if steps is not None and number >= steps * config.accumulation:
                raise KeyboardInterrupt
            yield pairs

    with suppress(KeyboardInterrupt):
        fit(LocalContext(), engine, config, batches, run, rows=100)
    return engine


@pytest.mark.parametrize("norm", ["group", "batch"])
@pytest.mark.slow
def test_an_interrupted_run_ends_bit_for_bit_as_the_uninterrupted_one(tmp_path, norm):
    config = tiny_config(encoder={"norm": norm}, train={"micro_batch": 4, "norm_batch": 2})
    straight = train(open_folder(str(tmp_path / "a")), config)
    run = open_folder(str(tmp_path / "b"))
    train(run, config, steps=5)  # the checkpoint is at 3
    resumed = train(run, config)
    one, other = state_of(straight), state_of(resumed)
    assert all(torch.equal(one[name], other[name]) for name in one)
    buffers = dict(straight.objective.named_buffers())
    assert all(torch.equal(buffers[n], b) for n, b in resumed.objective.named_buffers())
    lines = [[json.loads(x) for x in (tmp_path / d / "metrics.jsonl").read_text().splitlines()] for d in "ab"]
    exact = ("step", "images", "epoch", "loss", "grad_norm", "lr")
    assert [[line[k] for k in exact] for line in lines[0]] == [[line[k] for k in exact] for line in lines[1]]


def test_the_exported_model_is_the_ema(tmp_path):
    config = tiny_config()
    run = open_folder(str(tmp_path))
    engine = train(run, config)
    model, loaded, step = checkpoint.load_model(run)
    assert (loaded, step) == (config, 6)
    assert not model.training
    ema = {p.name.removeprefix("model."): p.tensors["ema"] for p in engine.fragments()}
    for name, value in model.named_parameters():
        torch.testing.assert_close(value.view(-1), ema[name], rtol=1e-6, atol=1e-7, msg=name)
    assert not torch.allclose(next(model.parameters()).view(-1), next(iter(engine.fragments())).tensors["param"])


def test_the_exported_encoder_stands_alone_under_plain_names(tmp_path):
    config = tiny_config()
    run = open_folder(str(tmp_path))
    train(run, config)
    model, *_ = checkpoint.load_model(run)
    plain = load_file(tmp_path / "checkpoints/000000006/encoder.safetensors")
    assert not any("parametrizations" in name for name in plain)
    fields = config.encoder.model_dump(exclude={"model", "weights", "weights_sha256"})
    plainly = {"lr_ratio": 1.0, "drop_path": 0.0, "dropout": 0.0, "image_size": 16, "pool": True, "pose": None}
    encoder = Encoder(**fields | plainly)
    encoder.load_state_dict(plain)
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    sources = Sources(images[:, None], torch.ones(3, 1, dtype=torch.bool), None)
    torch.testing.assert_close(encoder.eval()(images, None, None), model.encode(sources), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_frozen_encoder_lies_once_in_a_checkpoint_and_goes_along_with_poses(tmp_path):
    torch.manual_seed(3)
    content = save(timm.create_model("resnet10t", pretrained=False).state_dict())
    (tmp_path / "weights.safetensors").write_bytes(content)
    frozen = {
        "arch": "pretrained", "model": "resnet10t", "latent_dim": 512, "lr_ratio": 1.0,
        "weights": str(tmp_path / "weights.safetensors"), "weights_sha256": hashlib.sha256(content).hexdigest(),
    }  # fmt: skip
    config = tiny_config(
        encoder=frozen,
        data={"views": "object", "augment": "none", "pose": "cameras"},
        pose={"encoding_dim": 24, "mask_rate": 0.5},
    )
    straight = train(open_folder(str(tmp_path / "a")), config)
    run = open_folder(str(tmp_path / "b"))
    train(run, config, steps=5)
    resumed = train(run, config)
    one, other = state_of(straight), state_of(resumed)
    assert all(torch.equal(one[name], other[name]) for name in one)
    files = {path.name: load_file(path) for path in (tmp_path / "b/checkpoints/000000006").glob("*.safetensors")}
    holding = [name for name, tensors in files.items() if any("backbone.conv1" in key for key in tensors)]
    assert holding == ["model.safetensors"]
    model, *_ = checkpoint.load_model(run)
    for name, value in dict(straight.objective.model.named_buffers()).items():
        torch.testing.assert_close(dict(model.named_buffers())[name], value, rtol=0, atol=0)


def test_an_older_runs_checkpoints_are_read_and_not_resumed(tmp_path):
    config = tiny_config(denoiser=FORMAT_1)
    run = open_folder(str(tmp_path / "run"))
    write_config(run, config)
    train(run, config)
    before, *_ = checkpoint.load_model(run)
    age(run)
    model, found, step = checkpoint.load_model(run)
    assert (found, step) == (config, 6) and read_config(run) == config
    one, other = before.state_dict(), model.state_dict()
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    file = EncoderFile(f"{checkpoint_folder(run, 6).uri}/encoder.safetensors")
    assert file.configuration() == config
    with pytest.raises(UserError, match=r"--run: got .*/run, a run of format 1; .* start a new run; evaluate"):
        checkpoint.restore(run, 6, engine_of(config), LocalContext())
    stored = run.read("config.yaml")
    for again in (config, tiny_config()):
        with pytest.raises(UserError, match="a run of format 1"):
            claim(run, again)
    assert run.read("config.yaml") == stored and not run.exists("provenance.json")


def test_a_checkpoint_of_a_newer_release_is_refused(tmp_path):
    run = open_folder(str(tmp_path))
    checkpoint_folder(run, 3).write_json("manifest.json", {"version": FORMAT + 1})
    with pytest.raises(UserError, match=f"got version {FORMAT + 1}; allowed: 1 to {FORMAT}; use the release"):
        checkpoint.read_manifest(run, 3)


def test_a_checkpoint_without_manifest_does_not_count(tmp_path):
    config = tiny_config()
    run = open_folder(str(tmp_path))
    train(run, config)
    assert complete_steps(run) == [3, 6]
    (tmp_path / "checkpoints/000000006/manifest.json").unlink()
    assert complete_steps(run) == [3]
    train(run, config)  # resumes from 3 and makes 6 again
    assert complete_steps(run) == [3, 6]


def test_only_the_last_checkpoints_are_kept(tmp_path):
    config = tiny_config(train={"checkpoint_every_steps": 1, "keep_checkpoints": 2})
    train(open_folder(str(tmp_path)), config)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["000000005", "000000006"]


@pytest.mark.parametrize("name", ["state-00000-of-00001-00000.safetensors", "model.safetensors"])
def test_an_altered_file_is_said_in_one_line(tmp_path, name):
    config = tiny_config()
    run = open_folder(str(tmp_path))
    engine = train(run, config)
    path = tmp_path / "checkpoints/000000006" / name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="checksum") as caught:
        checkpoint.restore(run, 6, engine, LocalContext())
        checkpoint.load_model(run, 6)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    run = open_folder(str(tmp_path))
    train(run, tiny_config())
    wider = engine_of(tiny_config(denoiser={"base_channels": 16}))
    with pytest.raises(UserError, match="no state for"):
        checkpoint.restore(run, 6, wider, LocalContext())


def test_a_run_without_checkpoints_says_so(tmp_path):
    with pytest.raises(UserError, match="pretrain first"):
        checkpoint.load_model(open_folder(str(tmp_path)))


def test_state_that_is_not_finite_is_not_checkpointed_and_ends_a_run_without_an_earlier_one(tmp_path):
    config = tiny_config()
    engine = engine_of(config)
    with torch.no_grad():
        next(engine.objective.model.denoiser.parameters()).fill_(float("nan"))
    run = open_folder(str(tmp_path))
    with pytest.raises(DivergedError, match=r"training: got param of model\.denoiser\S* from 0 not finite at step 3"):
        write_checkpoint(run, 3, engine, LocalContext(), config)
    with pytest.raises(DivergedError, match=r"optim.lr: got 0.001 with 6 of steps 1 to 6 skipped"):
        fit(LocalContext(), engine, config, feed(config), run, rows=100)
    assert complete_steps(run) == []
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["skipped"], line["loss"]) for line in lines] == [
        (2, 2, None),
        (3, 1, None),
        (4, 1, None),
        (6, 2, None),
    ]


def test_unreadable_rows_are_listed(tmp_path):
    config = tiny_config()

    def batches(first):
        for pairs in feed(config)(first):
            if 17 in pairs.index:
                at = pairs.index.tolist().index(17)
                pairs.ok[at] = False
                pairs.name[at], pairs.reason[at] = "broken.jpg", "not an image"
            yield pairs

    fit(LocalContext(), engine_of(config), config, batches, open_folder(str(tmp_path)), rows=100)
    listed = {"step": 3, "key": 17, "name": "broken.jpg", "reason": "not an image"}
    assert json.loads((tmp_path / "quarantine.jsonl").read_text()) == listed
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["unreadable"] for line in lines] == [0, 1, 0, 0]


def test_retries_of_the_store_are_summed_and_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(ticker, "pause_s", lambda age: 0.0)  # every line is due
    config, said = tiny_config(), []

    def batches(first):
        for pairs in feed(config)(first):
            pairs.retries[0] = 2 if 17 in pairs.index else 0
            yield pairs

    context = LocalContext()
    context.say = said.append
    fit(context, engine_of(config), config, batches, open_folder(str(tmp_path)), rows=100)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["store_retries"] for line in lines] == [0, 2, 0, 0]
    assert ["2 storage retries" in text for text in said if "loss" in text] == [
        False,
        True,
        False,
        False,
    ]


def test_a_run_stops_where_too_much_cannot_be_read(tmp_path):
    config = tiny_config(train={"max_unreadable": 0.1})

    def batches(first):
        for pairs in feed(config)(first):
            pairs.name[0], pairs.reason[0] = "a.jpg", "no bytes"
            yield pairs

    with pytest.raises(
        UserError, match=r"max_unreadable: got 2 of 16 rows .* at most 10\.00%; .*quarantine\.jsonl"
    ) as caught:
        fit(LocalContext(), engine_of(config), config, batches, open_folder(str(tmp_path)), rows=100)
    assert "\n" not in str(caught.value)
    assert len((tmp_path / "quarantine.jsonl").read_text().splitlines()) == 2, "what was found is written first"


def test_the_loop_reads_the_same_pairs_it_is_given():
    config = tiny_config()
    source, _, ok, index, *_ = to_device(pairs_at(config, 5, 9), CPU)
    assert source.shape == (4, 1, 16, 16, 3) and source.dtype == torch.uint8
    assert ok.all() and index.tolist() == [5, 6, 7, 8]


@pytest.mark.slow
def test_state_in_many_files_is_restored_whole(tmp_path, monkeypatch):
    config = tiny_config()
    one = train(open_folder(str(tmp_path / "one")), config)
    monkeypatch.setattr(snapshot, "PART_BYTES", 20_000)
    run = open_folder(str(tmp_path / "many"))
    train(run, config)
    files = sorted((tmp_path / "many").glob("checkpoints/000000006/state-*"))
    largest = max(4 * 4 * p.numel() for p in one.objective.parameters())
    assert len(files) > 10
    assert all(file.stat().st_size < max(20_000, largest) + 10_000 for file in files), "headers included"
    fresh = engine_of(config)
    checkpoint.restore(run, 6, fresh, LocalContext())
    before, after = state_of(one), state_of(fresh)
    assert all(torch.equal(before[name], after[name]) for name in before)
    live = checkpoint.load_model(run, ema=False)[0]
    for name, parameter in live.named_parameters():
        assert torch.equal(parameter.flatten(), before[f"param/model.{name}"]), name


def test_parts_written_by_some_workers_fill_the_pieces_of_any_others():
    """Every way to cut 7 values in two on either side; values outside an overlap stay."""
    values = torch.arange(7.0)
    for stored, wanted in product(range(1, 7), range(1, 7)):
        pieces = [
            Fragment("w", start, length, {"param": torch.full((length,), -1.0)})
            for start, length in ((0, wanted), (wanted, 7 - wanted))
        ]
        missing = {("w", piece.start, "param"): piece.length for piece in pieces}
        for start, end in ((stored, 7), (0, stored)):
            checkpoint._copy_overlaps(f"param/w/{start}", values[start:end], pieces, missing)
            filled = torch.cat([piece.tensors["param"] for piece in pieces])
            expected = values.where((values >= start) | (start == 0), -1.0)
            assert torch.equal(filled, expected)
        assert set(missing.values()) == {0}


def test_live_weights_are_put_together_from_the_parts_that_workers_wrote(tmp_path):
    folder, model = open_folder(str(tmp_path)), torch.nn.Linear(2, 3)
    values = {"weight": torch.arange(6.0), "bias": torch.arange(3.0) + 10}
    parts = [
        {"param/model.weight/0": values["weight"][:4], "ema/model.weight/0": torch.full((4,), -1.0)},
        {"param/model.weight/4": values["weight"][4:], "param/model.bias/0": values["bias"]},
        {"param/online_probe.bias/0": torch.full((3,), -1.0)},
    ]
    written = [_put(folder, f"state-{i}.safetensors", save(part)) for i, part in enumerate(parts)]
    checkpoint._fill_live(model, folder, {"files": written})
    assert {name: p.flatten().tolist() for name, p in model.named_parameters()} == {
        name: part.tolist() for name, part in values.items()
    }
