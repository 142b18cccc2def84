"""MLflow: MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME and others of its variables."""

import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from soda_dist.config.load import leaves
from soda_dist.data.storage.folder import Folder
from soda_dist.runs.folder import read_config
from soda_dist.training.observers.observer import Ledger, curves, short_name

EXPERIMENT = "soda_dist"
"""Unless MLFLOW_EXPERIMENT_NAME names another."""
MOST_PARAMETERS = 100
"""That MLflow takes at once."""


class Mlflow:
    """Logs to one run of MLflow, which later attempts continue."""

    def __init__(self, run: Folder) -> None:
        self._folder = run
        self._ledger = Ledger(run, "mlflow")
        self._client: Any = None

    def start(self, step: int) -> None:
        if self._client is not None:
            return
        from mlflow import MlflowClient

        client = MlflowClient()
        if self._ledger.known:
            client.update_run(self._ledger.id, status="RUNNING")
        else:
            self._ledger.set(id=self._create(client))
        self._client = client

    def _create(self, client: Any) -> str:
        from mlflow.entities import Param

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        known = client.get_experiment_by_name(name)
        experiment = client.create_experiment(name) if known is None else known.experiment_id
        run_id: str = client.create_run(experiment, run_name=short_name(self._folder)).info.run_id
        fields = [
            Param(path, str(value)) for path, value in leaves(read_config(self._folder).model_dump(mode="json")).items()
        ]
        for at in range(0, len(fields), MOST_PARAMETERS):
            client.log_batch(run_id, params=fields[at : at + MOST_PARAMETERS])
        return run_id

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        if step > self._ledger.step:
            now = int(1000 * time.time())
            points = [Metric(name, value, now, step) for name, value in curves(values).items()]
            self._client.log_batch(self._ledger.id, metrics=points)
            self._ledger.set(step=step)

    def picture(self, step: int, name: str, png: bytes) -> None:
        with tempfile.TemporaryDirectory(prefix="soda-mlflow-") as place:
            file = Path(place) / f"{step:09d}.png"
            file.write_bytes(png)
            self._client.log_artifact(self._ledger.id, str(file), name)

    def close(self) -> None:
        if self._client is not None:
            self._client.set_terminated(self._ledger.id)
