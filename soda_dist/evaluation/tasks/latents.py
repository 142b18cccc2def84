"""The latent tools as pictures (sections 4.3.1 and E.3), and the measured effect of moves along attributes."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from soda_dist.errors import UserError
from soda_dist.evaluation.context import Context, Pictures, Result
from soda_dist.evaluation.features.attributes import Attribute, Rows, attributes_of, effects, fit, log_odds, names_of
from soda_dist.evaluation.features.scoring import fit_settings
from soda_dist.evaluation.features.targets import Target, choose_target
from soda_dist.evaluation.images.decode_latents import (
    Decoded,
    DirectionsJob,
    LatentJob,
    decode_all,
    encode_all,
    find_directions,
    section_of,
)
from soda_dist.evaluation.images.sampling import SampleInputs, pick_inputs
from soda_dist.evaluation.images.scores import Images
from soda_dist.evaluation.views import PURPOSE
from soda_dist.metrics.estimates import mean_of
from soda_dist.metrics.probe import LinearProbe
from soda_dist.models.latents import Directions, interpolate, mix_sections, resample_sections, traverse
from soda_dist.plots.image_grid import image_grid
from soda_dist.training.randomness import mix64

LATENTS = 10_000
"""Maximum training latents that principal directions and resampled sections are taken from (E.3: 1,000 to 10,000)."""
MASKED_IMAGES = 2
"""Images whose latents are masked; each has a row for every section."""


def check(context: Context) -> None:
    """Raise a `UserError` unless images are drawn from one vector z of one image, and latents suffice.

    Of an encoder alone, which draws nothing, it is enough that latents suffice.
    """
    config = context.config
    rows = context.rows("train", LATENTS)
    if context.encoder_only:
        _check_directions(context, rows, rows)
        return
    if config.method not in ("soda", "encdec"):
        raise UserError("--tasks", f"latents of method {config.method}", "methods soda and encdec", "leave it out")
    if config.denoiser.conditioning == "grid_attention":
        got = "latents of a run with denoiser.conditioning=grid_attention"
        raise UserError("--tasks", got, "runs whose z is one vector", "leave it out")
    if config.sampling.sources != 1:
        got = f"{config.sampling.sources} with the task latents"
        raise UserError("sampling.sources", got, "1, since each z is of one image", "set it to 1")
    _check_directions(context, rows, config.encoder.latent_dim)
    _target(context)


def _check_directions(context: Context, rows: int, width: int) -> None:
    wanted, most = context.config.evaluation.tools.directions, min(rows - 1, width)
    if wanted > most:
        got = f"{wanted} with {rows} training images and latents of dimension {width}"
        raise UserError("evaluation.tools.directions", got, f"1..{most}", "ask for fewer, or use more images")


def _target(context: Context) -> Target | None:
    """Choose the labels to move images along; None where the data has no main label and none is named."""
    label = context.config.evaluation.label
    if label is None and (context.manifest.main_label is None or not context.manifest.labels):
        return None
    return choose_target(context.manifest, label)


def draw_sheets(context: Context) -> Result:
    """`latents.json` and a picture for each tool, see `report.run_pictures`; without a denoiser no pictures."""
    if context.encoder_only:
        return _encode(context)
    began = time.monotonic()
    config, target = context.config, _target(context)
    train = context.features("train", None, LATENTS if target is None else None)  # a probe takes all
    if target is not None:
        target.check(train)
    pool = train.arrays["trained"][np.isin(train.keys, context.drawn("train", LATENTS))]
    _check_directions(context, *pool.shape)
    sheets = _Sheets.of(context, pool)
    pictures = sheets.interpolation() | sheets.mixing() | sheets.resampled() | sheets.masking()
    found, more = sheets.directions()
    facts: dict[str, Any] = {
        "splits": {"train": config.evaluation.train_split, "test": config.evaluation.test_split},
        "counts": {"images": len(sheets.shown.keys), "latents": len(sheets.pool), "train": len(train)},
        "limits": {"latents": context.rows("train", LATENTS), "train": context.rows("train")},
        "settings": config.evaluation.tools.model_dump(mode="json"),
        "sampling": config.sampling.model_dump(mode="json"),
        **found,
    }
    pictures |= more
    if target is None:
        context.say("attributes left out: the data has no main label and evaluation.label names none")
    else:
        rows = Rows(
            train.arrays["trained"],
            target.of(train),
            target.classes,
            config.seed,
            fit_settings(config, "probe"),
        )
        measured, more = sheets.attributes(target, rows)
        facts |= {"label": target.name, "kind": target.kind, **measured}
        pictures |= more
    return context.record("latents", facts, pictures, began)


def _encode(context: Context) -> Result:
    """`latents.json` of an encoder alone: where the latents of both splits lie, and principal directions (E.3)."""
    began = time.monotonic()
    e, rows = context.config.evaluation, {"train": LATENTS, "test": None}
    train, test = (context.features(which, None, limit) for which, limit in rows.items())
    _check_directions(context, *train.arrays["trained"].shape)
    job = DirectionsJob(train.arrays["trained"], e.tools.directions, False)
    (found,) = context.workers.call(find_directions, job)
    splits = {"train": e.train_split, "test": e.test_split}
    facts: dict[str, Any] = {
        "splits": splits,
        "counts": {
            "train": len(train),
            "test": len(test),
            "unreadable_train": len(train.unreadable),
            "unreadable_test": len(test.unreadable),
        },
        "limits": {which: context.rows(which, limit) for which, limit in rows.items()},
        "dimension": train.arrays["trained"].shape[1],
        "folders": {which: context.latents(split, ()).child(split).uri for which, split in splits.items()},
        "settings": {"directions": e.tools.directions},
        "directions": _facts(found),
    }
    context.say(f"latents of {len(train):,} and {len(test):,} images lie in {facts['folders']['test']} and beside it")
    context.say("pictures left out: an encoder alone draws nothing")
    return context.record("latents", facts, {}, began)


@dataclass(frozen=True)
class _Sheets:
    """The base of all pictures: a few test images with their latents, and latents of training images."""

    context: Context
    shown: SampleInputs
    z: Tensor
    """float32 [n, D], of the shown."""
    pool: Tensor
    """float32 [m, D]."""
    section_of: Tensor
    """int64 [D]."""

    @classmethod
    def of(cls, context: Context, latents: NDArray[np.float32]) -> "_Sheets":
        shown = context.workers.call(pick_inputs, context.config.evaluation.tools.images)
        if len(shown.keys) < 2:
            got = f"{context.config.evaluation.test_split} with one readable image"
            raise UserError("evaluation.test_split", got, "two or more, to go between", "choose another split")
        sections = context.workers.call(section_of, None)
        z = torch.from_numpy(encode_all(context.workers, shown))
        return cls(context, shown, z, torch.tensor(latents), sections)

    @property
    def sections(self) -> int:
        """How many z has."""
        return self.context.config.denoiser.sections

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Of the shown; the last one of an odd number is left over."""
        return [(a, a + 1) for a in range(0, len(self.z) - 1, 2)]

    def given(self, z: Tensor, images: Sequence[int], **more: Any) -> LatentJob:
        """z, float32 [rows, columns, D], drawn with the noise and pose of the shown image `images[row]`."""
        at = np.repeat(np.array(images), z.shape[1])
        pose = None if self.shown.pose is None else self.shown.pose[at]
        return LatentJob(self.shown.keys[at], z.flatten(0, 1).numpy(), pose, **more)

    def rows(self, z: Tensor, images: Sequence[int], what: str) -> list[list[Images]]:
        """Images drawn from z, as `given`, row by row."""
        (drawn,) = decode_all(self.context.workers, [self.given(z, images)], self.context.say, what)
        return [list(row) for row in drawn.images.reshape(*z.shape[:2], *drawn.images.shape[1:])]

    def interpolation(self) -> Pictures:
        count = self.context.config.evaluation.tools.weights
        weights = torch.linspace(0, 1, count)
        ways = [(a, b, method) for a, b in self.pairs for method in ("linear", "spherical")]
        z = torch.stack([interpolate(self.z[a], self.z[b], weights, method=method) for a, b, method in ways])  # type: ignore[arg-type]
        drawn = self.rows(z, [a for a, _, _ in ways], "interpolation")
        target = self.shown.target
        rows = [[target[a], *row, target[b]] for (a, b, _), row in zip(ways, drawn, strict=True)]
        columns = ["A", *(f"{weight:.2g}" for weight in weights.tolist()), "B"]
        return {"interpolation.png": image_grid(rows, columns, [method for _, _, method in ways])}

    def mixing(self) -> Pictures:
        """B's sections into A's, from the outside inwards and from the inside outwards."""
        if self.sections == 1:
            return {}
        ways = [(a, b, outside) for a, b in self.pairs for outside in (True, False)]
        place = torch.arange(self.sections)
        z = torch.stack(
            [
                torch.cat(
                    [
                        mix_sections(
                            self.z[[a, b], None],
                            ((place < given) if outside else (place >= self.sections - given)).long(),
                            self.section_of,
                        )
                        for given in range(self.sections + 1)
                    ]
                )
                for a, b, outside in ways
            ]
        )
        drawn = self.rows(z, [a for a, _, _ in ways], "mixing of sections")
        target = self.shown.target
        rows = [[target[a], *row, target[b]] for (a, b, _), row in zip(ways, drawn, strict=True)]
        columns = ["A", *(f"{given} of B" for given in range(self.sections + 1)), "B"]
        names = ["outer first" if outside else "inner first" for _, _, outside in ways]
        return {"mixing.png": image_grid(rows, columns, names)}

    def resampled(self) -> Pictures:
        if self.sections == 1:
            return {}
        seed, keys = self.context.config.seed, self.shown.keys.tolist()
        z = self.z[:, None].repeat(1, self.sections + 1, 1)
        for row, key in enumerate(keys):
            for section in range(self.sections):
                generator = torch.Generator().manual_seed(mix64(seed, PURPOSE, key, section) >> 1)
                z[row, section + 1] = resample_sections(
                    self.z[row : row + 1], self.pool, [section], self.section_of, generator
                )[0]
        drawn = self.rows(z, range(len(keys)), "resampling of sections")
        rows = [[image, *row] for image, row in zip(self.shown.target, drawn, strict=True)]
        columns = ["source", "own latent", *(f"section {section}" for section in range(self.sections))]
        return {"resampled.png": image_grid(rows, columns)}

    def masking(self) -> Pictures:
        """Rows of what is masked, columns of noise; a decoder without noise draws each once."""
        if self.sections == 1:
            return {}
        config = self.context.config
        noises = 1 if config.method == "encdec" else config.evaluation.tools.noises
        masks = _masks(self.sections)
        images = list(range(min(MASKED_IMAGES, len(self.z))))
        z = self.z[images, None]
        asked = [
            self.given(z, images, masked=sections, noise=noise)
            for sections in masks.values()
            for noise in range(noises)
        ]
        drawn = decode_all(self.context.workers, asked, self.context.say, "masking of sections")
        by_mask = [drawn[at : at + noises] for at in range(0, len(drawn), noises)]
        rows = [[self.shown.target[i], *(each.images[i] for each in some)] for i in images for some in by_mask]
        columns = ["source", *(f"noise {noise + 1}" for noise in range(noises))]
        return {"masking.png": image_grid(rows, columns, [name for _ in images for name in masks])}

    def directions(self) -> tuple[dict[str, Any], Pictures]:
        """Facts of the principal directions, of all of z and of its sections, and their pictures."""
        tools, sectioned = self.context.config.evaluation.tools, self.sections > 1
        asked = DirectionsJob(self.pool.numpy(), tools.directions, sectioned)
        whole, *parts = self.context.workers.call(find_directions, asked)
        names = [f"direction {number + 1} ({share:.0%})" for number, share in enumerate(whole.explained.tolist())]
        moves = list(zip(names, whole.directions, whole.sigmas.tolist(), strict=True))
        pictures = {"directions.png": self.moved(moves, "principal directions")}
        facts: dict[str, Any] = {"directions": _facts(whole)}
        if sectioned:
            moves = [
                (f"section {number} ({float(part.explained[0]):.0%})", part.directions[0], float(part.sigmas[0]))
                for number, part in enumerate(parts)
            ]
            pictures["sections_traversal.png"] = self.moved(moves, "directions of sections")
            facts["sections"] = [_facts(part)[0] for part in parts]
        return facts, pictures

    def moved(self, moves: Sequence[tuple[str, Tensor, float]], what: str) -> bytes:
        """Every shown image along each (name, direction, sigma), as a picture."""
        ks, count = self.context.config.evaluation.tools.ks, len(self.z)
        z = torch.cat([traverse(self.z, direction, sigma, ks).transpose(0, 1) for _, direction, sigma in moves])
        drawn = self.rows(z, [*range(count)] * len(moves), what)
        rows = [[self.shown.target[at % count], *row] for at, row in enumerate(drawn)]
        return image_grid(rows, ["source", *map(_sigmas, ks)], [name for name, _, _ in moves for _ in range(count)])

    def attributes(self, target: Target, rows: Rows) -> tuple[dict[str, Any], Pictures]:
        """Facts of moves along attributes, as the probe sees them, and their picture."""
        context, tools = self.context, self.context.config.evaluation.tools
        context.say(f"fitting a linear probe of {target.name} on {len(rows.latents):,} latents")
        probe = context.workers.call(fit, rows)
        names = names_of(target, context.manifest, tools.attributes)
        found = attributes_of(probe, names, rows.latents)
        pictures = {"attributes.png": self.moved([(a.name, a.direction, a.sigma) for a in found], "attributes")}
        return _measured(context, probe, found), pictures


