"""The linear probe (section E.1, table 12): how well a linear classifier reads a label from frozen latents."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from soda_dist.metrics.classification import Labelled, Scores, headline, score

HELD_OUT = 0.1
NORM_EPS = 1e-10
"""Far below batch norm's usual 1e-5: latents may be small, and their scale must not matter."""


@dataclass(frozen=True)
class LinearProbe:
    """A fitted probe.

    Attributes:
        mean, variance: [D], of the training latents.
        weight: [heads * classes, D]; bias: [heads * classes].
        heads: 0 for class labels, else the number of attributes.
        learning_rate: the one chosen.
        held_out: headline value of each learning rate on the held-out training rows; empty if there was no choice.
    """

    mean: Tensor
    variance: Tensor
    weight: Tensor
    bias: Tensor
    heads: int
    learning_rate: float
    held_out: dict[float, float]

    def predict(self, latents: Tensor) -> Tensor:
        """Latents [N, D] to float32 logits, [N, classes] or [N, heads, classes]."""
        normal = (latents.float() - self.mean) * (self.variance + NORM_EPS).rsqrt()
        return _shaped(F.linear(normal, self.weight, self.bias), self.heads)


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
) -> Scores:
    """Fits a probe on `train` and scores it on `test`, which has no part in the choice of the learning rate."""
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
    )
    held_out = {f"{rate:g}": value for rate, value in probe.held_out.items()}
    details = {"learning_rate": probe.learning_rate, "held_out": held_out}
    return Scores(score(probe.predict(test.latents), test.labels, seed=seed), details)


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
) -> LinearProbe:
    """Section E.1: batch norm without affine, dropout, one linear layer, softmax cross entropy, no weight decay.

    All learning rates train at once over the same batches; a seeded tenth of the rows is held out to choose among
    them, and the chosen one is then trained anew on all rows. Several binary attributes get a head of two classes each.

    Our reading: Adam, with a cosine decay to zero. Batches are normalised by their own statistics, as batch norm
    does; the fitted probe uses those of all training rows, which the running averages of batch norm approach.

    Args:
        latents: [N, D], any real dtype.
        labels: int64 [N] in 0..classes-1, or [N, A] of 0 and 1 (`classes` is then 2).
        seed: decides initial weights, held-out rows, order and dropout; equal seeds give equal probes on one device.

    Raises:
        ValueError: fewer than two rows, or labels outside 0..classes-1.
    """
    _check(latents, labels, classes)
    recipe = _Recipe(classes, seed, epochs, batch, dropout, label_smoothing, weight_std, bias)
    every_row = torch.arange(len(latents))
    held_out: dict[float, float] = {}
    rate = learning_rates[0]
    if len(learning_rates) > 1:
        shuffled = torch.randperm(len(latents), generator=torch.Generator().manual_seed(seed))
        held, rest = shuffled.tensor_split([max(1, round(HELD_OUT * len(latents)))])
        candidates = _train(latents, labels, rest, learning_rates, recipe)
        held_out = {c.learning_rate: headline(c.predict(latents[held]), labels[held]) for c in candidates}
        rate = max(held_out, key=lambda each: held_out[each])
    (probe,) = _train(latents, labels, every_row, [rate], recipe)
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


def _check(latents: Tensor, labels: Tensor, classes: int) -> None:
    if len(latents) < 2 or len(latents) != len(labels):
        raise ValueError(f"probe: got {len(latents)} latents and {len(labels)} labels, needs two or more of each")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise ValueError(f"probe: got labels {low}..{high} for {classes} classes")


def _train(latents: Tensor, labels: Tensor, rows: Tensor, rates: Sequence[float], recipe: _Recipe) -> list[LinearProbe]:
    """One probe for each learning rate, fitted on the given rows with shared batches and dropout masks."""
    heads = labels.shape[1] if labels.ndim == 2 else 0
    width, outputs = latents.shape[1], max(heads, 1) * recipe.classes
    order = torch.Generator().manual_seed(recipe.seed)
    masks = torch.Generator(latents.device).manual_seed(recipe.seed)
    start = torch.randn(outputs, width, generator=order).to(latents.device) * recipe.weight_std
    layers = [(nn.Parameter(start.clone()), nn.Parameter(torch.full_like(start[:, 0], recipe.bias))) for _ in rates]
    groups = [{"params": list(layer), "lr": rate} for layer, rate in zip(layers, rates, strict=True)]
    optimizer = torch.optim.Adam(groups)
    batch = min(recipe.batch, len(rows))
    steps = recipe.epochs * (len(rows) // batch)
    for step, chosen in enumerate(_batches(rows, batch, recipe.epochs, order)):
        inputs = F.batch_norm(latents[chosen].float(), None, None, training=True, eps=NORM_EPS)
        kept = torch.rand(inputs.shape, generator=masks, device=inputs.device) >= recipe.dropout
        inputs = inputs * kept / (1.0 - recipe.dropout)
        loss = sum(_loss(F.linear(inputs, *layer), labels[chosen], recipe) for layer in layers)
        optimizer.zero_grad()
        torch.as_tensor(loss).backward()
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * 0.5 * (1.0 + math.cos(math.pi * step / steps))
        optimizer.step()
    mean, variance = _statistics(latents, rows)
    return [
        LinearProbe(mean, variance, weight.detach(), bias.detach(), heads, rate, {})
        for (weight, bias), rate in zip(layers, rates, strict=True)
    ]


def _batches(rows: Tensor, batch: int, epochs: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Full batches of every epoch; the rows left over differ from epoch to epoch, since the order does."""
    full = len(rows) - len(rows) % batch
    for _ in range(epochs):
        yield from rows[torch.randperm(len(rows), generator=generator)[:full]].split(batch)


def _loss(logits: Tensor, labels: Tensor, recipe: _Recipe) -> Tensor:
    flat = logits.reshape(-1, recipe.classes)
    return F.cross_entropy(flat, labels.reshape(-1), label_smoothing=recipe.label_smoothing)


def _statistics(latents: Tensor, rows: Tensor, block: int = 65536) -> tuple[Tensor, Tensor]:
    """Mean and variance [D] over the rows, summed in float64 and in blocks: the latents may fill most of the memory."""
    mean = sum((latents[part].double().sum(0) for part in rows.split(block)), torch.tensor(0.0)) / len(rows)
    square = sum(((latents[part].double() - mean).square().sum(0) for part in rows.split(block)), torch.tensor(0.0))
    return mean.float(), (square / len(rows)).float()


def _shaped(outputs: Tensor, heads: int) -> Tensor:
    return outputs.unflatten(1, (heads, -1)) if heads else outputs
