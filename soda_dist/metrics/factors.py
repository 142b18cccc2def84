"""Alignment of codes with known factors: MIG, SAP, modularity, FactorVAE score, as in Locatello et al. (2019).

Codes are the D numbers of a latent, [N, D] and finite; values those of an image's K factors, integers [N, K]. Other
arguments raise ValueError, as does a factor with a single value; `mutual_information` does not check, and `factor_vae`
allows single values.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BINS = 20
"""Bins of equal width between the smallest and largest value of a code (Locatello et al. 2019)."""
SVM_C = 0.01
SVM_ITERATIONS = 50
CODES_AT_ONCE = 256

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def mig(codes: NDArray[np.floating], values: NDArray[np.integer], *, bins: int = BINS) -> float:
    """Compute the mutual information gap (Chen et al. 2018): the lead of a factor's best code over its second best.

    The lead in mutual information is divided by the factor's entropy and averaged over factors: 0 if two codes are
    equally informative about every factor, 1 if each factor is in one code alone. D is at least 2.

    Raises:
        ValueError: fewer than two codes, a factor with a single value, codes that are not finite.
    """
    codes, values = checked_codes("codes", codes, at_least=2), checked_values("values", values, len(codes), varied=True)
    best = np.sort(mutual_information(codes, values, bins=bins), axis=0)
    entropy = np.array([_entropy(column) for column in values.T])
    return float(np.mean((best[-1] - best[-2]) / entropy))


def modularity(codes: NDArray[np.floating], values: NDArray[np.integer], *, bins: int = BINS) -> float:
    """Compute modularity (Ridgeway and Mozer 2018): how far codes are informative about one factor only, on average.

    A code scores 1 minus the squared mutual information with its other factors, relative to K - 1 times that with its
    best. A code without information scores 0 and counts. K is at least 2.
    """
    codes, values = checked_codes("codes", codes), checked_values("values", values, len(codes), varied=True)
    factors = values.shape[1]
    if factors < 2:
        raise ValueError(f"values: got {factors} factor; allowed: 2 or more")
    squared = np.square(mutual_information(codes, values, bins=bins))
    best = squared.max(axis=1)
    informative = best > 0.0
    others = (squared.sum(axis=1) - best)[informative] / (best[informative] * (factors - 1))
    return float(np.sum(1.0 - others) / len(best))


def mutual_information(codes: NDArray[np.floating], values: NDArray[np.integer], *, bins: int = BINS) -> Floats:
    """Estimate the mutual information in nats of each binned code with each factor, from counts; float64 [D, K]."""
    classes = [np.unique(column, return_inverse=True) for column in values.T]
    table = np.zeros((codes.shape[1], values.shape[1]))
    for start in range(0, codes.shape[1], CODES_AT_ONCE):
        block = slice(start, min(start + CODES_AT_ONCE, codes.shape[1]))
        binned = _binned(codes[:, block], bins) + bins * np.arange(block.stop - start)
        for factor, (names, index) in enumerate(classes):
            cells = (binned * len(names) + index[:, None]).ravel()
            counts = np.bincount(cells, minlength=(block.stop - start) * bins * len(names))
            table[block, factor] = _information(counts.reshape(-1, bins, len(names)).astype(np.float64))
    return table


def sap(
    train_codes: NDArray[np.floating],
    train_values: NDArray[np.integer],
    test_codes: NDArray[np.floating],
    test_values: NDArray[np.integer],
) -> float:
    """Compute separated attribute predictability (Kumar et al. 2018): a factor's best code minus its second best.

    What a code predicts is the test accuracy of a linear support vector machine on that code alone (C = 0.01, balanced
    class weights, one class against the rest); the lead is averaged over factors. D is at least 2; a test value that
    training lacks counts as wrong.

    Our reading: on one code a machine has two parameters and a strictly convex loss, so Newton's method over sorted
    codes finds the minimum itself, where an iterative solver stops at a tolerance and takes hours at 2,048 codes.

    Raises:
        ValueError: fewer than two codes, a factor with a single training value, shapes that do not match.
    """
    best = np.sort(code_accuracy(train_codes, train_values, test_codes, test_values), axis=0)
    if len(best) < 2:
        raise ValueError("codes: got 1 code; allowed: 2 or more")
    return float(np.mean(best[-1] - best[-2]))


def code_accuracy(
    train_codes: NDArray[np.floating],
    train_values: NDArray[np.integer],
    test_codes: NDArray[np.floating],
    test_values: NDArray[np.integer],
) -> Floats:
    """Measure the test accuracy of `sap`'s machines for each code and factor, float64 [D, K]."""
    train, test = checked_codes("train_codes", train_codes), checked_codes("test_codes", test_codes)
    labels = checked_values("train_values", train_values, len(train), varied=True)
    truth = checked_values("test_values", test_values, len(test))
    if train.shape[1] != test.shape[1] or labels.shape[1] != truth.shape[1]:
        raise ValueError(
            f"test: got {test.shape[1]} codes and {truth.shape[1]} factors; "
            f"allowed: {train.shape[1]} and {labels.shape[1]}, as in training"
        )
    machines = _Machines.of(labels)
    accuracy = np.zeros((train.shape[1], labels.shape[1]))
    for code in range(train.shape[1]):
        slope, offset = _fit_machines(train[:, code].astype(np.float64), machines)
        margins = slope[:, None] * test[:, code].astype(np.float64) + offset[:, None]
        for factor, predicted in enumerate(machines.predict(margins)):
            accuracy[code, factor] = np.mean(predicted == truth[:, factor])
    return accuracy


