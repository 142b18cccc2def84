"""The data plane's benchmark, small: every side does its work, and the table has every ratio."""

import pytest

from soda_dist.benchmarks import harness, ingest
from tests.evaluation.small_run import prepare

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.usefixtures("cluster")]


def test_a_small_measurement_has_every_side_and_ratio(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(ingest, "SECONDS", 0.1)
    monkeypatch.setattr(harness, "ROUNDS", 1)
    uri = str(tmp_path)
    prepare(uri, {"train": [[64] * 4]}, {})
    said: list[str] = []
    one = ["scale.workers=1", "scale.data_cpus_per_worker=1", "optim.warmup_steps=10", "train.steps=100"]
    found = ingest._ratios("small", "imagenet", [*one, "train.global_batch=8"], uri, 2.0, 16, said.append)
    assert [result["name"].removesuffix(", small") for result in found] == [
        "ingest",
        "ingest against the same functions in a bare process pool",
        "views",
        "views with RandAugment left to the device",
        "ingest against decoding alone",
    ]
    assert all(rate > 0 for result in found for rate in result["median"].values())
    assert {len(result["median"]) for result in found} == {2, 3}
    assert [result["limit"] for result in found] == [2.0, 0.833, 1.0, 1.5, 0.6]
    assert said[0].startswith("ingest, small, round 1 of 1, pairs/s: Ray Data ")
