"""Writing beside training: what is saved is the state at the pause, whole or not at all, whatever happens meanwhile."""

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save

from soda_dist.data.storage.folder import Folder, open_folder
from soda_dist.models.lr_equalization import plain_names, plain_state_dict
from soda_dist.runs.folder import checkpoint_folder, complete_steps
from soda_dist.runs.lease import LeaseLostError, held
from soda_dist.runs.metrics_log import METRICS, read_lines
from soda_dist.training import checkpoint_writer
from soda_dist.training.checkpoint import ema_model, restore
from soda_dist.training.checkpoint_exports import Exports, Piece
from soda_dist.training.checkpoint_writer import CheckpointWriter
from soda_dist.training.context import LocalContext
from soda_dist.training.engines.engine import Engine, Fragment
from soda_dist.training.loop import fit
from soda_dist.training.tensor_file import TensorFile, specs_of
from soda_dist.training.to_device import to_device
from tests.tiny import feed, pairs_at, tiny_config
from tests.training.ranks import ThreadContext, on_ranks
from tests.training.test_engine import engine_of

CONFIG = tiny_config(encoder={"norm": "batch"}, train={"norm_batch": 4})
SECONDS = 60.0


def state_of(engine: Engine) -> dict[str, torch.Tensor]:
    state = {f"{k}/{p.name}/{p.start}": p.tensors[k].clone() for p in engine.fragments() for k in p.tensors}
    return state | {name: buffer.clone() for name, buffer in engine.objective.named_buffers()}


def trained() -> Engine:
    engine = engine_of(CONFIG)
    step(engine, 0)
    return engine


def step(engine: Engine, number: int) -> None:
    engine.step([to_device(pairs_at(CONFIG, 8 * number, 8 * number + 8), torch.device("cpu"))], 1e-3)


