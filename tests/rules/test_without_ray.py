"""Import, training and every task of evaluation where Ray, DeepSpeed and boto3 are not installed, in one process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys
BLOCKED = ("ray", "deepspeed", "boto3", "botocore")
sys.modules.update(dict.fromkeys(BLOCKED))

import hashlib
import json
from pathlib import Path

from soda_dist.data.preparation import check, prepare
from soda_dist.evaluation import LocalPool, evaluate
from soda_dist.evaluation.tasks import TASKS
from soda_dist.training.checkpoint import load_model
from tests.metrics.networks import write_alexnet, write_inception
from tests.models.methods import config_of
from tests.training.plain_run import train_plainly

place, said = Path(sys.argv[1]), []
options = ["objects=8", "test_objects=3", "views=3", "size=32"]
data = prepare("synthetic", None, str(place / "data"), options, LocalPool(), said.append)
check(data, 2, LocalPool(), said.append)

weights = {"inception": write_inception(place / "inception.pth"), "lpips": write_alexnet(place / "alexnet.pth")}
judges = {
    name: {"weights": str(file), "weights_sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    for name, file in weights.items()
}
judges["lpips"]["net"] = "alex"
few = {
    "batch": 8, "images": 2, "knn": {"k": 3}, "dci": {"rounds": 2}, "reconstruction": {"images": 2, "guidance": ()},
    "novel_views": {"objects": 2, "views": 1, "sources": (1,)}, "fid": {"sets": ("samples",), "images": 2},
    "tools": {"images": 2, "directions": 1, "ks": (-1.0, 1.0), "weights": 2, "noises": 1, "measured_images": 2},
}
config = config_of(
    "rays",
    data={"source_size": 16, "target_size": 32, "augmentation": {"flip": False}},
    denoiser={"attention_resolutions": (16,)},
    sampling={"steps": 2},
    train={"steps": 10, "global_batch": 8, "log_every_steps": 5, "checkpoint_every_steps": 10},
    evaluation={**few, **judges},
)
assert config.scale.engine == "torch"
run = train_plainly(data, config, str(place / "run"), said.append)
assert load_model(run)[2] == 10

found = evaluate(run.uri, data, ",".join(TASKS), pool=LocalPool(), say=said.append)
assert [name for name in sys.modules if name.split(".")[0] in BLOCKED and sys.modules[name] is not None] == []
print("\\n".join(said))
print(json.dumps({"tasks": list(TASKS), "values": {name: result.get("value") for name, result in found.items()}}))
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_data_set_is_imported_trained_on_and_evaluated_with_ray_deepspeed_and_boto3_blocked(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=1100, check=False)
    assert done.returncode == 0, done.stderr
    assert "step 10/10" in done.stdout and "24 train rows" in done.stdout
    last = json.loads(done.stdout.splitlines()[-1])
    names = ["probe", "knn", "label_free", "dci", "reconstruction", "samples", "novel_views", "fid", "latents"]
    assert last["tasks"] == names and list(last["values"]) == names
    assert all((tmp_path / "run/eval/10" / f"{name}.json").exists() for name in names)
    measured = {name: value for name, value in last["values"].items() if name not in ("samples", "latents")}
    assert all(isinstance(value, float) for value in measured.values()), measured
