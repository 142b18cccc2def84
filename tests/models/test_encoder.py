"""The encoder against timm's own ResNet v2, its sizes and initialisation; cells and poses, with either kind."""

import math

import pytest
import timm
import torch
from torch import nn

from soda_dist.models.layers import AddressedDropPath, addressed, number_modules
from soda_dist.models.lr_equalization import load_plain_state_dict, plain_state_dict
from tests.models.small_encoder import VIT, encoder, images, perturb, poses


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


def test_an_unknown_architecture_is_refused():
    with pytest.raises(ValueError, match=r"arch: got resnet19; allowed: resnet18, .*, vit_base"):
        encoder(arch="resnet19")


KINDS = pytest.mark.parametrize("kind", [{}, {"stem": "imagenet"}, {"norm": "batch"}, VIT], ids=str)


@KINDS
def test_cells_pooled_after_the_projection_are_the_projection_of_the_pooled(kind):
    pooled, cells = encoder(**kind).double(), encoder(**kind, pool=False).double()
    x = images(3, 64 if kind.get("stem") == "imagenet" else 32).double()
    z = cells(x)
    assert z.ndim == 3 and z.shape[1] > 1 and z.shape[2] == 7
    torch.testing.assert_close(z.mean(1), pooled(x), rtol=1e-9, atol=1e-12)
    assert float(z.detach().std(1).min()) > 1e-3  # a grid that has been pooled already would pass the line above


def test_cells_are_the_last_grids_rows_first():
    e, grids = encoder(pool=False), []
    e.backbone.norm.register_forward_hook(lambda module, inputs, output: grids.append(output))
    z = e(images(2, 24, 48))
    (grid,) = grids
    assert grid.shape[2:] == (3, 6)
    for number in range(18):
        expected = e.projection(grid[:, :, number // 6, number % 6])
        torch.testing.assert_close(z[:, number], expected)


def test_bottleneck_dropout_is_on_each_cell():
    e = encoder(dropout=0.5, latent_dim=100, pool=False)
    number_modules(e)
    x = images(3, 32)
    with addressed(torch.arange(3)):
        z = e(x)
    kept = z != 0
    assert 0.4 < float(kept.double().mean()) < 0.6
    assert not torch.equal(kept[:, 0], kept[:, 1])
    torch.testing.assert_close(z[kept], 2 * e.eval()(x)[kept])


@KINDS
def test_a_pose_grid_joins_the_first_layers_channels(kind):
    """Against an encoder without poses whose first layer gives, by a hook, what the two come to."""
    told, plain = encoder(**kind, posed=True).double().eval(), encoder(**kind).double().eval()
    perturb(told)
    plain.load_state_dict({n: t for n, t in told.state_dict().items() if not n.startswith("pose")})
    x, at = images(3, 64, 96).double(), poses(3).double()

    def mixed(module: nn.Module, inputs: object, h: torch.Tensor) -> torch.Tensor:
        both = torch.cat([h, told.pose(at, *h.shape[2:], None)], 1)
        (weight,), bias = told.pose_mix.weight.permute(2, 3, 0, 1)[0], told.pose_mix.bias
        return torch.einsum("oc,bchw->bohw", weight, both) + bias[:, None, None]

    first = plain.backbone.patch_embed.proj if kind is VIT else plain.backbone.stem.conv
    first.register_forward_hook(mixed)
    z = told(x, at)
    torch.testing.assert_close(z, plain(x), rtol=1e-9, atol=1e-9)
    stride = 4 if kind is VIT else 2 if kind.get("stem") == "imagenet" else 1
    assert set(told.pose.asked) == {(64 // stride, 96 // stride)}
    at[1] += 1
    moved = told(x, at)
    assert [torch.allclose(moved[i], z[i], atol=1e-6) for i in range(3)] == [True, False, True]


@KINDS
def test_a_masked_pose_contributes_nothing(kind):
    e = encoder(**kind, posed=True).eval()
    x, at = images(4, 32), poses(4)
    z, kept = e(x, at), torch.tensor([True, False, True, False])
    half, none = e(x, at, kept), e(x, at, torch.zeros(4, dtype=torch.bool))
    with torch.no_grad():
        e.pose_mix.weight[:, -e.pose.channels :] = 0
    without = e(x, at)
    torch.testing.assert_close(none, without)
    torch.testing.assert_close(half, torch.where(kept[:, None], z, without))
    assert not torch.allclose(z, without, atol=1e-3)


@KINDS
def test_poses_have_gradients(kind):
    e = encoder(**kind, posed=True)
    at = poses(4).requires_grad_()
    e(images(4, 32), at).square().sum().backward()
    assert bool(at.grad.any(1).all())
    for parameter in (*e.pose.parameters(), *e.pose_mix.parameters()):
        assert bool(parameter.grad.flatten(1 if parameter.ndim > 1 else 0).any(-1).all())


def test_poses_are_given_where_they_are_taken():
    with pytest.raises(ValueError, match="poses: got none; allowed: one per image"):
        encoder(posed=True)(images(2))
    with pytest.raises(ValueError, match="poses: got poses; allowed: none without a pose grid"):
        encoder()(images(2), poses(2))


@KINDS
def test_a_pose_grid_leaves_the_other_names_and_numbers_as_they_are(kind):
    """So a checkpoint without poses does not know that there might be any."""
    told, plain = encoder(**kind, posed=True), encoder(**kind)
    added = {"pose.linear.weight", "pose.linear.bias", "pose_mix.weight", "pose_mix.bias"}
    assert [name for name in told.state_dict() if name not in added] == list(plain.state_dict())
    assert number_modules(told) == number_modules(plain)
    assert told.dropout.number == plain.dropout.number
