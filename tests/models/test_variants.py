"""Each way in which z reaches the denoiser, told from the others by gradients, interventions and parameter counts."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from soda_dist.models.condition import Condition
from soda_dist.models.decoder import Decoder
from soda_dist.models.denoiser import Denoiser
from soda_dist.models.modulation import adaptive_norm
from soda_dist.models.pose_encoding import PoseGrid, PoseVector
from tests.models.test_denoiser import SMALL, both_paths
from tests.models.test_layers import feature, slow_group_norm

KINDS = ("two_stage", "no_scale", "sum", "concat")
WAYS = ("layer_modulation", "modulation", "broadcast", "cross_attention", "grid_attention", "none")
GRID_SIDE = 3


def norm(kind: Any, *, channels: int = 12, time: int = 6, latent: int = 5, started: bool = False) -> Any:
    torch.manual_seed(0)
    module = adaptive_norm(kind=kind, channels=channels, time_dim=time, latent_dim=latent)
    module.start()
    if not started:
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.3)
    return module


def affines(module: Any) -> dict[str, list[Tensor]]:
    """Scale and shift at the four pairs of two timesteps and two latents."""
    generator = torch.Generator().manual_seed(1)
    t, z = torch.randn(2, 1, 6, generator=generator), torch.randn(2, 1, 5, generator=generator)
    found = [module.affine(t[i], z[j]) for i in (0, 1) for j in (0, 1)]
    return {name: [pair[k].detach() for pair in found] for k, name in enumerate(("scale", "shift"))}


def interaction(four: list[Tensor]) -> float:
    return float((four[0] - four[1] - four[2] + four[3]).abs().max())


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_follows_its_formula(kind):
    module, h = norm(kind), feature(3, 12, 4, 4)
    time, latent = torch.randn(3, 6), torch.randn(3, 5)
    w = {name: value.detach().double() for name, value in module.named_parameters()}
    if kind == "concat":
        both = torch.cat([time, latent], 1).double() @ w["both.weight"].T + w["both.bias"]
        s, b = both.split(12, 1)
        scale, shift = 1 + s, b
    else:
        t_s, t_b = (time.double() @ w["time.weight"].T + w["time.bias"]).split(12, 1)
        z = latent.double() @ w["latent.weight"].T
        match kind:
            case "two_stage":
                z_s, z_b = z.split(12, 1)
                scale, shift = (1 + z_s) * (1 + t_s), (1 + z_s) * t_b + z_b
            case "no_scale":
                scale, shift = 1 + t_s, t_b + z
            case "sum":
                z_s, z_b = z.split(12, 1)
                scale, shift = 1 + t_s + z_s, t_b + z_b
    expected = scale[:, :, None, None] * slow_group_norm(h, 4) + shift[:, :, None, None]
    torch.testing.assert_close(module(h, time, latent).double(), expected, rtol=1e-4, atol=1e-4)


def test_only_two_stages_let_z_act_on_what_t_did_and_only_without_scale_is_the_scale_deaf():
    moves = {kind: affines(norm(kind)) for kind in KINDS}
    for kind, found in moves.items():
        acts = interaction(found["scale"]) > 1e-3 and interaction(found["shift"]) > 1e-3
        assert acts == (kind == "two_stage"), kind
        assert max(interaction(found["scale"]), interaction(found["shift"])) > 1e-3 or kind != "two_stage"
        hears = not torch.equal(found["scale"][0], found["scale"][1])
        assert hears == (kind != "no_scale"), kind
        assert not torch.equal(found["shift"][0], found["shift"][1]), kind


def test_t_and_z_are_interchangeable_in_concatenation_and_in_the_sum():
    """With the weights of the two exchanged, exchanging the two changes nothing; two stages are ordered."""
    t, z = torch.randn(4, 6), torch.randn(4, 6)
    h = feature(4, 12, 4, 4)
    for kind in KINDS:
        module = norm(kind, latent=6)
        other = norm(kind, latent=6)
        with torch.no_grad():
            if kind == "concat":
                a, b = module.both.weight.split(6, 1)
                other.both.weight.copy_(torch.cat([b, a], 1))
            elif kind != "no_scale":
                other.time.weight.copy_(module.latent.weight)
                other.latent.weight.copy_(module.time.weight)
            same = torch.allclose(module(h, t, z), other(h, z, t), atol=1e-5)
        assert same == (kind in ("sum", "concat")), kind


@pytest.mark.parametrize("kind", KINDS)
def test_only_concatenation_hears_z_at_the_start(kind):
    found = affines(norm(kind, started=True))
    deaf = torch.equal(found["scale"][0], found["scale"][1]) and torch.equal(found["shift"][0], found["shift"][1])
    assert deaf == (kind != "concat")


def fresh(conditioning: Any, **changes: Any) -> Denoiser:
    torch.manual_seed(0)
    denoiser = Denoiser(**{**SMALL, "conditioning": conditioning, **changes})
    for name, module in denoiser.named_modules():
        if name.endswith(".latent"):
            nn.init.normal_(module.weight, std=0.5)
    return denoiser


def latent_of(denoiser: Denoiser, count: int = 2) -> Tensor | None:
    generator = torch.Generator().manual_seed(3)
    match denoiser.conditioning:
        case "none":
            return None
        case "grid_attention":
            return torch.randn(count, GRID_SIDE**2, SMALL["latent_dim"], generator=generator)
        case _:
            return torch.randn(count, SMALL["latent_dim"], generator=generator)


def noised(count: int = 2) -> tuple[Tensor, Tensor]:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1)), torch.arange(count) * 37


def told(denoiser: Denoiser, condition: Condition) -> dict[str, list[Tensor]]:
    """What of each layer's arguments (features aside) is a function of z."""
    found: dict[str, list[Tensor]] = {}
    for name in denoiser.layer_names():
        denoiser.get_submodule(name).register_forward_pre_hook(
            lambda module, args, name=name: found.__setitem__(
                name, [a for a in args[2:] if a is not None and a.requires_grad]
            )
        )
    denoiser(*noised(), condition)
    return found


