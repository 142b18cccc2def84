"""The linear probe (section E.1, table 12): a linear classifier of labels on frozen latents.

Several workers, each with some of the rows, fit the same probe as one worker with all rows.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from soda_dist.metrics.classification import Labelled, Scores, details_of, headline_of, score, tally
from soda_dist.models.layers import dropped

HELD_OUT = 0.1
NORM_EPS = 1e-10
"""Far below batch norm's usual 1e-5: latents may be small, and their scale must not matter."""
_BLOCK = 65536
"""Rows converted to float64 at a time: the latents may fill most of the memory."""


class Workers(Protocol):
    """The processes that fit a probe together, seen from one of them."""

    rank: int
    world: int

    def sum(self, values: Tensor) -> Tensor:
        """Sum a tensor over the workers, on the latents' device."""


class _Alone:
    rank, world = 0, 1

    def sum(self, values: Tensor) -> Tensor:
        return values


ALONE = _Alone()


@dataclass(frozen=True)
class LinearProbe:
    """A fitted probe.

    Attributes:
        mean, variance: [D], statistics of the training latents.
        weight: [heads * classes, D]; bias: [heads * classes].
        heads: 0 for class labels, else the number of attributes.
        learning_rate: the chosen one.
        held_out: headline value of each learning rate on held-out training rows; empty without a choice.
    """

    mean: Tensor
    variance: Tensor
    weight: Tensor
    bias: Tensor
    heads: int
    learning_rate: float
    held_out: dict[float, float]

    def predict(self, latents: Tensor) -> Tensor:
        """Map latents [N, D] to float32 logits, [N, classes] or [N, heads, classes]."""
        normal = (latents.float() - self.mean) * (self.variance + NORM_EPS).rsqrt()
        outputs = F.linear(normal, self.weight, self.bias)
        return outputs.unflatten(1, (self.heads, -1)) if self.heads else outputs


def evaluate(
    train: Labelled,
    test: Labelled,
    *,
    classes: int,
    seed: int,
    learning_rates: Sequence[float],
    epochs: int,
    batch: int,
    dropout: float,
    label_smoothing: float,
    weight_std: float,
    bias: float,
    plain: Tensor | None = None,
    workers: Workers = ALONE,
) -> Scores:
    """Fit a probe on `train` and score it on `test`, which is not used to choose the learning rate.

    Args:
        train: rows of this worker; latents may be [passes, N, D].
        test: all rows; workers may pass different rows, and each scores its own.
        workers, and the others: as in `fit_probe`.
    """
    probe = fit_probe(
        train.latents,
        train.labels,
        classes=classes,
        seed=seed,
        learning_rates=learning_rates,
        epochs=epochs,
        batch=batch,
        dropout=dropout,
        label_smoothing=label_smoothing,
        weight_std=weight_std,
        bias=bias,
        plain=plain,
        workers=workers,
    )
    return probe_scores(probe, test, seed=seed)


def probe_scores(probe: LinearProbe, test: Labelled, *, seed: int) -> Scores:
    """Score a fitted probe on `test` (latents [M, D]), with details of its choice; `seed` is the bootstrap's."""
    logits = probe.predict(test.latents)
    held_out = {f"{rate:g}": value for rate, value in probe.held_out.items()}
    details = {"learning_rate": probe.learning_rate, "held_out": held_out, **details_of(logits, test.labels)}
    return Scores(score(logits, test.labels, seed=seed), details)


