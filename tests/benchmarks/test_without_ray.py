"""The benchmarks that need no Ray: both sides do the same work, and the table says what was measured."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from soda_dist.benchmarks import checkpoint_pause, harness, sampling, update
from soda_dist.benchmarks.checkpoint_pause import measure_checkpoint
from soda_dist.benchmarks.sampling import count_calls, draw_ours, draw_theirs, make_task, measure_sampling
from soda_dist.benchmarks.update import measure_step, noise_batches
from soda_dist.config.load import dump_config
from soda_dist.errors import UserError
from soda_dist.training.checkpoint_writer import CheckpointWriter
from soda_dist.training.engines.torch_engine import TorchEngine
from tests.tiny import tiny_config
from tests.training.test_engine import engine_of

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
HOW = [
    {"method": "ddpm", "variance": "small"},
    {"method": "ddpm", "variance": "large"},
    {"method": "ddim", "eta": 0.0},
    {"method": "ddim", "eta": 0.7},
]


@pytest.fixture
def preset(tmp_path):
    """The tiny configuration as a preset file."""
    path = tmp_path / "tiny.yaml"
    path.write_text(dump_config(tiny_config()))
    return str(path)


@pytest.mark.parametrize("how", HOW, ids=lambda how: "-".join(map(str, how.values())))
@pytest.mark.parametrize("schedule", ["inverted", "linear"])
def test_both_samplers_make_the_same_images_by_as_many_calls(how, schedule):
    config = tiny_config(sampling={"steps": 7, "guidance": 2.5, **how}, diffusion={"schedule": schedule})
    task = make_task(config, CPU)
    generator = torch.Generator().manual_seed(3)
    for weight in task.model.denoiser.parameters():  # a fresh denoiser hardly listens to z
        weight.add_(0.06 * torch.randn(weight.shape, generator=generator))
    task = replace(task, condition=task.condition._replace(z=torch.randn(task.condition.z.shape, generator=generator)))
    ours, theirs = draw_ours(task), draw_theirs(task)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3)
    assert ours.std() > 0.1
    assert count_calls(task.model, lambda: draw_ours(task)) == count_calls(task.model, lambda: draw_theirs(task)) == 7
    assert (draw_ours(replace(task, w=1.0)) - ours).abs().max() > 1e-2, "guidance is at work"
    again = draw_ours(replace(task, seed=task.seed + 1))
    assert torch.equal(again, ours) == (how["method"] == "ddim" and how["eta"] == 0), "the steps' noise is at work"


def test_the_table_of_sampling_has_each_ratio_once(preset, monkeypatch):
    clock = iter(range(10**6))
    monkeypatch.setattr(sampling.time, "perf_counter", lambda: float(next(clock)))  # every side takes a second
    said: list[str] = []
    results = measure_sampling(preset, ["evaluation.images=3", "sampling.steps=2"], "cpu", said.append)
    assert [result["name"].rpartition(", ")[2] for result in results] == [
        "against diffusers", "without guidance", "bf16", "channels-last"
    ]  # fmt: skip
    assert [result["ratio"] for result in results] == [1.0] * 4
    assert results[0]["median"] == {"ours": 3.0, "diffusers": 3.0}
    assert [result["limit"] for result in results] == [1.0, None, None, None]
    assert results[0]["facts"] == {"calls a step": 1.0}
    assert sampling.CPU_COMPILES in said


def test_the_table_of_updates_has_rates_and_shares(preset, monkeypatch, tmp_path):
    monkeypatch.setitem(update.MATMUL_SIDE, "cpu", 64)
    said: list[str] = []
    results = measure_step(preset, ["train.global_batch=2"], "cpu", said.append)
    assert [result["name"].rpartition(", ")[2] for result in results] == ["float32", "bf16", "bf16 + channels-last"]
    assert results[0]["ratio"] == 1.0 and all(result["limit"] is None for result in results)
    pair = float(re.search(r"([\d.]+) GFLOP per pair, 2 pairs", "\n".join(said)).group(1)) * 1e9
    for result in results:
        rate, reached, peak = next(iter(result["median"].values())), *result["facts"].values()
        assert reached == pytest.approx(rate * pair / 1e12, rel=0.1, abs=6e-4)
        assert peak > 0 and result["share"] > 0
    lines: list[str] = []
    uri = harness.conclude(results, str(tmp_path / "out"), lines.append)
    assert len(lines) == 2 * len(results) and "ratio 1.000; TFLOP/s" in lines[1]
    written = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    assert uri.endswith("benchmark.json") and [row["ratio"] for row in written] == [row["ratio"] for row in results]


def test_the_table_of_a_checkpoint_has_the_pause_against_a_step_and_an_interval(preset, monkeypatch, tmp_path):
    pauses, saved = iter([9.0, 0.25, 0.25, 0.25]), []
    save = CheckpointWriter.save

    def timed(writer, step):
        save(writer, step)
        saved.append(step)
        return next(pauses)

    monkeypatch.setattr(CheckpointWriter, "save", timed)
    monkeypatch.setattr(checkpoint_pause, "seconds", lambda work, device, warm: work() or 1.5)  # 3 steps, or 1
    said: list[str] = []
    step, interval = measure_checkpoint(preset, [], "cpu", said.append)
    assert said[0] == "first pause, with the memory for copies: 9 s" and saved == [1, 2, 3, 4]
    assert step["median"] == {"pauses": 4.0, "steps": 2.0} and (step["ratio"], step["limit"]) == (2.0, 1.0)
    assert step["facts"]["pause, s"] == 0.25 and step["facts"]["step, s"] == 0.5
    assert step["facts"]["step while writing, s"] == 1.5 and step["facts"]["written after, s"] > 0
    # 1% of 3 steps of half a second is 15 ms, a sixteenth of the pause.
    assert interval["ratio"] == pytest.approx(0.015 / 0.25, abs=1e-3) and interval["limit"] == 1.0


def test_one_measured_update_is_the_engines_own_on_every_micro_batch(monkeypatch):
    config = tiny_config(train={"global_batch": 4, "micro_batch": 2})
    batches = noise_batches(config, CPU)
    assert [len(batch.source) for batch in batches] == [2, 2, 2, 2]
    assert torch.cat([batch.index for batch in batches]).tolist() == list(range(8)), "no sample's draws come twice"
    taken = []
    step = TorchEngine.step
    monkeypatch.setattr(
        TorchEngine, "step", lambda self, micro, lr: step(self, [taken.append(int(b.index[0])) or b for b in micro], lr)
    )
    update._side(engine_of(config), update.MODES["float32"], config, batches)(0)
    assert taken == [0, 2] * update.STEPS["cpu"]


def test_the_arithmetic_of_an_update_is_three_times_that_of_the_way_forward():
    from soda_dist.training.plan import plan

    config = tiny_config(train={"global_batch": 4})
    counted = update._flops(engine_of(config), noise_batches(config, CPU)) / 4
    assert counted == pytest.approx(3 * sum(plan(config)["flops_per_pair"].values()), rel=0.03)


@pytest.mark.parametrize(("ours", "word"), [(1.5, "within"), (0.5, "BELOW")])
def test_a_ratio_is_to_the_best_other_side_and_is_judged_by_its_limit(ours, word):
    lines: list[str] = []
    sides = {"ours": lambda _: ours, "a": lambda number: 0.1 * number, "b": lambda _: 1.0}
    result = harness.compare("x", sides, "y/s", 1.0, lines.append)
    assert result["ratio"] == ours and result["median"]["a"] == pytest.approx(0.1)
    harness.conclude([result], None, lines.append)
    assert f"ratio {ours:.3f}, {word} the limit 1" in lines[-1] and len(lines) == harness.ROUNDS + 2


@pytest.mark.parametrize(
    ("measure", "override", "says"),
    [
        (measure_step, "train.precision=bf16", "train.precision: got bf16"),
        (measure_sampling, "train.precision=bf16", "train.precision: got bf16"),
        (measure_sampling, "sampling.guidance=1", "sampling.guidance: got 1"),
        (measure_sampling, "sampling.masked_sections=[0]", "sampling.masked_sections: got [0]"),
    ],
)
def test_settings_that_would_be_ignored_are_refused(preset, measure, override, says):
    with pytest.raises(UserError, match=re.escape(says)):
        measure(preset, [override], "cpu", lambda _: None)


def test_a_method_without_a_sampler_is_refused():
    with pytest.raises(UserError, match="method: got encdec"):
        make_task(tiny_config(method="encdec", denoiser={"layer_mask_rate": 0, "guidance_mask_rate": 0}), CPU)


def test_stochastic_conditioning_is_refused():
    with pytest.raises(UserError, match=re.escape("sampling.stochastic: got True")):
        sampling.check_guided(tiny_config().sampling.model_copy(update={"stochastic": True}))


def test_a_missing_gpu_is_named(preset, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="--device: got cuda"):
        measure_step(preset, [], "cuda", lambda _: None)


def test_the_job_runs_without_ray_and_names_a_missing_diffusers(preset):
    script = (
        "import sys, runpy; sys.modules.update(dict.fromkeys(('ray', 'deepspeed', 'boto3', 'diffusers')));"
        "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", script, "jobs/benchmark.py", "sample", "--preset", preset]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: diffusers: ") and done.stderr.count("\n") == 1
