"""The presets against tables 10 and 12, written down by hand; each command of docs/method.md against what its row says.

The page is parsed, so that it can name no command that does not train what is claimed.
"""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from pydantic import BaseModel
from torch import nn

from soda_dist.config import RunConfig, load_config
from soda_dist.config.load import PRESETS, preset_names, with_fields
from soda_dist.training import build
from soda_dist.training.build import build_objective
from tests.rules.test_method_page import commands, parts, rows

ROOT = Path(__file__).parents[2]

TABLE_10 = {
    # source noise, ResNet, batch, guidance, sides of source and target
    "imagenet": (0.10, "resnet50x2", 4096, 2.0, 224, 128),  # the ResNet is table 1's; this table has 50
    "celebahq": (0.22, "resnet50", 4096, 2.0, 256, 128),
    "lsun": (0.22, "resnet50", 4096, 2.0, 256, 128),
    "afhq": (0.22, "resnet50", 4096, 2.0, 256, 128),
    "nmr": (0.00, "resnet50", 2048, 2.0, 256, 128),
    "shapenet": (0.00, "resnet50", 2048, 2.0, 256, 128),
    "gso": (0.00, "resnet50", 2048, 2.5, 256, 128),
    "smallnorb": (0.05, "resnet18", 1024, 3.0, 256, 128),
    "shapes3d": (0.05, "resnet18", 1024, 3.0, 256, 128),
    "mpi3d_toy": (0.05, "resnet18", 1024, 3.0, 256, 128),
    "mpi3d_realistic": (0.05, "resnet18", 1024, 3.0, 256, 128),
    "mpi3d_real": (0.05, "resnet18", 1024, 3.0, 256, 128),
    "mpi3d_complex": (0.05, "resnet18", 1024, 3.0, 256, 128),
    "cub": (0.05, "resnet18", 1024, 3.0, 256, 128),
    "flowers102": (0.05, "resnet18", 1024, 3.0, 256, 128),
}
CAMERAS = ("nmr", "shapenet", "gso")
SMALL = ("imagenet", "celebahq", "shapenet", "shapes3d")
"""Those that have a sibling for two cores."""
KIN = {"gso": "shapenet", "mpi3d_toy": "shapes3d", "celebahq": "imagenet"}
"""Those whose commands are tried on another one's sibling."""