@pytest.mark.parametrize("way", WAYS)
def test_which_layers_are_told_of_which_columns_of_z(way):
    denoiser = fresh(way).requires_grad_(False)
    z = latent_of(denoiser)
    if z is not None:
        z.requires_grad_()
    found = told(denoiser, Condition(z=z))
    attending = {name for name in denoiser.layer_names() if getattr(denoiser.get_submodule(name), "cross") is not None}
    assert bool(attending) == way.endswith("attention")
    for name, arguments in found.items():
        heard = set()
        for argument in arguments:
            (gradient,) = torch.autograd.grad(argument.square().sum(), z, retain_graph=True)
            heard |= set((gradient != 0).flatten(0, -2).any(0).nonzero().flatten().tolist())
        all_of_z = set(range(SMALL["latent_dim"]))
        match way:
            case "layer_modulation":
                plan = next(layer for layer in denoiser.modulated_layers() if layer.name == name)
                assert heard == set((denoiser.section_of == plan.section).nonzero().flatten().tolist()), name
            case "modulation":
                assert heard == all_of_z, name
            case "cross_attention" | "grid_attention":
                assert heard == all_of_z, name  # all are handed the tokens; `attending` use them
            case _:
                assert not heard, name


@pytest.mark.parametrize("way", ["cross_attention", "grid_attention"])
def test_z_reaches_the_features_where_they_attend_and_nowhere_else(way):
    """A layer's output changes with the tokens exactly if it attends."""
    denoiser = fresh(way)
    calls: dict[str, tuple] = {}
    for name in denoiser.layer_names():
        denoiser.get_submodule(name).register_forward_pre_hook(
            lambda module, args, name=name: calls.__setitem__(name, args)
        )
    with torch.no_grad():
        denoiser(*noised(), Condition(z=latent_of(denoiser)))
        for name, (h, time, latent, tokens) in calls.items():
            layer = denoiser.get_submodule(name)
            assert latent is None
            moved = not torch.equal(layer.forward(h, time, None, tokens), layer.forward(h, time, None, tokens + 1))
            attends = h.shape[-1] in SMALL["attention_resolutions"] and layer.resample == "none"
            assert moved == (attends and name != "middle.1"), name


