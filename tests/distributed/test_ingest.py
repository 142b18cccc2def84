"""Ray Data gives every worker the pairs that the order says, whatever their number, and after a resume."""

import json
import subprocess
import sys
from contextlib import suppress
from dataclasses import fields

import numpy as np
import psutil
import pytest

from soda_dist.data.order import Order
from soda_dist.data.pairs import read_pairs
from soda_dist.data.shards import ShardReader, read_manifest
from soda_dist.data.storage.folder import open_folder
from tests.data.objects import flat, write_objects
from tests.evaluation.small_run import prepare
from tests.sizes import sized
from tests.tiny import tiny_config

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]
GROUPS = [[8, 8, 8, 8, 8], [8, 8, 8, 8, 5]]  # 77 rows: epochs end inside batches


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    path = str(tmp_path_factory.mktemp("data"))
    prepare(path, {"train": GROUPS}, {"train": {13}})
    return path


def config_of(workers: int, micro: int | None = None, steps: int = 12):
    train = {"global_batch": 16, "steps": steps, "micro_batch": micro, "checkpoint_every_steps": 100}
    return tiny_config(train=train, scale={"workers": workers, "data_memory_mb": 64})


def test_every_worker_gets_the_pairs_of_its_slices(data):
    from soda_dist.distributed.ingest import stream
    from soda_dist.distributed.ingest_plan import slices

    manifest = read_manifest(open_folder(data))
    reader = ShardReader(open_folder(data), manifest, "train")
    config = config_of(2, micro=4)
    order = Order([g for shard in GROUPS for g in shard], config.seed, 16, config.data.shuffle_groups)
    for rank in range(2):
        due = [piece for step in range(3, 12) for piece in slices(config, rank, step)]
        got = list(stream(data, config, rank, 3))
        assert len(got) == len(due) == 18
        for pairs, (start, stop) in zip(got, due, strict=True):
            expected = read_pairs(reader, order, start, stop, seed=config.seed, data=config.data)
            assert pairs.source_pose.shape == (4, 1, 0)
            for field in fields(expected):
                assert np.array_equal(getattr(pairs, field.name), getattr(expected, field.name)), (start, field.name)


