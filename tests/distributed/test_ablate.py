"""A group of ablations: its plan, real runs of it, and the same command again."""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from soda_dist.config import RunConfig
from soda_dist.config.ablation import Ablation
from soda_dist.config.load import parse_yaml, validate
from soda_dist.data.storage.folder import open_folder
from soda_dist.distributed import ablate as module
from soda_dist.distributed.ablate import plan_trials
from soda_dist.errors import UserError
from soda_dist.evaluation import LocalPool, evaluate
from soda_dist.parallel.progress import Say
from soda_dist.runs.folder import complete_steps
from tests.evaluation.small_run import prepare, train
from tests.tiny import tiny_config

TREE = {
    "title": "Forms",
    "data": {"kind": "synthetic", "options": {"objects": 24, "test_objects": 12, "size": 16, "groups_per_shard": 1}},
    "preset": "solids",
    "seeds": [0, 1],
    "measures": [{"ours": "probe.top1"}, {"ours": "reconstruction.psnr"}],
    "variants": [
        {"name": "SODA", "paper": {"9": "SODA (default)"}},
        {"name": "guidance 1", "fields": {"sampling.guidance": 1.0}},
        {"name": "sum", "fields": {"denoiser.modulation": "sum"}},
    ],
    "claims": [{"measure": 0, "variant": "SODA", "above": ["sum"]}],
}


def group_of(**fields) -> Ablation:
    return validate(Ablation, parse_yaml(json.dumps({**TREE, **fields}), "a test"))


def base_of(**sections):
    evaluation = {"batch": 16, "images": 2, "probe": {"epochs": 2}, "actors": 1, "baselines": False}
    return tiny_config(evaluation={**evaluation, "reconstruction": {"images": 4, "guidance": ()}}, **sections)


def test_variants_that_are_trained_alike_share_a_run():
    trials = plan_trials(group_of(), base_of())
    assert [trial.name for trial in trials] == ["soda-seed0", "sum-seed0", "soda-seed1", "sum-seed1"]
    shared = trials[0].readings
    assert [(reading.variant.name, reading.overrides) for reading in shared] == [
        ("SODA", ()),
        ("guidance 1", ("sampling.guidance=1.0",)),
    ]
    assert trials[2].config.seed == 1 and trials[1].config.denoiser.modulation == "sum"


def test_a_field_of_a_variant_that_does_not_fit_names_the_variant():
    variants = [{"name": "SODA"}, {"name": "stages", "fields": {"denoiser.modulation": "three_stage"}}]
    with pytest.raises(UserError, match=r"^stages: denoiser\.modulation: got 'three_stage'"):
        plan_trials(group_of(variants=variants, claims=[]), base_of())


def _result(out: Path, name: str) -> dict:
    return json.loads((out / f"results/{name}.json").read_text())


FAST = {"name": "far too fast", "fields": {"optim.lr": 1e30, "optim.warmup_steps": 0}}


class Here:
    """The parts that an ablation has on Ray, without it: training on noise, evaluation and import in this process."""

    @staticmethod
    @contextmanager
    def mailbox(say: Say) -> Iterator[Any]:
        yield SimpleNamespace(actor=SimpleNamespace(put=SimpleNamespace(remote=say)))

    @staticmethod
    def pool(setup: Any = None, **resources: Any) -> LocalPool:
        return LocalPool(setup=setup)

    @staticmethod
    def pretrain(config: RunConfig, data: str, run: str, say: Say) -> None:
        if config.train.steps not in complete_steps(open_folder(run)):
            train(run, config)

    @staticmethod
    def evaluate(run: str, data: str, tasks: str, step: str, overrides: Sequence[str], say: Say) -> None:
        evaluate(run, data, tasks, step=step, overrides=overrides)

    @staticmethod
    def check_resources(needed: dict[str, float], say: Say) -> None:
        """This process holds any run."""