def fit_probe(
    latents: Tensor,
    labels: Tensor,
    *,
    classes: int,
    seed: int,
    learning_rates: Sequence[float],
    epochs: int,
    batch: int,
    dropout: float,
    label_smoothing: float,
    weight_std: float,
    bias: float,
    plain: Tensor | None = None,
    workers: Workers = ALONE,
) -> LinearProbe:
    """Fit batch norm (no affine), dropout and a linear layer by softmax cross entropy, no weight decay (section E.1).

    All learning rates train at once over the same batches; a seeded tenth of the rows is held out to choose among them,
    and the chosen one is then retrained on all rows. Several binary attributes get a head of two classes each.

    Our reading: Adam, with a cosine decay to zero. Batches are normalised by their own statistics, as batch norm does;
    the fitted probe uses those of all training rows, which batch norm's running averages approach.

    With several workers a row's number is its index in their parts, concatenated in rank order. Batches, held-out rows
    and dropout masks are functions of the seed, the epoch and that number; sums over a batch run over all workers. So
    all get the probe of one worker with all rows, up to the order of summation.

    Args:
        latents: [N, D], any real dtype, this worker's rows; or [P, N, D], P draws of crops and flips of the same
            images: epoch e reads draw e mod P, and statistics are over all of them.
        labels: int64 [N] in 0..classes-1, or [N, A] of 0 and 1 (`classes` is then 2).
        batch: rows per step, over all workers.
        seed: decides initial weights, held-out rows, order and dropout; equal seeds give equal probes.
        plain: [N, D], the same images without crops and flips, to score the held-out rows on; None = `latents`.
        workers: the group that fits together; each must call this with the same other arguments.

    Raises:
        ValueError: fewer than two rows, unequal counts, or labels outside 0..classes-1; on every worker.
    """
    recipe = _Recipe(classes, seed, epochs, batch, dropout, label_smoothing, weight_std, bias)
    rows = _Rows(latents if latents.ndim == 3 else latents[None], labels, *_place(latents, labels, classes, workers))
    everyone = torch.arange(rows.total)
    held_out: dict[float, float] = {}
    rate = learning_rates[0]
    if len(learning_rates) > 1:
        shuffled = torch.randperm(rows.total, generator=torch.Generator().manual_seed(seed))
        held, rest = shuffled.tensor_split([max(1, round(HELD_OUT * rows.total))])
        candidates = _train(rows, rest, learning_rates, recipe, workers)
        seen = rows if plain is None else replace(rows, latents=plain if plain.ndim == 3 else plain[None])
        held_out = {each.learning_rate: _headline(each, seen, held, workers) for each in candidates}
        rate = max(held_out, key=lambda each: held_out[each])
    (probe,) = _train(rows, everyone, [rate], recipe, workers)
    return replace(probe, held_out=held_out)


@dataclass(frozen=True)
class _Recipe:
    classes: int
    seed: int
    epochs: int
    batch: int
    dropout: float
    label_smoothing: float
    weight_std: float
    bias: float


@dataclass(frozen=True)
class _Rows:
    """A worker's rows and their position among those of all workers."""

    latents: Tensor
    """[P, N, D]."""
    labels: Tensor
    first: int
    total: int

    def own(self, numbers: Tensor) -> Tensor:
        """Return the local indices of those of the given global rows that this worker has."""
        return numbers[(numbers >= self.first) & (numbers < self.first + len(self.labels))] - self.first


def _place(latents: Tensor, labels: Tensor, classes: int, workers: Workers) -> tuple[int, int]:
    """Return the global index of this worker's first row, and the total; every worker validates the rows of all.

    Raises:
        ValueError: as `fit_probe`.
    """
    count = latents.shape[-2]
    facts = torch.zeros(workers.world, 4, dtype=torch.int64, device=latents.device)
    low, high = (int(labels.min()), int(labels.max())) if labels.numel() else (0, 0)
    facts[workers.rank] = torch.tensor([count, len(labels), low, high])
    counts, labelled, lows, highs = workers.sum(facts).T.tolist()
    if sum(counts) < 2 or counts != labelled:
        raise ValueError(f"probe: got {sum(counts)} latents, {sum(labelled)} labels; allowed: equal counts, 2 or more")
    if min(lows) < 0 or max(highs) >= classes:
        raise ValueError(f"probe: got labels {min(lows)}..{max(highs)} for {classes} classes")
    return sum(counts[: workers.rank]), sum(counts)


def _headline(probe: LinearProbe, rows: _Rows, numbers: Tensor, workers: Workers) -> float:
    """Compute the probe's headline value on the given rows, over all draws of them."""
    own = rows.own(numbers)
    counts = torch.stack([tally(probe.predict(draw[own]), rows.labels[own]) for draw in rows.latents]).sum(0)
    return headline_of(workers.sum(counts))


