"""`benchmark.py dci`: DCI on the cluster against scikit-learn's boosting, as in disentanglement_lib.

scikit-learn would take most of a day: one boosting round of a few factors is timed and scaled by the number of trees.
The time per tree depends on neither the round nor the number of values, since each level sorts every code of every row
(within 15% for 1 to 8 rounds and 2 to 10 values).
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
"""Number of values of each factor."""
SLICE = (6, 8, 9)
"""Factors that scikit-learn fits: one with four values, two with two."""
CODES_PER_FACTOR = 12
"""Number of codes that encode a factor, within its section."""
LIMIT = 20.0
FACTS = ("disentanglement", "completeness", "informativeness_test")
DEFAULTS = {"rows": 10_000, "codes": 2048, "rounds": ROUNDS}


def measure_dci(overrides: list[str], say: Say) -> list[dict[str, Any]]:
    """Compare DCI by Ray actors and LightGBM with a slice by scikit-learn, timed before and after ours.

    The limit of 20 applies to the faster slice.

    Args:
        overrides: `rows=` (of train and of test), `codes=` and `rounds=` for a smaller measurement.

    Raises:
        UserError: any other override.
    """
    sizes = _sizes(overrides)
    train, values, bounds = make_data(sizes["rows"], sizes["codes"], seed=0)
    test, truth, _ = make_data(sizes["rows"], sizes["codes"], seed=1)
    before = _seconds_per_tree(train, values, say)
    start = time.perf_counter()
    with ActorPool(say=say) as pool:
        fitted = fit_factors(
            pool, (train, values), (test, truth), regressor="lightgbm", seed=0, rounds=sizes["rounds"], say=say
        )
    ours = time.perf_counter() - start
    after = _seconds_per_tree(train, values, say)
    result, by_section = scores(*fitted), section_scores(fitted[0], bounds)
    found = int((by_section.share.argmax(axis=0) == np.arange(len(LEVELS))).sum())
    say(f"D {result.disentanglement:.3f}, C {result.completeness:.3f}, I {result.informativeness_test:.3f}")
    say(f"{found} of {len(LEVELS)} factors found in their section")
    tree_count = count_trees(LEVELS) * sizes["rounds"]
    theirs = [each * tree_count for each in (before, after)]
    trees = f"{tree_count:,} trees at {min(before, after):.3g} s"
    say(f"ours {ours:,.0f} s; scikit-learn {min(theirs):,.0f} s, extrapolated: {trees}")
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


def count_trees(levels: tuple[int, ...]) -> int:
    """Count the trees of one boosting round: one per value, a single one for two values."""
    return sum(1 if each == 2 else each for each in levels)


def make_data(rows: int, codes: int, seed: int) -> tuple[NDArray[np.float32], Integers, list[tuple[int, int]]]:
    """Generate codes [rows, codes] with one section per factor, values [rows, K], and the sections' bounds.

    Each factor is encoded in its own section, with noise and a fraction of the previous factor.
    """
    generator, fixed = np.random.default_rng([seed, 0xDC1]), np.random.default_rng(0xDC1)
    values = np.stack([generator.integers(each, size=rows) for each in LEVELS], axis=1)
    normal = (values - values.mean(axis=0)) / values.std(axis=0)
    edges = np.linspace(0, codes, len(LEVELS) + 1).astype(int)
    bounds = [(int(start), int(stop)) for start, stop in pairwise(edges)]
    latents = generator.standard_normal((rows, codes), dtype=np.float32)
    for factor, (start, stop) in enumerate(bounds):
        chosen = fixed.choice(np.arange(start, stop), size=min(CODES_PER_FACTOR, stop - start), replace=False)
        mixed = normal[:, [factor]] + 0.2 * normal[:, [factor - 1]]
        latents[:, chosen] += (mixed * fixed.uniform(0.5, 1.5, size=len(chosen))).astype(np.float32)
    return latents, values, bounds


def _seconds_per_tree(codes: NDArray[np.floating], values: Integers, say: Say) -> float:
    levels = tuple(LEVELS[factor] for factor in SLICE)
    start = time.perf_counter()
    for factor in SLICE:
        model = GradientBoostingClassifier(n_estimators=1, learning_rate=LEARNING_RATE, max_depth=DEPTH, random_state=0)
        model.fit(codes, values[:, factor])
    seconds = time.perf_counter() - start
    say(f"scikit-learn, {count_trees(levels)} trees: {seconds:.3g} s")
    return seconds / count_trees(levels)


def _sizes(overrides: list[str]) -> dict[str, int]:
    sizes = dict(DEFAULTS)
    for override in overrides:
        name, _, text = override.partition("=")
        if name not in sizes or not text.isdecimal() or int(text) < 1:
            raise UserError("overrides", override, "rows=N, codes=N or rounds=N with N above 0", "correct the override")
        sizes[name] = int(text)
    if sizes["codes"] < len(LEVELS):
        raise UserError("codes", sizes["codes"], f"{len(LEVELS)} or more", "use at least one code per factor")
    return sizes
