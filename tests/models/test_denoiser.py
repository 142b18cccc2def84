"""Structure of the UNet: sizes, pairing of layers and sections, skips, resampling, masks."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from soda_dist.models.blocks import ResidualBlock, TimestepEmbedding
from soda_dist.models.condition import Condition
from soda_dist.models.denoiser import Denoiser
from soda_dist.models.layers import SelfAttention, addressed, number_modules
from soda_dist.models.modulation import TwoStage

SMALL: dict[str, Any] = {
    "latent_dim": 19, "resolution": 16, "base_channels": 8, "channel_multipliers": (1, 2, 2), "blocks": 2,
    "attention_resolutions": (4, 8), "head_dim": 8, "dropout": 0.0, "position_dim": 12, "time_dim": 20,
    "time_unit": 1.0, "conditioning": "layer_modulation", "modulation": "two_stage", "up_path": "adm",
}  # fmt: skip
SECTIONS = 8
TAKES: dict[str, list[str | None]] = {
    "adm": ["down.7", "down.6", "down.5", None, "down.4", "down.3", "down.2", None, "down.1", "down.0", "conv_in"],
    "mirrored": ["down.7", "down.6", None, "down.4", "down.3", None, "down.1", "down.0"],
}
"""For each layer of SMALL's way up the one whose output it takes; None = it upsamples. Down 2 and 5 downsample."""
UP_SECTIONS = {"adm": [7, 6, 5, 5, 4, 3, 2, 2, 1, 0, 0], "mirrored": [7, 6, 5, 4, 3, 2, 1, 0]}
UP_SIDES = {"adm": [4, 4, 4, 8, 8, 8, 8, 16, 16, 16, 16], "mirrored": [4, 4, 8, 8, 8, 16, 16, 16]}
both_paths = pytest.mark.parametrize("path", TAKES)
IMAGENET: dict[str, Any] = {
    "latent_dim": 2048, "resolution": 128, "base_channels": 64, "channel_multipliers": (1, 1, 2, 3, 4), "blocks": 2,
    "attention_resolutions": (8, 16, 32), "head_dim": 64, "dropout": 0.1, "position_dim": 512, "time_dim": 256,
    "time_unit": 1.0, "conditioning": "layer_modulation", "modulation": "two_stage", "up_path": "adm",
}  # fmt: skip


def fresh(**changes: Any) -> Denoiser:
    torch.manual_seed(0)
    return Denoiser(**{**SMALL, **changes})


def moved(**changes: Any) -> Denoiser:
    """As after some training: the projections of z are not zero."""
    denoiser = fresh(**changes)
    for module in denoiser.modules():
        if isinstance(module, TwoStage):
            nn.init.normal_(module.latent.weight, std=0.5)
    return denoiser


def inputs(count: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 3, 16, 16, generator=generator)
    return x, torch.arange(count) * 37, torch.randn(count, SMALL["latent_dim"], generator=generator)


def run(denoiser: Denoiser, x: Tensor, t: Tensor, z: Tensor, keep: Tensor | None) -> Tensor:
    return denoiser(x, t, Condition(z=z, keep=keep))


def all_but(*sections: int, count: int = 2) -> Tensor:
    keep = torch.ones(count, SECTIONS, dtype=torch.bool)
    keep[:, list(sections)] = False
    return keep


def recorded(denoiser: Denoiser, keep: Tensor | None) -> dict[str, Tensor]:
    """Each layer's output in the order of running, the first convolution's before them, and the result."""
    outputs: dict[str, Tensor] = {}
    handles = [
        denoiser.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: outputs.__setitem__(name, output)
        )
        for name in ("conv_in", *denoiser.layer_names())
    ]
    with torch.no_grad():
        outputs["eps"] = run(denoiser, *inputs(), keep)
    for handle in handles:
        handle.remove()
    return outputs


