"""The loss, its precision, and which parameters learn when."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from soda_dist.diffusion import GaussianProcess, alpha_bar
from soda_dist.models.denoiser import Denoiser
from soda_dist.models.encoder import Encoder
from soda_dist.models.layers import AddressedDropout, AddressedDropPath, addressed
from soda_dist.models.soda import Soda


def soda(precision: Any = "fp32", rate: float = 0.1) -> Soda:
    torch.manual_seed(0)
    encoder = Encoder(
        arch="resnet18",
        width=0.125,
        stem="small",
        norm="group",
        latent_dim=12,
        lr_ratio=2.0,
        drop_path=rate,
        dropout=rate,
    )
    denoiser = Denoiser(
        latent_dim=12,
        resolution=16,
        base_channels=8,
        channel_multipliers=(1, 2),
        blocks=1,
        attention_resolutions=(8,),
        head_dim=8,
        dropout=rate,
        position_dim=16,
    )
    process = GaussianProcess(alpha_bar("inverted", 50))
    return Soda(encoder=encoder, denoiser=denoiser, process=process, precision=precision)


def batch(count: int = 6) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    source, target, eps = (torch.randn(count, 3, 16, 16, generator=generator) for _ in range(3))
    t = torch.randint(0, 50, (count,), generator=generator)
    return source, target.clamp(-1, 1), t, eps, torch.rand(count, 3, generator=generator) > 0.3


def test_loss_is_each_samples_mean_squared_error():
    model = soda().eval()
    source, target, t, eps, keep = batch()
    losses = model(source, target, t, eps, keep)
    assert losses.shape == (6,) and losses.dtype == torch.float32
    for b in range(6):
        part = slice(b, b + 1)
        abar = model.process.abar[t[b]].item()
        x = abar**0.5 * target[part] + (1 - abar) ** 0.5 * eps[part]
        predicted = model.denoiser(x, t[part], model.encoder(source[part]), keep[part])
        torch.testing.assert_close(losses[b], (predicted - eps[part]).square().mean(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("outer", [False, True])
def test_precision_is_soda_s_own_whatever_surrounds_it(outer):
    model, low = soda().eval(), soda("bf16").eval()
    source, target, t, eps, keep = batch()
    seen = []
    for module in (model, low):
        module.denoiser.conv_out.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
        module.encoder.projection.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16, enabled=outer):
        losses, low_losses = model(source, target, t, eps, keep), low(source, target, t, eps, keep)
        results = [low.encode(source), low.denoise(target, t, low.encode(source), keep), losses, low_losses]
    assert seen[:4] == [torch.float32, torch.float32, torch.bfloat16, torch.bfloat16]
    assert all(result.dtype == torch.float32 for result in results)
    assert not torch.equal(losses, low_losses)
    torch.testing.assert_close(low_losses, losses, rtol=0.02, atol=0)


def test_z_s_projections_learn_in_the_first_step_and_the_encoder_in_the_second():
    model = soda()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    learning = []
    for _ in range(2):
        optimizer.zero_grad()
        model(*batch()[:4], None).mean().backward()
        names = {n for n, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())}
        learning.append(names)
        optimizer.step()
    projections = {n for n, _ in model.named_parameters() if n.endswith(".latent.weight")}
    denoiser = {n for n, _ in model.named_parameters() if n.startswith("denoiser.")}
    assert len(projections) == 16 and learning[0] == denoiser
    assert learning[1] == {n for n, _ in model.named_parameters()}


def test_it_learns_and_what_it_learns_is_in_z():
    """Eight fixed pairs whose target is a constant of the source: with z masked the loss is worse."""
    model = soda(rate=0.0)
    generator = torch.Generator().manual_seed(2)
    level = torch.tensor([-0.9, 0.9]).repeat(8).view(16, 1, 1, 1)
    source = level + 0.1 * torch.randn(16, 3, 16, 16, generator=generator)
    target = level.expand(16, 3, 16, 16)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def loss(step: int, keep: Tensor | None) -> Tensor:
        draw = torch.Generator().manual_seed(step)
        eps = torch.randn(16, 3, 16, 16, generator=draw)
        t = torch.randint(30, 50, (16,), generator=draw)
        return model(source, target, t, eps, keep).mean()

    first = float(loss(0, None).detach())
    for step in range(60):
        optimizer.zero_grad()
        loss(step, None).backward()
        optimizer.step()
    with torch.no_grad():
        told = sum(float(loss(step, None)) for step in range(100, 105)) / 5
        masked = sum(float(loss(step, torch.zeros(16, 3, dtype=torch.bool))) for step in range(100, 105)) / 5
    assert told < 0.5 * first and told < 0.9 * masked


def test_the_split_of_a_batch_changes_neither_losses_nor_gradients():
    whole, split = soda(), soda()
    seeds = torch.arange(6) * 7919
    with addressed(seeds):
        losses = whole(*batch())
    losses.sum().backward()
    parts = []
    for part in (slice(0, 1), slice(1, 6)):
        with addressed(seeds[part]):
            parts.append(split(*(tensor[part] for tensor in batch())))
        parts[-1].sum().backward()
    torch.testing.assert_close(torch.cat(parts), losses, rtol=1e-4, atol=1e-5)
    for (name, parameter), twin in zip(whole.named_parameters(), split.parameters(), strict=True):
        scale = float(parameter.grad.abs().max())
        torch.testing.assert_close(twin.grad, parameter.grad, rtol=0, atol=1e-4 * scale + 1e-7, msg=name)


def test_addressed_modules_have_numbers_of_their_own_over_both_networks():
    modules = [m for m in soda().modules() if isinstance(m, AddressedDropout | AddressedDropPath)]
    # Seven residual branches and z in the encoder; three layers down, two in the middle, three up.
    assert [m.number for m in modules] == list(range(16))


def test_copies_are_equal_and_apart():
    model = soda().eval()
    twin = copy.deepcopy(model)
    expected = model(*batch())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(twin(*batch()), expected)


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="precision: got fp16"):
        soda("fp16")
