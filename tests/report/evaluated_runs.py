"""Folders of evaluated runs, as the jobs leave them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from soda_dist.config import dump_config, load_config
from soda_dist.data.storage.folder import open_folder

ROWS = {
    "imagenet": {"train": 1_281_167, "val": 50_000},
    "gso": {"train": 96_000, "val": 12_000, "test": 12_000},
    "shapenet": {"train": 5_024_000, "val": 628_000, "test": 628_000},
    "celebahq": {"train": 24_000, "val": 3000, "test": 3000},
    "mpi3d_toy": {"train": 824_000, "val": 103_000, "test": 103_000},
    "cifar10": {"train": 50_000, "test": 10_000},
}
"""Rows of each split of whole data sets."""


def estimate(value: float, error: float | None = 0.001) -> dict[str, float | None]:
    return {"value": value, "standard_error": error}


def data_facts(kind: str, rows: dict[str, int] | None = None) -> dict[str, Any]:
    """What a result records of its prepared data, whose folder is nowhere."""
    return {"uri": "/gone/data", "kind": kind, "rows": rows or ROWS[kind]}


def write_run(
    folder: Path,
    preset: str,
    overrides: Sequence[str],
    data: dict[str, Any],
    results: dict[str, dict[str, Any]],
    step: int = 1000,
) -> str:
    """A run of a preset with these results on `data` at `step`; an existing run gets one more evaluated step."""
    run, config = open_folder(str(folder)), load_config(preset, overrides)
    run.write("config.yaml", dump_config(config).encode())
    origin = {"time": f"2024-01-01T00:00:{step % 60:02d}Z", "command": "evaluate.py --run x --data y"}
    for task, result in results.items():
        common = {"task": task, "step": step, "data": data, "seed": 0, "provenance": origin}
        run.write_json(f"eval/{step}/{task}.json", {**common, **result})
    return run.uri


def probe(rows: dict[str, int], test: str, **estimates: float) -> dict[str, Any]:
    """probe.json over whole splits."""
    return {
        "splits": {"train": "train", "test": test},
        "counts": {"train": rows["train"], "test": rows[test], "unreadable_train": 0, "unreadable_test": 0},
        "encoders": {
            "untrained": {"estimates": {name: estimate(0.01) for name in estimates}},
            "trained": {"estimates": {name: estimate(value) for name, value in estimates.items()}},
        },
    }


def dci(rows: dict[str, int], disentanglement: float, completeness: float, informativeness: float) -> dict[str, Any]:
    """dci.json."""
    return {
        "splits": {"train": "train", "test": "test"},
        "counts": {"train": rows["train"], "test": rows["test"]},
        "value": disentanglement,
        "disentanglement": disentanglement,
        "completeness": completeness,
        "informativeness": informativeness,
    }


def sampling(preset: str, *overrides: str) -> dict[str, Any]:
    """How a run samples, as results record it."""
    return load_config(preset, overrides).sampling.model_dump(mode="json")


def reconstruction(
    images: int, split: str, settings: dict[str, Any], published: bool = True, **by_guidance: dict[str, float]
) -> dict[str, Any]:
    """reconstruction.json; scores by `g` and the guidance, `_` for the dot."""
    guidance = {
        key[1:].replace("_", "."): {n: estimate(v) for n, v in scores.items()} for key, scores in by_guidance.items()
    }
    return {
        "splits": {"test": split},
        "counts": {"images": images, "unreadable": 0},
        "settings": settings,
        "guidance": guidance,
        "lpips": {"sha256": "0" * 64, "published": published, "net": "vgg"},
    }


def fid(images: int, split: str, settings: dict[str, Any], published: bool = True, **sets: float) -> dict[str, Any]:
    """fid.json; FID has no standard error."""
    return {
        "splits": {"test": split},
        "counts": {"images": images, "unreadable": 0},
        "sets": {name: {"fid": estimate(value, None), "kid": estimate(0.5)} for name, value in sets.items()},
        "weights": {"sha256": "0" * 64, "published": published},
        "settings": {"sets": list(sets), "sampling": settings},
    }


def novel_views(images: int, settings: dict[str, Any], *sets: dict[str, Any]) -> dict[str, Any]:
    """novel_views.json; each set has `sources`, `aggregation` and scores."""
    scored = [{k: estimate(v) if isinstance(v, float) else v for k, v in each.items()} for each in sets]
    return {
        "splits": {"test": "test"},
        "counts": {"images": images, "unreadable": 0},
        "settings": settings,
        "sets": scored,
        "lpips": {"sha256": "0" * 64, "published": True, "net": "vgg"},
    }


def imagenet(
    folder: Path, *overrides: str, name: str = "run", kind: str = "imagenet", rows: dict | None = None, **changes: Any
) -> str:
    """A run like the paper's in all that can be; `changes` go into probe.json."""
    data = data_facts(kind, rows)
    result = {**probe(ROWS["imagenet"], "val", top1=0.71567, top5=0.8942), **changes}
    return write_run(folder / name, "imagenet", overrides, data, {"probe": result})


VIEWS = [
    {"sources": 1, "aggregation": "transformer", "psnr": 21.123, "ssim": 0.8111, "lpips": 0.1222},
    {"sources": 3, "aggregation": "stochastic", "psnr": 1.0, "ssim": 0.1, "lpips": 0.9},
]


def gso(
    folder: Path,
    *overrides: str,
    fid_sampling: tuple[str, ...] = (),
    published: bool = True,
    data: dict[str, Any] | None = None,
    coverage: dict[str, int] | None = None,
) -> str:
    """A run on Google Scanned Objects, drawn from one source."""
    data = data or data_facts("gso")
    how = sampling("gso", *(o for o in overrides if o.startswith("sampling.")))
    distances = fid(12_000, "test", sampling("gso", *fid_sampling), published, reconstruction=7.0, novel_views=3.456)
    views = novel_views(12_000, how, *VIEWS) | ({"coverage": coverage} if coverage else {})
    return write_run(folder / "run", "gso", overrides, data, {"novel_views": views, "fid": distances})
