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
from soda_dist.evaluation.features.read_point import find_point, needs_point
from soda_dist.evaluation.features.targets import Target, choose_target
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
    """Raise a `UserError` for data without factors, or an unknown label where a denoiser's layer is searched."""
    _searched(context, factor_columns(context.manifest, context.config))


def _searched(context: Context, names: tuple[str, ...]) -> Target | None:
    """Choose the label that the search of a denoiser's layer predicts (F.1); None where latents are the encoder's.

    Without a main label it is the first factor.
    """
    if not needs_point(context.config):
        return None
    manifest = context.manifest
    return choose_target(manifest, context.config.evaluation.label or manifest.main_label or names[0])


def disentangle(context: Context) -> Result:
    """Write `dci.json`, `importance.png` and, where z has sections, `sections.png`."""
    began = time.monotonic()
    d, say = context.config.evaluation.dci, context.say
    names = factor_columns(context.manifest, context.config)
    features, rows = _read(context, names)
    train, test = ((each.arrays["trained"], each.labels(names)) for each in features)
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
        **rows,
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


def _read(context: Context, names: tuple[str, ...]) -> tuple[tuple[Features, Features], dict[str, Any]]:
    """Extract the features of training and test rows, with a result's record of them."""
    e = context.config.evaluation
    limits = {"train": e.dci.max_train_images, "test": e.dci.max_test_images}
    target = _searched(context, names)
    point, search = find_point(context, target) if target else (None, None)
    train, test = (context.features(which, point, limit) for which, limit in limits.items())
    counts = {
        "train": len(train),
        "test": len(test),
        "unreadable_train": len(train.unreadable),
        "unreadable_test": len(test.unreadable),
    }
    facts = {
        "splits": {"train": e.train_split, "test": e.test_split},
        "counts": counts,
        "limits": {which: context.rows(which, limit) for which, limit in limits.items()},
    }
    return (train, test), facts if point is None else facts | {"read_at": str(point), "search": search}


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
    sections = 1 if needs_point(config) else config.denoiser.sections
    edges = np.cumsum([0, *section_sizes(width, sections)]).tolist()
    return list(pairwise(edges))


def _npy(array: NDArray[np.float64]) -> bytes:
    out = BytesIO()
    np.save(out, array, allow_pickle=False)
    return out.getvalue()