def _measured(context: Context, probe: LinearProbe, attributes: Sequence[Attribute]) -> dict[str, Any]:
    """Measure the effect of moves on other test images, which are drawn and encoded again."""
    tools, names = context.config.evaluation.tools, [attribute.name for attribute in attributes]
    images = context.workers.call(pick_inputs, tools.measured_images)
    z = torch.from_numpy(encode_all(context.workers, images))
    ks = [k for k in tools.ks if k]
    moved = [traverse(z, a.direction, a.sigma, ks) for a in attributes]
    asked = [LatentJob(images.keys, each.numpy(), images.pose, encode=True) for each in (z, *torch.cat(moved))]
    still, *drawn = decode_all(context.workers, asked, context.say, "effects of attributes")
    before = _scores(probe, still, len(names))
    facts: dict[str, Any] = {}
    for number, attribute in enumerate(attributes):
        parts = drawn[number * len(ks) : (number + 1) * len(ks)]
        after = {k: _scores(probe, part, len(names)) for k, part in zip(ks, parts, strict=True)}
        facts[attribute.name] = effects(names, number, before, {0.0: before, **after})
        for row in facts[attribute.name]:
            context.say(_line(attribute.name, row))
    sources = log_odds(probe, z.numpy(), len(names))
    return {
        "attributes": facts,
        "sigmas": {attribute.name: attribute.sigma for attribute in attributes},
        "of_sources": {name: mean_of(sources[:, number]) for number, name in enumerate(names)},
        "measured_images": len(images.keys),
        "probe": {"learning_rate": probe.learning_rate, "held_out": {f"{r:g}": v for r, v in probe.held_out.items()}},
    }


