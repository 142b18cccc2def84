"""Evaluation by Ray actors finds what one process finds, to the last digit; the probe's gang, and its lost members."""

import os
import shutil
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray

from soda_dist.distributed import evaluate_on_ray
from soda_dist.distributed.runtime.actor_pool import ActorPool
from soda_dist.distributed.runtime.gang import run_gang
from soda_dist.distributed.runtime.resources import check_resources
from soda_dist.errors import UserError
from soda_dist.evaluation import LocalPool, evaluate
from soda_dist.evaluation.features import extraction, probe_passes
from soda_dist.evaluation.features.probe_group import Part, fit_part
from soda_dist.evaluation.pieces import Piece
from soda_dist.evaluation.worker import Models
from soda_dist.metrics.classification import Scores
from soda_dist.parallel.pool import Held, Seat
from soda_dist.parallel.progress import silent
from soda_dist.training.collectives import ProcessGroupContext
from tests.evaluation.small_run import EVALUATION, small_data, train
from tests.sizes import sized
from tests.tiny import tiny_config

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("cluster")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data/, and run/ with a checkpoint at 3, to be copied."""
    path = tmp_path_factory.mktemp("on_ray")
    small_data(path / "data")
    train(str(path / "run"), tiny_config(evaluation=EVALUATION, train={"steps": 3}))
    return path


def _copied(place: Path, to: Path) -> str:
    return str(shutil.copytree(place / "run", to / "run"))


def _timeless(value: Any) -> Any:
    """A result without what the clock decides, and the time and the command of its provenance."""
    if isinstance(value, dict):
        return {name: _timeless(each) for name, each in value.items() if name not in ("seconds", "provenance")}
    return value


def _extract_elsewhere(driver: int, seen: Path, models: Models, piece: Piece) -> pa.Table:
    assert os.getpid() != driver
    (seen / str(os.getpid())).touch()
    return _EXTRACT(models, piece)


_EXTRACT = extraction.extract


def _fit_until_killed(marker: Path, seat: Seat, part: Part) -> Scores | None:
    """The second member dies in its third sum with the others, the first time."""
    if seat.rank == 1 and not marker.exists():
        sums = list[None]()

        def sum_or_die(self: ProcessGroupContext, values: Any) -> Any:
            sums.append(None)
            if len(sums) == 3:
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return _SUM(self, values)

        ProcessGroupContext.sum = sum_or_die  # type: ignore[method-assign]
    return fit_part(seat, part)


_SUM = ProcessGroupContext.sum


@sized("tasks", "probe,knn", long="probe,knn,dci")
def test_actors_and_a_gang_with_a_killed_member_find_what_one_process_finds(
    tasks: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three actors extract and two fit on four CPUs: the gang has room only once the actors are gone."""
    runs = [_copied(place, tmp_path / name) for name in ("here", "there")]
    data, seen, marker, said = str(place / "data"), tmp_path / "seen", tmp_path / "died", list[str]()
    seen.mkdir()
    gang = ["evaluation.probe.workers=2", "evaluation.baselines=false"]
    here = evaluate(runs[0], data, tasks, LocalPool(), overrides=gang)
    monkeypatch.setattr(extraction, "extract", partial(_extract_elsewhere, os.getpid(), seen))
    monkeypatch.setattr(probe_passes, "fit_part", partial(_fit_until_killed, marker))
    overrides = [*gang, "evaluation.actors=3", "scale.max_wait_s=300"]
    there = evaluate_on_ray.evaluate(runs[1], data, tasks, "latest", overrides, said.append)
    assert 1 <= len(list(seen.iterdir())) <= 3 and "latents of train: 45 of 45 images" in "\n".join(said)
    assert marker.exists() and "a worker of the gang died; starting again with a new gang" in said
    assert list(there) == tasks.split(",") and there["probe"]["settings"]["workers"] == 2
    assert _timeless(there) == _timeless(here), "accuracies to the last digit, at each learning rate too"
    for name in ("importance.npy", "importance.png", "sections.png") if "dci" in there else ():
        assert len({(Path(run) / "eval/3" / name).read_bytes() for run in runs}) == 1
    latents = [sorted(Path(run).glob("latents/**/*.parquet")) for run in runs]
    assert len(latents[0]) == len(latents[1]) == 7
    assert all(one.read_bytes() == other.read_bytes() for one, other in zip(*latents, strict=True))


def test_more_workers_than_the_cluster_has_room_for_are_refused_before_any_work(place: Path, tmp_path: Path) -> None:
    run = _copied(place, tmp_path)
    before = set(Path(run).rglob("*"))
    message = r"evaluation\.probe\.workers: got a run that needs 900 CPU; allowed: at most .*; lower evaluation\.probe"
    with pytest.raises(UserError, match=message) as caught:
        evaluate_on_ray.evaluate(run, str(place / "data"), "probe", "latest", ["evaluation.probe.workers=900"], silent)
    assert "\n" not in str(caught.value)
    assert set(Path(run).rglob("*")) == before
    with pytest.raises(UserError, match=r"scale: got .*lower scale\.workers"):
        check_resources({"CPU": 900.0}, silent)


def test_a_gang_that_finds_no_room_in_time_is_the_users_to_know() -> None:
    with pytest.raises(UserError, match="no room for 2 workers with 1000 CPU each within 1 s"):
        run_gang(
            fit_part, [None, None], lambda host, size: (None, None), needs={"CPU": 1000}, start_timeout_s=1, say=silent
        )


def test_workers_with_a_state_get_the_cpus_that_are_asked_for() -> None:
    def assigned(state: Any, piece: int) -> float:
        return ray.get_runtime_context().get_assigned_resources()["CPU"]

    with ActorPool(say=silent, actors=1).with_state(Held(None), cpus=3) as pool:
        assert pool.map(assigned, [0]) == [3]
