"""A group of ablations: its plan, real runs of it, and the same command again."""

import json
import re
from pathlib import Path

import pytest

from soda_dist.config.ablation import Ablation
from soda_dist.config.load import parse_yaml, validate
from soda_dist.distributed.ablate import plan_trials
from soda_dist.errors import UserError
from tests.evaluation.small_run import prepare
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


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_group_is_trained_measured_and_goes_on_where_it_stopped(cluster, tmp_path):
    from soda_dist.distributed.ablate import ablate

    out, said = tmp_path / "out", []
    prepare(str(tmp_path / "data"), {"train": [[16] * 6], "test": [[16] * 2]}, {})
    group, base = group_of(seeds=[0]), base_of(train={"steps": 4, "checkpoint_every_steps": 4})
    made = ablate(group, base, str(tmp_path / "data"), str(out), said.append)
    text = (out / "ablation.md").read_text()
    assert made.endswith("out/ablation.md") and text in said
    assert "2 runs of 4 steps of 8 pairs on data of kind test" in text
    assert sorted(path.name for path in (out / "runs").iterdir()) == ["soda-seed0", "sum-seed0"]
    summary = json.loads((out / "ablation.json").read_text())["summary"]
    assert [row["name"] for row in summary["rows"]] == ["SODA", "guidance 1", "sum"]
    for row, slug in zip(summary["rows"], ["soda", "guidance-1", "sum"], strict=True):
        assert [cell["value"] for cell in row["cells"]] == [
            figure["value"] for figure in _result(out, f"{slug}-seed0")["figures"]
        ]
    probe, drawn = (
        json.loads((out / f"runs/sum-seed0/eval/4/{name}.json").read_text()) for name in ("probe", "reconstruction")
    )
    values = [figure["value"] for figure in _result(out, "sum-seed0")["figures"]]
    assert values == pytest.approx([100 * probe["value"], drawn["guidance"]["2"]["psnr"]["value"]])
    one, two = (_result(out, f"{slug}-seed0")["figures"] for slug in ("soda", "guidance-1"))
    assert one[0] == two[0], "the same run's probe"
    assert one[1]["value"] != two[1]["value"], "drawn with another guidance"
    assert (out / "ablation.png").read_bytes().startswith(b"\x89PNG")

    (out / "results/sum-seed0.json").unlink()
    before = (out / "runs/soda-seed0/metrics.jsonl").stat().st_mtime_ns
    said.clear()
    ablate(group, base, str(tmp_path / "data"), str(out), said.append)
    assert (out / "runs/soda-seed0/metrics.jsonl").stat().st_mtime_ns == before
    assert any(line.startswith("finished sum-seed0 in ") and line.endswith("2 of 2 runs") for line in said)
    assert [figure["value"] for figure in _result(out, "sum-seed0")["figures"]] == values

    said.clear()
    ablate(group, base, str(tmp_path / "data"), str(out), said.append)
    assert any(line == "already trained: 2 runs" for line in said)
    with pytest.raises(UserError, match="the folder of the same group"):
        ablate(group_of(title="Others", seeds=[0]), base, str(tmp_path / "data"), str(out), said.append)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_group_renders_its_data_and_a_run_that_diverges_is_counted(cluster, tmp_path):
    from soda_dist.distributed.ablate import ablate

    variants = [{"name": "SODA"}, {"name": "far too fast", "fields": {"optim.lr": 1e30, "optim.warmup_steps": 0}}]
    group = group_of(variants=variants, claims=[], seeds=[0], measures=[{"ours": "probe.top1"}])
    base = base_of(train={"steps": 4, "checkpoint_every_steps": 4})
    ablate(group, base, None, str(tmp_path), [].append)
    assert json.loads((tmp_path / "data/manifest.json").read_text())["splits"]["train"]["rows"] == 48
    failed = _result(tmp_path, "far-too-fast-seed0")
    assert failed["figures"] == [None] and failed["failure"].startswith("loss is ")
    assert re.search(r"^\| far too fast \| +– \|$", (tmp_path / "ablation.md").read_text(), re.MULTILINE)
    assert [each["variant"] for each in json.loads((tmp_path / "ablation.json").read_text())["failures"]] == [
        "far too fast"
    ]