def factor_vae(
    codes: NDArray[np.floating],
    values: NDArray[np.integer],
    *,
    seed: int,
    train_votes: int = 10_000,
    eval_votes: int = 5_000,
    batch: int = 64,
    threshold: float = 0.05,
) -> float:
    """Compute the FactorVAE score (Kim and Mnih 2018): accuracy of naming the fixed factor by the least varying code.

    A vote holds one factor at the value of a random row, draws `batch` rows of that value with replacement and names
    the code whose variance fell most, relative to its variance over all rows. Codes are then matched to factors by
    majority, and the score is the share of further votes that the match gets right. Codes that do not vary, or whose
    standard deviation is below `threshold`, take no part; 0 if none is left. Equal seeds give equal scores.

    Our reading: rows come from a labelled set in place of a generator, so a value that one row alone has is never held.
    """
    codes, values = checked_codes("codes", codes), checked_values("values", values, len(codes))
    spread = np.std(codes, axis=0, ddof=1, dtype=np.float64)
    active = np.flatnonzero((spread >= threshold) & (spread > 0.0))
    if not len(active):
        return 0.0
    generator = np.random.default_rng([seed, 0xFAC])
    factors, rows = _draw(values, train_votes + eval_votes, batch, generator)
    least = _least_varying(codes, active, rows)
    table = np.zeros((values.shape[1], codes.shape[1]), dtype=np.int64)
    np.add.at(table, (factors[:train_votes], least[:train_votes]), 1)
    guess = table.argmax(axis=0)
    return float(np.mean(guess[least[train_votes:]] == factors[train_votes:]))


def checked_codes(name: str, codes: NDArray[np.floating], *, at_least: int = 1) -> NDArray[np.floating]:
    """Return the codes if they are finite floats [N, D] with N >= 2 and D >= `at_least`; raise ValueError otherwise."""
    if codes.ndim != 2 or codes.dtype.kind != "f":
        raise ValueError(f"{name}: got {codes.dtype} {list(codes.shape)}; allowed: float [N, D]")
    if len(codes) < 2 or codes.shape[1] < at_least:
        raise ValueError(f"{name}: got {len(codes)} rows of {codes.shape[1]}; allowed: 2 or more of {at_least} or more")
    unfit = np.flatnonzero(~np.isfinite(codes).all(axis=0))
    if len(unfit):
        raise ValueError(f"{name}: got values that are not finite in code {unfit[0]}; allowed: finite")
    return codes


def checked_values(name: str, values: NDArray[np.integer], rows: int, *, varied: bool = False) -> NDArray[np.integer]:
    """Return the values if they are integers [rows, K] (`varied`: with two or more per factor), or raise ValueError."""
    if values.ndim != 2 or values.dtype.kind not in "iub" or len(values) != rows or not values.shape[1]:
        raise ValueError(f"{name}: got {values.dtype} {list(values.shape)}; allowed: integers [{rows}, K]")
    single = np.flatnonzero((values == values[:1]).all(axis=0))
    if varied and len(single):
        got = values[0, single[0]]
        raise ValueError(f"{name}: got the single value {got} for factor {single[0]}; allowed: 2 values or more")
    return values


