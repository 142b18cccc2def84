"""The linear probe of a run against scikit-learn's logistic regression on the same latents.

After `jobs/evaluate.py --tasks probe`, on the latents that it left in the run's folder:
  python -m tests.learn.logistic_regression RUN [--encoders trained,untrained,pixels]

Both have standardised latents, and choose (there the learning rate, here C) on the same held-out training rows. The
probe's dropout (section E.1) is part of what it minimises, and with ill-conditioned latents it costs points. So
scikit-learn gets the same: `COPIES` of the training rows, each with numbers dropped anew.
"""

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from soda_dist.config.load import parse_config
from soda_dist.metrics.probe import HELD_OUT, NORM_EPS

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Candidates for C, ascending: scikit-learn weighs the sum of the rows' losses by it, so 1 is next to no penalty."""
COPIES = 12
"""The mean loss over so many draws of dropout stands for its expectation: 4 copies differ from 12 by 0.2 points."""
LIMIT = 0.005


class Rows(NamedTuple):
    """Readable rows of a split."""

    latents: NDArray[np.float64]
    labels: NDArray[np.int64]


class Fit(NamedTuple):
    """scikit-learn's result."""

    strength: float
    held_out: dict[float, float]
    top1: float


def read_rows(folder: Path, split: str, encoder: str, label: str) -> Rows:
    """What the evaluation left of a split, in the order of keys."""
    files = sorted(folder.glob(f"latents/*/{split}/*.parquet"))
    if len({file.parent for file in files}) != 1:
        raise SystemExit(f"error: {folder}: latents of one evaluation are needed")
    columns = ["ok", f"label/{label}", f"vector/{encoder}"]
    table = pa.concat_tables([pq.read_table(file, columns=columns) for file in files])
    table = table.filter(table.column("ok"))
    vectors = table.column(columns[2]).combine_chunks()
    return Rows(
        vectors.flatten().to_numpy().reshape(len(vectors), -1).astype(np.float64), table.column(columns[1]).to_numpy()
    )


def fit(train: Rows, test: Rows, seed: int, dropout: float) -> Fit:
    """C by the probe's held-out rows, then all training rows; with dropout the largest C, since that regularises."""
    if dropout:
        return Fit(STRENGTHS[-1], {}, _top1(train, test, STRENGTHS[-1], dropout))
    shuffled = torch.randperm(len(train.labels), generator=torch.Generator().manual_seed(seed)).numpy()
    held, rest = np.split(shuffled, [max(1, round(HELD_OUT * len(shuffled)))])
    candidates = {
        strength: _top1(
            Rows(train.latents[rest], train.labels[rest]), Rows(train.latents[held], train.labels[held]), strength
        )
        for strength in STRENGTHS
    }
    best = max(candidates, key=lambda strength: candidates[strength])
    return Fit(best, candidates, _top1(train, test, best))


def _top1(train: Rows, test: Rows, strength: float, dropout: float = 0.0) -> float:
    mean, scale = train.latents.mean(0), np.sqrt(train.latents.var(0) + NORM_EPS)
    rows, labels, rng = (train.latents - mean) / scale, train.labels, np.random.default_rng(0)
    if dropout:
        kept = (rng.random(rows.shape) >= dropout for _ in range(COPIES))
        rows = np.concatenate([(rows * mask / (1 - dropout)).astype(np.float32) for mask in kept])
        labels = np.tile(labels, COPIES)
    model = LogisticRegression(C=strength, max_iter=300 if dropout else 1000).fit(rows, labels)
    return float(model.score((test.latents - mean) / scale, test.labels))


def _step(path: Path) -> int:
    return int(path.parent.name)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("run", type=Path)
    arguments.add_argument("--encoders", default="trained,untrained")
    args = arguments.parse_args()
    config = parse_config((args.run / "config.yaml").read_text(), str(args.run))
    result: dict[str, Any] = json.loads(max(args.run.glob("eval/*/probe.json"), key=_step).read_text())
    splits = result["splits"]
    dropout = result["settings"]["dropout"]
    for encoder in args.encoders.split(","):
        train, test = (read_rows(args.run, splits[which], encoder, result["label"]) for which in ("train", "test"))
        ours, theirs = result["encoders"][encoder]["estimates"]["top1"]["value"], fit(train, test, config.seed, dropout)
        held = ", ".join(f"{strength:g}: {100 * value:.2f}" for strength, value in theirs.held_out.items())
        verdict = "within" if abs(ours - theirs.top1) <= LIMIT else "BEYOND"
        print(
            f"{encoder}, {len(train.labels):,} x {train.latents.shape[1]}; dropout {dropout:g}; held out by C: {held}"
        )
        print(
            f"  top-1: probe {100 * ours:.2f} %, logistic regression {100 * theirs.top1:.2f} % at C {theirs.strength:g}"
        )
        print(f"  difference {100 * (ours - theirs.top1):+.2f} points, {verdict} {100 * LIMIT:g}")


if __name__ == "__main__":
    main()
