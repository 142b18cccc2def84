"""What every method promises: its loss, what it hears, precision, memory order, batches that may be split."""

import math

import pytest
import torch

from soda_dist.diffusion.sampling import reverse_steps
from soda_dist.models.condition import Condition
from soda_dist.models.layers import addressed
from soda_dist.models.method import DiffusionMethod, Recipe
from soda_dist.models.pixels import IMAGENET_MEAN, IMAGENET_STD
from soda_dist.models.soda import EncDec, Encoding
from tests.models.methods import METHODS, batch_of, config_of, model_of, rows

EVERY = pytest.mark.parametrize("name", METHODS)
CASTS = (
    "soda", "concat", "no modulation", "cross attention", "no bottleneck", "rays and a vector",
    "transformer of sources", "encdec with rays", "palette with rays",
)  # fmt: skip
"""Methods that between them reach every cast between float32 and bfloat16."""


SOME = pytest.mark.parametrize("name", [n if n in CASTS else pytest.param(n, marks=pytest.mark.long) for n in METHODS])
"""All methods; those outside CASTS in long runs only."""


def gradient_norm(model) -> float:
    return math.sqrt(sum(float(p.grad.double().square().sum()) for p in model.parameters() if p.grad is not None))


@EVERY
def test_the_loss_is_each_samples_mean_squared_error(name):
    """Sample by sample: the noised target and the mean written out in float64."""
    config, model = config_of(name), model_of(name).eval()
    batch, draws = batch_of(config)
    with torch.no_grad():
        losses = model.loss(batch, **draws)
        assert losses.shape == (4,) and losses.dtype == torch.float32
        for b in range(4):
            one, drawn = rows(batch, draws, slice(b, b + 1))
            condition = model.condition(one.sources, one.pose, drawn["keep"], drawn["pose_keep"])
            if isinstance(model, EncDec):
                error = model.decoder(condition) - one.target
            else:
                abar = model.process.abar[drawn["t"]].view(1, 1, 1, 1)
                x = abar.sqrt() * one.target.double() + (1 - abar).sqrt() * drawn["eps"].double()
                error = model.denoiser(x.float(), drawn["t"], condition) - drawn["eps"]
            expected = error.double().square().sum() / error.numel()
            torch.testing.assert_close(losses[b].double(), expected, rtol=2e-4, atol=1e-5)


@EVERY
def test_each_method_hears_what_it_should_and_nothing_else(name):
    """Interventions on the input: which of source, target's pose and source's pose moves the condition's effect."""
    config, model = config_of(name), model_of(name).eval()
    batch, draws = batch_of(config)
    draws = {**draws, "keep": None, "pose_keep": None}
    other = batch._replace(sources=batch.sources._replace(images=batch.sources.images.flip(0)))
    with torch.no_grad():
        plain = model.loss(batch, **draws)
        heard = {"source": not torch.allclose(model.loss(other, **draws), plain, atol=1e-5)}
        if batch.pose is not None:
            turned = batch._replace(pose=batch.pose.flip(0))
            heard["pose"] = not torch.allclose(model.loss(turned, **draws), plain, atol=1e-5)
            moved = batch._replace(sources=batch.sources._replace(poses=batch.sources.poses.flip(0)))
            heard["source pose"] = not torch.allclose(model.loss(moved, **draws), plain, atol=1e-5)
            masked = {**draws, "pose_keep": torch.zeros(4, dtype=torch.bool)}
            hidden = model.loss(batch, **masked)
            assert not torch.allclose(hidden, plain, atol=1e-5)
            assert torch.equal(model.loss(turned, **masked), hidden) and torch.equal(
                model.loss(moved, **masked), hidden
            )
    expected = {"source": config.method != "unconditional"}
    if batch.pose is not None:
        expected |= {"pose": True, "source pose": True}
    assert heard == expected


@pytest.mark.parametrize(
    "name", [name for name in METHODS if name not in ("unconditional", "encdec", "encdec with rays")]
)
def test_a_masked_latent_hides_the_source(name):
    config, model = config_of(name), model_of(name).eval()
    batch, draws = batch_of(config)
    hidden = {**draws, "keep": torch.zeros_like(draws["keep"])}
    other = batch._replace(sources=batch.sources._replace(images=batch.sources.images.flip(0)))
    with torch.no_grad():
        losses = [model.loss(each, **hidden) for each in (batch, other)]
        shown = model.loss(batch, **{**draws, "keep": torch.ones_like(draws["keep"])})
    assert torch.equal(*losses) and not torch.allclose(losses[0], shown, atol=1e-5)


