"""Evaluation of a run by actors: linear probe, nearest neighbours, samples; results in `eval/STEP/`."""

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import ray

from soda_dist.config.load import parse_config, parse_yaml, with_fields
from soda_dist.config.provenance import provenance
from soda_dist.config.schema import RunConfig
from soda_dist.data.shards import Manifest, check_shards, read_manifest
from soda_dist.data.storage import Folder, open_folder
from soda_dist.distributed.crew import Crew
from soda_dist.distributed.features import UNTRAINED, Features, Point, check_splits, collect, load_models, plan_pieces
from soda_dist.distributed.measure import Target, check_neighbours, choose_target, majority, measure_all
from soda_dist.distributed.novel_views import has_novel_views, show_novel_views
from soda_dist.distributed.reading import find_point, needs_point
from soda_dist.distributed.samples import Drawing, choose, draw_all, likeness, show
from soda_dist.distributed.session import Say, autoscaler_active, check_resources
from soda_dist.errors import UserError
from soda_dist.metrics import METRICS
from soda_dist.report.report import ENCODERS, MEASURES, TASKS
from soda_dist.training.checkpoint import complete_steps

ALL_TASKS = (*METRICS, "samples")
FREE_SECTIONS = ("evaluation", "sampling", "scale")


def evaluate(
    run_uri: str, data_uri: str, tasks: str, step: str, overrides: Sequence[str], say: Say
) -> dict[str, dict[str, Any]]:
    """Do `tasks` (comma-separated: probe, knn, samples) on a checkpoint; results of the same step are replaced.

    Ray must be connected. Writes `eval/STEP/probe.json`, `knn.json`, `reconstruction.json`, `samples.png` and
    `denoising.png` into the run's folder, and `novel_views.json` and `.png` where the model draws objects from cameras.

    Args:
        step: a step with a complete checkpoint, or `latest`.
        overrides: `a.b=value` of the sections evaluation, sampling and scale.
        say: where progress and tables are shown.

    Returns:
        What the JSON files hold, by file name without its ending.

    Raises:
        UserError: the run, the data or a setting does not fit, or the cluster cannot start an actor.
    """
    names = _tasks(tasks)
    metrics = [name for name in names if name in METRICS]
    run, data = open_folder(run_uri), open_folder(data_uri)
    config, at = _configuration(run, overrides), _step(run, step)
    manifest = _checked_manifest(data, config)
    target = choose_target(manifest, config.evaluation.label) if metrics else None
    if "knn" in metrics:
        rows = manifest.split(config.evaluation.train_split).rows
        check_neighbours(config, min(config.evaluation.max_train_images or rows, rows))
    folder = run.child(f"eval/{at}")
    results: dict[str, dict[str, Any]] = {}
    with _crew(run.uri, data.uri, at, config, say) as crew:
        if target is not None:
            start = time.monotonic()
            reading = find_point(crew, manifest, config, target, say) if needs_point(config) else None
            point = reading and reading[0]
            features = [_features(crew, manifest, config, which, target, point, say) for which in ("train", "test")]
            facts = {"step": at, **_facts(config, target, features), "latents_seconds": time.monotonic() - start}
            if reading is not None:
                facts |= {"read_at": str(reading[0]), "search": reading[1]}
            for name, scores in measure_all(crew, metrics, config, features, target, say).items():
                results[name] = {"task": name, **facts, **scores}
                folder.write_json(f"{name}.json", results[name])
                _show(results[name], say)
        if "samples" in names:
            results["reconstruction"] = _draw_samples(crew, config, folder, at, say)
            if has_novel_views(config):
                results["novel_views"] = _draw_novel_views(crew, config, folder, at, say)
    return results


def guidance_scores(run_uri: str, data_uri: str, guidance: Sequence[float]) -> list[dict[str, float]]:
    """PSNR and SSIM of the latest checkpoint's reconstructions at each guidance scale, from the same noise."""
    run, data = open_folder(run_uri), open_folder(data_uri)
    config, step = _configuration(run, ()), _step(run, "latest")
    _checked_manifest(data, config)
    with _crew(run.uri, data.uri, step, config, _silent) as crew:
        subjects = choose(crew, config.evaluation.images)
        drawn = draw_all(crew, [Drawing(subjects, w, 0, 0) for w in guidance], _silent)
    scores = [likeness(each.images, subjects.target) for each in drawn]
    return [
        {"guidance": w, "psnr": score["psnr"]["value"], "ssim": score["ssim"]["value"]}
        for w, score in zip(guidance, scores, strict=True)
    ]


def _silent(line: str) -> None:
    """A `Say` for work that is told of by its caller."""


def _tasks(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in ALL_TASKS]
    if unknown or not names:
        raise UserError("--tasks", ", ".join(unknown) or "nothing", ", ".join(ALL_TASKS), "choose some of them")
    return [name for name in ALL_TASKS if name in names]


