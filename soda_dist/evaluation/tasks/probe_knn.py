"""The linear probe and nearest neighbours (section E.1) on latents, beside an untrained encoder's and raw pixels."""

import time
from typing import Any

from soda_dist.errors import UserError
from soda_dist.evaluation.context import Context, Result
from soda_dist.evaluation.features.probe_passes import extract_training, fit_probes, needs_gang
from soda_dist.evaluation.features.read_point import find_point, needs_point
from soda_dist.evaluation.features.scoring import score_all
from soda_dist.evaluation.features.targets import Target, check_neighbours, choose_target, majority
from soda_dist.evaluation.pieces import Features
from soda_dist.evaluation.worker import UNTRAINED
from soda_dist.runs.results import ENCODERS, MEASURES
from soda_dist.runs.results import TASKS as TITLES


def check(context: Context) -> None:
    """Raise a `UserError` for data without labels."""
    choose_target(context.manifest, context.config.evaluation.label)


def check_probe(context: Context) -> None:
    """Raise a `UserError` for data without labels, or for augmented passes that the views or epochs do not allow."""
    check(context)
    data, probe = context.config.data, context.config.evaluation.probe
    if probe.passes and data.pose == "cameras" and data.augmentation.flip:
        got = f"{probe.passes} with data.pose=cameras and data.augmentation.flip=true"
        raise UserError("evaluation.probe.passes", got, "0", "a mirrored view has no camera; leave it out")
    if probe.passes > probe.epochs:
        got = f"{probe.passes} with evaluation.probe.epochs={probe.epochs}"
        raise UserError("evaluation.probe.passes", got, f"0..{probe.epochs}", "an epoch reads one pass; ask for fewer")


def check_knn(context: Context) -> None:
    """Raise a `UserError` for data without labels, or more neighbours than images."""
    check(context)
    check_neighbours(context.config, context.rows("train"))


def probe(context: Context) -> Result:
    """Write `probe.json`; see `evaluation.probe.workers` and `.passes` for the rows and workers."""
    return _classify(context, "probe")


def knn(context: Context) -> Result:
    """Write `knn.json`."""
    return _classify(context, "knn")


def _classify(context: Context, metric: str) -> Result:
    began = time.monotonic()
    config, say = context.config, context.say
    target = choose_target(context.manifest, config.evaluation.label)
    members = 0
    if metric == "probe" and needs_gang(config):
        members = context.pool.gang_size(config.evaluation.probe.workers, "evaluation.probe.workers")
    point, found = find_point(context, target) if needs_point(config) else (None, None)
    training = extract_training(context, point) if members else None
    train, test = training.facts if training else context.features("train", point), context.features("test", point)
    for each in (train, test):
        target.check(each)
    facts = _facts(context, target, [train, test])
    if point is not None:
        facts |= {"read_at": str(point), "search": found}
    if training:
        context.workers.release()  # the gang needs their CPUs or GPUs
        scores = fit_probes(context, training, test, target, members)
    else:
        scores = score_all(context.workers, [metric], config, [train, test], target, say)[metric]
    result = context.record(metric, facts | scores, {}, began)
    _show(result, context)
    return result


def _facts(context: Context, target: Target, features: list[Features]) -> dict[str, Any]:
    """Return a result's record of its data."""
    train, test = features
    e = context.config.evaluation
    return {
        "label": target.name,
        "kind": target.kind,
        "classes": target.classes,
        "splits": {"train": e.train_split, "test": e.test_split},
        "counts": {
            "train": len(train),
            "test": len(test),
            "unreadable_train": len(train.unreadable),
            "unreadable_test": len(test.unreadable),
        },
        "limits": {"train": context.rows("train"), "test": context.rows("test")},
        "unreadable": {"train": train.unreadable[:100], "test": test.unreadable[:100]},
        "majority": majority(train.labels(target.columns), test.labels(target.columns)),
        "untrained": UNTRAINED,
    }


def _show(result: dict[str, Any], context: Context) -> None:
    """Show a result as a table: encoders down, measures across."""
    say, counts, measures = context.say, result["counts"], list(result["encoders"]["trained"]["estimates"])
    say(
        f"{TITLES[result['task']]} at step {result['step']}: {result['label']}, {result['classes']} classes, "
        f"{counts['train']:,} training and {counts['test']:,} test images"
    )
    say(f"  {'':12}" + "".join(f"{MEASURES[measure]:>18}" for measure in measures))
    for encoder, scores in result["encoders"].items():
        cells = [scores["estimates"][measure] for measure in measures]
        shown = "".join(f"{100 * c['value']:10.1f}% ± {100 * c['standard_error']:4.1f}" for c in cells)
        say(f"  {ENCODERS[encoder]:12}" + shown)
    say(f"  {'most frequent':12}{100 * result['majority']:9.1f}%")
    unreadable = counts["unreadable_train"] + counts["unreadable_test"]
    if unreadable:
        say(f"  {unreadable:,} unreadable images were left out")
