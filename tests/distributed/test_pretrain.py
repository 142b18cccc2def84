"""Real Ray Train runs: two workers equal a plain process, a killed worker changes nothing, refused input."""

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors.torch import load

from soda_dist.data.storage.folder import open_folder
from soda_dist.errors import DivergedError, UserError
from soda_dist.runs.folder import complete_steps
from soda_dist.runs.metrics_log import read_lines
from tests.evaluation.small_run import prepare, small_data
from tests.tiny import tiny_config
from tests.training.plain_run import train_plainly

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("cluster")]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    path = str(tmp_path_factory.mktemp("data"))
    prepare(path, {"train": [[16] * 6], "held_out": [[16]]}, {})
    return path


def run_to(path: Path, uri: str, /, **sections) -> tuple[dict, list[str]]:
    from soda_dist.distributed.pretrain import pretrain

    said: list[str] = []
    pretrain(tiny_config(**sections), uri, str(path), said.append)
    return weights(path, complete_steps(open_folder(str(path)))[-1]), said


def weights(path: Path, step: int) -> dict:
    return load((path / f"checkpoints/{step:09d}/model.safetensors").read_bytes())


def deepspeed(workers: int, **fields) -> dict:
    return {"engine": "deepspeed", "workers": workers, "zero_stage": 2, "data_memory_mb": 64, **fields}


def losses(path: Path) -> list[float]:
    return [line["loss"] for line in read_lines(open_folder(str(path)), "metrics.jsonl")]


WORKERS = deepspeed(2)
TRAIN = {"steps": 12, "global_batch": 8, "log_every_steps": 2, "checkpoint_every_steps": 2, "keep_checkpoints": 6}
WATCHED = {**TRAIN, "validation_every_steps": 4, "stop": {"split": "held_out", "images": 16}}
NORM = {"norm": "batch"}


@dataclass(frozen=True)
class Run:
    """A run that nothing disturbed."""

    path: Path
    weights: dict
    said: list[str]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, data: str) -> dict[int, Run]:
    """The same run by one process without Ray and DeepSpeed, and by two workers, with validation."""
    one, two = (tmp_path_factory.mktemp("straight") for _ in range(2))
    train_plainly(data, tiny_config(train=TRAIN, encoder=NORM), str(one))
    return {
        1: Run(one, weights(one, 12), []),
        2: Run(two, *run_to(two, data, train=WATCHED, scale=WORKERS, encoder=NORM)),
    }


def test_two_workers_equal_a_plain_process(straight: dict[int, Run]) -> None:
    """After two and four steps; rounding grows fiftyfold every two: 3.0e-6 and 1.5e-4 were measured, less elsewhere."""
    assert any(line.startswith("step 12/12") for line in straight[2].said)
    assert losses(straight[2].path)[:3] == pytest.approx(losses(straight[1].path)[:3], rel=1e-4)
    for step, most in ((2, 5e-6), (4, 3e-4)):
        one, two = (weights(straight[workers].path, step) for workers in (1, 2))
        names = [name for name in one if one[name].is_floating_point()]
        difference = sum((one[name] - two[name]).double().square().sum() for name in names)
        assert (difference / sum(one[name].double().square().sum() for name in names)).sqrt() < most