@SOME
@pytest.mark.slow
def test_bf16_changes_loss_and_gradient_little(name):
    """Widths at which a group has many values: small groups amplify the rounding."""
    wide = {"encoder": {"width": 0.5}, "denoiser": {"base_channels": 32, "head_dim": 16, "position_dim": 64}}
    found = {}
    for precision in ("fp32", "bf16"):
        model = model_of(name, voiced=False, **wide, train={"precision": precision}).eval()
        batch, draws = batch_of(config_of(name, **wide))
        losses = model.loss(batch, **draws)
        assert losses.dtype == torch.float32
        losses.mean().backward()
        found[precision] = float(losses.mean()), gradient_norm(model)
    assert found["fp32"] != found["bf16"]
    assert found["bf16"][0] == pytest.approx(found["fp32"][0], rel=0.02)
    assert found["bf16"][1] == pytest.approx(found["fp32"][1], rel=0.05)


@SOME
def test_memory_order_changes_nothing_beyond_rounding(name):
    model = model_of(name).eval()
    batch, draws = batch_of(config_of(name))
    sources = batch.sources._replace(images=batch.sources.images.transpose(2, 4).contiguous().transpose(2, 4))
    ordered = batch._replace(sources=sources, target=batch.target.to(memory_format=torch.channels_last))
    assert not ordered.target.is_contiguous() and not sources.images.is_contiguous()
    results = []
    for each in (batch, ordered):
        model.zero_grad()
        losses = model.loss(each, **draws)
        losses.mean().backward()
        results.append((losses.detach(), gradient_norm(model)))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-4, atol=1e-5)
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-3)


@SOME
def test_the_split_of_a_batch_changes_neither_losses_nor_gradients(name):
    config = config_of(name)
    whole, split = model_of(name), model_of(name)
    batch, draws = batch_of(config, 5)
    seeds = torch.arange(5) * 7919
    with addressed(seeds):
        losses = whole.loss(batch, **draws)
    losses.sum().backward()
    parts = []
    for part in (slice(0, 1), slice(1, 5)):
        some, drawn = rows(batch, draws, part)
        with addressed(seeds[part]):
            parts.append(split.loss(some, **drawn))
        parts[-1].sum().backward()
    torch.testing.assert_close(torch.cat(parts), losses, rtol=1e-3, atol=1e-4)
    for (label, parameter), twin in zip(whole.named_parameters(), split.parameters(), strict=True):
        if parameter.grad is None:
            assert twin.grad is None, label
            continue
        scale = float(parameter.grad.abs().max())
        torch.testing.assert_close(twin.grad, parameter.grad, rtol=0, atol=1e-3 * scale + 1e-6, msg=label)


@SOME
def test_samples_are_finite_guidance_one_is_plain_and_start_from_the_noise_given(name):
    config, model = config_of(name), model_of(name).eval()
    batch, _ = batch_of(config)
    condition = model.condition(batch.sources, batch.pose, None, None)
    without = model.unguided(batch.sources, batch.pose, "latent", None, None)
    plan = []
    if isinstance(model, DiffusionMethod):
        plan = reverse_steps(model.process.abar, method="ddim", steps=3, variance="small", eta=0.0)
    x_T = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(5))

    def drawn(w: float, x: torch.Tensor, other: Condition) -> torch.Tensor:
        recipe = Recipe(conditions=[condition], without=other, w=w, plan=plan, noise=torch.zeros, choose=lambda t: 0)
        states = list(model.sample(recipe, x))
        assert len(states) == max(len(plan), 1)
        return states[-1].x

    plain = drawn(1.0, x_T, without)
    assert bool(torch.isfinite(plain).all()) and plain.shape == x_T.shape
    torch.testing.assert_close(drawn(1.7, x_T, condition), plain, rtol=1e-3, atol=1e-3)  # nothing to guide away from
    assert torch.equal(drawn(1.0, -x_T, without), plain) == isinstance(model, EncDec)


