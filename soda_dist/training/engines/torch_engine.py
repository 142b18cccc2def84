"""Engine in plain PyTorch."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from soda_dist.training.engines.engine import Fragment, MicroBatch, StepResult, finished
from soda_dist.training.engines.skipping import SkippingAdamW, adam_state, is_finite, update_ema
from soda_dist.training.objective import Objective


class TorchEngine:
    """Plain PyTorch, with DistributedDataParallel for several ranks; state is replicated."""

    def __init__(
        self,
        *,
        objective: Objective,
        optimizer: SkippingAdamW,
        clip_norm: float,
        ema_decay: float,
        accumulation: int,
        rank: int,
        world: int,
    ) -> None:
        self.objective = objective
        self.shapes = {name: parameter.shape for name, parameter in objective.named_parameters()}
        self._optimizer = optimizer
        self._clip_norm, self._accumulation = clip_norm, accumulation
        self._ema_decay = ema_decay
        self._rank, self._world = rank, world
        self._names = [name for name, _ in objective.named_parameters()]
        self._params = [parameter for _, parameter in objective.named_parameters()]
        self._ema = [parameter.detach().clone() for parameter in self._params]
        self._module: nn.Module = objective
        if world > 1:
            self._module = DistributedDataParallel(objective, broadcast_buffers=False, gradient_as_bucket_view=True)

    def step(self, micro_batches: Iterable[MicroBatch], lr: float) -> StepResult:
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        total = torch.zeros((), device=self._params[0].device)
        for number, batch in enumerate(micro_batches, start=1):
            last = number == self._accumulation
            with nullcontext() if last or self._world == 1 else self._module.no_sync():  # type: ignore[operator]
                loss = self._module(*batch) / self._accumulation
                loss.backward()
            total += loss.detach()
        norm = torch.nn.utils.clip_grad_norm_(self._params, self._clip_norm, foreach=True)
        mean = self.objective.workers.sum(total) / self._world
        finite = is_finite(mean, norm)
        self._optimizer.skip_unless(finite)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        update_ema(self._ema, self._params, self._ema_decay, finite)
        return StepResult(mean, norm, finite, finished(self.objective, finite))

    def fragments(self) -> Iterator[Fragment]:
        for number, (name, parameter, ema) in enumerate(zip(self._names, self._params, self._ema, strict=True)):
            state = adam_state(self._optimizer, parameter)
            live = {
                "param": parameter.detach(),
                "exp_avg": state["exp_avg"],
                "exp_avg_sq": state["exp_avg_sq"],
                "ema": ema,
            }
            owned = number % self._world == self._rank
            yield Fragment(name, 0, parameter.numel(), {k: v.view(-1) for k, v in live.items()}, owned)

    @property
    def updates(self) -> int:
        return int(adam_state(self._optimizer, self._params[0])["step"])

    def restored(self, updates: int) -> None:
        for parameter in self._params:
            adam_state(self._optimizer, parameter)["step"].fill_(updates)

    @contextmanager
    def ema_weights(self) -> Iterator[dict[str, Tensor] | None]:
        weights = None
        if self._rank == 0:
            weights = {n: e.detach().cpu() for n, e in zip(self._names, self._ema, strict=True)}
        yield weights
