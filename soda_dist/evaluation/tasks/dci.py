"""Disentanglement, completeness and informativeness (section E.3) and their kin, of latents and of their sections."""

import time
from io import BytesIO
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from soda_dist.config.schema import RunConfig
from soda_dist.data.shards import Manifest
from soda_dist.errors import UserError
from soda_dist.evaluation.context import Context, Result
from soda_dist.evaluation.features.factor_fits import fit_factors
from soda_dist.evaluation.features.read_point import needs_point
from soda_dist.evaluation.pieces import Features
from soda_dist.metrics import dci, factors
from soda_dist.models.unet import section_sizes
from soda_dist.plots.dci_importance import importance_png, section_png

KINDS = ("factor", "attribute")
"""Kinds of labels that are factors, the better ones first."""


def factor_columns(manifest: Manifest, config: RunConfig) -> tuple[str, ...]:
    """Choose the labels that are taken as factors.

    Raises:
        UserError: names that the data set lacks, or data without factors and attributes.
    """
    wanted = config.evaluation.dci.factors
    for name in wanted:
        if name not in manifest.labels:
            allowed = ", ".join(manifest.labels) or "none, since the data has no labels"
            raise UserError("evaluation.dci.factors", name, allowed, "name label columns")
    found = {kind: tuple(n for n, label in manifest.labels.items() if label.kind == kind) for kind in KINDS}
    chosen = wanted or next((found[kind] for kind in KINDS if found[kind]), ())
    if not chosen:
        got = "dci of data without factors or attributes"
        raise UserError("--tasks", got, "data with factors", "leave it out, or name labels in evaluation.dci.factors")
    return chosen


def check(context: Context) -> None:
    """Raise a `UserError` for data without factors, or latents of a denoiser."""
    factor_columns(context.manifest, context.config)
    if needs_point(context.config):
        raise UserError(
            "--tasks", "dci of a denoiser's activations", "runs with an encoder", "set evaluation.latents=encoder"
        )


def disentangle(context: Context) -> Result:
    """Write `dci.json`, `importance.png` and, where z has sections, `sections.png`."""
    began = time.monotonic()
    d, say = context.config.evaluation.dci, context.say
    names = factor_columns(context.manifest, context.config)
    train = _part(context.features("train", None), names, d.max_train_images)
    test = _part(context.features("test", None), names, d.max_test_images)
    varied = _varying(names, train[1])
    dropped = [name for name in names if name not in varied]
    columns = [names.index(name) for name in varied]
    names, train_codes, train_values = varied, train[0], train[1][:, columns]
    test_codes, test_values = test[0], test[1][:, columns]
    context.workers.release()  # the fits need the CPUs
    importance, train_accuracy, test_accuracy = fit_factors(
        context.pool,
        (train_codes, train_values),
        (test_codes, test_values),
        regressor=d.regressor,
        seed=context.config.seed,
        rounds=d.rounds,
        say=say,
    )
    found = dci.scores(importance, train_accuracy, test_accuracy)
    facts: dict[str, Any] = {
        "splits": {"train": context.config.evaluation.train_split, "test": context.config.evaluation.test_split},
        "counts": {"train": len(train_codes), "test": len(test_codes)},
        "factors": list(names),
        "constant_factors": dropped,
        "metric": "disentanglement",
        "value": found.disentanglement,
        "standard_error": None,
        "disentanglement": found.disentanglement,
        "completeness": found.completeness,
        "informativeness": found.informativeness_test,
        "informativeness_train": found.informativeness_train,
        "by_factor": {
            name: {"completeness": float(c), "accuracy": float(a)}
            for name, c, a in zip(names, found.by_factor, test_accuracy, strict=True)
        },
        "others": _others((train_codes, train_values), (test_codes, test_values), context.config.seed),
        "settings": d.model_dump(mode="json"),
    }
    bounds = _bounds(context.config, train_codes.shape[1])
    pictures = {"importance.png": importance_png(importance, names, bounds)}
    if len(bounds) > 1:
        sections = dci.section_scores(importance, bounds)
        facts["sections"] = {
            "share": sections.share.tolist(),
            "disentanglement": sections.disentanglement,
            "completeness": sections.completeness,
        }
        pictures["sections.png"] = section_png(sections, names)
    context.place.write("importance.npy", _npy(importance))
    say(
        f"DCI over {len(names)} factors, {len(train_codes):,} training images: disentanglement "
        f"{found.disentanglement:.3f}, completeness {found.completeness:.3f}, "
        f"informativeness {found.informativeness_test:.3f}"
    )
    return context.record("dci", facts, pictures, began)


Part = tuple[NDArray[np.float32], NDArray[np.int64]]


def _part(features: Features, names: tuple[str, ...], limit: int) -> Part:
    return features.arrays["trained"][:limit], features.labels(names)[:limit]


def _varying(names: tuple[str, ...], values: NDArray[np.int64]) -> tuple[str, ...]:
    """Return the factors with two values or more among the training images."""
    kept = tuple(name for name, column in zip(names, values.T, strict=True) if (column != column[0]).any())
    if not kept:
        got = f"{', '.join(names)} with one value each"
        raise UserError("evaluation.dci.factors", got, "factors that vary", "take more images, or other factors")
    return kept


def _others(train: Part, test: Part, seed: int) -> dict[str, float]:
    """Compute other metrics of the field; modularity for two factors or more."""
    found = {
        "mig": factors.mig(*train),
        "sap": factors.sap(*train, *test),
        "factor_vae": factors.factor_vae(*train, seed=seed),
    }
    return found | ({"modularity": factors.modularity(*train)} if train[1].shape[1] > 1 else {})


def _bounds(config: RunConfig, width: int) -> list[tuple[int, int]]:
    """Return [start, stop) of the codes of each section of z; one section where z has none."""
    sections = config.denoiser.sections if config.method in ("soda", "encdec") else 1
    edges = np.cumsum([0, *section_sizes(width, sections)]).tolist()
    return list(pairwise(edges))


def _npy(array: NDArray[np.float64]) -> bytes:
    out = BytesIO()
    np.save(out, array, allow_pickle=False)
    return out.getvalue()
