"""The linear probe and nearest neighbours (section E.1) on latents, beside an untrained encoder's and raw pixels."""

import time
from typing import Any

from soda_dist.errors import UserError
from soda_dist.evaluation.context import Result, Subject
from soda_dist.evaluation.features.probe_passes import extract_training, fit_probes, gang_of, needs_gang
from soda_dist.evaluation.features.read_point import find_point, needs_point
from soda_dist.evaluation.features.scoring import measure_all
from soda_dist.evaluation.features.targets import Target, check_neighbours, choose_target, majority
from soda_dist.evaluation.pieces import Features
from soda_dist.evaluation.worker import UNTRAINED
from soda_dist.runs.results import ENCODERS, MEASURES
from soda_dist.runs.results import TASKS as TITLES


def check(subject: Subject) -> None:
    """Needs labels."""
    choose_target(subject.manifest, subject.config.evaluation.label)


def check_probe(subject: Subject) -> None:
    """Needs labels; augmented passes need views that may be mirrored, and an epoch for each."""
    check(subject)
    data, probe = subject.config.data, subject.config.evaluation.probe
    if probe.passes and data.pose == "cameras" and data.augmentation.flip:
        got = f"{probe.passes} with data.pose=cameras and data.augmentation.flip=true"
        raise UserError("evaluation.probe.passes", got, "0", "a mirrored view has no camera; leave it out")
    if probe.passes > probe.epochs:
        got = f"{probe.passes} with evaluation.probe.epochs={probe.epochs}"
        raise UserError("evaluation.probe.passes", got, f"0..{probe.epochs}", "an epoch reads one pass; ask for fewer")


def check_knn(subject: Subject) -> None:
    """Needs labels, and as many images as neighbours."""
    check(subject)
    check_neighbours(subject.config, subject.rows("train"))


def probe(subject: Subject) -> Result:
    """`probe.json`; by `evaluation.probe.workers` workers, on `evaluation.probe.passes` augmented passes."""
    return _classify(subject, "probe")


def knn(subject: Subject) -> Result:
    """`knn.json`."""
    return _classify(subject, "knn")


def _classify(subject: Subject, metric: str) -> Result:
    began = time.monotonic()
    config, say = subject.config, subject.say
    target = choose_target(subject.manifest, config.evaluation.label)
    gang = gang_of(subject) if metric == "probe" and needs_gang(config) else None
    point, found = find_point(subject, target) if needs_point(config) else (None, None)
    training = extract_training(subject, point) if gang else None
    train, test = training.facts if training else subject.features("train", point), subject.features("test", point)
    for each in (train, test):
        target.check(each)
    facts = _facts(subject, target, [train, test])
    if point is not None:
        facts |= {"read_at": str(point), "search": found}
    if gang and training:
        subject.crew.dismiss()  # the workers want what its actors hold
        scores = fit_probes(subject, training, test, target, gang)
    else:
        scores = measure_all(subject.crew, [metric], config, [train, test], target, say)[metric]
    result = subject.record(metric, facts | scores, {}, began)
    _show(result, subject)
    return result


def _facts(subject: Subject, target: Target, features: list[Features]) -> dict[str, Any]:
    """What a result says about its data."""
    train, test = features
    e = subject.config.evaluation
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
        "unreadable": {"train": train.unreadable[:100], "test": test.unreadable[:100]},
        "majority": majority(train.labels(target.columns), test.labels(target.columns)),
        "untrained": UNTRAINED,
    }


def _show(result: dict[str, Any], subject: Subject) -> None:
    """A result as a table: encoders down, measures across."""
    say, counts, measures = subject.say, result["counts"], list(result["encoders"]["trained"]["estimates"])
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
        say(f"  {unreadable:,} images could not be read and were left out")