def _configuration(run: Folder, overrides: Sequence[str]) -> RunConfig:
    """The run's configuration with the overrides, which may not touch what the weights depend on."""
    try:
        text = run.read("config.yaml").decode()
    except FileNotFoundError:
        raise UserError(
            "--run", f"{run.uri}, which has no config.yaml", "the folder of a run", "check the URI"
        ) from None
    fields = {}
    for override in overrides:
        path, equals, value = override.partition("=")
        if not equals or path.split(".")[0] not in FREE_SECTIONS:
            allowed = ", ".join(f"{section}.field=value" for section in FREE_SECTIONS)
            raise UserError("override", override, allowed, "pretrain anew to change anything else")
        fields[path] = parse_yaml(value, path)
    return with_fields(parse_config(text, run.file_uri("config.yaml")), fields)


def _step(run: Folder, wanted: str) -> int:
    steps = complete_steps(run)
    if not steps:
        raise UserError("--run", f"{run.uri}, which has no complete checkpoint", "a trained run", "pretrain first")
    if wanted == "latest":
        return steps[-1]
    if not wanted.isdigit() or int(wanted) not in steps:
        raise UserError("--step", wanted, ", ".join([*map(str, steps), "latest"]), "choose a complete checkpoint")
    return int(wanted)


def _checked_manifest(data: Folder, config: RunConfig) -> Manifest:
    manifest = read_manifest(data)
    check_splits(manifest, config)
    for split in (config.evaluation.train_split, config.evaluation.test_split):
        check_shards(data, manifest, split)
    return manifest


def _crew(run_uri: str, data_uri: str, step: int, config: RunConfig, say: Say) -> Crew[Any, Any]:
    resources = _resources(config)
    check_resources({"GPU" if name == "num_gpus" else "CPU": count for name, count in resources.items()}, say)
    device = "cuda" if "num_gpus" in resources else "cpu"
    return Crew(
        setup=partial(load_models, run_uri, data_uri, step, config, device),
        actors=config.evaluation.actors,
        resources=resources,
        start_timeout_s=config.scale.start_timeout_s,
        say=say,
    )


def _resources(config: RunConfig) -> dict[str, float]:
    """What one actor asks for: a training worker's share of a GPU where the cluster has or may get any, else a CPU."""
    gpus = config.scale.gpus_per_worker
    if gpus > 0 and (ray.cluster_resources().get("GPU", 0) > 0 or autoscaler_active()):
        return {"num_gpus": gpus}
    return {"num_cpus": 1}


def _features(
    crew: Crew[Any, Any],
    manifest: Manifest,
    config: RunConfig,
    which: str,
    target: Target,
    point: Point | None,
    say: Say,
) -> Features:
    """Features of the train or test split of evaluation."""
    split, limit = getattr(config.evaluation, f"{which}_split"), getattr(config.evaluation, f"max_{which}_images")
    points = () if point is None else (point,)
    pieces = plan_pieces(split, manifest.split(split).groups, limit, config.evaluation.batch, target.columns, points)
    features = collect(crew, pieces, say)
    if len(features) < 2:
        got = f"{split} with {len(features)} readable images"
        raise UserError(f"evaluation.{which}_split", got, "two or more", "choose another split or a larger part of it")
    target.check(features, split)
    return features


def _facts(config: RunConfig, target: Target, features: list[Features]) -> dict[str, Any]:
    """What a result says about its data."""
    train, test = features
    e = config.evaluation
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
        "majority": majority(train.labels, test.labels),
        "untrained": UNTRAINED,
        "seed": config.seed,
        "provenance": provenance(),
    }


def _draw_samples(crew: Crew[Any, Any], config: RunConfig, folder: Folder, step: int, say: Say) -> dict[str, Any]:
    start = time.monotonic()
    facts, pictures = show(crew, config, say)
    result = {"task": "samples", "step": step, **facts, "seed": config.seed, "provenance": provenance()}
    result["seconds"] = time.monotonic() - start
    for name, picture in pictures.items():
        folder.write(name, picture)
    folder.write_json("reconstruction.json", result)
    say(f"reconstruction at step {step}, {facts['images']} images of {facts['split']}")
    for guidance, scores in facts["guidance"].items():
        psnr, ssim = scores["psnr"], scores["ssim"]
        say(
            f"  guidance {guidance:4}  PSNR {psnr['value']:5.2f} ± {psnr['standard_error']:.2f} dB"
            f"  SSIM {ssim['value']:.3f} ± {ssim['standard_error']:.3f}"
        )
    return result


def _draw_novel_views(crew: Crew[Any, Any], config: RunConfig, folder: Folder, step: int, say: Say) -> dict[str, Any]:
    facts, pictures = show_novel_views(crew, config, say)
    result = {"task": "novel_views", "step": step, **facts, "seed": config.seed, "provenance": provenance()}
    for name, picture in pictures.items():
        folder.write(name, picture)
    folder.write_json("novel_views.json", result)
    return result


def _show(result: dict[str, Any], say: Say) -> None:
    """A result as a table: encoders down, measures across."""
    counts, measures = result["counts"], list(result["encoders"]["trained"]["estimates"])
    say(
        f"{TASKS[result['task']]} at step {result['step']}: {result['label']}, {result['classes']} classes, "
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
