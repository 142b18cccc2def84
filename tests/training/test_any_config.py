"""Configurations drawn from the schema at random: refused in one line, or built, trained a step, saved and loaded."""

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from soda_dist.config.schema import RunConfig
from soda_dist.data.storage.folder import open_folder
from soda_dist.errors import UserError
from soda_dist.models.condition import Sources
from soda_dist.models.method import DiffusionMethod
from soda_dist.models.pixels import source_input
from soda_dist.training import checkpoint
from soda_dist.training.context import LocalContext
from soda_dist.training.to_device import to_device
from tests.tiny import pairs_at, tiny_config
from tests.training.saved import save
from tests.training.test_engine import engine_of

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
OUTCOMES = {"refused": 0, "trained": 0}
"""Of the configurations drawn so far."""


def _some(fields: dict[str, list[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """Some of these fields, each with one of its values."""
    return st.fixed_dictionaries({}, optional={name: st.sampled_from(values) for name, values in fields.items()})


SECTIONS = {
    "data": {
        "source_size": [16, 20, 32], "target_size": [16, 8, 24], "source_noise": [0.0, 0.2],
        "views": ["augmented", "same", "object", "class"], "sources": [(1, 1), (1, 2), (2, 3), (3, 2)],
        "augment": ["both", "source", "target", "none"], "pose": ["none", "pixels", "cameras"],
        "augmentation": [{"flip": False}, {"crop_flip_rate": 0.0}],
    },
    "encoder": {
        "arch": ["resnet18", "vit_small", "pretrained"], "stem": ["small", "imagenet"], "norm": ["group", "batch"],
        "patch": [4, 8], "latent_dim": [12, 17, 2], "lr_ratio": [1.0, 2.0], "dropout": [0.0, 0.3],
        "model": ["resnet10t"],
    },
    "aggregation": {"kind": ["mean", "transformer"], "heads": [1, 4], "depth": [1, 2]},
    "pose": {
        "conditioning": ["grid", "absolute", "relative", "grid_absolute", "grid_relative"],
        "rays": ["concat", "normalized", "plane", "sphere"], "coordinates": ["cartesian", "polar"],
        "encoding_dim": [24, 26], "scale": [1e-4, 1.0], "mask_rate": [0.0, 0.5],
        "masks": ["together", "separate"],
    },
    "denoiser": {
        "conditioning": ["layer_modulation", "modulation", "broadcast", "cross_attention", "grid_attention"],
        "modulation": ["two_stage", "no_scale", "sum", "concat"], "channel_multipliers": [(1, 2), (1,), (2, 1, 1)],
        "blocks": [1, 2], "attention_resolutions": [(8,), (), (16, 8)], "head_dim": [8, 4],
        "layer_mask_rate": [0.0, 0.5], "guidance_mask_rate": [0.0, 0.5, 1.0], "position_dim": [16, 10],
        "up_path": ["adm", "mirrored"], "time_dim": [None, 10], "time_scale": [None, 1e-2],
    },
    "diffusion": {"schedule": ["inverted", "cosine", "linear", "sigmoid"], "steps": [50, 4]},
    "sampling": {
        "method": ["ddpm", "ddim"], "steps": [2, 3], "variance": ["small", "large"],
        "guide": ["latent", "pose", "both"],
        "guided_sections": [None, (0,), (1, 2)], "masked_sections": [(), (0,), (9,)], "sources": [1, 2],
    },
    "train": {"precision": ["fp32", "bf16"], "micro_batch": [None, 2, 3], "norm_batch": [None, None, 2, 4]},
}  # fmt: skip
TREES = st.fixed_dictionaries(
    {"method": st.sampled_from(["soda", "soda", "encdec", "unconditional", "palette"])},
    optional={name: _some(fields) for name, fields in SECTIONS.items()},
)


def _sources(config: RunConfig) -> tuple[Sources, torch.Tensor | None]:
    batch = to_device(pairs_at(config, 0, 4), CPU)
    posed = batch.target_pose.shape[1] > 0
    return Sources(
        source_input(batch.source), batch.present, batch.source_pose if posed else None
    ), batch.target_pose if posed else None


@torch.no_grad()
def _output(model: Any, config: RunConfig) -> torch.Tensor:
    """What the model makes of fixed sources: noise predicted, or an image."""
    condition = model.condition(*_sources(config), None, None)
    if not isinstance(model, DiffusionMethod):
        return model.decode(condition)
    x = torch.randn(4, 3, *(config.data.target_size,) * 2, generator=torch.Generator().manual_seed(0))
    return model.denoise(x, torch.arange(4) % config.diffusion.steps, condition)


def _any_configuration(tmp_path_factory: pytest.TempPathFactory, tree: dict[str, Any]) -> None:
    note(str(tree))
    try:
        config = tiny_config(**tree)
    except UserError as error:
        assert "\n" not in str(error) and error.field and error.allowed and error.remedy
        OUTCOMES["refused"] += 1
        return
    run = open_folder(str(tmp_path_factory.mktemp("run")))
    engine = engine_of(config)
    size = config.micro_batch
    batches = [
        to_device(pairs_at(config, start, start + size), CPU) for start in range(0, size * config.accumulation, size)
    ]
    result = engine.step(batches, 1e-3)
    assert bool(torch.isfinite(result.loss)) and bool(torch.isfinite(result.grad_norm))
    save(run, 1, engine, LocalContext(), config)
    model, loaded, step = checkpoint.load_model(run)
    assert (loaded, step) == (config, 1)
    again, _, _ = checkpoint.load_model(run)
    assert torch.equal(_output(model, config), _output(again, config))
    twin = engine.objective.model
    with engine.ema_weights() as weights:
        state = twin.state_dict() | {name.removeprefix("model."): value for name, value in weights.items()}
    twin.load_state_dict(state)
    twin.eval().requires_grad_(False)  # as the loaded one: PyTorch's choice of a bf16 kernel depends on it
    torch.testing.assert_close(_output(model, config), _output(twin, config), rtol=1e-4, atol=1e-5)
    OUTCOMES["trained"] += 1


@pytest.mark.parametrize("drawn", [40, pytest.param(300, marks=pytest.mark.long)])
def test_any_configuration_is_refused_in_a_line_or_runs_and_comes_back_equal(drawn, tmp_path_factory) -> None:
    OUTCOMES.update(refused=0, trained=0)
    health = list(HealthCheck)
    drawing = settings(max_examples=drawn, deadline=None, derandomize=True, database=None, suppress_health_check=health)
    drawing(given(tree=TREES)(_any_configuration))(tmp_path_factory)
    assert sum(OUTCOMES.values()) >= drawn and min(OUTCOMES.values()) > drawn // 10, OUTCOMES
