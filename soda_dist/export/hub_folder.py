"""The whole model as a folder for the Hugging Face Hub, with a model card made from the run's own results."""

import json

from soda_dist.data.storage.folder import Folder
from soda_dist.export.encoder import preprocessing
from soda_dist.export.model_card import model_card
from soda_dist.runs.folder import attempts, checkpoint_folder
from soda_dist.runs.results import read_step
from soda_dist.training.checkpoint import LARGEST_STATE, MODEL, load_model, read_manifest
from soda_dist.training.checkpoint_files import read_file

COPIED = ("config.json", "encoder.safetensors", MODEL)
"""Files of the checkpoint; one without a trained encoder has no `encoder.safetensors`."""


def hub_files(run: Folder, step: int, license_id: str | None, repository: str | None) -> dict[str, bytes]:
    """Return the files of the folder by name.

    `config.json`, `model.safetensors` and `encoder.safetensors` are the checkpoint's, verified; `preprocessing.json`
    describes the encoder's input, and `README.md` is the model card. Neither names the data's URI, nor the machine.

    Args:
        license_id: the weights' license; None = the card says that it is not stated.
        repository: OWNER/NAME for the card's commands; None = the run's name.

    Raises:
        UserError: as `load_model`, or a damaged result.
    """
    model, config, _ = load_model(run, step)  # whether the files belong to each other
    parameters = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    folder, manifest = checkpoint_folder(run, step), read_manifest(run, step)
    names = {entry["name"] for entry in manifest["files"]}
    files = {name: read_file(folder, manifest, name, LARGEST_STATE) for name in COPIED if name in names}
    if hasattr(model, "encoder"):
        files["preprocessing.json"] = (json.dumps(preprocessing(config), indent=1) + "\n").encode()
    card = model_card(
        read_step(run, step),
        config,
        {name: count for name, count in parameters.items() if count},
        attempts(run)[-1:],
        license_id=license_id,
        repository=repository,
        files=[*files, "README.md"],
    )
    return {**files, "README.md": card.encode()}