def modulations(denoiser: Denoiser) -> dict[str, list[TwoStage]]:
    return {
        layer.name: [m for m in denoiser.get_submodule(layer.name).modules() if isinstance(m, TwoStage)]
        for layer in denoiser.modulated_layers()
    }


def test_at_the_start_the_output_does_not_depend_on_z():
    denoiser = fresh()
    x, t, z = inputs()
    eps = run(denoiser, x, t, z, None)
    assert float(eps.detach().std()) > 0.1
    assert torch.equal(run(denoiser, x, t, -3 * z, None), eps) and torch.equal(run(denoiser, x, t, z, all_but(2)), eps)
    trained = moved()
    assert not torch.allclose(run(trained, x, t, z, None), run(trained, x, t, -3 * z, None), atol=1e-2)


@both_paths
def test_layers_and_sections_pair_from_the_outside_inwards(path):
    denoiser = fresh(up_path=path)
    layers = denoiser.modulated_layers()
    down, middle, up = ([layer for layer in layers if layer.name.startswith(part)] for part in ("down", "middle", "up"))
    assert layers == down + middle + up and denoiser.sections == len(down) == SECTIONS
    assert [layer.section for layer in down] == list(range(SECTIONS))
    assert [layer.section for layer in up] == UP_SECTIONS[path]
    assert [layer.resolution for layer in up] == UP_SIDES[path]
    assert [layer.resolution for layer in down] == [16, 16, 16, 8, 8, 8, 4, 4]
    assert [(layer.section, layer.resolution) for layer in middle] == [(SECTIONS - 1, 4)] * 2


@pytest.mark.parametrize(
    ("latent_dim", "sizes"), [(19, [3, 3, 3, 2, 2, 2, 2, 2]), (16, [2] * 8), (8, [1] * 8), (23, [3] * 7 + [2])]
)
def test_section_sizes_differ_by_at_most_one_and_cover_z(latent_dim, sizes):
    denoiser = fresh(latent_dim=latent_dim)
    assert denoiser.section_sizes == sizes
    assert denoiser.section_of.tolist() == [i for i, size in enumerate(sizes) for _ in range(size)]


@both_paths
def test_section_i_reaches_exactly_the_projections_of_its_layers(path):
    """The gradient of each layer's projection of z with respect to z."""
    denoiser = moved(up_path=path)
    x, t, z = inputs()
    projected: dict[str, list[Tensor]] = {}
    for name, found in modulations(denoiser).items():
        assert len(found) == 2
        for modulation in found:
            modulation.latent.register_forward_hook(
                lambda module, args, output, name=name: projected.setdefault(name, []).append(output)
            )
    z.requires_grad_()
    run(denoiser, x, t, z, None)
    begins = [sum(denoiser.section_sizes[:i]) for i in range(SECTIONS + 1)]
    for layer in denoiser.modulated_layers():
        for output in projected[layer.name]:
            (gradient,) = torch.autograd.grad(output.sum(), z, retain_graph=True)
            reached = (gradient != 0).all(0).nonzero().flatten().tolist()
            assert reached == list(range(begins[layer.section], begins[layer.section + 1])), layer
            assert int((gradient != 0).sum()) == 2 * len(reached)


def test_a_masked_section_is_a_section_of_zeros():
    denoiser = moved()
    x, t, z = inputs()
    for section in range(SECTIONS):
        zeroed = torch.where(denoiser.section_of == section, 0.0, z)
        other = torch.where(denoiser.section_of == section, torch.nan, z)
        masked = run(denoiser, x, t, z, all_but(section))
        assert torch.equal(masked, run(denoiser, x, t, zeroed, None))
        assert torch.equal(masked, run(denoiser, x, t, other, all_but(section)))
    assert torch.equal(run(denoiser, x, t, z, all_but(*range(SECTIONS))), run(denoiser, x, t, 0 * z, None))
    assert torch.equal(run(denoiser, x, t, z, all_but()), run(denoiser, x, t, z, None))


