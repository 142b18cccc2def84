"""`benchmark.py features`: feature extraction by Ray actors against a plain loop over a torch DataLoader, on CPUs.

Both sides encode the same images with the same network, one thread per actor. Ours reads shards, writes Parquet and
reads it back; the loop keeps compressed images and latents in memory.
"""

import io
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from soda_dist.benchmarks.harness import Rates, Result, Side, alternate, ratio
from soda_dist.benchmarks.training_loop import render
from soda_dist.benchmarks.update import allowed_overrides
from soda_dist.config.load import load_config
from soda_dist.config.schema import RunConfig
from soda_dist.config.sections import Data
from soda_dist.data.shards import ShardReader
from soda_dist.data.storage.folder import open_folder
from soda_dist.distributed.runtime.actor_pool import ActorPool
from soda_dist.errors import UserError
from soda_dist.evaluation.features.extraction import collect
from soda_dist.evaluation.pieces import Piece, check_splits, plan_pieces
from soda_dist.evaluation.rows import drawn_rows
from soda_dist.evaluation.worker import load_models, readers, rows_of
from soda_dist.models.method import Method
from soda_dist.models.pixels import IMAGENET_MEAN, IMAGENET_STD
from soda_dist.models.soda import Encoding
from soda_dist.parallel.pool import Pool
from soda_dist.parallel.progress import Say, silent
from soda_dist.training.build import build_model

IMAGES = 1024
"""Default number of images per round: four row groups of small images, which two actors can share evenly."""
ONE, TWO = "1 actor", "2 actors"
WORKERS = (0, 1)
"""`num_workers` of the DataLoader; 1 uses one process, and core, more than our actor."""
LIMIT = 0.9
TWICE = 1.6
"""Required speedup with a second actor on two cores, which the driver and Ray share; linear is 2."""


@dataclass(frozen=True)
class Initial:
    """A `ModelSource` without a checkpoint: the initial weights of a configuration and its seed."""

    config: RunConfig

    def configuration(self) -> RunConfig:
        """Return the configuration."""
        return self.config

    def load(self) -> Method:
        """Build the frozen model on the CPU, in eval mode."""
        return self.fresh(self.config).requires_grad_(False)

    def fresh(self, config: RunConfig) -> Method:
        """Build the model of `config` on the CPU, in eval mode."""
        return build_model(config).eval()

    def digest(self) -> str:
        """Return an empty digest: nothing is cached."""
        return ""


def measure_features(preset: str, data_uri: str | None, overrides: list[str], say: Say) -> list[Result]:
    """Compare images/s of one actor with the better of two plain loops, and of two actors with one.

    A round processes `evaluation.max_train_images` images. The rates exclude start-up of the actors, which is
    reported beside them, and of the DataLoader's worker. The network has its initial weights.

    Args:
        data_uri: prepared shards; None = rendered.

    Raises:
        UserError: a method without an encoder of single images, unreadable images, or an override of a setting that
            the benchmark varies.
    """
    fields = [f"evaluation.max_train_images={IMAGES}", "evaluation.baselines=false"]
    config = load_config(preset, [*fields, *allowed_overrides(overrides, ["evaluation.actors"])])
    check_plain(config)
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as pools, one_thread():
        data_uri = data_uri or render(f"{scratch}/data", say)
        reader = readers(data_uri, config)[config.evaluation.train_split]
        check_splits(reader.manifest, config)
        drawn = drawn_rows(sum(reader.groups), config.evaluation.max_train_images, config.seed, reader.split)
        pieces = plan_pieces(reader.split, reader.groups, drawn, config.evaluation.batch)
        say(f"{sum(piece.rows for piece in pieces):,} images per round in {len(pieces)} chunks, {os.cpu_count()} cores")
        sides: dict[str, Side] = {}
        started: dict[str, float] = {}
        for actors, name in ((1, ONE), (2, TWO)):
            pool, started[name] = _start_pool(pools, config, data_uri, actors, say)
            sides[name] = partial(_extraction_rate, pool, f"{scratch}/{actors}", pieces)
        for number in WORKERS:
            sides[f"DataLoader, num_workers={number}"] = partial(_loop_rate, config, encoded(reader, pieces), number)
        for name, side in sides.items():
            say(f"{name}: warm-up round, {side(-1):.4g} images/s")
        rounds = alternate(f"features, {preset}", sides, "images/s", say)
    return _rows(f"features, {preset}", rounds, started)


