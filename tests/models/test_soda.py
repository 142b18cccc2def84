"""SODA's own: which parameters learn when, what is in z, precision, numbers of the addressed modules."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from soda_dist.models.condition import Condition, Sources
from soda_dist.models.layers import AddressedDropout, AddressedDropPath
from soda_dist.models.method import Batch
from soda_dist.models.soda import Soda
from tests.models.methods import batch_of, config_of, model_of


def soda(precision: Any = "fp32", rate: float = 0.1) -> Soda:
    model = model_of(
        "soda",
        voiced=False,
        train={"precision": precision},
        encoder={"dropout": rate, "drop_path": rate},
        denoiser={"dropout": rate},
    )
    assert isinstance(model, Soda)
    return model


def batch() -> tuple[Batch, dict[str, Tensor | None]]:
    return batch_of(config_of("soda"), 6)


@pytest.mark.parametrize("outer", [False, True])
def test_precision_is_soda_s_own_whatever_surrounds_it(outer):
    model, low = soda().eval(), soda("bf16").eval()
    views, draws = batch()
    seen = []
    for module in (model, low):
        module.denoiser.conv_out.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
        module.encoder.projection.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16, enabled=outer):
        losses, low_losses = model.loss(views, **draws), low.loss(views, **draws)
        z = low.encode(views.sources)
        results = [z, low.denoise(views.target, draws["t"], Condition(z=z)), losses, low_losses]
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
        views, draws = batch()
        model.loss(views, **{**draws, "keep": None}).mean().backward()
        names = {n for n, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())}
        learning.append(names)
        optimizer.step()
    projections = {n for n, _ in model.named_parameters() if n.endswith(".latent.weight")}
    denoiser = {n for n, _ in model.named_parameters() if n.startswith("denoiser.")}
    assert len(projections) == 20 and learning[0] == denoiser
    assert learning[1] == {n for n, _ in model.named_parameters()}


def test_it_learns_and_what_it_learns_is_in_z():
    """Eight fixed pairs whose target is a constant of the source: with z masked the loss is worse."""
    model = soda(rate=0.0)
    generator = torch.Generator().manual_seed(2)
    level = torch.tensor([-0.9, 0.9]).repeat(8).view(16, 1, 1, 1)
    source = level + 0.1 * torch.randn(16, 3, 16, 16, generator=generator)
    sources = Sources(source[:, None], torch.ones(16, 1, dtype=torch.bool), None)
    views = Batch(sources, level.expand(16, 3, 16, 16), None)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def loss(step: int, keep: Tensor | None) -> Tensor:
        draw = torch.Generator().manual_seed(step)
        eps = torch.randn(16, 3, 16, 16, generator=draw)
        t = torch.randint(30, 50, (16,), generator=draw)
        return model.loss(views, t=t, eps=eps, keep=keep, pose_keep=None).mean()

    first = float(loss(0, None).detach())
    for step in range(60):
        optimizer.zero_grad()
        loss(step, None).backward()
        optimizer.step()
    with torch.no_grad():
        told = sum(float(loss(step, None)) for step in range(100, 105)) / 5
        masked = sum(float(loss(step, torch.zeros(16, 3, dtype=torch.bool))) for step in range(100, 105)) / 5
    assert told < 0.5 * first and told < 0.9 * masked


def test_addressed_modules_have_numbers_of_their_own_over_both_networks():
    modules = [m for m in soda().modules() if isinstance(m, AddressedDropout | AddressedDropPath)]
    # Seven residual branches and z in the encoder; three layers down, two in the middle, five up.
    assert [m.number for m in modules] == list(range(18))


def test_copies_are_equal_and_apart():
    model = soda().eval()
    twin = copy.deepcopy(model)
    views, draws = batch()
    expected = model.loss(views, **draws)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(twin.loss(views, **draws), expected)


def test_an_unknown_precision_is_refused():
    model = soda()
    with pytest.raises(ValueError, match="precision: got fp16"):
        Soda(
            encoder=model.encoder,
            aggregation=model.aggregation,
            denoiser=model.denoiser,
            process=model.process,
            precision="fp16",
        )
