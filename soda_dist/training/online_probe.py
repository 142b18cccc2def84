"""Linear probe trained alongside the model, behind a stopped gradient (section E.1)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.adam import adam

from soda_dist.errors import UserError
from soda_dist.metrics.probe import ALONE, NORM_EPS, LinearProbe, Workers, moments
from soda_dist.models.layers import dropped

BETAS, EPS = (0.9, 0.999), 1e-8
MOMENTUM = 0.1
"""Of the running statistics, as in torch's batch norm."""
DROPOUT_NUMBER = 1 << 20
"""Above the numbers of the model's dropout layers, whose seeds the probe shares."""


class OnlineProbe(nn.Module):
    """Batch norm without affine, dropout, linear layer, softmax cross entropy; Adam without weight decay.

    All state is in buffers and the probe updates itself, so engines do not clip, decay, shard or average it, and the
    model's weights are bit-equal to those without it. Each update uses the global batch; the probe is replicated.

    Our reading: z is the denoiser's in training, before masking; the label belongs to the first source's image; the
    learning rate is constant, since z keeps changing.

    Args:
        width: D of z.
        classes: number of classes of the label; 2 for attributes.
        heads: number of attributes; 0 for a label.
        dropout, label_smoothing, weight_std, bias: as in `fit_probe`.
    """

    layer: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    updates: Tensor
    mean: Tensor
    variance: Tensor
    shape: Tensor

    def __init__(
        self,
        *,
        width: int,
        classes: int,
        heads: int,
        seed: int,
        lr: float,
        dropout: float,
        label_smoothing: float,
        weight_std: float,
        bias: float,
    ) -> None:
        super().__init__()
        self.lr, self.dropout, self.label_smoothing = lr, dropout, label_smoothing
        self.workers: Workers = ALONE
        self._classes = classes
        self._taken: list[tuple[Tensor, Tensor, Tensor]] = []
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(max(heads, 1) * classes, width, generator=generator) * weight_std
        layer = torch.cat([weight, torch.full((len(weight), 1), float(bias))], 1)  # the last column is the bias
        self.register_buffer("layer", layer)
        self.register_buffer("exp_avg", torch.zeros_like(layer))
        self.register_buffer("exp_avg_sq", torch.zeros_like(layer))
        self.register_buffer("updates", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("variance", torch.ones(width))
        self.register_buffer("shape", torch.tensor([heads, classes]))

    def take(self, z: Tensor, label: Tensor, ok: Tensor, seeds: Tensor) -> None:
        """Keep a micro-batch for the next update, detached.

        Args:
            z: [B, D], or a grid [B, N, D], which is averaged.
            label: int64 [B, 1] or [B, heads].
            ok: bool [B]; other rows are skipped.
            seeds: int64 [B], dropout seeds.
        """
        z = z.detach().float()
        self._taken.append(((z.mean(1) if z.ndim == 3 else z)[ok], label[ok], seeds[ok]))

    @torch.no_grad()
    def update(self, finite: Tensor | None = None) -> Tensor:
        """Update on all kept rows; call on every worker. Return float32 [3]: summed cross entropy, hits, label count.

        Hits are counted before the update and without dropout. Nothing is updated or counted where the bool scalar
        `finite` (None = True) is False, or the probe's own gradient is not finite.
        """
        z, label, seeds = (torch.cat(parts) for parts in zip(*self._taken, strict=True))
        self._taken = []
        mean, variance = moments(z.double(), self.workers)
        inputs = ((z - mean) * (variance + NORM_EPS).rsqrt()).float()
        with torch.enable_grad():
            layer = self.layer.clone().requires_grad_()
            logits = self._logits(dropped(inputs, seeds, rate=self.dropout, number=DROPOUT_NUMBER), layer)
            loss = F.cross_entropy(logits, label.flatten(), label_smoothing=self.label_smoothing, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, layer)
        hits = (self._logits(inputs, self.layer).argmax(1) == label.flatten()).sum()
        facts = torch.stack([loss.detach(), hits.float(), loss.new_tensor(label.numel())])
        total = self.workers.sum(torch.cat([gradient.flatten(), facts]))
        gradient, facts = total[:-3].view_as(layer), total[-3:]
        own = torch.isfinite(total).all() & torch.isfinite(torch.cat([mean, variance])).all()
        finite = own if finite is None else own & finite
        for running, seen in ((self.mean, mean), (self.variance, variance)):
            running.copy_(torch.where(finite, running.lerp(seen.float(), MOMENTUM), running))
        adam(
            [self.layer],
            [gradient / facts[2].clamp_min(1)],
            [self.exp_avg],
            [self.exp_avg_sq],
            [],
            [self.updates],
            fused=True,
            found_inf=(~finite).float(),
            amsgrad=False,
            beta1=BETAS[0],
            beta2=BETAS[1],
            lr=self.lr,
            weight_decay=0.0,
            eps=EPS,
            maximize=False,
        )
        return torch.where(finite, facts, 0.0)

    def _logits(self, inputs: Tensor, layer: Tensor) -> Tensor:
        """Map [B, D] to [B * heads, classes]."""
        return F.linear(inputs, layer[:, :-1], layer[:, -1]).reshape(-1, self._classes)

    def fitted(self) -> LinearProbe:
        """Return the current probe, with the running statistics of z."""
        return linear_probe(self.state_dict(), self.lr)


def check_probe(state: dict[str, Tensor], where: str) -> None:
    """Raise a `UserError` about the file `where` if `state` is no `OnlineProbe`'s."""
    shape, layer = state.get("shape"), state.get("layer")
    if shape is None or layer is None or shape.shape != (2,) or shape.dtype != torch.int64 or layer.ndim != 2:
        raise UserError(where, f"tensors {', '.join(state)[:100]}", "an online probe's", "remove this checkpoint")
    heads, classes = shape.tolist()
    width = layer.shape[1] - 1
    sizes = {"layer": (max(heads, 1) * classes, width + 1), "mean": (width,), "variance": (width,)}
    for name, size in sizes.items():
        tensor = state.get(name)
        if tensor is None or tensor.shape != size or tensor.dtype != torch.float32:
            got = f"no {name} of float32 {list(size)}"
            raise UserError(where, got, "an online probe's tensors", "remove this checkpoint")


def linear_probe(state: dict[str, Tensor], lr: float) -> LinearProbe:
    """Create a probe from an `OnlineProbe`'s state."""
    layer = state["layer"].clone()
    return LinearProbe(
        mean=state["mean"].clone(),
        variance=state["variance"].clone(),
        weight=layer[:, :-1],
        bias=layer[:, -1],
        heads=int(state["shape"][0]),
        learning_rate=lr,
        held_out={},
    )
