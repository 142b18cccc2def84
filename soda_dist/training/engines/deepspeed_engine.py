"""DeepSpeed engine: ZeRO stages 0 to 3. The only file that uses private names of DeepSpeed.

State is read and written as fragments of the float32 partitions, since DeepSpeed's own checkpoints are pickles for a
fixed number of workers. The private names require a pinned version; `tests/distributed/test_deepspeed_engine.py`
compares every stage with the PyTorch engine. `precision: bf16` is autocast inside the model, so parameters are float32.
"""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor

from soda_dist.config.schema import RunConfig
from soda_dist.training.engines.engine import Fragment, MicroBatch, StepResult, finished
from soda_dist.training.engines.skipping import SkippingAdamW, adam_state, is_finite, update_ema
from soda_dist.training.objective import Objective

CHECKED_AGAINST: Final = "0.19"
"""DeepSpeed version for which the private names were checked."""

BUCKET_ELEMENTS = 16_000_000
"""Elements per gradient reduction and weight gather: 64 MB. DeepSpeed's default takes 2 GB, which slows down CPUs."""


class DeepSpeedEngine:
    """ZeRO by DeepSpeed; the process group must exist."""

    def __init__(
        self, *, objective: Objective, optimizer: SkippingAdamW, config: RunConfig, device: torch.device
    ) -> None:
        import deepspeed

        if device.type == "cpu":
            # The shared-memory op takes minutes to compile at first use, and training does not use it.
            import deepspeed.ops

            deepspeed.ops.__compatible_ops__ = {}
        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
        deepspeed.init_distributed(dist_backend=dist.get_backend(), verbose=False)
        self.objective = objective
        self.shapes = {name: parameter.shape for name, parameter in objective.named_parameters()}
        self._ema_decay, self._clip_norm = config.optim.ema_decay, config.optim.clip_norm
        self._rank, self._world = dist.get_rank(), dist.get_world_size()
        self._engine, *_ = deepspeed.initialize(
            model=objective, optimizer=optimizer, config=_settings(config), dist_init_required=False
        )
        self._adam = optimizer
        self._adam.register_step_pre_hook(self._before_adam)
        _leave_skipping_to_adam()
        self._stage = config.scale.zero_stage
        self._ema = {id(flat): flat.detach().clone() for _, _, _, flat, _ in self._pieces()}

    def step(self, micro_batches: Iterable[MicroBatch], lr: float) -> StepResult:
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        total: Any = 0.0
        accumulation = self._engine.gradient_accumulation_steps()
        for batch in micro_batches:
            loss = self._engine(*batch)
            self._engine.backward(loss)
            total = total + loss.detach() / accumulation
            if self._engine.is_gradient_accumulation_boundary():
                self._loss = self.objective.workers.sum(total) / self._world
            self._engine.step()
        flats, finite = self._flats(), is_finite(self._loss, self._norm)
        update_ema([self._ema[id(flat)] for flat in flats], flats, self._ema_decay, finite)
        return StepResult(self._loss, self._norm, finite, finished(self.objective, finite))

    def _before_adam(self, *_: Any) -> None:
        """Take the global gradient norm, which ZeRO has by now, and skip the update if it or the loss is not finite."""
        if self._stage == 0:
            self._norm = torch.nn.utils.clip_grad_norm_(self.objective.parameters(), self._clip_norm, foreach=True)
        else:
            self._norm = self._engine.optimizer._global_grad_norm
        self._adam.skip_unless(is_finite(self._loss, self._norm))

    def _flats(self) -> list[Tensor]:
        return list({id(flat): flat for _, _, _, flat, _ in self._pieces()}.values())

    def _pieces(self) -> Iterator[tuple[str, int, int, Tensor, int]]:
        """Yield this rank's slices: (parameter, start when flattened, length, flat float32 tensor, offset in it)."""
        optimizer, names = self._engine.optimizer, {p: n for n, p in self.objective.named_parameters()}
        if self._stage_of(optimizer) == 3:
            for parameters, flat in zip(optimizer.fp16_groups, optimizer.fp32_partitioned_groups_flat, strict=True):
                offset = 0
                for parameter in parameters:
                    part = parameter.ds_tensor.ds_numel
                    start = part * dist.get_rank(parameter.ds_process_group)
                    length = max(0, min(part, parameter.ds_numel - start))  # the rest of a part is padding
                    if length:
                        yield names[parameter], start, length, flat, offset
                    offset += part
        elif self._stage_of(optimizer) == 2:
            for parameters, flat in zip(optimizer.bit16_groups, optimizer.single_partition_of_fp32_groups, strict=True):
                for parameter in parameters:
                    mapping = parameter._hp_mapping
                    if mapping is not None:
                        held = mapping.hp_fragment_address
                        yield names[parameter], mapping.lp_fragment_address.start, held.numel, flat, held.start
        else:
            for name, parameter in self.objective.named_parameters():
                yield name, 0, parameter.numel(), parameter, 0

    @staticmethod
    def _stage_of(optimizer: Any) -> int:
        """Infer 0, 2 (stages 1 and 2 partition alike) or 3 from the attributes that hold the float32 weights."""
        if hasattr(optimizer, "fp32_partitioned_groups_flat"):
            return 3
        return 2 if hasattr(optimizer, "bit16_groups") else 0

    def fragments(self) -> Iterator[Fragment]:
        replicated = self._stage_of(self._engine.optimizer) == 0
        for number, (name, start, length, flat, offset) in enumerate(self._pieces()):
            state = adam_state(self._adam, flat)
            live = {
                "param": flat.detach(),
                "exp_avg": state["exp_avg"],
                "exp_avg_sq": state["exp_avg_sq"],
                "ema": self._ema[id(flat)],
            }
            views = {kind: tensor.view(-1)[offset : offset + length] for kind, tensor in live.items()}
            yield Fragment(name, start, length, views, not replicated or number % self._world == self._rank)

    @property
    def updates(self) -> int:
        return int(adam_state(self._adam, self._flats()[0])["step"])

    def restored(self, updates: int) -> None:
        for flat in self._adam_flats():
            adam_state(self._adam, flat)["step"].fill_(updates)
        self._refresh()

    def _adam_flats(self) -> list[Tensor]:
        """List the tensors that Adam updates, including those with only padding."""
        optimizer = self._engine.optimizer
        if self._stage_of(optimizer) == 3:
            return list(optimizer.fp32_partitioned_groups_flat)
        if self._stage_of(optimizer) == 2:
            return list(optimizer.single_partition_of_fp32_groups)
        return list(self.objective.parameters())

    def _refresh(self) -> None:
        """Update the model's parameters from the float32 partitions; call on every rank."""
        optimizer = self._engine.optimizer
        if self._stage_of(optimizer) == 3:
            optimizer._partition_all_parameters()
            for group in range(len(optimizer.fp16_groups)):
                optimizer._reassign_or_swap_out_partitioned_parameters(group)
            if optimizer.persistent_parameters:
                optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)
        elif self._stage_of(optimizer) == 2:
            optimizer.update_lp_params()

    @contextmanager
    def ema_weights(self) -> Iterator[dict[str, Tensor] | None]:
        flats = self._flats()
        kept = [flat.detach().clone() for flat in flats]
        with torch.no_grad():
            for flat in flats:
                flat.copy_(self._ema[id(flat)])
            self._refresh()
            weights = self._whole_weights()
            for flat, values in zip(flats, kept, strict=True):
                flat.copy_(values)
            self._refresh()
        yield weights if self._rank == 0 else None

    def _whole_weights(self) -> dict[str, Tensor]:
        import deepspeed

        weights = {}
        for name, parameter in self.objective.named_parameters():
            if self._stage_of(self._engine.optimizer) == 3:
                with deepspeed.zero.GatheredParameters([parameter]):
                    if self._rank == 0:
                        weights[name] = parameter.detach().cpu().clone()
            elif self._rank == 0:
                weights[name] = parameter.detach().cpu().clone()
        return weights


def _leave_skipping_to_adam() -> None:
    """Take out ZeRO's own look at the gradient norm: the host would wait for it and skip the step in silence."""
    from deepspeed.runtime.zero import stage3, stage_1_and_2

    for module in (stage_1_and_2, stage3):
        assert callable(module.is_invalid_grad_norm)
        module.is_invalid_grad_norm = lambda norm: False


def _settings(config: RunConfig) -> dict[str, Any]:
    stage = config.scale.zero_stage
    return {
        "train_batch_size": config.train.global_batch,
        "train_micro_batch_size_per_gpu": config.micro_batch,
        "gradient_accumulation_steps": config.accumulation,
        "gradient_clipping": 0.0 if stage == 0 else config.optim.clip_norm,  # at stage 0 the engine clips
        "zero_optimization": {
            "stage": stage,
            "reduce_bucket_size": BUCKET_ELEMENTS,
            "allgather_bucket_size": BUCKET_ELEMENTS,
        },
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
        "log_level": "error",
    }
