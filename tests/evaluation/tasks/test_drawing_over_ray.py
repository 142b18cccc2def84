"""Drawing tasks and Inception's moments over two Ray actors equal those of this process, to the last digit."""

import hashlib
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from soda_dist.config.load import with_fields
from soda_dist.data.storage.folder import open_folder
from soda_dist.distributed.evaluate_on_ray import evaluation_pool
from soda_dist.evaluation.images.generated_sets import folder_of
from soda_dist.evaluation.images.judges import set_moments
from soda_dist.evaluation.model_sources import Checkpoint
from soda_dist.evaluation.tasks import latents, reconstruction
from soda_dist.evaluation.worker import load_models
from soda_dist.metrics.distributions import Moments
from soda_dist.parallel.local_pool import LocalPool
from soda_dist.parallel.pool import Pool
from soda_dist.parallel.progress import silent
from soda_dist.runs.folder import read_config
from tests.evaluation.contexts import context_of

TOOLS = {"images": 2, "directions": 2, "weights": 3, "noises": 2, "measured_images": 3, "ks": (-2.0, 2.0)}


def _drawn(small: Path, path: Path, inception_file: Path, pool: Pool | None) -> tuple[dict, dict[str, bytes], Moments]:
    """Results by task, pictures, and moments of two reconstructions; of the run's last checkpoint."""
    run = open_folder(str(small / "run"))
    tools = {f"evaluation.tools.{name}": value for name, value in TOOLS.items()}
    digest = hashlib.sha256(inception_file.read_bytes()).hexdigest()
    judge = {"evaluation.inception.weights": str(inception_file), "evaluation.inception.weights_sha256": digest}
    config = with_fields(read_config(run), {"evaluation.label": "attributes", "evaluation.actors": 2, **tools})
    models = partial(load_models, Checkpoint(run, 6, ema=True), str(small / "data"))
    pool = pool or evaluation_pool(config, silent)
    context = context_of(models(config, "cpu"), path, pool=pool)
    context.workers = pool.with_state(partial(models, with_fields(config, judge)))
    try:
        results: dict[str, Any] = {
            "reconstruction": reconstruction.reconstruct(context),
            "samples": reconstruction.samples(context),
            "latents": latents.draw_sheets(context),
        }
        pieces = reconstruction._members(context, config.sampling)
        moments, _ = set_moments(context, folder_of(context, pieces[0].image_set), pieces, "image", 0)
    finally:
        context.close()
    figures = {
        task: {name: value for name, value in result.items() if name not in ("seconds", "provenance")}
        for task, result in results.items()
    }
    pictures = {entry.name: context.place.read(entry.name) for entry in context.place.list() if "png" in entry.name}
    return figures, pictures, moments


@pytest.mark.ray
@pytest.mark.long
def test_actors_draw_what_this_process_draws(
    cluster: None, small: Path, inception_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("soda_dist.evaluation.images.generated_sets.PIECE", 2)
    here, there = (
        _drawn(small, tmp_path / name, inception_file, pool) for name, pool in (("here", LocalPool()), ("there", None))
    )
    assert here[:2] == there[:2] and len(here[1]) == 11
    (one, other) = here[2], there[2]
    assert one.count == other.count >= 4
    assert (one.mean == other.mean).all() and (one.scatter == other.scatter).all()
