"""`benchmark.py embed`: embeddings of a folder of image files against a plain loop over a torch DataLoader, on CPUs.

Both sides read the same files, take the same views and use the same network on one thread. Ours lists the folder, keeps
finished pieces on the disk and writes Parquet; the loop is given the paths and keeps the latents in memory.
"""

import json
import os
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader

from soda_dist.benchmarks.features import CentralViews, Initial, check_plain, one_thread, plain_latents
from soda_dist.benchmarks.harness import Result, Side, alternate, ratio
from soda_dist.config.load import load_config
from soda_dist.config.schema import RunConfig
from soda_dist.config.sections import Data
from soda_dist.data.preparation import prepare
from soda_dist.data.shards import ShardReader, read_manifest
from soda_dist.data.storage.folder import open_folder
from soda_dist.inference.embedding import embed
from soda_dist.models.lr_equalization import plain_state_dict
from soda_dist.models.soda import Encoding
from soda_dist.parallel.local_pool import LocalPool
from soda_dist.parallel.progress import Say, silent
from soda_dist.training.build import build_encoder

IMAGES = 10_000
SMALL = ("encoder.width=0.125", "encoder.latent_dim=128", "train.precision=fp32")
"""A small encoder, with which the reading of files weighs most."""
WORKERS = (0, 1)
"""`num_workers` of the DataLoader; 1 reads ahead in a process, as our one process does in a thread."""
LIMIT = 0.9


def measure_embed(preset: str, data_uri: str | None, overrides: list[str], say: Say) -> list[Result]:
    """Compare images/s of `embed` in one process with the better of two plain loops; start-up is not measured.

    Args:
        data_uri: prepared shards, whose training images become the files; None = rendered.
        overrides: `evaluation.max_train_images` sets the number of images.

    Raises:
        UserError: a method without an encoder of single images.
    """
    fields = [f"evaluation.max_train_images={IMAGES}", "evaluation.baselines=false", *SMALL]
    config = load_config(preset, [*fields, *overrides])
    check_plain(config)
    with tempfile.TemporaryDirectory() as scratch, one_thread():
        files = write_files(data_uri or _rendered(f"{scratch}/data", config, say), config, Path(scratch, "images"))
        encoder = write_model(config, Path(scratch, "encoder"))
        say(f"{len(files):,} files per round, {os.cpu_count()} cores")
        sides: dict[str, Side] = {"embed": partial(_embed_rate, encoder, f"{scratch}/images", len(files))}
        for number in WORKERS:
            sides[f"DataLoader, num_workers={number}"] = partial(_loop_rate, config, files, number)
        for name, side in sides.items():
            say(f"{name}: warm-up round, {side(-1):.4g} images/s")
        return [ratio(f"embed, {preset}", alternate(f"embed, {preset}", sides, "images/s", say), "images/s", LIMIT)]


def _rendered(uri: str, config: RunConfig, say: Say) -> str:
    """Render as many training images as a round takes."""
    options = [f"objects={config.evaluation.max_train_images}", "test_objects=2", "views=1", "size=32"]
    return prepare("synthetic", None, uri, options, LocalPool(), say)


def write_files(data_uri: str, config: RunConfig, place: Path) -> list[Path]:
    """Write the first training images of prepared data as files, a hundred to a folder."""
    folder = open_folder(data_uri)
    reader = ShardReader(folder, read_manifest(folder), config.data.train_split)
    paths: list[Path] = []
    for number in range(len(reader.groups)):
        for image in reader.group(number, ["image"])["image"].to_pylist():
            if len(paths) == config.evaluation.max_train_images:
                return paths
            ending = "jpg" if image.startswith(b"\xff") else "png"
            paths.append(place / f"{len(paths) // 100:04d}/{len(paths):06d}.{ending}")
            paths[-1].parent.mkdir(parents=True, exist_ok=True)
            paths[-1].write_bytes(image)
    return paths


def write_model(config: RunConfig, place: Path) -> str:
    """Write the initial encoder of `config` as a checkpoint's `encoder.safetensors`, config.json beside it."""
    place.mkdir(parents=True)
    tensors = plain_state_dict(build_encoder(config))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, place / "encoder.safetensors")
    (place / "config.json").write_text(json.dumps(config.model_dump()))
    return str(place / "encoder.safetensors")


class FileViews(CentralViews):
    """Paths -> normalized center crops, float [3, s, s]."""

    def __init__(self, paths: Sequence[Path], data: Data) -> None:
        super().__init__([], data)
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, number: int) -> Tensor:
        return self._transform(Image.open(self._paths[number]).convert("RGB"))


def _embed_rate(encoder: str, images: str, count: int, number: int) -> float:
    out = Path(images).parent / f"{number}.parquet"
    start = time.perf_counter()
    embed(encoder, images, str(out), device="cpu", say=silent)
    return count / (time.perf_counter() - start)


def _loop_rate(config: RunConfig, files: list[Path], workers: int, number: int) -> float:
    model = Initial(config).load()
    assert isinstance(model, Encoding)
    batches = iter(DataLoader(FileViews(files, config.data), config.evaluation.batch, num_workers=workers))
    start = time.perf_counter()
    plain_latents(model.encoder, batches, config)
    return len(files) / (time.perf_counter() - start)
