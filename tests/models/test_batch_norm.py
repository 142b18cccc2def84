"""Synchronised batch norm: several workers' batches equal one batch, gradients and running statistics included."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from soda_dist.models.encoder import Encoder
from soda_dist.models.layers import SyncedBatchNormAct2d, synchronize_norms


class Workers:
    """Threads that sum tensors, and the gradients of the sums, over each other."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.barrier = threading.Barrier(count, timeout=60)
        self.slots: list[Any] = [None] * count

    def sum(self, rank: int, values: Tensor) -> Tensor:
        self.slots[rank] = values
        self.barrier.wait()
        total = torch.stack(self.slots).sum(0)
        self.barrier.wait()
        return total

    def reduce(self, rank: int) -> Callable[[Tensor], Tensor]:
        workers = self

        class Sum(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, values: Tensor) -> Tensor:
                return workers.sum(rank, values)

            @staticmethod
            def backward(ctx: Any, gradient: Tensor) -> Tensor:
                return workers.sum(rank, gradient)

        return Sum.apply

    def run(self, work: Callable[[int], None]) -> None:
        failures: list[BaseException] = []

        def guarded(rank: int) -> None:
            try:
                work(rank)
            except BaseException as e:
                failures.append(e)
                self.barrier.abort()

        threads = [threading.Thread(target=guarded, args=(rank,)) for rank in range(self.count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]


def reference(channels: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(-1, 2, channels))
        norm.bias.copy_(torch.linspace(0.5, -0.5, channels))
    return norm


def batches(count: int, channels: int = 5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    scale, shift = torch.linspace(0.1, 3, channels).view(-1, 1, 1), torch.linspace(-4, 4, channels).view(-1, 1, 1)
    return [torch.randn(6, channels, 4, 3, generator=generator) * scale + shift for _ in range(count)]


@pytest.mark.parametrize("reduce", [None, lambda sums: sums], ids=["alone", "its own sums"])
def test_equals_torch_in_training_and_evaluation(reduce):
    norm, expected = SyncedBatchNormAct2d(5), reference(5)
    norm.load_state_dict(expected.state_dict())
    assert synchronize_norms(norm, reduce) == 1
    weights = torch.randn(6, 5, 4, 3, generator=torch.Generator().manual_seed(2))
    for batch in batches(3):
        results = []
        for module in (norm, expected):
            x = batch.clone().requires_grad_()
            y = module(x) if module is norm else F.relu(module(x))
            module.zero_grad()
            (y * weights).sum().backward()
            results.append((y.detach(), x.grad, module.weight.grad, module.bias.grad))
        for got, wanted in zip(*results, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=2e-5)
    for name, buffer in expected.named_buffers():
        torch.testing.assert_close(norm.get_buffer(name), buffer, rtol=1e-5, atol=1e-5)
    x = batches(1)[0]
    torch.testing.assert_close(norm.eval()(x), F.relu(expected.eval()(x)))


def test_bf16_is_normalised_with_float32_sums():
    norm = SyncedBatchNormAct2d(5)
    synchronize_norms(norm, lambda sums: sums)
    x = batches(1)[0].bfloat16()
    wide = x.double()
    variance, mean = torch.var_mean(wide, (0, 2, 3), correction=0, keepdim=True)
    expected = ((wide - mean) / (variance + 1e-5).sqrt()).clamp_min(0)
    y = norm(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), expected, rtol=2**-7, atol=1e-4)
    torch.testing.assert_close(norm.running_mean.double(), 0.1 * mean.flatten(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sizes", [(4, 4), (5, 3), (1, 3, 4)])
def test_workers_equal_the_whole_batch(sizes):
    def encoder() -> Encoder:
        torch.manual_seed(0)
        return Encoder(
            arch="resnet18",
            width=0.125,
            stem="small",
            norm="batch",
            latent_dim=7,
            lr_ratio=2.0,
            drop_path=0.0,
            dropout=0.0,
            patch=16,
            image_size=16,
            pool=True,
            pose=None,
        )

    generator = torch.Generator().manual_seed(3)
    images = torch.randn(sum(sizes), 3, 16, 16, generator=generator)
    weights = torch.randn(sum(sizes), 7, generator=generator)

    whole = encoder()
    synchronize_norms(whole, None)
    x = images.clone().requires_grad_()
    z = whole(x)
    (z * weights).sum().backward()

    workers, models = Workers(len(sizes)), [encoder() for _ in sizes]
    parts = [part.clone().requires_grad_() for part in images.split(list(sizes))]
    latents: list[Any] = [None] * len(sizes)

    def work(rank: int) -> None:
        assert synchronize_norms(models[rank], workers.reduce(rank)) == 17
        latents[rank] = models[rank](parts[rank])
        (latents[rank] * weights.split(list(sizes))[rank]).sum().backward()

    workers.run(work)
    torch.testing.assert_close(torch.cat(latents), z, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.cat([part.grad for part in parts]), x.grad, rtol=1e-3, atol=1e-4)
    for name, parameter in whole.named_parameters():
        total = sum(model.get_parameter(name).grad for model in models)
        torch.testing.assert_close(total, parameter.grad, rtol=1e-3, atol=1e-3 * float(parameter.grad.abs().max()))
    for name, buffer in whole.named_buffers():
        for model in models:
            torch.testing.assert_close(model.get_buffer(name), buffer, rtol=1e-4, atol=1e-6)


def test_unsynchronised_workers_differ():
    """The test above would see it."""
    norm, x = SyncedBatchNormAct2d(5), batches(1)[0]
    whole = norm(x)
    assert not torch.allclose(torch.cat([norm(x[:3]), norm(x[3:])]), whole, atol=0.05)


def test_a_channel_of_one_constant_is_finite():
    norm = SyncedBatchNormAct2d(1)
    synchronize_norms(norm, lambda sums: sums)
    x = torch.full((4, 1, 8, 8), 100.1, requires_grad=True)
    y = norm(x)
    y.sum().backward()
    assert y.isfinite().all() and x.grad.isfinite().all() and norm.running_var.item() >= 0