def test_broadcast_puts_z_beside_the_first_channels_of_every_pixel():
    denoiser = fresh("broadcast")
    entered = []
    denoiser.down[0].register_forward_pre_hook(lambda module, args: entered.append(args[0]))
    z = latent_of(denoiser)
    with torch.no_grad():
        denoiser(*noised(), Condition(z=z))
        x, _ = noised()
        torch.testing.assert_close(entered[0][:, :8], denoiser.conv_in(x))
    assert torch.equal(entered[0][:, 8:], z[:, :, None, None].expand(-1, -1, 16, 16))


def test_the_grid_keeps_its_positions_and_sections_have_places_of_their_own():
    """Cells that change places change the result, as do sections; the attention itself is blind to order."""
    grid = fresh("grid_attention")
    z, (x, t) = latent_of(grid), noised()
    turned = z.flip(1)
    with torch.no_grad():
        assert not torch.allclose(grid(x, t, Condition(z=z)), grid(x, t, Condition(z=turned)), atol=1e-3)
        cross = grid.get_submodule("down.3.cross")
        tokens, h = grid.tokens(z, None), feature(2, 16, 8, 8)
        torch.testing.assert_close(cross(h, tokens), cross(h, tokens.flip(1)))
        placed = grid.tokens(torch.zeros_like(z), None)[0]
        assert torch.unique(placed, dim=0).shape[0] == GRID_SIDE**2
    with pytest.raises(ValueError, match="square grid"):
        grid(x, t, Condition(z=z[:, :5]))


@pytest.mark.parametrize("way", WAYS[:-1])
def test_a_mask_makes_z_as_if_it_were_zero(way):
    denoiser = fresh(way)
    z, (x, t) = latent_of(denoiser), noised()
    assert denoiser.sections == (8 if way in ("layer_modulation", "cross_attention") else 1)
    none = torch.zeros(2, denoiser.sections, dtype=torch.bool)
    with torch.no_grad():
        masked = denoiser(x, t, Condition(z=z, keep=none))
        assert torch.equal(masked, denoiser(x, t, Condition(z=torch.full_like(z, torch.nan), keep=none)))
        assert not torch.allclose(masked, denoiser(x, t, Condition(z=z, keep=~none)), atol=1e-3)
        assert torch.equal(denoiser(x, t, Condition(z=z, keep=~none)), denoiser(x, t, Condition(z=z)))
        if way != "grid_attention":  # there the tokens of masked cells are zero, places and all
            torch.testing.assert_close(masked, denoiser(x, t, Condition(z=0 * z)))
        one = none.clone()
        one[0] = True
        torch.testing.assert_close(denoiser(x, t, Condition(z=z, keep=one))[1], masked[1], rtol=1e-3, atol=1e-4)