def _binned(codes: NDArray[np.floating], bins: int) -> Integers:
    """Bin each code, 0..bins-1, in equal widths between its smallest and largest value; a constant code has one bin."""
    columns = np.ascontiguousarray(codes.T, dtype=np.float64)
    binned = np.empty(columns.shape, dtype=np.int64)
    for column, out in zip(columns, binned, strict=True):
        edges = np.linspace(column.min(), column.max(), bins + 1)[:-1]
        out[:] = np.searchsorted(edges, column, side="right") - 1
    return np.ascontiguousarray(binned.T)


def _information(counts: Floats) -> Floats:
    """Compute mutual information in nats from counts, [.., A, B] to [..]; exactly 0 if a side has one value."""
    total = counts.sum(axis=(-2, -1), keepdims=True)
    expected = counts.sum(axis=-1, keepdims=True) * counts.sum(axis=-2, keepdims=True)
    ratio = np.divide(counts * total, expected, out=np.ones_like(counts), where=counts > 0)
    nats = np.sum(counts / total * np.log(ratio), axis=(-2, -1))
    return np.where(nats < np.finfo(np.float64).eps, 0.0, nats)


def _entropy(column: NDArray[np.integer]) -> float:
    shares = np.unique(column, return_counts=True)[1] / len(column)
    return float(-np.sum(shares * np.log(shares)))


@dataclass(frozen=True)
class _Machines:
    """One machine per class, over all factors in order; a factor of two values has one, for its larger value.

    Attributes:
        labels: [K, N] class numbers, small integers to sort quickly.
        names: each factor's values, ascending.
        group: [P] the number of a machine's positive class among the classes of all factors; first: [K + 1] offsets.
        positive, negative: [P] loss weights of the two sides.
    """

    labels: NDArray[np.integer]
    names: list[NDArray[np.integer]]
    group: Integers
    first: Integers
    positive: Floats
    negative: Floats

    @classmethod
    def of(cls, values: NDArray[np.integer]) -> "_Machines":
        """Balance a machine's own class by N / (classes * count); the rest keep weight 1 unless it is one class."""
        split = [np.unique(column, return_inverse=True, return_counts=True) for column in values.T]
        first = np.cumsum([0, *(len(names) for names, _, _ in split)])
        group, positive, negative = [], [], []
        for start, (_, _, counts) in zip(first, split, strict=False):
            weights = SVM_C * len(values) / (len(counts) * counts)
            single = len(counts) == 2
            group.append(np.arange(start + 1 if single else start, start + len(counts)))
            positive.append(weights[1:] if single else weights)
            negative.append(weights[:1] if single else np.full(len(counts), SVM_C))
        labels = np.stack([index for _, index, _ in split])
        return cls(
            labels.astype(np.uint16 if labels.max() < 2**16 else np.int64),
            [names for names, _, _ in split],
            np.concatenate(group),
            first,
            np.concatenate(positive),
            np.concatenate(negative),
        )

    def predict(self, margins: Floats) -> Iterator[NDArray[np.integer]]:
        """Yield each factor's values [M] from the margins [P, M] of all machines."""
        start = 0
        for names in self.names:
            if len(names) == 2:
                yield names[(margins[start] > 0.0).astype(np.int64)]
                start += 1
            else:
                yield names[margins[start : start + len(names)].argmax(axis=0)]
                start += len(names)


class _Moments:
    """Count, sum and sum of squares of one code's values below a threshold: of all rows, and of any class."""

    def __init__(self, code: Floats, machines: _Machines) -> None:
        rows = len(code)
        order = np.argsort(code)
        self.sorted = code[order]
        self.rows = rows
        by_class = [np.argsort(labels[order], kind="stable") for labels in machines.labels]
        self.keys = np.concatenate(
            [
                (labels[order][ranks].astype(np.int64) + start) * rows + ranks
                for labels, ranks, start in zip(machines.labels, by_class, machines.first, strict=False)
            ]
        )
        self.all = _prefix_sums(self.sorted)
        self.classes = _prefix_sums(self.sorted[np.concatenate(by_class)])
        self.group = machines.group
        self.start = np.searchsorted(self.keys, machines.group * rows)
        stop = np.searchsorted(self.keys, (machines.group + 1) * rows)
        self.own = self.classes[:, stop] - self.classes[:, self.start]

    def below(self, thresholds: Floats) -> tuple[Floats, Floats]:
        """Sum each machine's own class below its threshold, and the rest: [3, P] each."""
        ranks = np.searchsorted(self.sorted, thresholds)
        own = self.classes[:, np.searchsorted(self.keys, self.group * self.rows + ranks)] - self.classes[:, self.start]
        return own, self.all[:, ranks] - own

    def active(self, slope: Floats, offset: Floats) -> tuple[Floats, Floats]:
        """Sum the rows within the margin: own class with margin below 1, and the rest with margin above -1."""
        with np.errstate(divide="ignore", invalid="ignore"):
            upper, lower = np.nan_to_num((1.0 - offset) / slope), np.nan_to_num((-1.0 - offset) / slope)
        own, rest = self.below(upper)[0], self.below(lower)[1]
        rising = ~np.signbit(slope)
        everyone = self.all[:, -1:] - self.own
        return np.where(rising, own, self.own - own), np.where(rising, everyone - rest, rest)


