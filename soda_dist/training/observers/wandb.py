"""Weights & Biases: `wandb login`, or WANDB_API_KEY, WANDB_PROJECT, WANDB_MODE=offline and others of its variables."""

import os
from collections.abc import Mapping
from io import BytesIO
from typing import Any

from soda_dist.data.storage.folder import Folder
from soda_dist.runs.folder import read_config
from soda_dist.training.observers.observer import Ledger, curves, short_name

PROJECT = "soda_dist"
"""Unless WANDB_PROJECT names another."""


class Wandb:
    """Logs to one run of Weights & Biases, which later attempts continue."""

    def __init__(self, run: Folder) -> None:
        self._folder = run
        self._ledger = Ledger(run, "wandb")
        self._run: Any = None

    def start(self, step: int) -> None:
        if self._run is not None:
            return
        import wandb

        if wandb.setup().settings.mode == "online" and not wandb.login(prompt=False, verify=False):
            raise RuntimeError("no API key: run `wandb login`, set WANDB_API_KEY, or set WANDB_MODE=offline")
        here = self._folder.uri if self._folder.is_local and "WANDB_DIR" not in os.environ else None
        self._run = wandb.init(
            id=self._ledger.id,
            resume="allow",
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=short_name(self._folder),
            dir=here,
            config=read_config(self._folder).model_dump(mode="json"),
            settings=wandb.Settings(silent=True, console="off", disable_git=True, disable_code=True),
        )
        self._ledger.set()

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        if step > self._ledger.step:
            self._run.log(curves(values), step=step)
            self._ledger.set(step=step)

    def picture(self, step: int, name: str, png: bytes) -> None:
        if step > self._ledger.step:  # the line of this step follows, and is logged with it
            import wandb
            from PIL import Image

            self._run.log({name: wandb.Image(Image.open(BytesIO(png)))}, step=step)

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()