def test_workers_validate_and_the_driver_passes_it_on(straight: dict[int, Run]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = open_folder(str(straight[2].path))
    found = [line["validation_loss"] for line in read_lines(run, "metrics.jsonl", ()) if "validation_loss" in line]
    assert len(found) == 3 and run.exists("validation/000000012.png")
    points = EventAccumulator(f"{run.uri}/tensorboard").Reload()
    assert [(point.step, point.value) for point in points.Scalars("validation_loss")] == [
        (step, pytest.approx(value)) for step, value in zip((4, 8, 12), found, strict=True)
    ]
    assert [image.step for image in points.Images("validation")] == [4, 8, 12]
    said = straight[2].said
    assert said[1:4] == ["starting 2 workers", "building the model (soda, fp32, cpu)", "reading the first rows"]


@pytest.mark.parametrize("victim", ["RayTrainWorker", pytest.param("TrainController", marks=pytest.mark.long)])
def test_a_killed_process_changes_nothing(tmp_path: Path, data: str, straight: dict[int, Run], victim: str) -> None:
    """SIGKILL, after the first checkpoint, of a training process, or of the one that would start it again."""
    run = open_folder(str(tmp_path))
    killed = []

    def kill() -> None:
        import psutil

        while not complete_steps(run):
            done.wait(0.05)
        for process in psutil.Process().children(recursive=True):  # of this cluster, not of another on the machine
            with suppress(psutil.Error):  # it ended meanwhile
                if victim in " ".join(process.cmdline()):
                    os.kill(process.pid, signal.SIGKILL)
                    killed.append(process.pid)
                    return

    done = threading.Event()
    killer = threading.Thread(target=kill)
    killer.start()
    resumed, said = run_to(tmp_path, data, train=TRAIN, scale=WORKERS, encoder=NORM)
    killer.join()
    assert killed, f"the run ended before {victim} was killed"
    assert any(line.startswith("resuming from step") for line in said), said
    undisturbed = straight[2]
    assert all((resumed[name] == undisturbed.weights[name]).all() for name in undisturbed.weights)
    assert losses(tmp_path) == losses(undisturbed.path)


def test_a_finished_run_has_nothing_left_and_a_changed_one_is_refused(straight: dict[int, Run], data: str) -> None:
    def again(encoder: dict) -> list[str]:
        return run_to(straight[2].path, data, train=TRAIN, scale=WORKERS, encoder=encoder)[1]

    assert again(NORM) == ["already finished: step 12 of 12"]
    with pytest.raises(UserError, match=r"encoder\.lr_ratio: got 3\.0, but the run at .* has 2\.0"):
        again({**NORM, "lr_ratio": 3.0})


def test_workers_of_a_run_that_another_has_taken_over_end_in_one_line(tmp_path: Path, data: str) -> None:
    from soda_dist.distributed.pretrain import pretrain

    run, said = open_folder(str(tmp_path)), list[str]()

    def replaced(line: str) -> None:
        said.append(line)
        if line.startswith("building the model"):
            run.write_json("lease.json", run.read_json("lease.json") | {"token": "theirs", "host": "node-7"})

    scale = {"engine": "torch", "data_memory_mb": 64, "max_failures": 3}
    with pytest.raises(UserError, match=r"--run: got .*, which node-7 \(Ray job .* has taken over"):
        pretrain(tiny_config(train={"steps": 4}, scale=scale), data, run.uri, replaced)
    assert complete_steps(run) == [] and run.read_json("lease.json")["token"] == "theirs"
    assert sum(line.startswith("building the model") for line in said) <= 1, "no restart mends it"


def test_a_run_that_the_cluster_cannot_hold_is_refused_at_once(tmp_path, data):
    with pytest.raises(UserError, match="a run that needs 16 CPU; allowed: at most"):
        run_to(tmp_path / "run", data, scale={"workers": 8, "data_memory_mb": 64})
    with pytest.raises(UserError, match="1 GPU"):
        run_to(tmp_path / "gpu", data, scale={"gpus_per_worker": 1.0, "data_memory_mb": 64})


def test_a_cut_or_missing_shard_is_named_before_anything_starts(tmp_path: Path) -> None:
    small_data(tmp_path / "data")
    shard = tmp_path / "data/train/00000.parquet"
    for spoil in (lambda: shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2]), shard.unlink):
        spoil()
        with pytest.raises(UserError, match=r"train/00000\.parquet: got ") as caught:
            run_to(tmp_path / "run", str(tmp_path / "data"), scale=deepspeed(1))
        assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_memory_is_checked_before_the_start(tmp_path, data):
    with pytest.raises(UserError, match=r"data_memory_mb: got 64, too little for blocks .*; allowed: >= 181"):
        run_to(tmp_path / "run", data, data={"source_size": 1024}, scale={"data_memory_mb": 64})
    much = 1 << 20
    with pytest.raises(UserError, match=rf"got {much} for each of 1 workers, .* allowed: at most \d+ MB in all"):
        run_to(tmp_path / "run", data, scale={"data_memory_mb": much})
    assert not (tmp_path / "run/metrics.jsonl").exists()


@pytest.mark.long  # a group of ablations has such a run too
def test_a_diverged_run_ends_once_with_its_reason(tmp_path, data):
    with pytest.raises(DivergedError, match=r"optim\.lr: got 1e\+30 with .*not finite"):
        run_to(
            tmp_path / "run",
            data,
            scale={"engine": "torch", "data_memory_mb": 64},
            optim={"lr": 1e30, "warmup_steps": 0, "clip_norm": 1e30},
        )


def test_of_two_runs_on_machines_for_one_the_second_waits(tmp_path: Path, data: str, monkeypatch) -> None:
    """Of four CPUs each takes three, that of its data task included; one run would hold what the other lacks."""
    monkeypatch.setattr("soda_dist.distributed.supervisor.FIRST_LINE_S", 0.5)
    scale = {"workers": 1, "cpus_per_worker": 2, "data_cpus_per_worker": 1, "data_memory_mb": 64, "max_failures": 0}
    with ThreadPoolExecutor(2) as both:
        runs = [both.submit(run_to, tmp_path / name, data, train=TRAIN, scale=scale) for name in "ab"]
        said = [run.result()[1] for run in runs]
    waited = [any(line.startswith("waiting for machines") for line in lines) for lines in said]
    assert sorted(waited) == [False, True], said
    assert all(lines[-1].startswith("step 12/12") for lines in said)