NO_LAYERS = {"denoiser.layer_mask_rate": 0.0}
NO_MASK = {**NO_LAYERS, "denoiser.guidance_mask_rate": 0.0}
WIDE = {"denoiser.base_channels": 128}
ONE = {"data.sources": (1, 1)}
GRID = {"denoiser.conditioning": "grid_attention", **NO_LAYERS}
BROADCAST = {"denoiser.conditioning": "broadcast", **NO_LAYERS}
WHOLE = {"denoiser.conditioning": "modulation", **NO_LAYERS}
X2 = {"encoder.arch": "resnet50x2"}
CROSSED = {"denoiser.conditioning": "cross_attention"}
CLIP = {
    "encoder.arch": "pretrained", "encoder.model": "vit_large_patch14_clip_224.openai",
    "encoder.weights": "file.safetensors", "encoder.weights_sha256": "a" * 64, "denoiser.modulation": "sum",
}  # fmt: skip
Differences = dict[str, Any]
ROWS: dict[str, dict[str, tuple[str, list[Differences]]]] = {
    # part of the page: row: preset, and what each of the row's commands changes in it
    "Table 1": {
        "Vanilla EncDec": ("imagenet", [{"method": "encdec", **NO_MASK}]),
        "Vanilla AutoEnc": ("imagenet", [{"method": "encdec", "data.augment": "none", **NO_MASK}]),
        "Palette": ("imagenet", [{"method": "palette", **NO_LAYERS, **WIDE}]),
        "Unconditional Diffusion": ("imagenet", [{"method": "unconditional", **NO_MASK, **WIDE}]),
        "SODA w/o bottleneck": ("imagenet", [GRID]),
        "SODA w/o modulation": ("imagenet", [BROADCAST]),
        "SODA w/o novel views": ("imagenet", [{"data.views": "same"}]),
        "SODA w/o noise sched.": ("imagenet", [{"diffusion.schedule": "cosine"}]),
        "SODA (ours)": ("imagenet", [{}]),
    },
    "Table 2": {"SODA (ours)": ("imagenet", [{"data.views": "same"}])},
    "Table 3": {
        "Vanilla Auto-Encoder": ("shapenet", [{"method": "encdec", **NO_MASK}]),
        "Palette": ("shapenet", [{"method": "palette", **NO_LAYERS, **ONE}]),
        "DALL-E2": ("shapenet", [{**CLIP, **WHOLE}]),
        "SODA w/o bottleneck": ("shapenet", [{**GRID, **ONE, "aggregation.kind": "mean"}]),
        "SODA w/o modulation": ("shapenet", [BROADCAST]),
        "SODA (shorter sampling)": ("shapenet", [{"sampling.steps": 20}]),
        "SODA (ours)": ("shapenet", [{}]),
    },
    "Table 4": {
        "SODA w/o layer mod., CelebA": ("celebahq", [WHOLE]),
        "SODA (ours), CelebA": ("celebahq", [X2]),
        "SODA w/o layer mod.": ("mpi3d_toy", [WHOLE]),
        "SODA (ours)": ("mpi3d_toy", [{}]),
    },
    "Table 5": {
        "SODA with Mean Aggregation": ("shapenet", [{"aggregation.kind": "mean", "sampling.sources": 3}]),
        "SODA with Stochastic Conditioning": (
            "shapenet",
            [{"aggregation.kind": "mean", **ONE, "sampling.sources": 3, "sampling.stochastic": True}],
        ),
        "SODA (Transformer Aggregation)": ("shapenet", [{"sampling.sources": 3}]),
    },
    "Table 6": {
        "Vanilla Auto-Encoder": ("celebahq", [{**X2, "method": "encdec", **NO_MASK}]),
        "Unconditional Diffusion": ("celebahq", [{"method": "unconditional", **NO_MASK}]),
        "DALL-E2 (with CLIP)": ("celebahq", [{**CLIP, **WHOLE, "encoder.latent_dim": 1024}]),
        "SODA (ResNet50x2)": ("celebahq", [X2]),
    },
    "Table 7": {"SODA w/o layer mod.": ("mpi3d_toy", [WHOLE]), "SODA (ours)": ("mpi3d_toy", [{}])},
    "Table 8": {
        "Concat, Cartesian": ("shapenet", [{"pose.rays": "concat", "pose.coordinates": "cartesian"}]),
        "Concat, Polar": ("shapenet", [{"pose.rays": "concat"}]),
        "Sphere, Cartesian": ("shapenet", [{"pose.coordinates": "cartesian"}]),
        "Normalized, Cartesian": ("shapenet", [{"pose.rays": "normalized", "pose.coordinates": "cartesian"}]),
        "Plane, Cartesian": ("shapenet", [{"pose.rays": "plane", "pose.coordinates": "cartesian"}]),
        "Sphere, Polar": ("shapenet", [{}]),
        "Absolute, Polar": ("shapenet", [{"pose.conditioning": "absolute", **ONE}]),
        "Relative, Polar": ("shapenet", [{"pose.conditioning": "relative", **ONE}]),
        "Grid+Relative, Polar": ("shapenet", [{"pose.conditioning": "grid_relative", **ONE}]),
        "Grid+Absolute, Polar": ("shapenet", [{"pose.conditioning": "grid_absolute", **ONE}]),
        "2D Grid, Polar": ("shapenet", [{}]),
    },
    "Table 9": {
        "w/o scale mod.": ("imagenet", [{"denoiser.modulation": "no_scale"}]),
        "w/o layer mod.": ("imagenet", [WHOLE]),
        "sum mod.": ("imagenet", [{"denoiser.modulation": "sum"}]),
        "concat mod.": ("imagenet", [{"denoiser.modulation": "concat"}]),
        "SODA (default)": ("imagenet", [{}]),
    },
    "Table 10": {
        name: (preset, [{}])
        for name, preset in zip(
            ("Imagenet1K", "CelebA-HQ", "LSUN", "AFHQ", "NMR", "ShapeNet", "GSO", "SmallNORB", "3D-Shapes",
             "MPI3D (Toy)", "MPI3D (Realistic)", "MPI3D (Real)", "MPI3D (Complex)", "CUB", "Oxford Flowers"),
            TABLE_10,
            strict=True,
        )
    },
    "Table 11": {
        "w/o bottleneck": ("celebahq", [GRID]),
        "w/o modulation": ("celebahq", [BROADCAST]),
        "w/o layer modulation": ("celebahq", [WHOLE]),
        "w/o layer mask": ("celebahq", [NO_LAYERS]),
        "w/o scale modulation": ("celebahq", [{"denoiser.modulation": "no_scale"}]),
        "sum modulation": ("celebahq", [{"denoiser.modulation": "sum"}]),
        "concat modulation": ("celebahq", [{"denoiser.modulation": "concat"}]),
        "SODA (ResNet50, default)": ("celebahq", [{}]),
    },
    "Appendix G.3": {
        "ShapeNet, latent": ("shapenet", [{}]),
        "ShapeNet, pose": (
            "shapenet",
            [{"denoiser.guidance_mask_rate": 0.0, "pose.mask_rate": 0.12, "sampling.guide": "pose"}],
        ),
        "ShapeNet, latent and pose": ("shapenet", [{"pose.mask_rate": 0.12, "sampling.guide": "both"}]),
        "GSO, latent": ("gso", [{"pose.mask_rate": 0.0, "sampling.guide": "latent"}]),
        "GSO, pose": ("gso", [{"denoiser.guidance_mask_rate": 0.0, "sampling.guide": "pose"}]),
        "GSO, latent and pose": ("gso", [{}]),
    },
    "Appendix G": {
        "a smaller encoder": ("imagenet", [{"encoder.arch": "resnet50"}]),
        "a ViT": ("imagenet", [{"encoder.arch": "vit_base"}]),
        "a wider denoiser": ("imagenet", [{"denoiser.base_channels": 128}]),
        "a smaller latent": ("imagenet", [{"encoder.latent_dim": 512}]),
        "one learning rate for both": ("imagenet", [{"encoder.lr_ratio": 1.0}]),
    },
    "Figure 3": {
        "inverted": ("imagenet", [{}]),
        **{name: ("imagenet", [{"diffusion.schedule": name}]) for name in ("cosine", "linear", "sigmoid")},
    },
    "Figure 6": {
        "both views": ("imagenet", [{}]),
        "source alone": ("imagenet", [{"data.augment": "source"}]),
        "target alone": ("imagenet", [{"data.augment": "target"}]),
        "none": ("imagenet", [{"data.augment": "none"}]),
        "source and target equal": ("imagenet", [{"data.views": "same"}]),
        "crops and flips alone": ("imagenet", [{"data.augmentation.randaugment_rate": 0.0}]),
        "no noise on the source": ("imagenet", [{"data.source_noise": 0.0}]),
    },
    "Figure 9": {
        "no guidance": ("imagenet", [{"sampling.guidance": 1.0}]),
        "weaker, stronger": ("imagenet", [{"sampling.guidance": 1.5}, {"sampling.guidance": 3.0}]),
        "fewer steps, more steps": ("imagenet", [{"sampling.steps": 20}, {"sampling.steps": 250}]),
    },
    "Figure 10": {
        "0.0001": ("shapenet", [{}]),
        "larger scales": ("shapenet", [{"pose.scale": 1e-3}, {"pose.scale": 1e-2}]),
        "the original encoding": ("shapenet", [{"pose.scale": 1.0}]),
    },
    "Appendix C": {
        "pose-unconditional: arbitrary views of an object": ("shapenet", [{"data.pose": "none"}]),
        "pixel coordinates": ("imagenet", [{"data.pose": "pixels"}]),
    },
}  # fmt: skip
ALL_ROWS = [(part, row) for part, table in ROWS.items() for row in table]
ELSEWHERE = {
    "Table 3": ("nmr", "gso"),
    "Table 4": ("cub", "shapes3d", "smallnorb", "mpi3d_realistic", "mpi3d_real", "mpi3d_complex"),
    "Table 5": ("gso",),
}
"""Presets that the page offers in place of the one that it prints."""
UNSEEN = (
    "encoder.arch", "encoder.latent_dim", "encoder.model", "encoder.weights", *WIDE, "sampling.", "data.views",
    "data.augment", "data.source_noise", "diffusion.schedule", "pose.scale", "pose.mask_rate",
)  # fmt: skip
"""Beginnings of what a trial in a small size leaves out: sizes, and what makes no other network of it."""
KEPT = (
    "method", "data.views", "data.augment", "data.pose", "data.source_noise", "data.augmentation.randaugment_rate",
    "aggregation.kind", "pose.rays", "pose.coordinates", "pose.mask_rate", "denoiser.conditioning",
    "denoiser.modulation", "denoiser.layer_mask_rate", "denoiser.guidance_mask_rate", "diffusion.schedule",
    "sampling.guidance", "sampling.guide", "encoder.lr_ratio", "optim.decay",
)  # fmt: skip
"""Fields that a preset and its small sibling have in common."""
CAMERA = [1, 0, 0, 0, 0, 0, 1, -6, 0, -1, 0, 0, 1.15, 0, 0.5, 0, 1.15, 0.5, 0, 0, 1]
"""Six units in front of the origin, looking at it."""


