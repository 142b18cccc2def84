"""`benchmark.py features`: latents by the actors of evaluation against a plain loop over a torch DataLoader, on CPUs.

Both sides encode the same images by the same network, on one thread for each actor. Ours reads shards, writes Parquet
and reads it back; theirs holds the encoded images in memory and keeps what comes out.
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
from soda_dist.benchmarks.training_loop import rendered
from soda_dist.benchmarks.update import allowed_overrides
from soda_dist.config.load import load_config
from soda_dist.config.schema import RunConfig
from soda_dist.config.sections import Data
from soda_dist.data.shards import ShardReader
from soda_dist.data.storage.folder import open_folder
from soda_dist.distributed.runtime.actor_pool import ActorPool
from soda_dist.errors import UserError
from soda_dist.evaluation.features.extraction import collect
from soda_dist.evaluation.pieces import Features, Piece, check_splits, plan_pieces
from soda_dist.evaluation.worker import load_models, readers, rows_of
from soda_dist.models.method import Method
from soda_dist.models.pixels import IMAGENET_MEAN, IMAGENET_STD
from soda_dist.models.soda import Encoding
from soda_dist.parallel.pool import Pool
from soda_dist.parallel.progress import Say, silent
from soda_dist.training.build import build_model

IMAGES = 1024
"""Of a round, where the command does not say: four row groups of small images, which two actors can share evenly."""
ONE, TWO = "1 actor", "2 actors"
WORKERS = (0, 1)
"""Of the DataLoader; the second has a process, and where there is one a core, more than our actor."""
LIMIT = 0.9
TWICE = 1.6
"""What a second actor should bring on two cores, which the driver and Ray's own processes use too; linear is 2."""


@dataclass(frozen=True)
class Initial:
    """An `ModelSource` without a checkpoint: the configuration's model with the weights of its seed."""

    config: RunConfig

    def configuration(self) -> RunConfig:
        """What it was made with."""
        return self.config

    def load(self) -> Method:
        """In eval mode on the CPU."""
        return self.fresh(self.config).requires_grad_(False)

    def fresh(self, config: RunConfig) -> Method:
        """The same."""
        return build_model(config).eval()

    def digest(self) -> str:
        """None: nothing of it is kept."""
        return ""


def measure_features(preset: str, data_uri: str | None, overrides: list[str], say: Say) -> list[Result]:
    """Images a second of the extraction by one actor against the better of two plain loops, and by two against one.

    The first `evaluation.max_train_images` images are a round's work. Starting the actors, and the DataLoader's
    worker, is not in the rates; the actors' start is told beside them. The network has its initial weights.

    Args:
        data_uri: prepared shards; none: rendered ones.

    Raises:
        UserError: a method without an encoder, or with one that is told more than an image; images that cannot be
            read; a setting that is varied here.
    """
    fields = [f"evaluation.max_train_images={IMAGES}", "evaluation.baselines=false"]
    config = load_config(preset, [*fields, *allowed_overrides(overrides, ["evaluation.actors"])])
    check_plain(config)
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as pools, one_thread():
        data_uri = data_uri or rendered(f"{scratch}/data", say)
        reader = _reader(data_uri, config)
        pieces = plan_pieces(reader.split, reader.groups, config.evaluation.max_train_images, config.evaluation.batch)
        say(f"{sum(piece.rows for piece in pieces):,} images a round in {len(pieces)} pieces, {os.cpu_count()} cores")
        sides: dict[str, Side] = {}
        started: dict[str, float] = {}
        for actors, name in ((1, ONE), (2, TWO)):
            pool, started[name] = _started(pools, config, data_uri, actors, say)
            sides[name] = partial(_extraction_rate, pool, f"{scratch}/{actors}", pieces)
        for number in WORKERS:
            sides[_loop(number)] = partial(_loop_rate, config, encoded(reader, pieces), number)
        for name, side in sides.items():
            say(f"{name}: first round, not counted, {side(-1):.4g} images/s")
        rounds = alternate(f"features, {preset}", sides, "images/s", say)
    return _rows(f"features, {preset}", rounds, started)


