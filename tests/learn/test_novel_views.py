"""A trained small model renders objects that it never saw from cameras that are asked for (section 4.2.2).

One training, of one to three sources: against the nearest source and the mean image, the right camera against the
others, three sources against one, and images taken back to their noise (section 4.3).
"""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from soda_dist.config.load import validate, with_fields
from soda_dist.config.schema import RunConfig
from soda_dist.data.storage.folder import open_folder
from soda_dist.diffusion import guided, invert, sample
from soda_dist.evaluation.images.sampling import SampleJob, sample_all
from soda_dist.evaluation.tasks.novel_views import pick_objects, show_novel_views
from soda_dist.evaluation.worker import Models, readers
from soda_dist.models.condition import join
from soda_dist.models.method import DiffusionMethod
from soda_dist.models.pixels import target_input
from soda_dist.parallel.local_pool import LocalPool
from soda_dist.parallel.pool import Held
from tests.learn.methods import BASE, CAMERAS
from tests.learn.scenes import held_out, loss_of, train, write_scenes

STEPS = 6000
OBJECTS, HELD_OUT, VIEWS = 2000, 64, 11
"""Eleven views of each: three sources, and eight cameras that are asked for."""
SECTION = "Novel views"


@dataclass
class Trained:
    model: DiffusionMethod
    config: RunConfig
    data: str
    seconds: float
    loss: float
    """On held-out objects, of as many sources as in training."""

    def shown(self, objects: int, **sampling: Any) -> tuple[dict[str, Any], dict[str, bytes]]:
        """Facts and pictures of novel views of that many held-out objects."""
        fields = {"evaluation.images": objects, **{f"sampling.{name}": value for name, value in sampling.items()}}
        config = with_fields(self.config, fields)
        return show_novel_views(LocalPool(setup=Held(self.actor(config))), config, quiet)

    def actor(self, config: RunConfig) -> Models:
        return Models(self.model, config, readers(self.data, config), torch.device("cpu"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Trained:
    path = tmp_path_factory.mktemp("novel")
    config = validate(
        RunConfig,
        {
            **BASE,
            "data": {**BASE["data"], **CAMERAS, "sources": (1, 3)},
            "aggregation": {"kind": "transformer"},
            "optim": {**BASE["optim"], "ema_decay": 0.99},
            "train": {**BASE["train"], "steps": STEPS},
        },
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    scenes = write_scenes(path / "data", objects=OBJECTS, test_objects=HELD_OUT, views=VIEWS, size=32)
    start = time.monotonic()
    model = train(config, scenes, open_folder(str(path / "run")))
    seconds = time.monotonic() - start
    loss = loss_of(model, config, held_out(config, scenes))
    torch.set_num_threads(threads)
    return Trained(model, config, str(path / "data"), seconds, loss)


def quiet(line: str) -> None:
    """Progress that nobody reads."""


@pytest.mark.learn
@pytest.mark.parametrize(("sources", "guidance", "margin"), [(1, 1.0, 3.0), (1, 2.0, 2.0), (3, 1.0, 2.0)])
def test_novel_views_beat_the_nearest_source_and_the_mean_image(trained, results, sources, guidance, margin) -> None:
    """In dB. Guidance trades likeness for distinctness, and the nearest of three sources is nearer."""
    start = time.monotonic()
    facts, _ = trained.shown(HELD_OUT, sources=sources, guidance=guidance)
    psnr = {name: facts[name]["psnr"]["value"] for name in ("model", "nearest_source", "mean_image")}
    figure = (
        f"{psnr['model']:.2f} dB, nearest source {psnr['nearest_source']:.2f}, mean image {psnr['mean_image']:.2f}; "
        f"SSIM {facts['model']['ssim']['value']:.3f} against {facts['nearest_source']['ssim']['value']:.3f}"
    )
    results.add(SECTION, f"sources {sources}, guidance {guidance:g}, {facts['views']} views", figure, _since(start))
    assert facts["views"] == 8 * HELD_OUT
    if sources == 1 and guidance == 1:
        title = "One source view of each held-out object, what was drawn for eight cameras, and the truth beneath"
        results.picture("novel_views.png", title, trained.shown(4, guidance=guidance)[1]["novel_views.png"])
        what = f"training, {STEPS} steps of {trained.config.train.global_batch}, one to three sources"
        results.add(SECTION, what, f"loss {trained.loss:.4f}", trained.seconds)
    assert psnr["model"] > max(psnr["nearest_source"], psnr["mean_image"]) + margin, figure


@pytest.mark.learn
def test_turning_the_camera_turns_the_object(trained, results) -> None:
    """Of an object's eight true views the one of the camera that was asked for is the nearest to what was drawn."""
    start = time.monotonic()
    right = right_cameras(trained.actor(trained.config), HELD_OUT)
    results.add(SECTION, "the drawn view is nearest to its own camera's among eight", f"{right:.1%}", _since(start))
    assert right > 0.8


def right_cameras(actor: Models, objects: int) -> float:
    """Share of drawn views that are nearer to the truth of their camera than to those of the object's others."""
    subjects, counts = pick_objects(actor, objects)
    (drawn,) = sample_all(LocalPool(setup=Held(actor)), [SampleJob(subjects, 1.0, 0, 0)], quiet)
    hits, at = 0, 0
    for count in counts:
        made, true = (x[at : at + count].astype(np.float64) for x in (drawn.images, subjects.target))
        distance = ((made[:, None] - true[None]) ** 2).mean((2, 3, 4))
        hits += int((distance.argmin(1) == np.arange(count)).sum())
        at += count
    return hits / at


@pytest.mark.learn
def test_three_sources_are_better_than_one(trained, results) -> None:
    start = time.monotonic()
    pairs = held_out(with_fields(trained.config, {"data.sources": (3, 3)}), open_folder(trained.data))
    one, three = (loss_of(trained.model, trained.config, pairs, sources=count) for count in (1, 3))
    results.add(SECTION, "loss of three sources over that of one", f"{three / one:.3f}", _since(start))
    assert three < 0.99 * one


@pytest.mark.learn
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_images_taken_back_to_their_noise_come_out_again(trained, results, guidance) -> None:
    """DDIM inversion (section 4.3): real held-out images, their own latents and poses."""
    start = time.monotonic()
    subjects, _ = pick_objects(trained.actor(trained.config), 8)
    model, cpu = trained.model, torch.device("cpu")
    sources, pose = subjects.sources(cpu), torch.from_numpy(subjects.pose)
    condition = model.condition(sources, pose, None, None)
    without = model.unguided(sources, pose, "latent", None, None)
    predict = guided(model.denoise, condition, without, guidance, join=join)
    images = target_input(torch.from_numpy(subjects.target))
    noise = invert(predict, model.process, images, steps=50, iterations=10)
    again = sample(
        predict, model.process, noise, method="ddim", steps=50, variance="small", eta=0.0, clip=False, noise=None
    )
    error = float((again - images).abs().mean() / 2)
    spread = float(noise.std())
    what = f"DDIM inversion and sampling, 50 steps, guidance {guidance:g}: mean absolute error; spread of the noise"
    results.add(SECTION, what, f"{255 * error:.3f} of 255 levels; {spread:.2f}", _since(start))
    assert 255 * error < 1.0


def _since(start: float) -> float:
    return time.monotonic() - start
