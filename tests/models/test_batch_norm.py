"""Batch norm over groups: parts on several workers, or several groups in a batch, equal torch's norm of each group."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from soda_dist.models.batch_norm import GroupedBatchNormAct2d, grouped, share_groups, update_running_statistics
from soda_dist.models.encoder import Encoder


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
    norm, expected = GroupedBatchNormAct2d(5), reference(5)
    norm.load_state_dict(expected.state_dict())
    if reduce is not None:
        assert share_groups(norm, reduce) == 1
    weights = torch.randn(6, 5, 4, 3, generator=torch.Generator().manual_seed(2))
    for batch in batches(3):
        results = []
        for module in (norm, expected):
            x = batch.clone().requires_grad_()
            y = module(x) if module is norm else F.relu(module(x))
            module.zero_grad()
            (y * weights).sum().backward()
            update_running_statistics(module)
            results.append((y.detach(), x.grad, module.weight.grad, module.bias.grad))
        for got, wanted in zip(*results, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=2e-5)
    for name, buffer in expected.named_buffers():
        torch.testing.assert_close(norm.get_buffer(name), buffer, rtol=1e-5, atol=1e-5)
    x = batches(1)[0]
    torch.testing.assert_close(norm.eval()(x), F.relu(expected.eval()(x)))


def test_bf16_is_normalised_with_float32_sums():
    norm = GroupedBatchNormAct2d(5)
    share_groups(norm, lambda sums: sums)
    x = batches(1)[0].bfloat16()
    wide = x.double()
    variance, mean = torch.var_mean(wide, (0, 2, 3), correction=0, keepdim=True)
    expected = ((wide - mean) / (variance + 1e-5).sqrt()).clamp_min(0)
    y = norm(x)
    update_running_statistics(norm)
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
    x = images.clone().requires_grad_()
    z = whole(x)
    (z * weights).sum().backward()
    update_running_statistics(whole)

    workers, models = Workers(len(sizes)), [encoder() for _ in sizes]
    parts = [part.clone().requires_grad_() for part in images.split(list(sizes))]
    latents: list[Any] = [None] * len(sizes)

    def work(rank: int) -> None:
        assert share_groups(models[rank], workers.reduce(rank)) == 17
        latents[rank] = models[rank](parts[rank])
        (latents[rank] * weights.split(list(sizes))[rank]).sum().backward()
        update_running_statistics(models[rank], lambda values: workers.sum(rank, values))

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
    norm, x = GroupedBatchNormAct2d(5), batches(1)[0]
    whole = norm(x)
    assert not torch.allclose(torch.cat([norm(x[:3]), norm(x[3:])]), whole, atol=0.05)


def test_a_channel_of_one_constant_is_finite():
    norm = GroupedBatchNormAct2d(1)
    share_groups(norm, lambda sums: sums)
    x = torch.full((4, 1, 8, 8), 100.1, requires_grad=True)
    y = norm(x)
    y.sum().backward()
    update_running_statistics(norm)
    assert y.isfinite().all() and x.grad.isfinite().all() and norm.running_var.item() >= 0


SIZES = (4, 2, 6)
"""Of groups; samples may have several views."""


@pytest.mark.parametrize("way", ["one batch", "a batch each", "turned around"])
def test_each_group_is_normalised_as_by_torch_and_an_update_moves_the_statistics_once(way: str) -> None:
    norm, expected = GroupedBatchNormAct2d(5), reference(5)
    norm.load_state_dict(expected.state_dict())
    for batch in (torch.cat(pair) for pair in (batches(2), batches(4)[2:])):
        x, plain = batch.clone().requires_grad_(), batch.clone().requires_grad_()
        parts = list(x.split(SIZES))
        if way == "one batch":
            with grouped(SIZES):
                y = norm(x)
        elif way == "a batch each":
            y = torch.cat([norm(part) for part in parts])
        else:
            y = torch.cat([norm(part) for part in parts[::-1]][::-1])
        means, variances, wanted = [], [], []
        for part in plain.split(SIZES):
            own = reference(5)
            own.momentum = 1.0
            wanted.append(F.relu(own(part)))
            means.append(own.running_mean)
            variances.append(own.running_var)
        torch.testing.assert_close(y, torch.cat(wanted), rtol=1e-5, atol=1e-5)
        weights = torch.arange(y.numel()).view(y.shape).float().cos()
        (y * weights).sum().backward()
        (torch.cat(wanted) * weights).sum().backward()
        torch.testing.assert_close(x.grad, plain.grad, rtol=1e-4, atol=1e-5)
        before = expected.running_mean.clone(), expected.running_var.clone()
        update_running_statistics(norm)
        expected.running_mean = 0.9 * before[0] + 0.1 * torch.stack(means).mean(0)
        expected.running_var = 0.9 * before[1] + 0.1 * torch.stack(variances).mean(0)
        torch.testing.assert_close(norm.running_mean, expected.running_mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(norm.running_var, expected.running_var, rtol=1e-5, atol=1e-6)
    assert int(norm.num_batches_tracked) == 2


def test_groups_end_with_their_context() -> None:
    norm, x = GroupedBatchNormAct2d(5), batches(1)[0]
    whole = norm(x)
    with pytest.raises(KeyError), grouped((2, 4)):
        assert not torch.allclose(norm(x), whole, atol=0.01)
        raise KeyError
    assert torch.equal(norm(x), whole)
    assert torch.equal(norm.running_mean, torch.zeros(5)), "a forward pass alone moves nothing"