def by_hand(way: str, kind: str, pose: str | None, image: bool) -> int:
    """Two levels of one block at 16 and 8 px: 8 and 16 channels, sections of 2, 2, 1, t in 6 and then 10, `adm`."""
    d, p, t, sections = 5, 6, 10, (2, 2, 1)
    vector, grid = (24 if pose == "vector" else 0), (8 if pose == "grid" else 0)
    embedding = (p * t + t) + (t * t + t)
    first = ((6 if image else 3) * 8 * 9 + 8) + grid * 24
    last = 2 * 8 + (8 * 3 * 9 + 3)
    wider = grid + (d if way == "broadcast" else 0)
    outputs = {"two_stage": 2, "sum": 2, "no_scale": 1, "concat": 2}[kind]

    def block(i: int, o: int, section: int, attends: bool) -> int:
        seen = {"layer_modulation": sections[section], "modulation": d}.get(way, 0)
        seen += vector if seen else 0
        norms = (i + o) * (2 * (t + 1) + outputs * seen)
        convolutions = (i * o * 9 + o) + (o * o * 9 + o)
        attention = 2 * o + (o * 3 * o + 3 * o) + (o * o + o)
        cross = 2 * o + (o * o + o) + (p * 2 * o + 2 * o) + (o * o + o)
        return (
            norms
            + convolutions
            + (i * o + o if i != o else 0)
            + (attention if attends else 0)
            + (cross if attends and way.endswith("attention") else 0)
        )

    down = block(8 + wider, 8, 0, False) + block(8, 8, 1, False) + block(8, 16, 2, True)
    middle = block(16, 16, 2, True) + block(16, 16, 2, False)
    up = block(32, 16, 2, True) + block(24, 16, 1, True) + block(16, 16, 1, False)
    up += block(24, 8, 0, False) + block(16, 8, 0, False)
    tokens = {"cross_attention": sum(s * p + p for s in sections), "grid_attention": d * p + p}.get(way, 0)
    return embedding + first + last + down + middle + up + tokens


@pytest.mark.parametrize(
    ("way", "kind", "pose", "image"),
    [(way, "two_stage", None, False) for way in WAYS]
    + [(way, kind, None, False) for way in WAYS[:2] for kind in KINDS[1:]]
    + [(way, "two_stage", "grid", False) for way in WAYS]
    + [("layer_modulation", "two_stage", "vector", False), ("none", "two_stage", None, True)],
)
def test_parameters_worked_out_by_hand(way, kind, pose, image):
    grid = PoseGrid(
        kind="pixels", form="sphere", coordinates="polar", radius=1.0, extent=1.0, dim=24, scale=1e-4, channels=8
    )
    vector = PoseVector(form="relative", extent=1.0, dim=24, scale=1e-4)
    denoiser = Denoiser(
        **{**SMALL, "latent_dim": 5, "channel_multipliers": (1, 2), "blocks": 1, "attention_resolutions": (8,)}
        | {"position_dim": 6, "time_dim": 10, "conditioning": way, "modulation": kind, "image": image},
        grid=grid if pose == "grid" else None,
        vector=vector if pose == "vector" else None,
    )
    assert sum(parameter.numel() for parameter in denoiser.parameters()) == by_hand(way, kind, pose, image)


def decoder(**changes: Any) -> Decoder:
    torch.manual_seed(0)
    of_time = ("position_dim", "time_dim", "time_unit")
    arguments = {name: value for name, value in SMALL.items() if name not in of_time}
    made = Decoder(**{**arguments, "grid": None, **changes})
    for name, module in made.named_modules():
        if name.endswith(".latent"):
            nn.init.normal_(module.weight, std=0.5)
    return made


@both_paths
def test_the_decoder_is_the_middle_and_the_way_up_told_of_z_alone(path):
    made, denoiser = decoder(up_path=path), fresh("layer_modulation", up_path=path)
    z = latent_of(denoiser)
    outputs = []
    for layer in made.layers:
        layer.register_forward_hook(lambda module, args, output: outputs.append(tuple(output.shape[1:])))
        assert layer.modulation_in.time is None
    with torch.no_grad():
        image = made(Condition(z=z))
        assert image.shape == (2, 3, 16, 16) and not torch.allclose(image[0], image[1], atol=1e-2)
        down = [tuple(layer.conv_out.weight.shape[:1]) for layer in (*denoiser.middle, *denoiser.up)]
        assert [shape[:1] for shape in outputs] == down and outputs[-1][1:] == (16, 16)
        for section in range(made.sections):
            z_other = torch.where(made.section_of == section, z + 1, z)
            assert not torch.allclose(made(Condition(z=z_other)), image, atol=1e-4), section
    with pytest.raises(ValueError, match="no z"):
        made(Condition())
