"""Benchmark ratios: the sides alternate in rounds, since shared machines drift; a side's rate is its median.

Needs no Ray.
"""

import statistics
from collections.abc import Callable, Mapping
from typing import Any

from soda_dist.data.storage.folder import open_folder
from soda_dist.parallel.progress import Say

ROUNDS = 3
Side = Callable[[int], float]
"""Round number -> rate."""
Rates = dict[str, list[float]]
"""Side -> rate per round."""
Result = dict[str, Any]


def alternate(name: str, sides: Mapping[str, Side], unit: str, say: Say) -> Rates:
    """Measure the sides in turn for `ROUNDS` rounds."""
    rounds: Rates = {side: [] for side in sides}
    for number in range(ROUNDS):
        for side, measure in sides.items():
            rounds[side].append(measure(number))
        rates = ", ".join(f"{side} {rates[-1]:.4g}" for side, rates in rounds.items())
        say(f"{name}, round {number + 1} of {ROUNDS}, {unit}: {rates}")
    return rounds


def ratio(name: str, rounds: Rates, unit: str, limit: float | None, facts: Mapping[str, float] | None = None) -> Result:
    """Compute the ratio of the first side, ours, to the best other (1 if there is none).

    Args:
        limit: least acceptable ratio; None = report only.
        facts: further numbers of our side, shown beside the ratio.
    """
    medians = {side: statistics.median(rates) for side, rates in rounds.items()}
    ours, *others = medians.values()
    return {
        "name": name,
        "unit": unit,
        "median": {side: float(f"{rate:.4g}") for side, rate in medians.items()},
        "rounds": rounds,
        "ratio": round(ours / max(others, default=ours), 3),
        "limit": None if limit is None else round(limit, 3),
        "facts": {fact: float(f"{value:.4g}") for fact, value in (facts or {}).items()},
    }


def compare(name: str, sides: Mapping[str, Side], unit: str, limit: float, say: Say) -> Result:
    """Measure the sides with `alternate` and return their `ratio`; the first side is ours."""
    return ratio(name, alternate(name, sides, unit, say), unit, limit)


def conclude(results: list[Result], out_uri: str | None, say: Say) -> str:
    """Print the results; write benchmark.json and return its URI if a folder is given."""
    for result in results:
        sides = "  ".join(f"{side} {rate:g}" for side, rate in result["median"].items())
        say(f"{result['name']} ({result['unit']}): {sides}")
        line = f"  ratio {result['ratio']:.3f}"
        if result["limit"] is not None:
            verdict = "within" if result["ratio"] >= result["limit"] else "BELOW"
            line += f", {verdict} the limit {result['limit']:g}"
        say(line + "".join(f"; {fact} {value:g}" for fact, value in result["facts"].items()))
    if out_uri is None:
        return ""
    folder = open_folder(out_uri)
    folder.write_json("benchmark.json", results)
    return folder.file_uri("benchmark.json")
