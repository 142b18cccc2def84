"""Runs as older formats left them: this release's files without the fields that came later."""

import hashlib
import json
from typing import Any

from soda_dist.config import dump_config
from soda_dist.data.storage.folder import Folder
from soda_dist.runs.folder import checkpoint_folder, complete_steps, read_config
from tests.tiny import TINY

FORMAT_1 = {"up_path": "mirrored", "time_dim": TINY["denoiser"]["position_dim"]}
"""Fields of the denoiser with which this release builds the networks of format 1 in TINY's size."""
LATER = ("up_path", "time_dim", "time_scale")
"""Fields of the denoiser that format 1 lacks."""


def age(run: Folder) -> None:
    """Make a run of FORMAT_1's networks one that format 1 wrote."""
    yaml = dump_config(read_config(run)).splitlines(keepends=True)
    run.write("config.yaml", "".join(line for line in yaml if line.split(":")[0].strip() not in LATER).encode())
    for step in complete_steps(run):
        folder = checkpoint_folder(run, step)
        config = folder.read_json("config.json")
        for name in LATER:
            del config["denoiser"][name]
        folder.write("config.json", content := json.dumps(config, indent=1).encode())
        manifest: dict[str, Any] = {**folder.read_json("manifest.json"), "version": 1}
        entry = next(entry for entry in manifest["files"] if entry["name"] == "config.json")
        entry |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        folder.write_json("manifest.json", manifest)
