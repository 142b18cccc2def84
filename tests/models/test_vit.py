"""The ViT encoder against plain matrix products in float64, its size, its positions and its initialisation."""

import math

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from soda_dist.models.encoder import Encoder
from soda_dist.models.layers import AddressedDropPath, addressed, number_modules
from tests.models.small_encoder import SMALL, VIT, encoder, images, perturb

DIM, HEADS, PATCH = 48, 6, 4


def vit(seed: int = 0, **changes: object) -> Encoder:
    return encoder(seed, **{**VIT, **changes})


def normalised(x: Tensor, norm: nn.Module) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight + norm.bias


def block_by_hand(x: Tensor, block: nn.Module) -> Tensor:
    """Pre-norm attention and hidden layer on [N, DIM], head by head."""
    h = normalised(x, block.norm1)
    weights, biases = block.attn.qkv.weight.chunk(3), block.attn.qkv.bias.chunk(3)
    q, k, v = (h @ weight.T + bias for weight, bias in zip(weights, biases, strict=True))
    heads = []
    for part in torch.arange(DIM).split(DIM // HEADS):
        scores = q[:, part] @ k[:, part].T / math.sqrt(DIM // HEADS)
        shares = scores.exp() / scores.exp().sum(1, keepdim=True)
        heads.append(shares @ v[:, part])
    x = x + torch.cat(heads, 1) @ block.attn.proj.weight.T + block.attn.proj.bias
    h = normalised(x, block.norm2) @ block.mlp.fc1.weight.T + block.mlp.fc1.bias
    h = h * (1 + torch.erf(h / math.sqrt(2))) / 2
    return x + h @ block.mlp.fc2.weight.T + block.mlp.fc2.bias


def cells_by_hand(e: Encoder, image: Tensor, table: Tensor) -> Tensor:
    """[3, h, w] and a table of positions [rows, columns, DIM] to z's cells, [N, D]."""
    rows, columns = image.shape[1] // PATCH, image.shape[2] // PATCH
    embedding = e.backbone.patch_embed.proj
    tokens = []
    for i in range(rows):
        for j in range(columns):
            patch = image[:, i * PATCH : (i + 1) * PATCH, j * PATCH : (j + 1) * PATCH]
            embedded = (embedding.weight * patch).sum((1, 2, 3)) + embedding.bias
            tokens.append(embedded + table[i, j])
    x = torch.stack(tokens)
    for block in e.backbone.blocks:
        x = block_by_hand(x, block)
    return normalised(x, e.backbone.norm) @ e.projection.weight.T + e.projection.bias


@pytest.mark.parametrize("size", [(16, 16), (8, 8), (24, 8), (8, 20)])
@torch.no_grad()
def test_it_is_what_it_is_by_hand_at_any_resolution(size):
    e, cells = vit().double().eval(), vit(pool=False).double().eval()
    perturb(e)
    cells.load_state_dict(e.state_dict())
    table = e.backbone.pos_embed.view(4, 4, DIM)
    if size != (16, 16):
        grid = (size[0] // PATCH, size[1] // PATCH)
        planes = table.permute(2, 0, 1)[None].float()
        table = F.interpolate(planes, grid, mode="bicubic", antialias=True)[0].permute(1, 2, 0).double()
    x = images(2, *size).double()
    for image, z, tokens in zip(x, e(x), cells(x), strict=True):
        expected = cells_by_hand(e, image, table)
        torch.testing.assert_close(tokens, expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(z, expected.mean(0), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("arch", "patch", "dim", "millions"),
    [("vit_small", 16, 384, 22), ("vit_base", 16, 768, 86), ("vit_small", 8, 384, 22)],
)
def test_backbones_have_the_published_sizes(arch, patch, dim, millions):
    with torch.device("meta"):
        e = vit(arch=arch, patch=patch, width=1.0, image_size=224, latent_dim=2048)
    norm = 2 * dim
    queries_keys_values = 3 * (dim * dim + dim)
    out = dim * dim + dim
    hidden = (dim * 4 * dim + 4 * dim) + (4 * dim * dim + dim)
    block = norm + queries_keys_values + out + norm + hidden
    embedding = 3 * patch * patch * dim + dim
    positions = (224 // patch) ** 2 * dim
    count = sum(p.numel() for p in e.backbone.parameters())
    assert count == embedding + positions + 12 * block + norm
    assert round(count / 1e6) == millions
    assert sum(p.numel() for p in e.parameters()) - count == (dim + 1) * 2048


@pytest.mark.parametrize(
    ("arch", "width", "dim"), [("vit_small", 0.3, 96), ("vit_base", 0.3, 192), ("vit_small", 0.01, 48)]
)
def test_width_multiplies_the_channels_and_keeps_the_heads(arch, width, dim):
    """Of 115.2, 230.4 and 3.84: multiples of 8 for each head."""
    backbone = vit(arch=arch, width=width).backbone
    assert backbone.num_features == dim
    assert {block.attn.num_heads for block in backbone.blocks} == {6 if arch == "vit_small" else 12}


def test_the_position_table_alone_tells_patches_apart():
    e = vit().double().eval()
    x = images(2).double()
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    patches = F.unfold(x, PATCH, stride=PATCH)
    moved = F.fold(patches[:, :, order], (16, 16), PATCH, stride=PATCH)
    assert not torch.allclose(e(moved), e(x), rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        e.backbone.pos_embed.zero_()
    torch.testing.assert_close(e(moved), e(x), rtol=1e-9, atol=1e-12)


def test_sizes_that_patches_do_not_fill_are_refused():
    with pytest.raises(ValueError, match="image_size: got 18 with patch 4; allowed: multiples of the patch size"):
        vit(image_size=18)
    for size in ((18, 16), (16, 18)):
        with pytest.raises(
            ValueError, match=rf"images: got {size[0]}x{size[1]}; allowed: multiples of the patch size, 4"
        ):
            vit()(images(1, *size))


@pytest.mark.parametrize(("field", "got", "allowed"), [("stem", "small", "imagenet"), ("norm", "group", "batch")])
def test_what_resnets_alone_have_is_refused(field, got, allowed):
    with pytest.raises(ValueError, match=f"^{field}: got {got} with vit_small; allowed: {allowed}$"):
        vit(**{field: got})


def test_drop_path_grows_with_depth_and_is_addressed():
    e = vit(drop_path=0.44)
    rates = [m.rate for m in e.modules() if isinstance(m, AddressedDropPath)]
    assert rates == pytest.approx([0.04 * k for k in range(1, 12) for _ in range(2)])  # the first block's is zero
    assert not any(isinstance(m, timm.layers.DropPath) or (isinstance(m, nn.Dropout) and m.p) for m in e.modules())
    x, expected = images(5), vit().eval()
    torch.testing.assert_close(e.eval()(x), expected(x))
    e.train()
    number_modules(e)
    seeds = torch.arange(5) * 31 + 5
    with addressed(seeds):
        whole = e(x)
    for part in (slice(0, 2), slice(2, 5)):
        with addressed(seeds[part]):
            torch.testing.assert_close(e(x[part]), whole[part], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(whole, expected(x), atol=1e-3)


def test_a_dropped_path_leaves_the_sample_as_it_was():
    """At a rate near one all but the first block do nothing, though each may be multiplied up where it is kept."""
    e = vit(drop_path=0.9999, pool=False)
    number_modules(e)
    for path in (m for m in e.modules() if isinstance(m, AddressedDropPath)):
        path.rate = 0.9999
    x = images(2)
    with addressed(torch.tensor([3, 4])):
        z = e(x)
    e.backbone.blocks = e.backbone.blocks[:1]
    torch.testing.assert_close(z, e(x), rtol=1e-5, atol=1e-6)


def test_initialisation_is_xaviers_and_positions_are_truncated_normal():
    e = encoder(**{**SMALL, **VIT, "width": 1.0, "image_size": 64})
    maps = [m.weight for m in e.modules() if isinstance(m, nn.Linear) and m.out_features != 3 * m.in_features]
    maps += [part for block in e.backbone.blocks for part in block.attn.qkv.weight.chunk(3)]
    maps.append(e.backbone.patch_embed.proj.weight.flatten(1))
    assert len(maps) == 12 * 6 + 2
    for weight in maps:
        bound = math.sqrt(6 / sum(weight.shape))
        assert 0.99 * bound < float(weight.detach().abs().max()) <= bound
        assert float(weight.detach().var()) == pytest.approx(bound**2 / 3, rel=0.1)
    biases = [m.bias for m in e.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    assert not any(bool(bias.any()) for bias in biases)
    assert float(e.backbone.pos_embed.detach().std()) == pytest.approx(0.02, rel=0.02)
    assert abs(float(e.backbone.pos_embed.detach().mean())) < 1e-3