@pytest.fixture(params=["here", pytest.param("on Ray", marks=[pytest.mark.ray, pytest.mark.long])])
def on_ray(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param == "on Ray":
        request.getfixturevalue("cluster")
        return True
    monkeypatch.setattr(module, "ActorPool", Here.pool)
    for name in ("mailbox", "pretrain", "evaluate", "check_resources"):
        monkeypatch.setattr(module, name, getattr(Here, name))
    return False


@pytest.mark.timeout(900)
def test_a_group_is_rendered_trained_measured_and_goes_on_where_it_stopped(on_ray: bool, tmp_path: Path) -> None:
    """One run that two variants are read from, one that diverges, and on Ray a third."""
    ablate, more = module.ablate, int(on_ray)
    out, said = tmp_path / "out", list[str]()
    claims = [{"measure": 1, "variant": "SODA", "above": ["guidance 1"]}]
    group = group_of(seeds=[0], variants=[*TREE["variants"][: 2 + more], FAST], claims=claims)
    base = base_of(train={"steps": 4, "checkpoint_every_steps": 4})
    made = ablate(group, base, None, str(out), said.append)
    assert json.loads((out / "data/manifest.json").read_text())["splits"]["train"]["rows"] == 48
    text = (out / "ablation.md").read_text()
    assert made.endswith("out/ablation.md") and text in said
    assert f"{2 + more} runs of 4 steps of 8 pairs on data of kind synthetic" in text
    names = ["far-too-fast-seed0", "soda-seed0", "sum-seed0"][: 2 + more]
    assert sorted(path.name for path in (out / "runs").iterdir()) == names
    facts = json.loads((out / "ablation.json").read_text())
    rows = facts["summary"]["rows"]
    assert [row["name"] for row in rows] == [variant.name for variant in group.variants]
    for row, variant in zip(rows[:-1], group.variants[:-1], strict=True):
        assert [cell["value"] for cell in row["cells"]] == values(out, variant.slug)
    one, two = values(out, "soda"), values(out, "guidance-1")
    assert one[0] == two[0], "the same run's probe"
    assert one[1] != two[1], "drawn with another guidance"
    probe, drawn = (
        json.loads((out / f"runs/soda-seed0/eval/4/{name}.json").read_text()) for name in ("probe", "reconstruction")
    )
    assert two == pytest.approx([100 * probe["value"], drawn["guidance"]["1"]["psnr"]["value"]])
    assert (out / "ablation.png").read_bytes().startswith(b"\x89PNG")

    failed = _result(out, "far-too-fast-seed0")
    assert failed["figures"] == [None, None] and re.match(r"optim\.lr: got .* \(not finite", failed["failure"])
    assert re.search(r"^\| far too fast \| +– \| +– \|$", text, re.MULTILINE)
    assert [each["variant"] for each in facts["failures"]] == ["far too fast"]

    (out / "results/guidance-1-seed0.json").unlink()
    before = (out / "runs/soda-seed0/metrics.jsonl").stat().st_mtime_ns
    said.clear()
    ablate(group, base, None, str(out), said.append)
    assert (out / "runs/soda-seed0/metrics.jsonl").stat().st_mtime_ns == before
    assert any(line.startswith("finished soda-seed0 in ") and line.endswith(f"{2 + more} runs") for line in said)
    assert values(out, "guidance-1") == two

    said.clear()
    ablate(group, base, None, str(out), said.append)
    assert any(line == f"already trained: {2 + more} runs" for line in said)
    with pytest.raises(UserError, match="the folder of the same group"):
        ablate(group_of(title="Others", seeds=[0]), base, None, str(out), said.append)


def values(out: Path, slug: str) -> list[float]:
    """The figures of a variant."""
    return [figure["value"] for figure in _result(out, f"{slug}-seed0")["figures"]]


def test_data_that_is_given_is_trained_on(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(module, "check_resources", Here.check_resources)
    monkeypatch.setattr(module, "_train_all", lambda group, trials, data, out, say: asked.append(data))
    monkeypatch.setattr(module, "_conclude", lambda group, base, trials, data, out, say: asked.append(data))
    prepare(str(tmp_path / "data"), {"train": [[16]], "test": [[8]]}, {})
    module.ablate(group_of(), base_of(), str(tmp_path / "data"), str(tmp_path / "out"), [].append)
    assert asked == [str(tmp_path / "data")] * 2


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ablation.md").symlink_to("/etc/hosts")
    with pytest.raises(UserError, match=r"ablation\.md: got a symbolic link to /etc/hosts"):
        module.ablate(group_of(), base_of(), None, str(tmp_path), [].append)
