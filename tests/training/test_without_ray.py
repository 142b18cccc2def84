"""The core trains where Ray, DeepSpeed and boto3 are not installed."""

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys
sys.modules.update(dict.fromkeys(("ray", "deepspeed", "boto3", "botocore")))
import torch
from soda_dist.data.order import Order
from soda_dist.data.pairs import local_pairs
from soda_dist.data.shards import ShardReader, read_manifest
from soda_dist.data.storage.folder import open_folder
from soda_dist.training.checkpoint import load_model
from soda_dist.training.context import LocalContext
from soda_dist.training.loop import fit
from tests.evaluation.small_run import small_data
from tests.tiny import tiny_config
from tests.training.test_engine import engine_of
from pathlib import Path

data, run = open_folder(sys.argv[1]), open_folder(sys.argv[2])
manifest = small_data(Path(sys.argv[1]))
config = tiny_config(train={"steps": 10, "global_batch": 8, "log_every_steps": 5, "checkpoint_every_steps": 10})
reader = ShardReader(data, manifest, "train")
order = Order([g for s in manifest.splits["train"].shards for g in s.groups], config.seed, 8, 4)
feed = lambda step: local_pairs(reader, order, step * 8, 8, seed=config.seed, data=config.data, threads=0)
said = []
fit(LocalContext(say=said.append), engine_of(config), config, feed, run, rows=45)
assert load_model(run)[2] == 10
print("\\n".join(said))
"""


def test_ten_steps_with_ray_deepspeed_and_boto3_blocked(tmp_path):
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "data"), str(tmp_path / "run")]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert "step 10/10" in done.stdout