def check_plain(config: RunConfig) -> None:
    """Raise `UserError` if a latent depends on more than the image and the encoder, which is all the loop supports."""
    for field, got, allowed in [
        ("method", config.method, ("soda", "encdec")),
        ("data.pose", config.data.pose, ("none",)),
        ("aggregation.kind", config.aggregation.kind, ("mean",)),
        ("evaluation.latents", config.evaluation.latents, ("encoder",)),
        ("evaluation.baselines", config.evaluation.baselines, (False,)),
    ]:
        if got not in allowed:
            raise UserError(field, got, ", ".join(map(str, allowed)), "the benchmark needs an encoder of single images")


def _rows(name: str, rounds: Rates, started: dict[str, float]) -> list[Result]:
    one = {side: rates for side, rates in rounds.items() if side != TWO}
    two = {side: rounds[side] for side in (TWO, ONE)}
    several = TWICE if (os.cpu_count() or 1) > 1 else None
    return [
        ratio(f"{name}, {ONE}", one, "images/s", LIMIT, {"seconds to start": started[ONE]}),
        ratio(f"{name}, {TWO}", two, "images/s", several, {"seconds to start": started[TWO]}),
    ]


def _start_pool(pools: ExitStack, config: RunConfig, data_uri: str, actors: int, say: Say) -> tuple[Pool, float]:
    """Start a pool and return it with the seconds until all actors were ready."""
    began = time.perf_counter()
    setup = partial(load_models, Initial(config), data_uri, config)
    pool = ActorPool(say=say, actors=actors, start_timeout_s=config.scale.wait_s, setup=setup)
    pools.enter_context(pool)
    threads: dict[int, int] = {}
    while len(threads) < actors:
        threads |= dict(pool.map(_threads, range(actors)))
    seconds = time.perf_counter() - began
    each = ", ".join(map(str, sorted(set(threads.values()))))
    say(f"actors: {actors}, ready after {seconds:.3g} s; threads of each: {each}")
    return pool, seconds


def _threads(state: Any, number: int) -> tuple[int, int]:
    """Return process id and thread count of an actor, after a pause that leaves calls to the other actors."""
    time.sleep(0.1)
    return os.getpid(), torch.get_num_threads()


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit this process to one torch thread, like an actor with one CPU."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _extraction_rate(pool: Pool, uri: str, pieces: list[Piece], number: int) -> float:
    folder = open_folder(f"{uri}/{number}")
    start = time.perf_counter()
    found = collect(pool, folder, pieces, silent)
    seconds = time.perf_counter() - start
    if found.unreadable:
        got = f"{len(found.unreadable)} images that cannot be read, such as {found.unreadable[0]}"
        raise UserError("--data", got, "readable images", "lower evaluation.max_train_images, or choose other data")
    return len(found) / seconds


def encoded(reader: ShardReader, pieces: Sequence[Piece]) -> list[bytes]:
    """Read the compressed images of the pieces."""
    return [image for piece in pieces for image in rows_of(reader, piece, ["image"])["image"].to_pylist()]


class CentralViews(Dataset):
    """Compressed images -> normalized center crops, float [3, s, s]: the same work as `data.views.center_views`."""

    def __init__(self, images: list[bytes], data: Data) -> None:
        self._images, size = images, data.source_size
        crop = [v2.Resize(round(size * data.eval_resize)), v2.CenterCrop(size)]
        values = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
        self._transform = v2.Compose([*crop, *values])

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, number: int) -> Tensor:
        return self._transform(Image.open(io.BytesIO(self._images[number])).convert("RGB"))


@torch.no_grad()
def plain_latents(encoder: nn.Module, batches: Iterator[Tensor], config: RunConfig) -> Tensor:
    """Encode batches in a plain loop: float32 [n, D], averaged over the grid if the encoder has no bottleneck."""
    found = []
    with torch.autocast("cpu", torch.bfloat16, enabled=config.train.precision == "bf16"):
        for images in batches:
            z = encoder(images)
            found.append((z.mean(1) if z.ndim == 3 else z).float())
    return torch.cat(found)


def _loop_rate(config: RunConfig, images: list[bytes], workers: int, number: int) -> float:
    model = Initial(config).load()
    assert isinstance(model, Encoding)
    batches = iter(DataLoader(CentralViews(images, config.data), config.evaluation.batch, num_workers=workers))
    start = time.perf_counter()
    plain_latents(model.encoder, batches, config)
    return len(images) / (time.perf_counter() - start)