def test_palette_sees_the_source_as_an_image_in_the_denoisers_range():
    model = model_of("palette")
    batch, _ = batch_of(config_of("palette"))
    condition = model.condition(batch.sources, None, None, None)
    mean, std = (torch.tensor(each, dtype=torch.float64).view(3, 1, 1) for each in (IMAGENET_MEAN, IMAGENET_STD))
    expected = 2 * (batch.sources.images[:, 0].double() * std + mean) - 1
    torch.testing.assert_close(condition.image.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["mean of sources", "transformer of sources"])
def test_empty_slots_are_nothing_to_the_encoder(name):
    """Whatever lies in them; and a batch norm sees views alone."""
    model = model_of(name, encoder={"norm": "batch"}).train()
    batch, _ = batch_of(config_of(name))
    present = torch.tensor([[True, False, False], [True, True, True], [True, True, False], [True, False, False]])
    sources = batch.sources._replace(present=present)
    poisoned = sources._replace(images=torch.where(present[:, :, None, None, None], sources.images, torch.nan))
    seen = []
    model.encoder.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    seeds = torch.arange(4) + 99
    with addressed(seeds), torch.no_grad():
        z, same = model.encode(sources), model.encode(poisoned)
    assert torch.equal(z, same) and torch.equal(seen[0], sources.images[present])
    if name.startswith("mean"):
        with addressed(seeds), torch.no_grad():
            each = model.encode_each(sources)
        assert not bool(each[~present].any())
        torch.testing.assert_close(z[1], each[1].mean(0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(z[0], each[0, 0])


def test_views_of_one_sample_have_dropout_masks_of_their_own():
    model = model_of("mean of sources", encoder={"dropout": 0.5, "drop_path": 0.0}).train()
    batch, _ = batch_of(config_of("mean of sources"))
    same = batch.sources.images[:, :1].expand(-1, 3, -1, -1, -1)
    sources = batch.sources._replace(images=same, present=torch.ones(4, 3, dtype=torch.bool))
    with addressed(torch.arange(4)), torch.no_grad():
        each = model.encode_each(sources) == 0
        alone = model.encode_each(sources._replace(images=same[:, :1], present=sources.present[:, :1])) == 0
    assert torch.equal(each[:, 0], alone[:, 0])
    assert not torch.equal(each[:, 0], each[:, 1]) and not torch.equal(each[:, 1], each[:, 2])


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["soda", *(pytest.param(n, marks=pytest.mark.long) for n in ("cross attention", "encdec"))]
)
def test_a_captured_graph_changes_nothing_beyond_rounding(name):
    """What torch.compile traces, forward and backward, run without its code generator, which takes minutes."""
    model = model_of(name).eval()
    batch, draws = batch_of(config_of(name))
    results = []
    for loss in (model.loss, torch.compile(model.loss, backend="aot_eager")):
        model.zero_grad()
        losses = loss(batch, **draws)
        losses.mean().backward()
        results.append((losses.detach(), gradient_norm(model)))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-3, atol=1e-4)
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-2)


@pytest.mark.long
def test_a_compiled_denoiser_changes_nothing_beyond_rounding():
    model = model_of("soda").eval()
    batch, draws = batch_of(config_of("soda"))
    condition = model.condition(batch.sources, None, draws["keep"], None)
    with torch.no_grad():
        expected = model.denoiser(batch.target, draws["t"], condition)
        compiled = torch.compile(model.denoiser)(batch.target, draws["t"], condition)
    torch.testing.assert_close(compiled, expected, rtol=1e-3, atol=1e-4)


def test_the_activations_are_the_layers_means_over_the_noised_image():
    model = model_of("unconditional").eval()
    assert not isinstance(model, Encoding)
    batch, draws = batch_of(config_of("unconditional"))
    found = model.activations(batch.target, Condition(), 7, draws["eps"])
    assert list(found) == model.denoiser.layer_names()
    outputs = {}
    model.denoiser.get_submodule("up.1").register_forward_hook(lambda m, a, output: outputs.update(here=output))
    abar = model.process.abar[7].item()
    with torch.no_grad():
        model.denoiser(abar**0.5 * batch.target + (1 - abar) ** 0.5 * draws["eps"], torch.full((4,), 7), Condition())
    torch.testing.assert_close(found["up.1"], outputs["here"].flatten(2).mean(2), rtol=1e-4, atol=1e-5)
