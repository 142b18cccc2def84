"""Damaged and hostile files at every entry point: one line, within 2 s of CPU and 1 GB, or ignored as no part of it."""

import html
import json
import os
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from soda_dist.config.ablation import load_group
from soda_dist.config.load import load_config
from soda_dist.config.search import load_search
from soda_dist.errors import UserError
from tests.hostile.fuzz_runs import READERS, contents, mutate, run
from tests.hostile.tiny_run import ENTRIES, STEP, make, retensor, rewrite
from tests.sizes import sized

pytestmark = pytest.mark.slow

CPU_SECONDS, MEMORY = 2.0, 1 << 30
Damage = Callable[[Path], object]
MANIFEST = f"{STEP}/manifest.json"
MODEL, STATE = f"{STEP}/model.safetensors", f"{STEP}/state-00000-of-00001-00000.safetensors"
ENCODER, BUFFERS, PROBE = (f"{STEP}/{name}.safetensors" for name in ("encoder", "buffers", "online_probe"))
KNN = "run/eval/3/knn.json"
DEEP = "a: " + "[" * 5000
ALIASES = "a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{name}: &{name} [{','.join(['*' + above] * 10)}]\n" for above, name in zip("abcdefgh", "bcdefghi", strict=True)
)
"""280 bytes that stand for a thousand million values."""


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound run and its data."""
    place = tmp_path_factory.mktemp("sound")
    make(place)
    for entry in ENTRIES.values():  # imports are not the damage's
        entry(place)
    return place


def tree(name: str, **fields: object) -> Damage:
    """Fields of a JSON file replaced."""
    return lambda place: rewrite(place / name, lambda value: {**value, **fields})


def text(name: str, content: str | bytes) -> Damage:
    """A file replaced."""
    return lambda place: (place / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def listed(**fields: object) -> Damage:
    """Fields of the model's entry in the checkpoint's manifest replaced."""

    def change(value: dict) -> dict:
        return {**value, "files": [f | fields if f["name"] == "model.safetensors" else f for f in value["files"]]}

    return lambda place: rewrite(place / MANIFEST, change)


def tensors(name: str, change: Callable[[torch.Tensor], torch.Tensor | None], rename: str = "") -> Damage:
    """The first tensor of a file changed, removed (None) or renamed, in a checkpoint that is otherwise consistent."""

    def changed(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        first = min(found)
        new = change(found.pop(first))
        return found if new is None else {**found, rename or first: new.contiguous()}

    return lambda place: retensor(place / name, changed)


def without(name: str, field: str) -> Damage:
    return lambda place: rewrite(place / name, lambda value: {k: v for k, v in value.items() if k != field})


def sparse(name: str) -> Damage:
    """Ten thousand million bytes that take no room on the disk."""
    return lambda place: os.truncate(place / name, 10 * 10**9)


def copied(name: str, to: str) -> Damage:
    return lambda place: shutil.copytree(place / name, place / to)


def linked(name: str) -> Damage:
    """A file or folder moved away, and a symbolic link to it left behind."""

    def link(place: Path) -> None:
        (place / name).rename(place / "outside")
        (place / name).symlink_to(place / "outside")

    return link


def shard(**fields: object) -> Damage:
    """Fields of the first shard of the training split replaced."""

    def change(value: dict) -> dict:
        value["splits"]["train"]["shards"][0] |= fields
        return value

    return lambda place: rewrite(place / "data/manifest.json", change)


def split_named(name: str) -> Damage:
    return lambda place: rewrite(
        place / "data/manifest.json", lambda value: value | {"splits": {name: value["splits"]["train"]}}
    )


def twice(value: dict) -> dict:
    """The manifest of data with its first shard listed twice."""
    shards = value["splits"]["test"]["shards"]
    value["splits"]["test"] |= {"shards": shards * 2, "rows": 2 * value["splits"]["test"]["rows"]}
    return value


def nan(tensor: torch.Tensor) -> torch.Tensor:
    return torch.full_like(tensor, float("nan")) if tensor.is_floating_point() else tensor


REFUSED: dict[str, tuple[str, Damage, str]] = {
    "checkpoint's manifest with a path trick": ("model", listed(name="../../../x"), r"invalid field files\.\d\.name"),
    "manifest with an absolute path": ("resume", listed(name="/etc/passwd"), r"invalid field files\.\d\.name"),
    "manifest without a version": ("resume", without(MANIFEST, "version"), "invalid field version"),
    "manifest of another version": ("resume", tree(MANIFEST, version=99), "got version 99"),
    "manifest that is a list": ("model", text(MANIFEST, "[]"), "invalid field content"),
    "manifest that is no JSON": ("model", text(MANIFEST, "{"), "not JSON"),
    "manifest nested deeply": ("model", text(MANIFEST, "[" * 100_000), "not JSON"),
    "files as a string": ("model", tree(MANIFEST, files="x"), "invalid field files"),
    "a file listed without a digest": ("model", listed(sha256=None), r"invalid field files\.\d\.sha256"),
    "a file listed twice": ("resume", listed(name="buffers.safetensors"), "listed twice"),
    "a model that is not listed": ("model", listed(name="other.safetensors"), "without model.safetensors"),
    "another step": ("resume", tree(MANIFEST, step=9), "got step 9"),
    "a size that lies": ("model", listed(bytes=3), "3 bytes"),
    "a huge size": ("model", listed(bytes=10**15), "1,000,000,000,000,000 bytes"),
    "10 GB of zeros as a model": ("model", sparse(MODEL), r"model.safetensors: got 10,000,000,000 bytes"),
    "10 GB of zeros as an encoder": ("encoder", sparse(ENCODER), r"got 10,000,000,000 bytes"),
    "10 GB of zeros as a manifest": ("model", sparse(MANIFEST), r"got 10,000,000,000 bytes"),
    "a model without a tensor": ("model", tensors(MODEL, lambda t: None), "missing"),
    "a model of another shape": ("model", tensors(MODEL, lambda t: t[None]), "got shape"),
    "a model of whole numbers": ("model", tensors(MODEL, lambda t: t.long()), "got torch.int64"),
    "a model of NaN": ("model", tensors(MODEL, nan), "not finite"),
    "an encoder of NaN": ("encoder", tensors(ENCODER, nan), "not finite"),
    "an encoder of another shape": ("encoder", tensors(ENCODER, lambda t: t[None]), "got shape"),
    "an encoder with a giant's configuration": (
        "encoder",
        lambda place: rewrite(
            place / STEP / "config.json",
            lambda c: c | {"encoder": c["encoder"] | {"arch": "resnet50x2", "width": 4.0, "latent_dim": 16384}},
        ),
        "the network of the configuration beside it",
    ),
    "an encoder with a million blocks beside it": (
        "encoder",
        lambda place: rewrite(
            place / STEP / "config.json", lambda c: c | {"denoiser": c["denoiser"] | {"blocks": 10**6}}
        ),
        r"denoiser\.blocks: got 1000000; allowed: .*64",
    ),
    "state without a start": ("resume", tensors(STATE, lambda t: t, "ema/x"), "KIND/PARAMETER/START"),
    "state of an unknown kind": ("resume", tensors(STATE, lambda t: t, "code/x/0"), "KIND/PARAMETER/START"),
    "state beyond its parameter": ("resume", tensors(STATE, lambda t: t, "ema/x/999999999"), "no state for"),
    "state of a matrix": ("resume", tensors(STATE, lambda t: t[None]), "of 2 dimensions"),
    "state of halves": ("resume", tensors(STATE, lambda t: t.half()), "torch.float16"),
    "state of NaN": ("resume", tensors(STATE, nan), "not finite"),
    "state without a part": ("resume", tensors(STATE, lambda t: None), "no state for"),
    "state that is no safetensors": ("resume", text(STATE, b"\xff" * 4000), "4,000 bytes|checksum"),
    "a buffer of another shape": ("resume", tensors(BUFFERS, lambda t: t.reshape(-1)[:1]), "another shape"),
    "an unknown buffer": ("resume", tensors(BUFFERS, lambda t: t, "x"), "with unknown x"),
    "a probe without its layer": ("resume", tensors(PROBE, lambda t: None), "online_probe"),
    "a probe of NaN": ("model", tensors(PROBE, nan), "not finite"),
    "configuration nested deeply": ("resume", text("run/config.yaml", DEEP), "more than 20 levels"),
    "configuration of aliases": ("evaluate", text("run/config.yaml", ALIASES), "more than 10,000 values"),
    "configuration with tabs": ("compare", text("run/config.yaml", "train:\n\tsteps: 3"), "line 2"),
    "configuration with a field twice": ("compare", text("run/config.yaml", "seed: 1\nseed: 2"), "duplicate key seed"),
    "provenance that is a mapping": ("resume", text("run/provenance.json", "{}"), "provenance.json: got an invalid"),
    "metrics that are no JSON": ("resume", text("run/metrics.jsonl", "{"), "line 1: got a file that is not JSON"),
    "metrics of text": ("compare", text("run/metrics.jsonl", '{"step": 1, "epoch": "x"}'), "invalid field epoch"),
    "a result that is a list": ("compare", text(KNN, "[]"), "knn.json: got an invalid field"),
    "a result with other data": ("compare", tree(KNN, data={"uri": 1}), r"invalid field data\.uri"),
    "evaluation elsewhere": ("evaluate", linked("run/eval"), "run/eval: got a symbolic link to .*/outside"),
    "checkpoints elsewhere": ("resume", linked("run/checkpoints"), "run/checkpoints: got a symbolic link"),
    "a picture elsewhere": ("report", linked("run/eval/3/sweep.png"), r"sweep.png: got a symbolic link"),
    "a configuration elsewhere": ("compare", linked("run/config.yaml"), r"config.yaml: got a symbolic link"),
    "latents elsewhere": ("evaluate", linked("run/latents"), r"run/latents: got a symbolic link"),
    "a split outside": ("data", split_named("../../x"), "invalid field splits"),
    "a split that is its parent": ("data", split_named(".."), "no name of a split"),
    "a shard outside": ("data", shard(path="train/../../x"), "not in the folder train"),
    "a shard listed twice": ("data", lambda p: rewrite(p / "data/manifest.json", twice), "a shard is listed twice"),
    "negative rows": ("data", shard(rows=-1), r"invalid field splits\.train\.shards\.0\.rows"),
    "rows as text": ("data", shard(rows="10"), r"invalid field splits\.train\.shards\.0\.rows"),
    "rows beyond the bytes": ("data", shard(groups=[10**12], rows=10**12), "has 45 rows"),
    "a huge count": ("data", shard(rows=10**30), r"invalid field splits\.train\.shards\.0\.rows"),
    "another size of a shard": ("data", shard(bytes=10**9), "as in the manifest"),
    "labels that do not exist": ("data", tree("data/manifest.json", main_label="x"), "x is no label"),
}
"""What is damaged: (the entry point that reads it, the damage, part of the one line)."""
NAMED: dict[str, tuple[Damage, str]] = {
    "10 GB of zeros as a picture": (sparse("run/eval/3/sweep.png"), "sweep.png: got 10,000,000,000 bytes"),
    "10 GB of zeros as a configuration": (sparse("run/config.yaml"), "config.yaml: got 10,000,000,000 bytes"),
    "configuration not in UTF-8": (text("run/config.yaml", b"seed: \xff"), "config.yaml: got text that is not UTF-8"),
    "provenance nested deeply": (
        text("run/provenance.json", '[{"a": {"b": {"c": 1}}}]'),
        "provenance.json: got an inv",
    ),
    "metrics without a step": (text("run/metrics.jsonl", '{"loss": 1}'), "line 1: got an invalid field step"),
    "a result with text for a figure": (tree(KNN, majority="x"), "invalid field majority"),
    "a result with estimates of a list": (tree(KNN, encoders={"trained": {"estimates": []}}), "estimates"),
    "a result of a million numbers": (
        text(KNN, json.dumps({"x": [0.5] * 10**6})),
        "more than 10,000 numbers, too many",
    ),
    "a result nested deeply": (text(KNN, '{"x":' * 150 + "1" + "}" * 150), "knn"),
    "a result with a huge number": (tree(KNN, value=10**300, seed=10**4000), "Nearest neighbours"),
}
"""What the report names, or shows short, on its page and does without: (the damage, part of the page)."""
IGNORED: dict[str, tuple[str, Damage]] = {
    "a copy of a checkpoint": ("resume", copied(STEP, "run/checkpoints/backup")),
    "a folder with a number beyond all": ("model", copied(STEP, f"run/checkpoints/{'9' * 200}")),
    "a copy named like a number": ("model", copied(STEP, "run/checkpoints/³")),
    "notes beside the results": ("report", text("run/eval/notes.json", "x")),
    "results of a step that is no number": ("report", copied("run/eval/3", "run/eval/²")),
    "a link beside the run's files": ("report", lambda place: (place / "run/notes").symlink_to("/etc/passwd")),
    "a link within the run": ("report", lambda place: (place / "run/eval/last").symlink_to(place / "run/eval/3")),
    "a circle of links": ("report", lambda place: (place / "run/notes").symlink_to(place / "run/notes")),
}
"""What lies beside the files of a run: (the entry point, what is added)."""


def _watched(act: Callable[[], object]) -> object:
    began, peak = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        return act()
    finally:
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) << 10
        assert time.process_time() - began < CPU_SECONDS and grown < MEMORY


def _damaged(sound: Path, place: Path, damage: Damage) -> Path:
    shutil.copytree(sound, place, symlinks=True)
    damage(place)
    return place


@pytest.mark.parametrize("what", REFUSED)
def test_damage_is_refused_in_one_line(what: str, sound: Path, tmp_path: Path) -> None:
    entry, damage, says = REFUSED[what]
    place = _damaged(sound, tmp_path / "place", damage)
    with pytest.raises(UserError, match=says) as caught:
        _watched(lambda: ENTRIES[entry](place))
    assert str(caught.value).isprintable() and len(str(caught.value)) < 2000


@pytest.mark.parametrize("what", NAMED)
def test_the_report_names_what_it_cannot_show(what: str, sound: Path, tmp_path: Path) -> None:
    damage, says = NAMED[what]
    place = _damaged(sound, tmp_path / "place", damage)
    _watched(lambda: ENTRIES["report"](place))
    page = (place / "run/report.html").read_text()
    assert says in html.unescape(page) and len(page) < 1_000_000


@pytest.mark.parametrize("what", IGNORED)
def test_what_is_no_part_of_a_run_is_ignored(what: str, sound: Path, tmp_path: Path) -> None:
    entry, damage = IGNORED[what]
    place = _damaged(sound, tmp_path / "place", damage)
    ENTRIES[entry](place)


YAML_FILES = {
    "nested deeply": (DEEP, "more than 20 levels"),
    "aliases of aliases": (ALIASES, "more than 10,000 values"),
    "an alias in itself": ("a: &a [*a]", "an alias inside the value it names"),
    "a key that is a list": ("? [a]\n: 1", "a key that is a collection"),
    "a field twice": ("seed: 1\nseed: 2", "duplicate key seed"),
    "tabs": ("seed:\n\t- 1", "line 2"),
    "not UTF-8": (b"seed: \xff", "UTF-8"),
    "control characters": ("seed: \0", "not YAML"),
    "a huge number": (f"seed: {'9' * 5000}", "not YAML"),
    "a huge number in hexadecimal": (f"seed: 0x{'f' * 20_000}", "not YAML"),
    "code": ("seed: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
    "a megabyte": ("# " + "x" * 2**20, "at most 65,536 bytes"),
    "a long value": (f"seed: {'x' * 60_000}", r"seed: got .*60,0.. characters|an unknown key|steps"),
    "a surrogate": ('"\\ud800\\e[2J": 1', r"\\ud800\\x1b\[2J|must be|a value"),
}


@pytest.mark.parametrize("reads", [load_config, load_search, load_group], ids=["preset", "search", "ablation"])
@pytest.mark.parametrize("what", YAML_FILES)
def test_yaml_of_every_kind_is_bounded(what: str, reads: Callable[[str], object], tmp_path: Path) -> None:
    content, says = YAML_FILES[what]
    text("file.yaml", content)(tmp_path)
    with pytest.raises(UserError, match=says) as caught:
        _watched(lambda: reads(str(tmp_path / "file.yaml")))
    assert str(caught.value).isprintable() and len(str(caught.value)) < 2000


def test_a_link_out_of_the_run_is_not_followed(sound: Path, tmp_path: Path) -> None:
    place = _damaged(sound, tmp_path / "place", lambda place: None)
    (place / "secret").write_text("outside")
    (place / "run/eval/3/secret.png").symlink_to(place / "secret")
    before = (place / "run/report.html").read_bytes() if (place / "run/report.html").exists() else b""
    with pytest.raises(UserError, match=r"secret\.png"):
        ENTRIES["report"](place)
    assert not (place / "run/report.html").exists() or (place / "run/report.html").read_bytes() == before


@sized("mutants", 12, long=400)
def test_mutants_are_read_or_refused(mutants: int, sound: Path, tmp_path: Path) -> None:
    files = contents(sound)
    outcomes = [run(files, seed, tmp_path / "place") for seed in range(mutants)]
    assert len(set(outcomes)) == 2, "some damage is noticed, some is in what is not read"


def test_a_seed_is_one_mutant_of_one_file(sound: Path) -> None:
    files, seen = contents(sound), set()
    for seed in range(60):
        changed, name, _ = mutate(files, seed)
        assert (changed, name) == mutate(files, seed)[:2]
        assert {other for other in files if changed.get(other) != files[other]} <= {name}
        seen |= {start for start in READERS if name.startswith(start)}
    assert seen == set(READERS)
    assert json.loads(files[MANIFEST])["step"] == 3
