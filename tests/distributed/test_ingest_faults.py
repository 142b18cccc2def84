"""An object store that fails while Ray Data reads from it: no key is lost or doubled, and retries are counted."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import pyarrow as pa
import pytest

from soda_dist.data.shards import read_manifest, shard_schema, write_shard
from soda_dist.data.storage.folder import open_folder
from tests.evaluation.small_run import COLUMNS, prepare
from tests.faulty_proxy import Faults, faulty_proxy

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]
GROUPS = [[8] * 6] * 8
"""384 rows in 48 row groups: three windows of 16 groups, an epoch of 24 steps of 16."""
FAULTS = {
    "failing": Faults(refused=0.04, broken=0.03, throttled=0.03),
    "slow, cut and busy": Faults(delayed=0.05, seconds=1.5, cut=0.1, outage=12),
}

STREAM = """
import json, os, sys
import ray
address, proxy = sys.argv[1:]
ray.init(address=address, runtime_env={"env_vars": {"AWS_ENDPOINT_URL": proxy}}, log_to_driver=False)
from soda_dist.distributed.ingest import stream
from soda_dist.errors import UserError
from tests.tiny import tiny_config

train = {"global_batch": 16, "steps": 24, "checkpoint_every_steps": 100}
for line in sys.stdin:
    found = {"keys": [], "retries": 0, "error": None}
    try:
        for pairs in stream(line.strip(), tiny_config(train=train), 0, 0):
            found["keys"] += pairs.key.tolist()
            found["retries"] += int(pairs.retries.sum())
    except UserError as error:
        found["error"] = str(getattr(error, "cause", error))
    print("found", json.dumps(found), flush=True)
os._exit(0)
"""


@dataclass
class Reader:
    """A process that streams an epoch of each URI it is given, its data workers by way of the proxy."""

    process: subprocess.Popen
    faults: Faults
    errors: Path

    def streamed(self, uri: str, faults: Faults) -> dict:
        """Keys, retries and the error of an epoch during which the proxy has these faults."""
        assert self.process.stdin is not None and self.process.stdout is not None
        for field in fields(Faults):
            setattr(self.faults, field.name, getattr(faults, field.name))
        self.process.stdin.write(uri + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("found "):
                return json.loads(line.removeprefix("found "))
        raise AssertionError(self.errors.read_text()[-3000:])


@pytest.fixture(scope="module")
def reader(s3_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    import ray

    faults, errors = Faults(), tmp_path_factory.mktemp("reader") / "stderr"
    with faulty_proxy(s3_server, faults) as proxy, errors.open("w") as stderr:
        command = [sys.executable, "-c", STREAM, ray.get_runtime_context().gcs_address, proxy]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True, env=os.environ.copy()
        ) as process:
            yield Reader(process, faults, errors)
            process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("kind", FAULTS)
def test_an_epoch_has_every_key_once(kind: str, s3_uri: str, reader: Reader) -> None:
    prepare(s3_uri, {"train": GROUPS}, {})
    outage = FAULTS[kind].outage
    found = reader.streamed(s3_uri, FAULTS[kind])
    assert found["error"] is None
    assert Counter(found["keys"]) == Counter(range(384))
    assert sum(count for name, count in reader.faults.met.items() if name != "passed") >= 3, reader.faults.met
    assert (found["retries"] >= 1) == (outage > 0), "the SDK's own tries are enough for single failures"


def test_a_shard_replaced_by_another_ends_the_run_with_one_line(s3_uri: str, reader: Reader) -> None:
    """Sound, with the same rows and groups, but other bytes."""
    prepare(s3_uri, {"train": GROUPS}, {})
    folder = open_folder(s3_uri)
    shard = read_manifest(folder).splits["train"].shards[3]
    schema = shard_schema(COLUMNS)
    tables = []
    for number in range(6):
        keys = range(144 + 8 * number, 152 + 8 * number)
        tables.append(
            pa.table(
                {
                    "key": keys, "image": [b"x"] * 8, "name": ["y"] * 8, "colour": [0] * 8, "bright": [True] * 8,
                    "late": [True] * 8,
                },
                schema=schema,
            )
        )  # fmt: skip
    assert write_shard(folder, shard.path, tables, schema).groups == shard.groups  # type: ignore[union-attr]
    found = reader.streamed(s3_uri, Faults())
    wanted = f"{folder.file_uri(shard.path)}: got an altered shard (content differs from the manifest); allowed"
    assert found["error"].startswith(wanted) and "\n" not in found["error"]
