"""Are hue and shape of the solid recognised in a run's reconstructions, as in real scenes?

After a run on rendered solids (`make demo`):
  python -m tests.learn.recognition --run RUN --data DATA

A small convolutional network learns both from training images at the denoiser's resolution, with a little noise on
them. It is judged on held-out test images first, then on reconstructions of them.
"""

import argparse
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from soda_dist.data.formats.camera_folders import POSE_COLUMNS
from soda_dist.data.sources.synthetic import FACTORS
from soda_dist.data.storage.folder import open_folder
from soda_dist.evaluation.images.sampling import SampleJob, draw, pick_inputs
from soda_dist.evaluation.model_sources import Checkpoint
from soda_dist.evaluation.pieces import rows_at
from soda_dist.evaluation.rows import drawn_rows
from soda_dist.evaluation.task_runner import evaluation_config
from soda_dist.evaluation.views import central_views
from soda_dist.evaluation.worker import Models, load_models
from soda_dist.models.pixels import target_input
from soda_dist.runs.folder import chosen_steps, open_run

NAMED = ("object_hue", "shape")
TRAINING, HELD_OUT, RECONSTRUCTED = 6000, 1000, 200
EPOCHS, BATCH, LR, NOISE = 6, 100, 4e-3, 0.1
CHUNK = 50

Judge = Callable[[NDArray[np.uint8]], NDArray[np.int64]]
"""Images uint8 [n, r, r, 3] to the indices of their hues and shapes, int64 [n, 2]."""


class Recognition(NamedTuple):
    """Shares of images whose hue, shape, and both are named rightly."""

    hue: float
    shape: float
    both: float

    def __str__(self) -> str:
        return f"hue {100 * self.hue:.1f} %, shape {100 * self.shape:.1f} %, both {100 * self.both:.1f} %"


def recognised(judge: Judge, images: NDArray[np.uint8], truth: NDArray[np.int64]) -> Recognition:
    """Compare what the judge names with the truth, int64 [n, 2]."""
    right = judge(images) == truth
    return Recognition(*right.mean(0).tolist(), float(right.all(1).mean()))


def real_scenes(models: Models, split: str, keys: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images at the denoiser's resolution, uint8 [n, r, r, 3], and their hues and shapes, int64 [n, 2]."""
    table = rows_at(models.reader[split], keys.tolist(), ["image", *NAMED, *(field.name for field in POSE_COLUMNS)])
    truth = np.stack([table.column(name).to_numpy() for name in NAMED], axis=1).astype(np.int64)
    return central_views(table, models.config).target, truth


def learn_judge(images: NDArray[np.uint8], truth: NDArray[np.int64]) -> Judge:
    """Train a judge on real scenes, seeded."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = _network(images.shape[1])
        optimizer = torch.optim.AdamW(network.parameters(), LR, weight_decay=0.02)
        steps = EPOCHS * -(-len(images) // BATCH)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps)
        x, labels = target_input(torch.from_numpy(images)), torch.from_numpy(truth)
        for _ in range(EPOCHS):
            for rows in torch.randperm(len(x)).split(BATCH):
                noise = NOISE * torch.rand(len(rows), 1, 1, 1) * torch.randn_like(x[rows])
                loss = torch.stack(
                    [F.cross_entropy(part, labels[rows, i]) for i, part in enumerate(_parts(network(x[rows] + noise)))]
                ).sum()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    network.eval()

    @torch.no_grad()
    def judge(images: NDArray[np.uint8]) -> NDArray[np.int64]:
        return torch.stack(
            [part.argmax(1) for part in _parts(network(target_input(torch.from_numpy(images))))], 1
        ).numpy()

    return judge


def _network(side: int) -> nn.Sequential:
    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]

    return nn.Sequential(
        *block(3, 24), *block(24, 24), nn.MaxPool2d(2), *block(24, 48), nn.MaxPool2d(2), *block(48, 64),
        nn.Flatten(), nn.Dropout(0.3), nn.Linear(64 * (side // 4) ** 2, sum(len(FACTORS[name]) for name in NAMED)),
    )  # fmt: skip


def _parts(scores: Tensor) -> tuple[Tensor, ...]:
    return scores.split([len(FACTORS[name]) for name in NAMED], 1)


def judge_of(models: Models) -> tuple[Judge, Recognition]:
    """A judge from images of the training split, and how it does on held-out ones of the test split."""
    e, seed = models.config.evaluation, models.config.seed
    train, test = (
        real_scenes(models, split, drawn_rows(sum(models.reader[split].groups), count, seed, split))
        for split, count in ((e.train_split, TRAINING), (e.test_split, HELD_OUT))
    )
    judge = learn_judge(*train)
    return judge, recognised(judge, *test)


def reconstructed(models: Models, count: int, guidance: float) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Reconstructions of test images, uint8 [n, r, r, 3], and what the images show, int64 [n, 2]."""
    inputs = pick_inputs(models, count)
    drawn = [
        draw(models, SampleJob(inputs.rows(slice(at, at + CHUNK)), guidance, 0, 0)).images
        for at in range(0, len(inputs.keys), CHUNK)
    ]
    return np.concatenate(drawn), real_scenes(models, models.config.evaluation.test_split, inputs.keys)[1]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--run", required=True)
    arguments.add_argument("--data", required=True)
    arguments.add_argument("--images", type=int, default=RECONSTRUCTED)
    arguments.add_argument("overrides", nargs="*", metavar="a.b=value", help="of sampling")
    args = arguments.parse_intermixed_args()
    run = open_run(args.run)
    config, (step,) = evaluation_config(run, args.overrides), chosen_steps(run, "latest")
    models = load_models(Checkpoint(run, step, True), open_folder(args.data).uri, config, "cpu")
    judge, real = judge_of(models)
    print(f"{HELD_OUT:,} real scenes: {real}", flush=True)
    found = recognised(judge, *reconstructed(models, args.images, config.sampling.guidance))
    print(f"{args.images} reconstructions at guidance {config.sampling.guidance:g}: {found}")


if __name__ == "__main__":
    main()