VARIANTS = {
    "pixels, several sources": {"sources": (1, 3), "pose": "pixels"},
    "objects and cameras": {"views": "object", "sources": (2, 3), "pose": "cameras", "augment": "none"},
    "class": {"views": "class", "sources": (1, 1)},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_kind_of_view_comes_through_as_it_was_made(variant, tmp_path):
    from soda_dist.distributed import ingest
    from soda_dist.distributed.ingest import stream
    from soda_dist.distributed.ingest_plan import slices

    reader = write_objects(str(tmp_path), flat, broken=(7, 50))
    train = {"global_batch": 16, "steps": 12, "micro_batch": 4, "checkpoint_every_steps": 100}
    config = tiny_config(train=train, data=VARIANTS[variant])
    order = Order(reader.groups, config.seed, 16, config.data.shuffle_groups)
    got = list(stream(str(tmp_path), config, 0, 2))
    due = [piece for step in range(2, 12) for piece in slices(config, 0, step)]
    assert len(got) == len(due)
    for pairs, (start, stop) in zip(got, due, strict=True):
        expected = read_pairs(reader, order, start, stop, seed=config.seed, data=config.data)
        for field in fields(expected):
            a, b = getattr(pairs, field.name), getattr(expected, field.name)
            if field.name in ingest.TEXTS:
                assert a == b
            else:
                assert (a.shape, a.dtype) == (b.shape, b.dtype)
                assert np.array_equal(a, b), (start, field.name)
    assert any(pairs.unreadable() for pairs in got)


def test_a_block_holds_no_more_than_its_bytes_however_large_the_micro_batch(data, monkeypatch):
    """Nine sources of 64 px: a micro-batch of 16 is cut, and comes together again."""
    from soda_dist.distributed import ingest, ingest_plan

    train = {"global_batch": 16, "steps": 8, "checkpoint_every_steps": 100}
    config = tiny_config(train=train, data={"source_size": 64, "sources": (9, 9), "pose": "pixels"})
    pairs = next(ingest.stream(data, config, 0, 0))
    size = sum(np.asarray(getattr(pairs, name)).nbytes for name in ingest.TENSORS) / 16
    assert ingest_plan.row_bytes(config.data) == size
    monkeypatch.setattr(ingest_plan, "BYTES_PER_BLOCK", int(5.5 * size))
    order = Order([g for shard in GROUPS for g in shard], config.seed, 16, config.data.shuffle_groups)
    blocks = [
        block for plans in ingest_plan.datasets(order, config, 0, 0, stays=False) for plan in plans for block in plan
    ]
    assert max(sum(stop - start for start, stop in block) for block in blocks) == 4
    cut = list(ingest.stream(data, config, 0, 0))
    assert [pairs.index.tolist() for pairs in cut] == np.arange(128).reshape(8, 16).tolist()
    assert np.array_equal(cut[0].source, pairs.source)


def test_labels_come_through_where_a_probe_is_trained_along(data):
    from soda_dist.distributed.ingest import stream
    from soda_dist.distributed.ingest_plan import slices

    train = {"global_batch": 16, "steps": 4, "online_probe": True, "checkpoint_every_steps": 100}
    scale = {"workers": 2, "data_memory_mb": 64}
    for label, columns in {None: ["colour"], "attributes": ["bright", "late"]}.items():
        config = tiny_config(train={**train, "online_probe_label": label}, scale=scale)
        reader = ShardReader(open_folder(data), read_manifest(open_folder(data)), "train")
        order = Order([g for shard in GROUPS for g in shard], config.seed, 16, config.data.shuffle_groups)
        for pairs, (start, stop) in zip(
            stream(data, config, 1, 0), [slices(config, 1, s)[0] for s in range(4)], strict=True
        ):
            expected = read_pairs(reader, order, start, stop, seed=config.seed, data=config.data, labels=columns)
            assert pairs.label.shape == (8, len(columns)) and pairs.label.dtype == np.int64
            assert np.array_equal(pairs.label, expected.label)


def expected_pairs(data, config, first=0):
    """The pairs of rank 0 from a step on, read in this process."""
    from soda_dist.distributed.ingest_plan import slices

    reader = ShardReader(open_folder(data), read_manifest(open_folder(data)), "train")
    order = Order([g for shard in GROUPS for g in shard], config.seed, 16, config.data.shuffle_groups)
    for step in range(first, config.train.steps):
        for start, stop in slices(config, 0, step):
            yield read_pairs(reader, order, start, stop, seed=config.seed, data=config.data)


def keys_by_step(streams) -> dict[int, list[int]]:
    steps: dict[int, list[int]] = {}
    for stream in streams:
        for pairs in stream:
            for key, index in zip(pairs.key, pairs.index, strict=True):
                steps.setdefault(int(index) // 16, []).append(int(key))
    return {step: sorted(keys) for step, keys in steps.items()}


def test_the_order_has_the_same_keys_at_every_step_for_1_2_and_4_workers(data):
    """Of the slices, which need no cluster; streams give what the slices say (above)."""
    from soda_dist.distributed.ingest_plan import slices

    reader = ShardReader(open_folder(data), read_manifest(open_folder(data)), "train")
    order = Order([g for shard in GROUPS for g in shard], 0, 16, config_of(1).data.shuffle_groups)

    def read(workers, micro):
        config = config_of(workers, micro)
        for rank in range(workers):
            for step in range(12):
                for start, stop in slices(config, rank, step):
                    yield read_pairs(reader, order, start, stop, seed=config.seed, data=config.data)

    one = keys_by_step([read(1, None)])
    assert all(len(keys) == 16 for keys in one.values()) and len(one) == 12
    assert keys_by_step([read(2, 4)]) == keys_by_step([read(4, None)]) == one
    seen = sorted(key for step in range(12) for key in one[step])
    counts = np.bincount(seen, minlength=77)
    assert counts.min() >= 2 and counts.max() <= 3, "192 samples of 77 rows: each twice, and 38 a third time"


@sized("workers", (4,), long=(1, 2, 4))
def test_streams_of_all_workers_have_the_keys_of_one_and_name_what_is_unreadable(workers, data):
    from soda_dist.distributed.ingest import stream

    one = keys_by_step([expected_pairs(data, config_of(1))])
    for count in workers:
        config = config_of(count)
        streams = [list(stream(data, config, rank, 0)) for rank in range(count)]
        assert keys_by_step(streams) == one
        flagged = [row for pairs in streams for each in pairs for row in each.unreadable()]
        assert flagged == [(13, "train/13.png", "not an image")] * len(flagged) and 2 <= len(flagged) <= 3
    resumed = list(stream(data, config_of(1), 0, 7))
    assert keys_by_step([resumed]) == {step: keys for step, keys in one.items() if step >= 7}


def data_workers() -> list[psutil.Process]:
    """Ray's processes below this one that run data tasks, or wait for the next."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            title = (process.cmdline() or [""])[0]
            if title.startswith("ray::") and ("PlannedPairs" in title or "IDLE" in title or "_map_task" in title):
                found.append(process)
    return found


def test_killed_data_workers_change_nothing(data):
    from soda_dist.distributed.ingest import stream

    config = config_of(1, steps=60)
    straight = [pairs.source.sum(dtype=np.int64) for pairs in expected_pairs(data, config)]
    got, killed = [], []
    for number, pairs in enumerate(stream(data, config, 0, 0)):
        got.append(pairs.source.sum(dtype=np.int64))
        if number in (2, 10):
            for process in data_workers():
                process.kill()
                killed.append(process.pid)
    assert killed
    assert got == straight


SLOW_CONSUMER = """
import json, os, sys, time
import psutil, ray
from ray._private.internal_api import node_stats
from soda_dist.distributed import ingest, ingest_plan
from tests.tiny import tiny_config

ray.init(address=sys.argv[2], log_to_driver=False)
ingest_plan.BYTES_PER_BLOCK = 2 << 20
steps = int(sys.argv[3])
train = {"global_batch": 16, "steps": steps, "checkpoint_every_steps": 100}
config = tiny_config(data={"source_size": 192}, train=train, scale={"data_memory_mb": 64})
assert ingest_plan.least_memory_mb(config.data) <= 64
node = ray.nodes()[0]

def used():
    return node_stats(node["NodeManagerAddress"], node["NodeManagerPort"], False).store_stats.object_store_bytes_used

def full():
    "What the store holds when the pipeline waits: unchanged for 1.5 s. Ray frees what was taken once a second."
    now, since = used(), time.monotonic()
    while time.monotonic() - since < 1.5:
        before, now = now, used()
        if now != before:
            since = time.monotonic()
        time.sleep(0.02)
    return now

before, process = used(), psutil.Process()
held, resident, size, busy = [], [], 0, None
for number, pairs in enumerate(ingest.stream(sys.argv[1], config, 0, 0)):
    size += pairs.source.nbytes
    if number % (steps // 10) == 0:
        held.append(full() - before)
        resident.append(process.memory_info().rss)
    if number == 0:  # the pipeline waits, and so does this process
        at = time.process_time()
        time.sleep(4)
        busy = time.process_time() - at
print("seen", json.dumps([size, held, resident, busy]), flush=True)
os._exit(0)
"""


@pytest.mark.slow
@sized("steps", 150, long=400)
def test_a_slow_consumer_holds_the_pipeline_back_and_waiting_takes_no_processor(steps, data):
    """What lies in the object store stays below the bound over a run several times as large.

    Ray Data's loop shares the training process: while its blocks wait, it must not turn without rest. In a process of
    its own: threads of a pipeline that was left in the middle outlive `ray.shutdown`.
    """
    import ray

    command = [sys.executable, "-c", SLOW_CONSUMER, data, ray.get_runtime_context().gcs_address, str(steps)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    lines = [line.removeprefix("seen ") for line in done.stdout.splitlines() if line.startswith("seen ")]
    assert lines, done.stderr[-2000:]
    size, held, resident, busy = json.loads(lines[0])
    assert size > steps * 64 // 40 << 20, "several times the bound"
    assert max(held) <= 64 << 20
    assert np.median(held) > 16 << 20, "the consumer was the slower one"
    assert max(resident[4:]) - resident[3] < 64 << 20
    assert busy < 1.2, f"{busy} s of processor time in 4 s"


@pytest.mark.parametrize("stays", [False, True])
def test_a_small_data_set_is_not_cut_into_endless_tasks(data, stays):
    from soda_dist.distributed.ingest_plan import TASKS_PER_DATASET, datasets, slices

    config = config_of(1, steps=2000)
    order = Order([g for shard in GROUPS for g in shard], config.seed, 16, config.data.shuffle_groups)
    datasets = list(datasets(order, config, 0, 3, stays=stays))
    tasks = sum(len(plans) for plans in datasets)
    assert tasks < 5 if stays else tasks > 1000, "2,000 steps of 16, at most 2,048 rows a block and 8 blocks a task"
    assert max(len(plans) for plans in datasets) <= TASKS_PER_DATASET + 2
    planned = [piece for plans in datasets for plan in plans for block in plan for piece in block]
    assert planned == [piece for step in range(3, 2000) for piece in slices(config, 0, step)]
