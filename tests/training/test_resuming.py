"""Which checkpoint a run resumes from: the latest that is whole, the same on all ranks, and said."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from soda_dist.data.storage.folder import open_folder
from soda_dist.errors import UserError
from soda_dist.runs.folder import complete_steps
from soda_dist.training.checkpoint import load_model
from soda_dist.training.context import LocalContext
from soda_dist.training.engines.engine import Engine
from soda_dist.training.loop import fit
from soda_dist.training.resuming import resume
from tests.hostile.tiny_run import retensor, rewrite
from tests.tiny import feed, tiny_config
from tests.training.ranks import on_ranks
from tests.training.test_engine import engine_of

CONFIG = tiny_config(encoder={"norm": "batch"}, train={"norm_batch": 4})
STATE, BUFFERS = "state-00000-of-00001-00000.safetensors", "buffers.safetensors"
Damage = Callable[[Path], object]


def train(place: Path) -> Engine:
    engine = engine_of(CONFIG)
    fit(LocalContext(), engine, CONFIG, feed(CONFIG), open_folder(str(place)), rows=100)
    return engine


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Engine]:
    """A run with checkpoints of steps 3 and 6, and its engine at the end."""
    place = tmp_path_factory.mktemp("sound")
    return place, train(place)


def copied(sound: tuple[Path, Engine], place: Path, damage: Damage, step: int = 6) -> Path:
    shutil.copytree(sound[0], place, dirs_exist_ok=True)
    damage(place / f"checkpoints/{step:09d}")
    return place


def flipped(name: str) -> Damage:
    """The file's last bit changed: only its digest tells."""

    def flip(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[-1] ^= 1
        (folder / name).write_bytes(content)

    return flip


def state_of(engine: Engine) -> dict[str, torch.Tensor]:
    state = {f"{k}/{p.name}": p.tensors[k].clone() for p in engine.fragments() for k in p.tensors}
    return state | {name: buffer.clone() for name, buffer in engine.objective.named_buffers()}


DAMAGED: dict[str, tuple[Damage, str]] = {
    "a bit of the state": (flipped(STATE), rf"{STATE}: got \d+ bytes with another checksum"),
    "a bit of the running statistics": (flipped(BUFFERS), BUFFERS),
    "a bit of the exported model": (flipped("model.safetensors"), "model.safetensors"),
    "a cut export": (lambda f: (f / "encoder.safetensors").write_bytes(b"x"), "encoder.safetensors: got 1 bytes"),
    "a lost file": (lambda f: (f / "config.json").unlink(), "config.json: got nothing"),
    "a manifest that is no JSON": (lambda f: (f / "manifest.json").write_text("{"), "manifest.json: got a file that"),
    "a manifest without its files": (
        lambda f: rewrite(f / "manifest.json", lambda m: {**m, "files": 1}),
        "invalid field files",
    ),
    "NaN in the state": (
        lambda f: retensor(f / STATE, lambda found: {k: v * float("nan") for k, v in found.items()}),
        "not finite",
    ),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_newest_checkpoint_is_passed_over_in_one_line(what: str, sound, tmp_path: Path) -> None:
    damage, says = DAMAGED[what]
    place, said = copied(sound, tmp_path / "run", damage), list[str]()
    assert resume(LocalContext(say=said.append), engine_of(CONFIG), open_folder(str(place))) == 3
    assert re.match(f"passing over the damaged checkpoint of step 6: .*{says}", said[0]) and "\n" not in said[0]
    assert said[1:] == [f"resuming from step 3 of {place}"]


def test_training_from_the_one_before_ends_as_if_nothing_had_been_damaged(sound, tmp_path: Path) -> None:
    place = copied(sound, tmp_path, flipped(STATE))
    expected, found = state_of(sound[1]), state_of(train(place))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    load_model(open_folder(str(place)), 6)
    assert not (place / "checkpoints/000000006/damaged.json").exists()


def test_a_checkpoint_that_was_passed_over_counts_no_more(sound, tmp_path: Path) -> None:
    """Neither as the latest nor among those to keep; its files stay, and what it was."""
    place = copied(sound, tmp_path, flipped(STATE))
    run = open_folder(str(place))
    assert resume(LocalContext(), engine_of(CONFIG), run) == 3
    assert complete_steps(run) == [3]
    folder = place / "checkpoints/000000006"
    found = json.loads((folder / "damaged.json").read_text())
    assert STATE in found["reason"] and json.loads(found["manifest.json"])["step"] == 6 and (folder / STATE).exists()


def test_evaluation_of_a_damaged_checkpoint_is_refused(sound, tmp_path: Path) -> None:
    place = copied(sound, tmp_path, flipped("model.safetensors"))
    for step in (6, None):
        with pytest.raises(UserError, match=r"model\.safetensors: got .* another checksum"):
            load_model(open_folder(str(place)), step)
    assert complete_steps(open_folder(str(place))) == [3, 6]


def test_with_all_damaged_the_newest_is_named_and_nothing_is_changed(sound, tmp_path: Path) -> None:
    place = copied(sound, tmp_path, flipped(STATE))
    flipped(BUFFERS)(place / "checkpoints/000000003")
    run, said = open_folder(str(place)), list[str]()
    with pytest.raises(UserError, match=rf"000000006/{STATE}: got .*none of the 2 checkpoints is whole: .*begin anew"):
        resume(LocalContext(say=said.append), engine_of(CONFIG), run)
    assert ["step 6" in line or "step 3" in line for line in said] == [True, True]
    assert complete_steps(run) == [3, 6]


def test_another_model_or_format_is_refused_at_the_newest(sound, tmp_path: Path) -> None:
    place = copied(sound, tmp_path, lambda folder: None)
    wider = engine_of(tiny_config(denoiser={"base_channels": 16}))
    with pytest.raises(UserError, match=r"000000006: got no state for"):
        resume(LocalContext(), wider, open_folder(str(place)))
    rewrite(place / "checkpoints/000000006/manifest.json", lambda manifest: {**manifest, "version": 1})
    with pytest.raises(UserError, match="a run of format 1"):
        resume(LocalContext(), engine_of(CONFIG), open_folder(str(place)))
    assert complete_steps(open_folder(str(place))) == [3, 6]


def test_ranks_agree_although_one_alone_sees_the_damage(sound, tmp_path: Path) -> None:
    """Files that no rank needs are verified by one rank each."""
    files = json.loads((sound[0] / "checkpoints/000000006/manifest.json").read_text())["files"]
    unread = [f["name"] for f in files if f["name"] not in (STATE, BUFFERS)]
    assert len(unread) == 3
    for name in unread:
        place = copied(sound, tmp_path / name, flipped(name))
        contexts = []

        def act(context, place=place, contexts=contexts) -> int:
            contexts.append(context)
            return resume(context, engine_of(CONFIG), open_folder(str(place)))

        assert on_ranks(2, act) == [3, 3]
        (said,) = (context.said for context in contexts if context.rank == 0)
        assert name in said[0] and len(said) == 2