def _train(
    rows: _Rows, numbers: Tensor, rates: Sequence[float], recipe: _Recipe, workers: Workers
) -> list[LinearProbe]:
    """Fit one probe per learning rate on the given rows, with shared batches and dropout masks."""
    heads = rows.labels.shape[1] if rows.labels.ndim == 2 else 0
    width, outputs = rows.latents.shape[2], max(heads, 1) * recipe.classes
    mean, variance = _statistics(rows, numbers, workers)
    generator = torch.Generator().manual_seed(recipe.seed)
    start = torch.randn(outputs, width, generator=generator).to(rows.latents.device) * recipe.weight_std
    layers = [(nn.Parameter(start.clone()), nn.Parameter(torch.full_like(start[:, 0], recipe.bias))) for _ in rates]
    groups = [{"params": list(layer), "lr": rate} for layer, rate in zip(layers, rates, strict=True)]
    optimizer = torch.optim.Adam(groups)
    batch = min(recipe.batch, len(numbers))
    steps = recipe.epochs * (len(numbers) // batch)
    for step, (epoch, salt, chosen) in enumerate(_batches(numbers, batch, recipe.epochs, generator)):
        own = rows.own(chosen)
        inputs = rows.latents[epoch % len(rows.latents)][own].double() - mean
        center, spread = moments(inputs, workers)
        inputs = ((inputs - center) * (spread + NORM_EPS).rsqrt()).float()
        seeds = (own + (rows.first + salt)).to(inputs.device)
        inputs = dropped(inputs, seeds, rate=recipe.dropout, number=0)
        terms = batch * max(heads, 1)
        loss = sum(_loss(F.linear(inputs, *layer), rows.labels[own], recipe) for layer in layers) / terms
        torch.as_tensor(loss).backward()
        _sum_gradients([parameter for layer in layers for parameter in layer], workers)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * 0.5 * (1.0 + math.cos(math.pi * step / steps))
        optimizer.step()
        optimizer.zero_grad()
    return [
        LinearProbe(mean.float(), variance.float(), weight.detach(), bias.detach(), heads, rate, {})
        for (weight, bias), rate in zip(layers, rates, strict=True)
    ]


def moments(latents: Tensor, workers: Workers) -> tuple[Tensor, Tensor]:
    """Compute mean and variance over the rows of all workers, as batch norm does: float64 [D], of float64 [B, D].

    The latents should lie near zero: the variance is a difference of sums.
    """
    sums = torch.stack([latents.sum(0), latents.square().sum(0), latents.new_full(latents.shape[1:], len(latents))])
    first, second, count = workers.sum(sums)
    mean = first / count.clamp_min(1)
    return mean, (second / count.clamp_min(1) - mean.square()).clamp_min(0)


def _sum_gradients(parameters: Sequence[nn.Parameter], workers: Workers) -> None:
    """Sum the gradients over the workers in one exchange."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    total = workers.sum(torch.cat([gradient.flatten() for gradient in gradients]))
    for gradient, part in zip(gradients, total.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def _batches(numbers: Tensor, batch: int, epochs: int, generator: torch.Generator) -> Iterator[tuple[int, int, Tensor]]:
    """Yield (epoch, base of its dropout seeds, rows) of full batches; the left-over rows differ between epochs."""
    full = len(numbers) - len(numbers) % batch
    for epoch in range(epochs):
        salt = int(torch.randint(2**62, (), generator=generator))
        for chosen in numbers[torch.randperm(len(numbers), generator=generator)[:full]].split(batch):
            yield epoch, salt, chosen


def _loss(logits: Tensor, labels: Tensor, recipe: _Recipe) -> Tensor:
    flat = logits.reshape(-1, recipe.classes)
    return F.cross_entropy(flat, labels.reshape(-1), label_smoothing=recipe.label_smoothing, reduction="sum")


def _statistics(rows: _Rows, numbers: Tensor, workers: Workers) -> tuple[Tensor, Tensor]:
    """Compute mean and variance over the given rows and all draws of them, float64 [D]."""
    parts = [(draw, part) for draw in rows.latents for part in rows.own(numbers).split(_BLOCK)]
    count = len(numbers) * len(rows.latents)
    zeros = torch.zeros(rows.latents.shape[2], dtype=torch.float64, device=rows.latents.device)
    mean = workers.sum(sum((draw[part].double().sum(0) for draw, part in parts), zeros)) / count
    square = workers.sum(sum(((draw[part].double() - mean).square().sum(0) for draw, part in parts), zeros))
    return mean, square / count