class Gate:
    """Holds back the writing of files whose name ends so, until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
        self.reached, self.open = threading.Event(), threading.Event()
        write = Folder.write

        def held(folder: Folder, name: str, data: bytes) -> None:
            if name.endswith(ending):
                self.reached.set()
                assert self.open.wait(SECONDS)
            write(folder, name, data)

        monkeypatch.setattr(Folder, "write", held)


def test_a_file_filled_in_place_is_what_the_library_writes_and_reads() -> None:
    given = {
        "b": torch.tensor([True, False, True]),
        "w": torch.randn(3, 5, generator=torch.Generator().manual_seed(0)),
        "n": torch.tensor(7),
        "h": torch.ones(3, dtype=torch.bfloat16),
        "none": torch.zeros(0, 4),
    }
    file = TensorFile(specs_of(given))
    for name, tensor in given.items():
        file.tensors[name].copy_(tensor)
    for found in (load(bytes(file.content)), load(save(given))):
        assert found.keys() == given.keys()
        assert all(torch.equal(found[n], t) and found[n].dtype == t.dtype for n, t in given.items())
    assert load(bytes(TensorFile({}).content)) == {}


@pytest.mark.parametrize(
    "sections",
    [
        {"encoder": {"norm": "batch"}},
        {"encoder": {"arch": "vit_small", "patch": 8, "norm": "batch", "stem": "imagenet"}},
    ],
    ids=["resnet", "vit"],
)
def test_exports_equal_those_of_a_model_bit_for_bit(sections: dict) -> None:
    engine = engine_of(tiny_config(**sections))
    generator = torch.Generator().manual_seed(1)
    for piece in engine.fragments():
        piece.tensors["ema"].copy_(torch.randn(piece.length, generator=generator))
    with engine.ema_weights() as weights:
        assert weights is not None
        model = ema_model(engine, weights, tiny_config(**sections))
    expected = plain_state_dict(model)
    cut = [
        Piece(p.name, start, p.tensors["ema"][start : start + 50])
        for p in engine.fragments()
        for start in range(0, p.length, 50)
    ]
    buffers = {n: b for n, b in engine.objective.model.named_buffers() if n in expected}
    made = Exports(engine).make(cut, buffers)
    found = load(bytes(made["model.safetensors"].content))
    assert found.keys() == expected.keys() and all(torch.equal(found[n], t) for n, t in expected.items())
    assert any(ratio == 2.0 for _, ratio in plain_names(model).values()), "equalization is at work"
    alone = load(bytes(made["encoder.safetensors"].content))
    assert all(torch.equal(t, expected[f"encoder.{n}"]) for n, t in alone.items()) and alone
    with pytest.raises(RuntimeError, match=f"lack {len(cut[7].values)} elements"):
        Exports(engine).make(cut[:7] + cut[8:], buffers)


def test_training_goes_on_while_the_state_of_the_pause_is_written(tmp_path: Path, monkeypatch) -> None:
    engine, run = trained(), open_folder(str(tmp_path))
    expected, gate = state_of(engine), Gate(monkeypatch, "state-00000-of-00001-00000.safetensors")
    with CheckpointWriter(run, engine, LocalContext(), CONFIG) as writer:
        writer.save(1)
        assert gate.reached.wait(SECONDS)
        step(engine, 1)  # all of the state changes before any of it is on the disk
        changed = state_of(engine)
        assert complete_steps(run) == []
        gate.open.set()
    assert complete_steps(run) == [1]
    fresh = engine_of(CONFIG)
    restore(run, 1, fresh, LocalContext())
    found = state_of(fresh)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert fresh.updates == 1 and not all(torch.equal(changed[name], expected[name]) for name in expected)


def test_the_next_save_waits_and_the_wait_is_counted(tmp_path: Path, monkeypatch) -> None:
    engine, run = trained(), open_folder(str(tmp_path))
    gate = Gate(monkeypatch, "manifest.json")
    joins: list[bool] = []
    join = threading.Thread.join

    def watched(thread: threading.Thread, timeout: float | None = None) -> None:
        joins.append(gate.open.is_set())
        gate.open.set()
        join(thread, timeout)

    with CheckpointWriter(run, engine, LocalContext(), CONFIG) as writer:
        writer.save(1)
        assert gate.reached.wait(SECONDS)
        monkeypatch.setattr(threading.Thread, "join", watched)
        assert writer.save(2) > 0
        assert joins == [False] and complete_steps(run)[:1] == [1]
    assert complete_steps(run) == [1, 2]


def test_what_stops_a_checkpoint_is_raised_at_the_next_one_or_at_the_end(tmp_path: Path, monkeypatch) -> None:
    engine, run = trained(), open_folder(str(tmp_path))
    write = Folder.write

    def full(folder: Folder, name: str, data: bytes) -> None:
        if name == "buffers.safetensors":
            raise OSError("no space")
        write(folder, name, data)

    monkeypatch.setattr(Folder, "write", full)
    with pytest.raises(OSError, match="no space"), CheckpointWriter(run, engine, LocalContext(), CONFIG) as writer:
        writer.save(1)
        writer.save(2)
        pytest.fail("the second save must raise")
    with pytest.raises(OSError, match="no space"), CheckpointWriter(run, engine, LocalContext(), CONFIG) as writer:
        writer.save(3)
    assert complete_steps(run) == []


def test_an_interrupted_run_ends_with_the_checkpoint_it_had_begun(tmp_path: Path, monkeypatch) -> None:
    gate = Gate(monkeypatch, "manifest.json")

    def batches(first: int):
        for number, pairs in enumerate(feed(CONFIG)(first)):
            if number == 4:
                assert gate.reached.wait(SECONDS)
                gate.open.set()
                raise KeyboardInterrupt
            yield pairs

    run = open_folder(str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        fit(LocalContext(), engine_of(CONFIG), CONFIG, batches, run, rows=100)
    assert complete_steps(run) == [3]


def test_lines_up_to_the_step_are_stored_before_the_checkpoint_counts(tmp_path: Path, monkeypatch) -> None:
    run, seen = open_folder(str(tmp_path)), []
    write = Folder.write

    def watched(folder: Folder, name: str, data: bytes) -> None:
        if name == "manifest.json":
            seen.append((json.loads(data)["step"], [line["step"] for line in read_lines(run, METRICS)]))
        write(folder, name, data)

    monkeypatch.setattr(Folder, "write", watched)
    fit(LocalContext(), engine_of(CONFIG), CONFIG, feed(CONFIG), run, rows=100)
    assert [(at, at in steps) for at, steps in seen] == [(3, True), (6, True)]
    pauses = [line.get("checkpoint_pause") for line in read_lines(run, METRICS)]
    assert [pause is not None for pause in pauses] == [False, False, True, False], "in the line after the pause"


def test_a_trainer_that_was_replaced_completes_no_checkpoint_and_no_line(tmp_path: Path) -> None:
    run = open_folder(str(tmp_path))

    def batches(first: int):
        for number, pairs in enumerate(feed(CONFIG)(first)):
            if number == 5:
                run.write_json("lease.json", run.read_json("lease.json") | {"token": "theirs", "host": "node-7"})
            yield pairs

    with held(run, print, "x", lambda seconds: None) as mine, pytest.raises(LeaseLostError, match="node-7"):
        fit(LocalContext(), engine_of(CONFIG), CONFIG, batches, mine, rows=100)
    assert complete_steps(run) == [3]
    assert [line["step"] for line in read_lines(run, METRICS)] == [2, 3]


class Half:
    """An engine's state as one of two ranks owns it: every parameter is cut in the middle."""

    def __init__(self, whole: Engine, rank: int) -> None:
        self.objective, self.shapes, self.updates = whole.objective, whole.shapes, whole.updates
        self._whole, self._rank = whole, rank

    def fragments(self):
        for p in self._whole.fragments():
            cut = p.length // 2
            start, stop = ((0, cut), (cut, p.length))[self._rank]
            if start < stop:
                yield Fragment(p.name, start, stop - start, {k: t[start:stop] for k, t in p.tensors.items()})