def _prefix_sums(values: Floats) -> Floats:
    powers = np.stack([np.ones_like(values), values, values * values])
    return np.concatenate([np.zeros((3, 1)), np.cumsum(powers, axis=1)], axis=1)


def _fit_machines(code: Floats, machines: _Machines) -> tuple[Floats, Floats]:
    """Find slope and offset [P] that minimise (slope^2 + offset^2) / 2 + sum of weight * max(0, 1 - sign * margin)^2.

    Newton's method: the loss is quadratic as long as the same rows lie within the margin, so a step ends at the minimum
    once these are right. Whole steps took at most 16 on codes of every scale, heavy tails among them.

    Raises:
        ArithmeticError: no minimum within `SVM_ITERATIONS` steps.
    """
    moments = _Moments(code, machines)
    point = np.zeros((2, len(machines.group)))
    for _ in range(SVM_ITERATIONS):
        before, point = point, _newton(point, moments, machines)
        if np.all(np.abs(point - before) <= 1e-9 * (1.0 + np.abs(point))):
            return point[0], point[1]
    raise ArithmeticError(f"sap: a support vector machine found no minimum within {SVM_ITERATIONS} steps")


def _newton(point: Floats, moments: _Moments, machines: _Machines) -> Floats:
    """Return the minimum, (slope, offset) [2, P], of the quadratic that the loss is around `point`."""
    own, rest = moments.active(*point)
    curvature = 2.0 * (machines.positive * own + machines.negative * rest)
    pull = 2.0 * (machines.positive * own - machines.negative * rest)
    a, b, c = 1.0 + curvature[2], curvature[1], 1.0 + curvature[0]
    return np.stack([c * pull[1] - b * pull[0], a * pull[0] - b * pull[1]]) / (a * c - b * b)


def _draw(
    values: NDArray[np.integer], votes: int, batch: int, generator: np.random.Generator
) -> tuple[Integers, Integers]:
    """Draw the factor that each vote holds fixed [V], and its rows [V, batch], all with one value of that factor."""
    factors = generator.integers(values.shape[1], size=votes)
    anchors, places = generator.random(votes), generator.random((votes, batch))
    rows = np.empty((votes, batch), dtype=np.int64)
    for factor, column in enumerate(values.T):
        _, index, counts = np.unique(column, return_inverse=True, return_counts=True)
        shared = np.flatnonzero(counts[index] > 1)
        if not len(shared):
            raise ValueError(f"values: got no value of factor {factor} twice; allowed: some value in 2 rows or more")
        by_value, ends = np.argsort(index, kind="stable"), np.cumsum(counts)
        mine = factors == factor
        held = index[shared[(anchors[mine] * len(shared)).astype(np.int64)]]
        within = (places[mine] * counts[held, None]).astype(np.int64)
        rows[mine] = by_value[(ends - counts)[held, None] + within]
    return factors, rows


def _least_varying(codes: NDArray[np.floating], active: Integers, rows: Integers) -> Integers:
    """Return the active code [V] of least variance over each vote's rows, relative to its variance over all rows."""
    from scipy import sparse

    votes, batch = rows.shape
    starts = np.arange(0, votes * batch + 1, batch)
    chosen = sparse.csr_array((np.ones(votes * batch), rows.ravel(), starts), shape=(votes, len(codes)))
    least, smallest = np.zeros(votes, dtype=np.int64), np.full(votes, np.inf)
    for start in range(0, len(active), CODES_AT_ONCE):
        block = active[start : start + CODES_AT_ONCE]
        normal = codes[:, block].astype(np.float64)
        normal = (normal - normal.mean(axis=0)) / normal.std(axis=0)
        spread = chosen @ np.square(normal) - np.square(chosen @ normal) / batch
        index = spread.argmin(axis=1)
        value = spread[np.arange(votes), index]
        smaller = value < smallest
        least[smaller], smallest[smaller] = block[index[smaller]], value[smaller]
    return least
