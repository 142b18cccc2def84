"""Metrics and reconstructions of held-out images during training, of the EMA weights."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from soda_dist.config.schema import RunConfig
from soda_dist.data.labels import ProbeLabels
from soda_dist.data.order import Order
from soda_dist.data.pairs import Pairs, read_pairs
from soda_dist.data.shards import Manifest, ShardReader
from soda_dist.data.storage.folder import Folder
from soda_dist.data.views.pair_views import view_pairs
from soda_dist.diffusion.sampling import reverse_steps
from soda_dist.errors import UserError
from soda_dist.metrics import label_free
from soda_dist.models.condition import Sources
from soda_dist.models.method import DiffusionMethod, Method, Recipe
from soda_dist.models.pixels import source_input, to_uint8
from soda_dist.models.soda import Encoding
from soda_dist.plots.image_grid import image_grid
from soda_dist.training.checkpoint import ema_model
from soda_dist.training.context import WorkerContext
from soda_dist.training.engines.engine import Engine
from soda_dist.training.objective import Objective
from soda_dist.training.randomness import mix64
from soda_dist.training.to_device import to_device

PICTURED = 8
"""Most images of a picture."""
PURPOSE = 0x76616C69
"""Sets the noise of pictures apart from all other random numbers."""


@dataclass(frozen=True)
class Findings:
    """What a measurement found.

    Attributes:
        values: by metric; the same on all ranks.
        picture: PNG of reconstructions; None on other ranks than the first, or if it was not asked for.
    """

    values: dict[str, float]
    picture: bytes | None = None


class Validation:
    """Metrics of the first `train.stop.images` rows of the split `train.stop.split`.

    The first rank computes them with the full EMA weights, whatever the engine shards, while the others wait; so they
    are the same on all workers and for any number of them. Random numbers depend on the row alone: values differ only
    by the weights, and training's own random numbers are left alone.
    """

    def __init__(
        self, config: RunConfig, data: Folder, manifest: Manifest, labels: ProbeLabels | None, context: WorkerContext
    ) -> None:
        self._config, self._labels, self._context = config, labels, context
        self._reader = ShardReader(data, manifest, config.train.stop.split)
        groups = list(self._reader.groups)
        self._order = Order(groups, config.seed, config.train.global_batch, config.data.shuffle_groups)
        self._count = min(config.train.stop.images, sum(groups))

    def measure(self, engine: Engine, metrics: Sequence[str], *, picture: bool = False) -> Findings:
        """Compute metrics, values of `train.stop.metric`, and draw reconstructions; call on every rank.

        Raises:
            UserError: no image could be read.
        """
        values, drawn = dict.fromkeys(metrics, 0.0), None
        with engine.ema_weights() as weights:
            if weights is not None:
                model = ema_model(engine, weights, self._config).to(self._context.device).eval()
                with torch.no_grad():
                    values = {name: self._value(name, model.requires_grad_(False), engine) for name in metrics}
                    drawn = self._reconstructions(model) if picture else None
        return Findings(self._context.gather(values)[0], drawn)

    def _value(self, metric: str, model: Method, engine: Engine) -> float:
        match metric:
            case "loss":
                return float(self._loss(model))
            case "probe_accuracy":
                return float(self._probe_accuracy(model, engine))
            case _:
                return float(self._label_free(model)[metric])

    def _reconstructions(self, model: Method) -> bytes:
        """Draw samples from central views of the first readable rows, by `sampling` and from the same noise always."""
        config, device = self._config, self._context.device
        data = config.data.model_copy(update={"augment": "none"})
        rows = read_pairs(self._reader, self._order, 0, min(PICTURED, self._count), seed=config.seed, data=data)
        shown = np.flatnonzero(rows.ok)
        self._readable(2 * len(shown))
        batch = to_device(rows, device)
        poses, pose = (batch.source_pose, batch.target_pose) if data.pose != "none" else (None, None)
        sources, s = Sources(source_input(batch.source), batch.present, poses), config.sampling
        plan = []
        if isinstance(model, DiffusionMethod):
            plan = reverse_steps(model.process.abar, method=s.method, steps=s.steps, variance=s.variance, eta=s.eta)
        recipe = Recipe(
            conditions=[model.condition(sources, pose, None, None)],
            without=model.unguided(sources, pose, s.guide, s.guided_sections, None),
            w=s.guidance,
            plan=plan,
            noise=lambda step: self._noise(step + 1, len(rows.ok)),
            choose=lambda t: 0,
        )
        x = self._noise(0, len(rows.ok))
        for state in model.sample(recipe, x):
            x = state.x
        drawn = to_uint8(x).cpu().numpy()
        columns = ["source", "target", "reconstruction"]
        return image_grid([_row(rows.source[at, 0], rows.target[at], drawn[at]) for at in shown], columns)

    def _noise(self, step: int, count: int) -> Tensor:
        side = self._config.data.target_size
        seeded = torch.Generator().manual_seed(mix64(self._config.seed, PURPOSE, step) >> 1)
        return torch.randn(count, 3, side, side, generator=seeded).to(self._context.device)

    def _loss(self, model: Method) -> float:
        d = self._config.denoiser
        objective = Objective(
            model=model,
            seed=self._config.seed,
            timesteps=self._config.diffusion.steps,
            source_noise=self._config.data.source_noise,
            mask_rates=(d.layer_mask_rate, d.guidance_mask_rate, self._config.pose.mask_rate),
        ).eval()
        total = rows = 0.0
        for pairs in self._pairs():
            total += float(objective(*to_device(pairs, self._context.device))) * len(pairs.ok)
            rows += int(pairs.ok.sum())
        return total / self._readable(rows)

    def _probe_accuracy(self, model: Method, engine: Engine) -> float:
        assert engine.objective.online_probe is not None and isinstance(model, Encoding)
        probe, hits, count = engine.objective.online_probe.fitted(), 0, 0
        for pairs in self._pairs():
            batch, ok = to_device(pairs, self._context.device), torch.from_numpy(pairs.ok)
            poses = batch.source_pose if batch.source_pose.shape[2] else None
            z = _flat(model.encode(Sources(source_input(batch.source), batch.present, poses)))
            found = probe.predict(z).argmax(-1).view(len(z), -1).cpu()
            right = found == torch.from_numpy(pairs.label)
            hits, count = hits + int(right[ok].sum()), count + right[ok].numel()
        return hits / self._readable(count)

    def _label_free(self, model: Method) -> dict[str, float]:
        views = [torch.cat(list(self._latents(model, epoch))) for epoch in range(2)]
        self._readable(len(views[0]))
        scores = label_free.measure(*views)
        warning = label_free.collapse(scores)
        if warning:
            self._context.say(f"warning: the latents have collapsed: {warning}")
        return scores

    def _pairs(self) -> Iterator[Pairs]:
        labels = self._labels.columns if self._labels else ()
        for start in range(0, self._count, self._config.micro_batch):
            stop = min(start + self._config.micro_batch, self._count)
            yield read_pairs(
                self._reader, self._order, start, stop, seed=self._config.seed, data=self._config.data, labels=labels
            )

    def _latents(self, model: Method, epoch: int) -> Iterator[Tensor]:
        """Encode an augmented view of each readable image, the one that training would show in `epoch`."""
        assert isinstance(model, Encoding)
        one = {"views": "same", "sources": (1, 1), "augment": "both"}
        data, first = self._config.data.model_copy(update=one), 0
        for number, rows in enumerate(self._reader.groups):
            images = self._reader.group(number, ["image"]).column("image").to_pylist()[: self._count - first]
            keys = np.arange(first, first + len(images))
            first += rows
            if not images:
                return
            shown = np.stack([np.arange(len(images)), np.full(len(images), -1)], 1)
            seen = view_pairs(images, shown, keys, np.full(len(images), epoch), seed=self._config.seed, data=data)
            readable = np.flatnonzero(seen.ok)
            for start in range(0, len(readable), self._config.micro_batch):
                at = readable[start : start + self._config.micro_batch]
                source = source_input(torch.from_numpy(seen.source[at]).to(self._context.device))
                present = torch.ones(source.shape[:2], dtype=torch.bool, device=source.device)
                poses = torch.from_numpy(seen.source_pose[at]).to(source.device) if data.pose != "none" else None
                yield _flat(model.encode(Sources(source, present, poses))).cpu()

    def _readable(self, count: float) -> float:
        if count < 2:
            got = f"{self._config.train.stop.split} without readable images"
            raise UserError("train.stop.split", got, "two or more", "name another split")
        return count


def _row(source: NDArray[np.uint8], target: NDArray[np.uint8], drawn: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """Return a row of a picture: all of the target's size."""
    side = len(target)
    scaled = Image.fromarray(source).resize((side, side), Image.Resampling.BILINEAR)
    return [np.asarray(scaled), target, drawn]


def _flat(z: Tensor) -> Tensor:
    return z.mean(1) if z.ndim == 3 else z
