"""A tiny run with its data, results and caches, and every entry point that reads it."""

import hashlib
import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors.torch import load, save
from torch import Tensor

from soda_dist.data.order import Order
from soda_dist.data.shards import ShardReader, check_shards, read_manifest
from soda_dist.data.storage.folder import open_folder
from soda_dist.evaluation.model_sources import EncoderFile
from soda_dist.evaluation.task_runner import evaluate
from soda_dist.report.comparison import compare
from soda_dist.report.page import write_report
from soda_dist.runs.folder import chosen_steps, claim, open_run
from soda_dist.runs.results import write_result
from soda_dist.training.build import build_objective, torch_engine
from soda_dist.training.checkpoint import load_model, load_online_probe
from soda_dist.training.context import LocalContext
from soda_dist.training.log_window import LogWindow
from soda_dist.training.loop import fit, resume
from tests.evaluation.small_run import small_data
from tests.report.evaluated_runs import reconstruction
from tests.tiny import tiny_config
from tests.training.labelled import CLASS, labelled_feed

STEP = "run/checkpoints/000000003"
CONFIG = tiny_config(
    encoder={"norm": "batch"},
    train={"steps": 3, "log_every_steps": 1, "online_probe": True},
    evaluation={"batch": 64, "images": 2, "baselines": False, "knn": {"k": 5}},
)
MORE = CONFIG.model_copy(update={"train": CONFIG.train.model_copy(update={"steps": 4})})


def make(place: Path) -> None:
    """`data` and `run` in the folder `place`: a checkpoint, a result of each kind that is shown, cached latents."""
    small_data(place / "data")
    run = open_folder(str(place / "run"))
    claim(run, CONFIG)
    fit(LocalContext(), _engine(), CONFIG, labelled_feed(CONFIG), run, rows=45)
    evaluate(run.uri, str(place / "data"), "knn")
    picture = BytesIO()
    Image.new("RGB", (4, 4)).save(picture, format="PNG")
    settings = CONFIG.sampling.model_dump(mode="json")
    drawn = reconstruction(2, "test", settings, g2={"psnr": 20.0, "ssim": 0.5})
    write_result(run, 3, {"task": "reconstruction", "images": 2, **drawn}, {"sweep.png": picture.getvalue()}, ema=True)
    run.write("quarantine.jsonl", b'{"step": 1, "key": 3, "name": "3.png", "reason": "no image"}\n')


def _engine() -> Any:
    return torch_engine(CONFIG, build_objective(CONFIG, CLASS))


def resume_run(place: Path) -> None:
    """As another start of the run does before its first step."""
    run = open_run(str(place / "run"))
    claim(run, MORE)
    step = resume(LocalContext(), _engine(), run)
    LogWindow(LocalContext(), MORE, run, 45, step)


def load_networks(place: Path) -> None:
    run = open_run(str(place / "run"))
    (step,) = chosen_steps(run, "latest")
    load_model(run, step)
    load_model(run, step, ema=False)
    load_online_probe(run, step)


def load_encoder(place: Path) -> None:
    EncoderFile(str(place / STEP / "encoder.safetensors")).load()


def evaluate_run(place: Path) -> None:
    evaluate(str(place / "run"), str(place / "data"), "knn")


def report(place: Path) -> None:
    write_report(str(place / "run"))


def compare_run(place: Path) -> None:
    compare([str(place / "run")], "2")


def read_data(place: Path) -> None:
    """As training and evaluation do before they read rows, and one row group."""
    folder = open_folder(str(place / "data"))
    manifest = read_manifest(folder)
    for split in manifest.splits:
        check_shards(folder, manifest, split)
        reader = ShardReader(folder, manifest, split)
        Order(list(reader.groups), 0, 8, 4)
        for number in range(len(reader.groups)):
            reader.group(number, ["key", "image"])


ENTRIES: dict[str, Callable[[Path], None]] = {
    "resume": resume_run,
    "model": load_networks,
    "encoder": load_encoder,
    "evaluate": evaluate_run,
    "report": report,
    "compare": compare_run,
    "data": read_data,
}


def rewrite(path: Path, change: Callable[[Any], Any]) -> None:
    """Replace a JSON file's value by `change` of it."""
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def retensor(path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """Replace a file's tensors by `change` of them, and the checkpoint's manifest to agree."""
    path.write_bytes(save(change(load(path.read_bytes()))))
    seal(path.parent)


def seal(checkpoint: Path) -> None:
    """Make the manifest list the files of its folder with their present sizes and digests."""
    found = [path for path in sorted(checkpoint.iterdir()) if path.name != "manifest.json"]
    entries = [
        {"name": p.name, "bytes": p.stat().st_size, "sha256": hashlib.sha256(p.read_bytes()).hexdigest()} for p in found
    ]
    rewrite(checkpoint / "manifest.json", lambda tree: {**tree, "files": entries})
