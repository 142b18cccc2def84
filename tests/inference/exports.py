"""Exported folders of models that were moved off their start, where no layer hears z."""

import json
from pathlib import Path

from safetensors.torch import save_file

from soda_dist.inference import load
from soda_dist.inference.model import Model
from soda_dist.models.lr_equalization import plain_state_dict
from tests.models.methods import config_of, model_of


def write_export(path: Path, name: str, **more: dict) -> Path:
    """`model.safetensors` and `config.json` of a method of `tests.models.methods`."""
    path.mkdir(parents=True, exist_ok=True)
    tensors = {key: value.contiguous() for key, value in plain_state_dict(model_of(name, **more)).items()}
    save_file(tensors, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(config_of(name, **more).model_dump()))
    return path


def exported(path: Path, name: str, **more: dict) -> Model:
    """The loaded model of such a folder."""
    return load(str(write_export(path, name, **more)), device="cpu")