def check_plain(config: RunConfig) -> None:
    """A `UserError` where a latent is a function of more than the image and the encoder, which is all the loop has."""
    for field, got, allowed in [
        ("method", config.method, ("soda", "encdec")),
        ("data.pose", config.data.pose, ("none",)),
        ("aggregation.kind", config.aggregation.kind, ("mean",)),
        ("evaluation.latents", config.evaluation.latents, ("encoder",)),
        ("evaluation.baselines", config.evaluation.baselines, (False,)),
    ]:
        if got not in allowed:
            raise UserError(field, got, ", ".join(map(str, allowed)), "this is a benchmark of an encoder of images")


def _reader(data_uri: str, config: RunConfig) -> ShardReader:
    found = readers(data_uri, config)[config.evaluation.train_split]
    check_splits(found.manifest, config)
    return found


def _rows(name: str, rounds: Rates, started: dict[str, float]) -> list[Result]:
    one = {side: rates for side, rates in rounds.items() if side != TWO}
    two = {side: rounds[side] for side in (TWO, ONE)}
    several = TWICE if (os.cpu_count() or 1) > 1 else None
    return [
        ratio(f"{name}, {ONE}", one, "images/s", LIMIT, {"seconds to start": started[ONE]}),
        ratio(f"{name}, {TWO}", two, "images/s", several, {"seconds to start": started[TWO]}),
    ]


def _started(pools: ExitStack, config: RunConfig, data_uri: str, actors: int, say: Say) -> tuple[Pool, float]:
    """A pool all of whose actors are ready, and the seconds that this took."""
    began = time.perf_counter()
    pool = ActorPool(
        say=say,
        actors=actors,
        start_timeout_s=config.scale.start_timeout_s,
        setup=partial(load_models, Initial(config), data_uri, config),
    )
    pools.enter_context(pool)
    threads: dict[int, int] = {}
    while len(threads) < actors:
        threads |= dict(pool.map(_threads, range(actors)))
    seconds = time.perf_counter() - began
    each = ", ".join(map(str, sorted(set(threads.values()))))
    say(f"actors: {actors}, ready after {seconds:.3g} s; threads of each: {each}")
    return pool, seconds


def _threads(state: Any, number: int) -> tuple[int, int]:
    """Process and threads of an actor; it waits a little, so that the others get a turn."""
    time.sleep(0.1)
    return os.getpid(), torch.get_num_threads()


@contextmanager
def one_thread() -> Iterator[None]:
    """This process computes on one thread inside, as an actor of one CPU does."""
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
    _check_readable(found)
    return len(found) / seconds


def _check_readable(found: Features) -> None:
    if found.unreadable:
        got = f"{len(found.unreadable)} images that cannot be read, such as {found.unreadable[0]}"
        raise UserError("--data", got, "readable ones", "lower evaluation.max_train_images, or choose other data")


def encoded(reader: ShardReader, pieces: Sequence[Piece]) -> list[bytes]:
    """The images of the pieces as the shards hold them."""
    return [image for piece in pieces for image in rows_of(reader, piece, ["image"])["image"].to_pylist()]


class CentralViews(Dataset):
    """Encoded images -> float [3, s, s], ImageNet mean and variance: the work of `data.views.center_views`."""

    def __init__(self, images: list[bytes], data: Data) -> None:
        self._images, size = images, data.source_size
        self._transform = v2.Compose(
            [
                v2.Resize(round(size * data.eval_resize)),
                v2.CenterCrop(size),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            ]
        )

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, number: int) -> Tensor:
        return self._transform(Image.open(io.BytesIO(self._images[number])).convert("RGB"))


@torch.no_grad()
def plain_latents(encoder: nn.Module, batches: Iterator[Tensor], config: RunConfig) -> Tensor:
    """The plain loop: float32 [n, D], the mean over the grid where there is no bottleneck."""
    found = []
    with torch.autocast("cpu", torch.bfloat16, enabled=config.train.precision == "bf16"):
        for images in batches:
            z = encoder(images)
            found.append((z.mean(1) if z.ndim == 3 else z).float())
    return torch.cat(found)


def _loop(workers: int) -> str:
    return f"DataLoader, num_workers={workers}"


def _loop_rate(config: RunConfig, images: list[bytes], workers: int, number: int) -> float:
    model = Initial(config).load()
    assert isinstance(model, Encoding)
    batches = iter(DataLoader(CentralViews(images, config.data), config.evaluation.batch, num_workers=workers))
    start = time.perf_counter()
    plain_latents(model.encoder, batches, config)
    return len(images) / (time.perf_counter() - start)
