"""The encoder against timm's own ResNet v2, its sizes, its initialisation, and learning-rate equalization."""

import copy
import math
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from soda_dist.models.encoder import Encoder, load_plain_state_dict, plain_state_dict
from soda_dist.models.layers import AddressedDropPath, addressed, number_modules

SMALL: dict[str, Any] = {
    "arch": "resnet18", "width": 0.125, "stem": "small", "norm": "group",
    "latent_dim": 7, "lr_ratio": 1.0, "drop_path": 0.0, "dropout": 0.0,
}  # fmt: skip


def encoder(seed: int = 0, **changes: Any) -> Encoder:
    torch.manual_seed(seed)
    return Encoder(**{**SMALL, **changes})


def images(count: int, size: int = 16) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(5))


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_backbone_is_timms_resnet_v2(arch):
    ours = encoder(arch=arch, width=1.0, stem="imagenet", norm="batch").eval()
    theirs = timm.create_model(f"resnetv2_{arch.removeprefix('resnet')}", num_classes=0).eval()
    state = plain_state_dict(ours.backbone)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in state.items():
        if name.endswith(("norm1.weight", "norm2.bias", "running_mean")):
            tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=0.1)
    theirs.load_state_dict(state)
    load_plain_state_dict(ours.backbone, state)
    x = images(2, 40)
    with torch.no_grad():
        torch.testing.assert_close(ours.backbone(x), theirs(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("arch", "millions"), [("resnet18", 11.17), ("resnet50", 23.50), ("resnet50x2", 93.89)])
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_backbones_have_the_published_sizes(arch, millions, norm):
    """Table 1 gives 94 M for ResNet-50x2: two norm parameters a channel with either norm."""
    with torch.device("meta"):
        e = encoder(arch=arch, width=1.0, stem="imagenet", norm=norm, latent_dim=2048)
    assert parameters(e.backbone) / 1e6 == pytest.approx(millions, abs=0.01)
    features = 512 if arch == "resnet18" else 2048 * (2 if arch == "resnet50x2" else 1)
    assert parameters(e) - parameters(e.backbone) == (features + 1) * 2048


def test_width_multiplies_every_channel_count_and_rounds_to_eights():
    widths = {m.out_channels for m in encoder(width=0.3).modules() if isinstance(m, nn.Conv2d)}
    assert widths == {24, 40, 80, 152}  # of 19.2, 38.4, 76.8 and 153.6; no more than a tenth is lost


@pytest.mark.parametrize(("stem", "size", "grid"), [("small", 32, 4), ("small", 8, 1), ("imagenet", 64, 2)])
def test_strides_of_the_stems(stem, size, grid):
    e, grids = encoder(stem=stem), []
    e.backbone.norm.register_forward_hook(lambda module, inputs, output: grids.append(output.shape[2:]))
    assert e(images(2, size)).shape == (2, 7)
    assert grids == [(grid, grid)]
    convolution = e.backbone.stem.conv
    assert (convolution.kernel_size, convolution.stride) == (((3, 3), (1, 1)) if stem == "small" else ((7, 7), (2, 2)))


def test_initialisation_is_xaviers():
    e = encoder(width=1.0)
    for module in e.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            area = module.weight[0, 0].numel()
            fans = area * (module.weight.shape[0] + module.weight.shape[1])
            bound = math.sqrt(6 / fans)
            weight = module.weight.detach()
            assert 0.99 * bound < float(weight.abs().max()) <= bound
            assert float(weight.var()) == pytest.approx(2 / fans, rel=0.1)
            assert module.bias is None or not bool(module.bias.any())


def test_group_norm_makes_a_sample_independent_of_its_batch_and_batch_norm_does_not():
    x = images(5)
    grouped, batched = encoder(), encoder(norm="batch")
    torch.testing.assert_close(grouped(x)[2:3], grouped(x[2:3]), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(batched(x)[2:4], batched(x[2:4]), atol=1e-3)
    batched.eval()
    torch.testing.assert_close(batched(x)[2:4], batched(x[2:4]), rtol=1e-4, atol=1e-5)


def test_every_pixel_of_every_image_reaches_its_latent_alone():
    x = images(3).requires_grad_()
    (gradient,) = torch.autograd.grad(encoder()(x)[1].sum(), x)
    assert bool((gradient[1].abs().sum(0) > 0).all()) and not bool(gradient[[0, 2]].any())


def test_drop_path_grows_with_depth_and_is_addressed():
    e = encoder(drop_path=0.14)
    paths = [m for m in e.modules() if isinstance(m, AddressedDropPath)]
    assert [p.rate for p in paths] == pytest.approx([0.02 * k for k in range(1, 8)])  # the first block's is zero
    assert not any(isinstance(m, timm.layers.DropPath) for m in e.modules())
    x, expected = images(4), encoder().eval()
    torch.testing.assert_close(e.eval()(x), expected(x))
    e.train()
    number_modules(e)
    seeds = torch.arange(4) * 31 + 5
    with addressed(seeds):
        whole = e(x)
    with addressed(seeds[2:]):
        torch.testing.assert_close(e(x[2:]), whole[2:], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(whole, expected(x), atol=1e-3)


def test_bottleneck_dropout_is_on_z():
    e = encoder(dropout=0.5, latent_dim=400)
    number_modules(e)
    x = images(3)
    with addressed(torch.arange(3)):
        z = e(x)
    kept = z != 0
    assert 0.4 < float(kept.double().mean()) < 0.6
    torch.testing.assert_close(z[kept], 2 * e.eval()(x)[kept])


@pytest.mark.parametrize("ratio", [2.0, 3.0, 0.5])
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_equalization_leaves_the_function_and_scales_the_gradients(ratio, norm):
    plain, equalized = encoder(norm=norm).double(), encoder(norm=norm, lr_ratio=ratio).double()
    # Both drew the same numbers in float32; the division by 3 rounded there.
    load_plain_state_dict(equalized, plain_state_dict(plain))
    x = images(4).double()
    z, expected = equalized(x), plain(x)
    torch.testing.assert_close(z, expected, rtol=1e-9, atol=1e-9)
    z.square().sum().backward()
    expected.square().sum().backward()
    stored = dict(equalized.named_parameters())
    assert len(stored) == len(list(plain.parameters()))
    for name, parameter in plain.named_parameters():
        owner, leaf = name.rpartition(".")[::2]
        twin = stored[f"{owner}.parametrizations.{leaf}.original"]
        torch.testing.assert_close(twin * ratio, parameter, rtol=1e-12, atol=0)
        torch.testing.assert_close(twin.grad, parameter.grad * ratio, rtol=1e-6, atol=1e-9)


def test_equalization_divides_the_initial_deviation():
    plain, equalized = dict(encoder().named_parameters()), dict(encoder(lr_ratio=2.0).named_parameters())
    assert len(plain) == len(equalized)
    for name, parameter in plain.items():
        owner, leaf = name.rpartition(".")[::2]
        assert torch.equal(equalized[f"{owner}.parametrizations.{leaf}.original"], parameter / 2)


def test_a_ratio_of_one_registers_nothing():
    assert not any("parametrizations" in name for name, _ in encoder().named_modules())


@pytest.mark.parametrize("ratio", [2.0, 3.0])
def test_adam_moves_the_weights_in_use_ratio_times_as_fast(ratio):
    """Against a reference run of the plain encoder with the learning rate times the ratio."""
    plain, equalized = encoder().double(), encoder(lr_ratio=ratio).double()
    load_plain_state_dict(equalized, plain_state_dict(plain))
    start = plain_state_dict(plain)
    runs = [(plain, 1e-3 * ratio), (equalized, 1e-3)]
    for model, lr in runs:
        optimizer = torch.optim.Adam(model.parameters(), lr=lr, betas=(0.9, 0.95), eps=1e-14)
        for step in range(3):
            optimizer.zero_grad()
            (model(images(4 + step).double()) - 1).square().sum().backward()
            optimizer.step()
    expected, got = plain_state_dict(plain), plain_state_dict(equalized)
    for name, before in start.items():
        moved = (expected[name] - before).abs().max()
        assert float(moved) == pytest.approx(3e-3 * ratio, rel=0.5), name
        torch.testing.assert_close(got[name], expected[name], rtol=0, atol=1e-4 * float(moved))


@pytest.mark.parametrize(("ratio", "other"), [(2.0, 3.0), (1.0, 2.0), (2.0, 1.0)])
def test_plain_state_dicts_carry_the_function_between_ratios(ratio, other):
    e, twin = encoder(norm="batch", lr_ratio=ratio), encoder(seed=1, norm="batch", lr_ratio=other)
    e(images(6))
    state = plain_state_dict(e)
    assert list(state) == list(encoder(norm="batch").state_dict())
    storage = {name: parameter.data_ptr() for name, parameter in twin.named_parameters()}
    load_plain_state_dict(twin, state)
    assert storage == {name: parameter.data_ptr() for name, parameter in twin.named_parameters()}
    torch.testing.assert_close(twin.eval()(images(2)), e.eval()(images(2)), rtol=1e-5, atol=1e-6)
    before = state["projection.weight"].clone()
    with torch.no_grad():
        for parameter in e.parameters():
            parameter.zero_()
    assert torch.equal(state["projection.weight"], before)


def test_plain_state_dicts_of_another_encoder_are_refused_whole():
    e, state = encoder(lr_ratio=2.0), plain_state_dict(encoder(seed=1))
    before = plain_state_dict(e)
    missing = {name: tensor for name, tensor in state.items() if name != "projection.bias"}
    with pytest.raises(ValueError, match=r"missing \['projection.bias'\]"):
        load_plain_state_dict(e, missing)
    with pytest.raises(ValueError, match=r"unknown \['extra'\]"):
        load_plain_state_dict(e, {**state, "extra": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"projection.bias: got shape \[1\]; allowed: \[7\]"):
        load_plain_state_dict(e, {**state, "projection.bias": torch.zeros(1)})
    assert all(torch.equal(tensor, before[name]) for name, tensor in plain_state_dict(e).items())


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_an_equalized_encoder_copies_and_runs_under_autocast(norm):
    e = encoder(norm=norm, lr_ratio=2.0)
    twin, x = copy.deepcopy(e), images(6)
    expected = e(x)
    with torch.no_grad():
        for parameter in e.parameters():
            parameter.zero_()
    torch.testing.assert_close(twin(x), expected)
    with torch.autocast("cpu", torch.bfloat16):
        low = twin(x)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), expected, rtol=0, atol=0.05 * float(expected.detach().abs().max()))
    low.float().square().sum().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in twin.parameters())


@pytest.mark.parametrize("ratio", [-1.0, 0.0, math.inf])
def test_ratios_without_meaning_are_refused(ratio):
    with pytest.raises(ValueError, match="lr_ratio"):
        encoder(lr_ratio=ratio)
