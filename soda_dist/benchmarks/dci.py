"""DCI on the cluster against disentanglement_lib's way: scikit-learn's boosting, one factor after the other.

scikit-learn would take most of a day, so its side is a slice, one round of boosting of some factors, scaled up by the
number of trees. A tree's time depends neither on its round nor on the number of values: each of its levels sorts every
code of every row (measured at 2,000 x 128: within 15% for 1 to 8 rounds and 2 to 10 values).
"""

import time
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import GradientBoostingClassifier

from soda_dist.distributed.runtime.actor_pool import ActorPool
from soda_dist.errors import UserError
from soda_dist.evaluation.features.factor_fits import fit_factors
from soda_dist.metrics.dci import DEPTH, LEARNING_RATE, ROUNDS, scores, section_scores
from soda_dist.metrics.factors import Integers
from soda_dist.parallel.progress import Say

LEVELS = (10, 10, 10, 10, 10, 10, 4, 4, 2, 2)
"""Values of each factor."""
SLICE = (6, 8, 9)
"""The factors that scikit-learn fits: one of four values, two of two."""
HOLDERS = 12
"""Codes that hold a factor, within its section."""
LIMIT = 20.0
FACTS = ("disentanglement", "completeness", "informativeness_test")
DEFAULTS = {"rows": 10_000, "codes": 2048, "rounds": ROUNDS}


def measure_dci(overrides: list[str], say: Say) -> list[dict[str, Any]]:
    """All of DCI by Ray actors and LightGBM against a slice of it by scikit-learn, measured before and after ours.

    The limit is for the faster of the two slices: ours is to be at least 20 times as fast.

    Args:
        overrides: `rows=`, `codes=` and `rounds=` of a smaller measurement; rows are those of training and of test.

    Raises:
        UserError: another override.
    """
    sizes = _sizes(overrides)
    train, values, bounds = planted(sizes["rows"], sizes["codes"], seed=0)
    test, truth, _ = planted(sizes["rows"], sizes["codes"], seed=1)
    before = _seconds_per_tree(train, values, say)
    start = time.perf_counter()
    with ActorPool(say=say) as pool:
        fitted = fit_factors(
            pool, (train, values), (test, truth), regressor="lightgbm", seed=0, rounds=sizes["rounds"], say=say
        )
    ours = time.perf_counter() - start
    after = _seconds_per_tree(train, values, say)
    result, by_section = scores(*fitted), section_scores(fitted[0], bounds)
    placed = int((by_section.share.argmax(axis=0) == np.arange(len(LEVELS))).sum())
    say(f"D {result.disentanglement:.3f}, C {result.completeness:.3f}, I {result.informativeness_test:.3f}")
    say(f"{placed} of {len(LEVELS)} factors found in the section that holds them")
    grown = trees(LEVELS) * sizes["rounds"]
    theirs = [each * grown for each in (before, after)]
    say(f"ours {ours:,.0f} s; scikit-learn {min(theirs):,.0f} s, by {grown:,} trees of {min(before, after):.3g} s each")
    rates = {"LightGBM on Ray": [3600.0 / ours], "scikit-learn, extrapolated": [3600.0 / each for each in theirs]}
    return [
        {
            "name": f"DCI, {sizes['rows']:,} x {sizes['codes']:,}, {len(LEVELS)} factors",
            "unit": "an hour",
            "median": {side: float(f"{max(each):.4g}") for side, each in rates.items()},
            "rounds": rates,
            "ratio": round(min(theirs) / ours, 3),
            "limit": LIMIT,
            "facts": {name: float(f"{getattr(result, name):.4g}") for name in FACTS},
        }
    ]


def trees(levels: tuple[int, ...]) -> int:
    """Trees of one round of boosting: one a value, a single one for two values."""
    return sum(1 if each == 2 else each for each in levels)


def planted(rows: int, codes: int, seed: int) -> tuple[NDArray[np.float32], Integers, list[tuple[int, int]]]:
    """Codes [rows, codes] in as many sections as factors, values [rows, K], and the sections' bounds.

    Each factor lies in codes of its own section, with noise and with a little of the factor beside it.
    """
    generator, fixed = np.random.default_rng([seed, 0xDC1]), np.random.default_rng(0xDC1)
    values = np.stack([generator.integers(each, size=rows) for each in LEVELS], axis=1)
    normal = (values - values.mean(axis=0)) / values.std(axis=0)
    edges = np.linspace(0, codes, len(LEVELS) + 1).astype(int)
    bounds = [(int(start), int(stop)) for start, stop in pairwise(edges)]
    latents = generator.standard_normal((rows, codes), dtype=np.float32)
    for factor, (start, stop) in enumerate(bounds):
        held = fixed.choice(np.arange(start, stop), size=min(HOLDERS, stop - start), replace=False)
        mixed = normal[:, [factor]] + 0.2 * normal[:, [factor - 1]]
        latents[:, held] += (mixed * fixed.uniform(0.5, 1.5, size=len(held))).astype(np.float32)
    return latents, values, bounds


def _seconds_per_tree(codes: NDArray[np.floating], values: Integers, say: Say) -> float:
    levels = tuple(LEVELS[factor] for factor in SLICE)
    start = time.perf_counter()
    for factor in SLICE:
        model = GradientBoostingClassifier(n_estimators=1, learning_rate=LEARNING_RATE, max_depth=DEPTH, random_state=0)
        model.fit(codes, values[:, factor])
    seconds = time.perf_counter() - start
    say(f"scikit-learn, a slice of {trees(levels)} trees: {seconds:.3g} s")
    return seconds / trees(levels)


def _sizes(overrides: list[str]) -> dict[str, int]:
    sizes = dict(DEFAULTS)
    for override in overrides:
        name, _, text = override.partition("=")
        if name not in sizes or not text.isdecimal() or int(text) < 1:
            raise UserError("overrides", override, "rows=, codes= or rounds= a whole number", "correct the override")
        sizes[name] = int(text)
    if sizes["codes"] < len(LEVELS):
        raise UserError("codes", sizes["codes"], f"{len(LEVELS)} or more", "one section for each factor needs a code")
    return sizes