def test_masks_belong_to_their_samples():
    denoiser = moved()
    x, t, z = inputs()
    keep = all_but(1)
    keep[1] = torch.arange(SECTIONS) == 4
    both = run(denoiser, x, t, z, keep)
    for b in range(2):
        alone = run(denoiser, x[b : b + 1], t[b : b + 1], z[b : b + 1], keep[b : b + 1])
        torch.testing.assert_close(both[b : b + 1], alone, rtol=1e-3, atol=1e-4)


def test_a_masked_section_changes_nothing_outside_its_layers_influence():
    """Layers that ran before its down layer give the same bits; its own modulations change and no others do."""
    denoiser = moved()
    order = [layer.name for layer in denoiser.modulated_layers()]
    whole = recorded(denoiser, None)
    for section in range(SECTIONS):
        changed = recorded(denoiser, all_but(section))
        for name in order[:section]:
            assert torch.equal(whole[name], changed[name]), (section, name)
        for name in (*order[section:], "eps"):
            assert not torch.equal(whole[name], changed[name]), (section, name)


def test_only_the_layers_of_a_section_see_it():
    """On the inputs of the unmasked run, a layer gives another result if its own section is masked, else the same."""
    denoiser = moved()
    x, t, z = inputs()
    arguments: dict[str, Any] = {}
    for layer in denoiser.modulated_layers():
        denoiser.get_submodule(layer.name).register_forward_pre_hook(
            lambda module, args, name=layer.name: arguments.__setitem__(name, args)
        )
    with torch.no_grad():
        run(denoiser, x, t, z, None)
        whole = dict(arguments)
        for section in range(SECTIONS):
            run(denoiser, x, t, z, all_but(section))
            masked = {name: args[2] for name, args in arguments.items()}
            for layer in denoiser.modulated_layers():
                h, time, latent, _ = whole[layer.name]
                layer_of = denoiser.get_submodule(layer.name).forward
                same = torch.equal(layer_of(h, time, masked[layer.name], None), layer_of(h, time, latent, None))
                assert same == (layer.section != section), (section, layer)


@both_paths
def test_an_up_block_takes_the_latest_skip_that_is_left(path):
    denoiser = moved(up_path=path)
    taken: dict[int, Tensor] = {}
    for j, module in enumerate(denoiser.up):
        module.register_forward_pre_hook(lambda module, args, j=j: taken.__setitem__(j, args[0]))
    outputs = recorded(denoiser, None)
    assert len(denoiser.up) == len(TAKES[path])
    for j, source in enumerate(TAKES[path]):
        before = outputs["middle.1" if j == 0 else f"up.{j - 1}"]
        assert denoiser.up[j].resample == ("up" if source is None else "none")
        assert torch.equal(taken[j], before if source is None else torch.cat([before, outputs[source]], 1))