def test_ranks_write_their_halves_and_the_first_makes_a_whole_of_them(every_uri: str, monkeypatch) -> None:
    monkeypatch.setattr(checkpoint_writer, "LOOK_S", 0.001)
    whole = trained()
    one, two = (open_folder(f"{every_uri}/{name}") for name in ("one", "two"))
    with CheckpointWriter(one, whole, LocalContext(), CONFIG) as writer:
        writer.save(1)

    def act(context: ThreadContext) -> None:
        with CheckpointWriter(two, Half(whole, context.rank), context, CONFIG) as writer:
            writer.save(1)

    assert on_ranks(2, act) == [None, None]
    exports = [run.read("checkpoints/000000001/model.safetensors") for run in (one, two)]
    assert exports[0] == exports[1]
    listed = json.loads(two.read("checkpoints/000000001/manifest.json"))["files"]
    there = [entry.name for entry in checkpoint_folder(two, 1).files()]
    assert sorted([*(entry["name"] for entry in listed), "manifest.json"]) == there
    fresh = engine_of(CONFIG)
    restore(two, 1, fresh, LocalContext())
    expected, found = state_of(whole), state_of(fresh)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("fails", [0, 1])
def test_a_rank_that_cannot_write_leaves_no_checkpoint_and_ends_all(fails: int, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(checkpoint_writer, "LOOK_S", 0.001)
    monkeypatch.setattr(checkpoint_writer, "COLLECTIVE_TIMEOUT_S", 0.5)
    whole, run, write = trained(), open_folder(str(tmp_path)), Folder.write

    def full(folder: Folder, name: str, data: bytes) -> None:
        if name.startswith(f"state-{fails:05d}"):
            raise OSError("no space")
        write(folder, name, data)

    monkeypatch.setattr(Folder, "write", full)

    def act(context: ThreadContext) -> None:
        with CheckpointWriter(run, Half(whole, context.rank), context, CONFIG) as writer:
            writer.save(1)

    found = on_ranks(2, act)
    assert isinstance(found[fails], OSError)
    expected: dict[int, Callable[[str], bool]] = {
        0: lambda text: "another worker could not write" in text and "no space" in text,
        1: lambda text: "no files of worker 1" in text,
    }
    assert isinstance(found[1 - fails], RuntimeError) and expected[fails](str(found[1 - fails]))
    assert complete_steps(run) == []


def test_leftovers_of_an_interrupted_checkpoint_are_no_part_of_the_new_one(tmp_path: Path) -> None:
    engine, run = trained(), open_folder(str(tmp_path))
    run.write("checkpoints/000000001/files-00001-of-00002.json", b"[]")
    run.write("checkpoints/000000001/state-00001-of-00002-00000.safetensors", b"old")
    for _ in range(2):  # the second replaces one that this attempt has written
        with CheckpointWriter(run, engine, LocalContext(), CONFIG) as writer:
            writer.save(1)
            writer.save(1)
        listed = json.loads(run.read("checkpoints/000000001/manifest.json"))["files"]
        assert len(run.files("checkpoints/000000001")) == len(listed) + 1
