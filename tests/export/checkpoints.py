"""A run with one checkpoint of random weights, without training, and results as an evaluation leaves them."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from soda_dist.config import RunConfig, dump_config
from soda_dist.data.storage.folder import Folder, open_folder
from soda_dist.training.build import build_objective, torch_engine
from soda_dist.training.context import LocalContext
from tests.report.evaluated_runs import data_facts, dci, probe
from tests.tiny import tiny_config
from tests.training.saved import save

STEP = 3
NO_ENCODER = {"method": "unconditional", "denoiser": {"layer_mask_rate": 0.0, "guidance_mask_rate": 0.0}}
GRID = {"conditioning": "grid_attention", "layer_mask_rate": 0.0}
"""Fields of a denoiser whose encoder does not pool."""
PLAIN = {"arch": "resnet18", "stem": "imagenet", "norm": "batch"}
"""Fields of an encoder that timm has: batch norm and the stem of ImageNet."""


def plain_config(**sections: Any) -> RunConfig:
    """TINY with an encoder that timm can express."""
    encoder = {**PLAIN, **sections.pop("encoder", {})}
    return tiny_config(
        encoder=encoder, data={"source_size": 32, "target_size": 16, **sections.pop("data", {})}, **sections
    )


@torch.no_grad()
def disturb(module: nn.Module) -> None:
    """Move every parameter and running statistic, so that none has the value that any network starts with."""
    generator = torch.Generator().manual_seed(1)
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            noise = torch.rand(tensor.shape, generator=generator)
            tensor.mul_(0.8 + 0.4 * noise).add_(0.1 * noise if tensor.ndim < 2 else 0.0)


def checkpointed(folder: Path, config: RunConfig) -> Folder:
    """A run's folder with a checkpoint at `STEP`."""
    run = open_folder(str(folder))
    run.write("config.yaml", dump_config(config).encode())
    objective = build_objective(config)
    disturb(objective.model)
    save(run, STEP, torch_engine(config, objective), LocalContext(), config)
    return run


def write_results(run: Folder) -> dict[str, dict[str, Any]]:
    """Write results of a probe and of DCI at `STEP`, whose records name a private place; return them by task."""
    data = data_facts("cifar10")
    facts = {"metric": "top1", "value": 0.61234, "standard_error": 0.0123, "label": "secret|cell <b>"}
    extra = {
        "by_factor": {"a|b": {"accuracy": 0.6206}},
        "sections": {"share": [[0.125, 0.25]]},
        "metric": "disentanglement",
    }
    found = {
        "probe": {**probe(data["rows"], "test", top1=0.61234, macro_f1=0.587), **facts},
        "dci": {**dci(data["rows"], 0.4127, 0.2715, 0.9545), **extra, "standard_error": None},
    }
    origin = {"time": "2024-01-01T00:00:00Z", "command": "evaluate.py --data s3://private", "host": "private-host"}
    for task, result in found.items():
        whole = {"task": task, "step": STEP, "data": data, "seed": 0, "seconds": 77.125, "provenance": origin, **result}
        run.write_json(f"eval/{STEP}/{task}.json", whole)
    return found