@pytest.mark.parametrize(("path", "at"), [(path, j) for path, each in TAKES.items() for j, s in enumerate(each) if s])
def test_a_skip_enters_the_up_path_at_its_block_first(path, at):
    """Interventions: one skip is replaced, everything that ran before stays."""
    denoiser = moved(up_path=path)
    order = denoiser.layer_names()
    whole = recorded(denoiser, None)
    channels = whole[TAKES[path][at]].shape[1]

    def replaced(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        own, skip = args[0].split([args[0].shape[1] - channels, channels], 1)
        return torch.cat([own, torch.zeros_like(skip)], 1), *args[1:]

    denoiser.up[at].register_forward_pre_hook(replaced)
    changed = recorded(denoiser, None)
    place = order.index(f"up.{at}")
    assert all(torch.equal(whole[name], changed[name]) for name in order[:place])
    assert not any(torch.equal(whole[name], changed[name]) for name in order[place:])


@pytest.mark.parametrize(("resample", "side"), [("down", 4), ("up", 16), ("none", 8)])
def test_resampling_lies_between_activation_and_convolution_on_both_paths(resample, side):
    torch.manual_seed(0)
    block = ResidualBlock(
        in_channels=8, out_channels=8, time_dim=6, latent_dim=3, modulation="two_stage", dropout=0.0,
        resample=resample, head_dim=None, token_dim=None,
    )  # fmt: skip
    h, time, latent = torch.randn(2, 8, 8, 8), torch.randn(2, 6), torch.randn(2, 3)

    def slow(y: Tensor) -> Tensor:
        if resample == "down":
            return (y[..., ::2, ::2] + y[..., 1::2, ::2] + y[..., ::2, 1::2] + y[..., 1::2, 1::2]) / 4
        return y.repeat_interleave(2, 2).repeat_interleave(2, 3) if resample == "up" else y

    convolved = []
    block.conv_in.register_forward_pre_hook(lambda module, args: convolved.append(args[0]))
    y = block(h, time, latent, None)
    assert y.shape == (2, 8, side, side)
    torch.testing.assert_close(convolved[0], slow(F.gelu(block.modulation_in(h, time, latent))))
    branch = block.conv_in(convolved[0])
    branch = block.conv_out(F.gelu(block.modulation_out(branch, time, latent)))
    torch.testing.assert_close(y, (slow(h) + branch) / math.sqrt(2))


def test_dropout_lies_before_the_last_convolution_of_a_block():
    # As at the start: larger scales push GELU's inputs to where its result is zero too.
    denoiser, entered = fresh(dropout=0.25), []
    for module in denoiser.down:
        module.conv_out.register_forward_pre_hook(lambda module, args: entered.append(args[0]))
    torch.manual_seed(0)
    run(denoiser, *inputs(), None)
    zeros = torch.cat([x.flatten() == 0 for x in entered])
    assert abs(float(zeros.double().mean()) - 0.25) < 4 * math.sqrt(0.25 * 0.75 / len(zeros))


def test_attention_is_where_the_configuration_says():
    denoiser = fresh()
    having = [name for name, module in denoiser.named_modules() if isinstance(module, SelfAttention)]
    expected = ["down.3", "down.4", "down.6", "down.7", "middle.0"]
    expected += ["up.0", "up.1", "up.2", "up.4", "up.5", "up.6"]
    assert having == [f"{name}.attention" for name in expected]
    none = fresh(attention_resolutions=())
    assert not any(isinstance(module, SelfAttention) for module in none.modules())


@both_paths
def test_parameters_worked_out_by_hand(path):
    """Two levels of one block: sections of 2, 2, 1; 8 and 16 channels; t's encoding of 6, its embedding of 10."""
    sizes = {"latent_dim": 5, "channel_multipliers": (1, 2), "blocks": 1, "position_dim": 6, "time_dim": 10}
    denoiser = fresh(**sizes, attention_resolutions=(8,), up_path=path)
    embedding = (6 * 10 + 10) + (10 * 10 + 10)
    ends = (3 * 8 * 9 + 8) + (2 * 8 + 8 * 3 * 9 + 3)

    def block(i: int, o: int, section: int) -> int:
        modulation = (i + o) * 2 * (10 + 1 + section)
        convolutions = (i * o * 9 + o) + (o * o * 9 + o)
        return modulation + convolutions + (i * o + o if i != o else 0)

    attention = 2 * 16 + (16 * 48 + 48) + (16 * 16 + 16)
    down = block(8, 8, 2) + block(8, 8, 2) + block(8, 16, 1) + attention
    middle = 2 * block(16, 16, 1) + attention
    up = block(32, 16, 1) + attention + block(16, 16, 2) + block(24, 8, 2)
    if path == "adm":  # the skips of the block that downsamples and of the first convolution
        up += block(24, 16, 2) + attention + block(16, 8, 2)
    total = embedding + ends + down + middle + up
    assert sum(parameter.numel() for parameter in denoiser.parameters()) == total


def test_imagenet_denoiser_has_the_sections_of_table_12():
    with torch.device("meta"):
        denoiser = Denoiser(**IMAGENET)
    assert denoiser.sections == 14 and set(denoiser.section_sizes) == {146, 147}


def test_weights_start_as_jax_does_and_projections_of_z_at_zero():
    for name, module in fresh(base_channels=32, position_dim=64).named_modules():
        if name.endswith(".latent"):
            assert not bool(module.weight.any())
        elif isinstance(module, nn.Conv2d | nn.Linear):
            weight = module.weight.detach()
            fan_in = weight[0].numel()
            assert float(weight.var()) * fan_in == pytest.approx(1, abs=6 * math.sqrt(2 / weight.numel()))
            assert float(weight.abs().max()) <= 2.2737 / math.sqrt(fan_in) and not bool(module.bias.any())


@pytest.mark.parametrize(("dim", "unit"), [(12, 1.0), (7, 1.0), (12, 10.0)])
def test_timesteps_are_encoded_by_sines_of_falling_frequency(dim, unit):
    embedding, encoded = TimestepEmbedding(dim=dim, width=5, unit=unit), []
    embedding.layers.register_forward_pre_hook(lambda module, args: encoded.append(args[0]))
    t = torch.tensor([0, 1, 7, 999])
    assert embedding(t).shape == (4, 5)
    half = -(-dim // 2)
    for row, step in enumerate(t.tolist()):
        angles = [unit * step / 10_000 ** (i / half) for i in range(half)]
        expected = ([math.sin(a) for a in angles] + [math.cos(a) for a in angles])[:dim]
        assert encoded[0][row].tolist() == pytest.approx(expected, abs=1e-3)


def test_the_timestep_matters_at_the_start():
    denoiser = fresh()
    x, _, z = inputs()
    first, second = (run(denoiser, x, torch.tensor([step, step]), z, None) for step in (10, 11))
    assert float((first - second).detach().abs().max()) > 1e-4


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_bf16_and_memory_order_change_little(memory):
    # Wide enough for groups of many values: small ones amplify the rounding.
    denoiser = moved(base_channels=32, head_dim=16, position_dim=64)
    x, t, z = inputs()
    expected = run(denoiser, x, t, z, None)
    ordered = run(denoiser, x.to(memory_format=memory), t, z, None)
    torch.testing.assert_close(ordered, expected, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        low = run(denoiser, x.to(memory_format=memory), t, z, all_but())
    assert low.dtype == torch.bfloat16
    error = (low.float() - expected).square().mean().sqrt() / expected.std()
    assert float(error.detach()) < 0.06


def test_dropout_of_a_sample_does_not_depend_on_its_batch():
    denoiser = moved(dropout=0.3)
    assert number_modules(denoiser) == SECTIONS + 2 + len(TAKES["adm"])
    x, t, z = inputs(5)
    seeds = torch.arange(5) + 1000
    with addressed(seeds):
        whole = run(denoiser, x, t, z, None)
    for part in (slice(0, 2), slice(2, 5)):
        with addressed(seeds[part]):
            alone = run(denoiser, x[part], t[part], z[part], None)
        torch.testing.assert_close(alone, whole[part], rtol=1e-3, atol=1e-4)
    with addressed(seeds + 1):
        assert not torch.allclose(run(denoiser, x, t, z, None), whole, atol=0.1)


def test_sizes_that_do_not_fit_are_refused():
    for changes, words in (
        ({"latent_dim": 7}, "latent_dim: got 7"),
        ({"resolution": 18}, "resolution: got 18"),
        ({"head_dim": 5}, "head_dim: got 5"),
    ):
        with pytest.raises(ValueError, match=words):
            fresh(**changes)
    x, t, z = inputs()
    for shape in ((2, SECTIONS + 1), (2, 1), (1, SECTIONS)):
        with pytest.raises(ValueError, match="keep: got"):
            run(fresh(), x, t, z, torch.ones(shape, dtype=torch.bool))
