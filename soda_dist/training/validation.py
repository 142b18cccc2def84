"""Metrics of held-out images during training, of the EMA weights, for `train.stop`."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from soda_dist.config.schema import RunConfig
from soda_dist.data.labels import ProbeLabels
from soda_dist.data.order import Order
from soda_dist.data.pairs import Pairs, read_pairs
from soda_dist.data.shards import Manifest, ShardReader
from soda_dist.data.storage.folder import Folder
from soda_dist.data.views.pair_views import view_pairs
from soda_dist.errors import UserError
from soda_dist.metrics import label_free
from soda_dist.models.condition import Sources
from soda_dist.models.method import Method
from soda_dist.models.pixels import source_input
from soda_dist.models.soda import Encoding
from soda_dist.training.checkpoint import ema_model
from soda_dist.training.context import WorkerContext
from soda_dist.training.engines.engine import Engine
from soda_dist.training.objective import Objective
from soda_dist.training.to_device import to_device


class Validation:
    """The metric `train.stop.metric` on the first `train.stop.images` rows of a split.

    The first rank computes it with the full EMA weights, whatever the engine shards, while the others wait; so it is
    the same on all workers and for any number of them. Random numbers depend on the row alone: values differ only by
    the weights.
    """

    def __init__(
        self, config: RunConfig, data: Folder, manifest: Manifest, labels: ProbeLabels | None, context: WorkerContext
    ) -> None:
        self._config, self._labels, self._context = config, labels, context
        self._reader = ShardReader(data, manifest, config.train.stop.split)
        groups = list(self._reader.groups)
        self._order = Order(groups, config.seed, config.train.global_batch, config.data.shuffle_groups)
        self._count = min(config.train.stop.images, sum(groups))

    def measure(self, engine: Engine) -> float:
        """Compute the metric; call on every rank, and get the same value on each.

        Raises:
            UserError: no image could be read.
        """
        value = 0.0
        with engine.ema_weights() as weights:
            if weights is not None:
                model = ema_model(engine, weights, self._config).to(self._context.device).eval()
                with torch.no_grad():
                    value = self._value(model.requires_grad_(False), engine)
        return float(self._context.gather(value)[0])

    def _value(self, model: Method, engine: Engine) -> float:
        match self._config.train.stop.metric:
            case "loss":
                return self._loss(model)
            case "probe_accuracy":
                return self._probe_accuracy(model, engine)
            case metric:
                return self._label_free(model)[metric]

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


def _flat(z: Tensor) -> Tensor:
    return z.mean(1) if z.ndim == 3 else z