@cache
def _page() -> dict[str, str]:
    return parts(ROOT)


def _cells(part: str, row: str) -> list[str]:
    (found,) = (cells for cells in rows(_page()[part]) if cells[0] == row)
    return found


def _commands(part: str, row: str) -> list[tuple[str, list[str]]]:
    return commands(" ".join(_cells(part, row)))


def _leaves(node: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in node:
        if isinstance(value, BaseModel):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _differences(config: RunConfig, preset: str) -> Differences:
    plain = dict(_leaves(load_config(preset)))
    return {name: value for name, value in _leaves(config) if value != plain[name]}


def test_each_row_of_table_10_is_a_preset() -> None:
    others = {*(f"{name}-small" for name in SMALL), "demo", "cifar10", "solids", "own-images"}
    assert set(preset_names()) == {*TABLE_10, *others}


@pytest.mark.parametrize("preset", TABLE_10)
def test_presets_are_tables_10_and_12(preset: str) -> None:
    config = load_config(preset)
    assert (
        config.data.source_noise, config.encoder.arch, config.train.global_batch, config.sampling.guidance,
        config.data.source_size, config.data.target_size,
    ) == TABLE_10[preset]  # fmt: skip
    # Table 12: ranges, what is ImageNet's alone, and what no preset changes.
    assert config.optim.lr / config.train.global_batch == pytest.approx(1e-4 / 1024)
    assert 128 <= config.encoder.latent_dim <= 2048
    assert (config.denoiser.base_channels, config.sampling.steps) == (64, 100)
    probe = config.evaluation.probe
    assert (
        config.optim.decay, config.encoder.lr_ratio, config.data.augmentation.randaugment_rate,
        probe.label_smoothing, probe.bias,
    ) == (("cosine", 2, 0.65, 0.1, -10) if preset == "imagenet" else ("none", 1, 0, 0, 0))  # fmt: skip
    assert (probe.passes > 0, probe.crop_flip_rate) == (preset == "imagenet", 0.65), "the others' have no crops (E.1)"
    assert probe.passes <= probe.epochs
    assert (config.denoiser.layer_mask_rate, config.denoiser.guidance_mask_rate) == (0.15, 0.12)
    assert (config.denoiser.channel_multipliers, config.denoiser.blocks) == ((1, 1, 2, 3, 4), 2)
    assert (config.denoiser.attention_resolutions, config.denoiser.head_dim) == ((8, 16, 32), 64)
    assert (config.denoiser.dropout, config.encoder.dropout, config.encoder.drop_path) == (0.1, 0.1, 0.1)
    assert (config.diffusion.schedule, config.diffusion.steps) == ("inverted", 1000)
    assert (config.optim.weight_decay, config.optim.ema_decay, config.optim.clip_norm) == (0.05, 0.9999, 0.5)
    assert (config.optim.warmup_steps, config.optim.betas) == (5000, (0.9, 0.95))
    assert config.denoiser.conditioning == "layer_modulation"


@pytest.mark.parametrize("preset", TABLE_10)
def test_presets_draw_the_views_of_section_d3(preset: str) -> None:
    data = load_config(preset).data
    assert data.augment == ("both" if preset == "imagenet" else "none")
    if preset not in CAMERAS:
        assert (data.views, data.sources, data.pose) == ("augmented", (1, 1), "none")
        return
    config = load_config(preset)
    assert (data.views, data.sources, data.pose) == ("object", (1, 9), "cameras")
    assert (config.pose.conditioning, config.pose.rays, config.pose.coordinates) == ("grid", "sphere", "polar")
    assert (config.pose.encoding_dim, config.pose.scale) == (512, 1e-4)
    assert tuple(config.aggregation.model_dump().values()) == ("transformer", 2, 4, 4)
    assert (config.pose.mask_rate, config.sampling.guide) == ((0.12, "both") if preset == "gso" else (0.0, "latent"))


@pytest.mark.parametrize("preset", preset_names())
def test_a_preset_is_short_and_its_heading_gives_its_own_command(preset: str) -> None:
    lines = (PRESETS / f"{preset}.yaml").read_text().splitlines()
    assert len(lines) < 25
    heading = "\n".join(line for line in lines if line.startswith("#"))
    command = {
        "demo": "make demo",
        "imagenet": r"python jobs/pretrain_imagenet\.py",
        "solids": r"python jobs/ablate\.py --group NAME --out URI",
    }.get(preset, rf"python jobs/pretrain\.py --preset[ =]{preset}")
    assert re.search(rf"^#   {command}( --data \S+ --run \S+)?$", heading, re.MULTILINE)
    if preset in TABLE_10:
        assert "Not run at this scale." in heading
        assert "Our reading:" in heading


@pytest.mark.parametrize("preset", SMALL)
def test_the_small_ones_keep_the_shape_of_their_kind(preset: str) -> None:
    large, small = load_config(preset), load_config(f"{preset}-small")
    one, other = dict(_leaves(small)), dict(_leaves(large))
    assert {name: one[name] for name in KEPT} == {name: other[name] for name in KEPT}
    assert (large.data.sources[1] > 1) == (small.data.sources[1] > 1)
    assert (small.train.steps <= 500, small.scale.gpus_per_worker) == (True, 0)


def test_the_small_cameras_fit_their_sphere_and_extent() -> None:
    from soda_dist.data.sources import synthetic

    pose = load_config("shapenet-small").pose
    farthest = float(((abs(synthetic.TARGET) + synthetic.TARGET_RANGE) ** 2).sum() ** 0.5) + synthetic.DISTANCE[1]
    assert farthest <= pose.extent < 1.1 * farthest
    # A solid stands on the origin, as high as wide: the far corner of the largest cube's top.
    corner = synthetic.SIZES.max() * 6**0.5
    assert corner <= pose.radius < 1.1 * corner
    assert pose.radius < synthetic.DISTANCE[0] - float(abs(synthetic.TARGET).sum())


@pytest.mark.parametrize(("part", "row"), ALL_ROWS)
def test_a_command_changes_what_its_row_says_and_nothing_else(part: str, row: str) -> None:
    preset, expected = ROWS[part][row]
    found = _commands(part, row)
    assert [name for name, _ in found] == [preset] * len(expected)
    for (_, overrides), differences in zip(found, expected, strict=True):
        assert _differences(load_config(preset, overrides), preset) == differences
        for other in ELSEWHERE.get(part, ()) if preset != "celebahq" else ():
            config = load_config(other, overrides)
            # A field that the other preset has at this value already is no difference.
            assert {**_differences(config, other), **differences} == differences
            assert differences.items() <= dict(_leaves(config)).items()


def test_the_page_has_no_command_without_a_row_here() -> None:
    crossed = commands(_page()["Section 3.3"])
    assert len(crossed) == 1
    assert _differences(load_config(*crossed[0]), "shapenet") == CROSSED
    said = [command for part, text in _page().items() if part != "Section 3.3" for command in commands(text)]
    intro = [("imagenet", ["denoiser.layer_mask_rate=0"])]
    assert sorted(said) == sorted(intro + [command for place in ALL_ROWS for command in _commands(*place)])


@pytest.mark.parametrize(("part", "preset_of"), [("Table 10", None), ("Table 12", "imagenet")])
def test_values_of_tables_10_and_12_are_the_presets(part: str, preset_of: str | None) -> None:
    checked = 0
    for cells in rows(_page()[part]):
        preset = preset_of or commands(cells[1])[0][0]
        for assignment in re.findall(r"`([a-z_.]+=[^` ]+)`", " ".join(cells)):
            assert _differences(load_config(preset, [assignment]), preset) == {}, assignment
            checked += 1
    assert checked >= 44


@pytest.mark.parametrize("row", ROWS["Table 1"])
def test_parameters_of_table_1_are_as_printed_and_near_the_papers(row: str) -> None:
    _, command, published, printed, _ = _cells("Table 1", row)
    ((preset, overrides),) = commands(command)
    # Counted without memory and without initial weights: a forward process cannot be made so, and has no parameters.
    with patch.object(build, "GaussianProcess", lambda *_: nn.Identity()), torch.device("meta"):
        model = build.build_model(load_config(preset, overrides))
    parts_of = {name: sum(p.numel() for p in part.parameters()) / 1e6 for name, part in model.named_children()}
    built = [sum(parts_of.values())]
    if "+" in printed:
        built = [sum(p.numel() for p in model.encoder.backbone.parameters()) / 1e6, parts_of["denoiser"]]
    assert [float(number) for number in re.findall(r"\d+\.\d\d", printed)] == pytest.approx(built, abs=0.006)
    assert [float(number) for number in published.split(" + ")] == pytest.approx(built, rel=0.1)


def _small_trials() -> Iterator[tuple[str, tuple[tuple[str, Any], ...]]]:
    """What the page's commands come to in a small size."""
    for part, row in ALL_ROWS:
        preset, each = ROWS[part][row]
        for fields in each if KIN.get(preset, preset) in SMALL else ():
            kept = sorted((name, value) for name, value in fields.items() if not name.startswith(UNSEEN))
            yield f"{KIN.get(preset, preset)}-small", tuple(kept)


@pytest.mark.parametrize(("preset", "fields"), sorted({*_small_trials(), ("shapenet-small", tuple(CROSSED.items()))}))
def test_each_command_takes_a_training_step_in_a_small_size(preset: str, fields: tuple[tuple[str, Any], ...]) -> None:
    config = with_fields(load_config(preset), dict(fields))
    objective = build_objective(config)
    count, slots, data = 2, config.data.sources[1], config.data
    pose = {"none": [], "pixels": [-1.0, -1.0, 1.0, 1.0], "cameras": CAMERA}[data.pose]
    shapes = (slots, data.source_size, data.source_size), (data.target_size, data.target_size)
    views = [torch.full((count, *shape, 3), 90, dtype=torch.uint8) for shape in shapes]
    rows = torch.ones(count, dtype=torch.bool), torch.arange(count), torch.ones(count, slots, dtype=torch.bool)
    poses = torch.tensor(pose).expand(count, slots, -1), torch.tensor(pose).expand(count, -1)
    loss = objective(*views, *rows, *poses, torch.zeros(count, 0, dtype=torch.int64))
    loss.backward()
    assert 0 < loss.item() < 100
    head = objective.model.get_submodule("decoder" if config.method == "encdec" else "denoiser").conv_out.weight
    assert float(head.grad.abs().sum()) > 0