def _scores(probe: LinearProbe, redrawn: Decoded, count: int) -> NDArray[np.float64]:
    assert redrawn.z is not None
    return log_odds(probe, redrawn.z, count)


def _line(name: str, row: dict[str, Any]) -> str:
    score, change = row["score"], row["change"]
    line = (
        f"{name}, {_sigmas(row['k'])}: log-odds {score['value']:+.2f} ± {score['standard_error']:.2f}, "
        f"change {change['value']:+.2f} ± {change['standard_error']:.2f}, {row['share']:.0%} have it"
    )
    return line if row["drift"] is None else f"{line}, others drift by {row['drift']['value']:.2f}"


def _facts(directions: Directions) -> list[dict[str, float]]:
    pairs = zip(directions.sigmas.tolist(), directions.explained.tolist(), strict=True)
    return [{"sigma": sigma, "explained": explained} for sigma, explained in pairs]


def _sigmas(k: float) -> str:
    return f"{k:+g} sigma" if k else "0"


def _masks(sections: int) -> dict[str, tuple[int, ...]]:
    """List the masked sections by the name of a row: nothing, each section, the outer and the inner half, all."""
    every, middle = tuple(range(sections)), (sections + 1) // 2
    halves = {"outer half": every[:middle], "inner half": every[middle:]} if sections > 2 else {}
    return {"nothing": (), **{f"section {i}": (i,) for i in every}, **halves, "all": every}
