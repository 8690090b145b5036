"""Whether intervals cover, tests keep their level and plans come true: simulated evaluations.

    python benchmarks/coverage.py [--only NAME...] [--evaluations N] [--list]

intervals  share of 95 % intervals that hold the truth; wanted: 93 to 97 %
tests      share of p values of at most 0.05 where nothing differs; wanted: at most 5.5 %
power      share of differences found of the size that a design promises to find in 80 % of runs;
           wanted: within 3 points

Each at 50, 200 and 805 observations in clusters of 1, 2 and 5, the last one cut short where they
do not divide. Observations of one cluster are correlated. Intervals are simulated N times (2,000),
which leaves a standard error of half a point, with 1,000 resamples, half of what users get; tests
and power, which cost less, are simulated 10 N times.

Every row of the table has a seed of its own, made from its name and its shape: the figures are the
same whatever else runs. Other modules measure their own statistics by calling :func:`main` with
their own rows. Ends with exit code 1 where a figure is out of bounds. About half an hour.
"""

from __future__ import annotations

import argparse
import math
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, ndtr

from harness.stats.agreement import Weighting, cohen_kappa, human_agreement, raw_agreement
from harness.stats.bootstrap import Weighted, cluster_mean, paired_difference
from harness.stats.clustered import clustered_share
from harness.stats.contrasts import PromptTable, contrasts
from harness.stats.hypothesis import holm, mcnemar, permutation_test, sign_test
from harness.stats.judge_quality import BothOrders, flip_rate, length_slope
from harness.stats.judged import Judged
from harness.stats.krippendorff import Scale, krippendorff_alpha
from harness.stats.power import (
    Design,
    WinRateDesign,
    minimum_detectable_difference,
    minimum_detectable_win_rate,
)
from harness.types import Estimate

SIZES, CLUSTERS = (50, 200, 805), (1, 2, 5)
EVALUATIONS, CHEAPER, RESAMPLES = 2000, 10, 1000
ICC, TIES = 0.3, 0.2
WANTED_COVERAGE, WANTED_ERROR, WANTED_POWER = (0.93, 0.97), 0.055, 0.03
POWER = 0.8

Generator = np.random.Generator
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Shape(NamedTuple):
    """So many observations in clusters of so many."""

    n: int
    size: int

    @property
    def clusters(self) -> Ints:
        return np.arange(self.n) // self.size

    @property
    def count(self) -> int:
        return -(-self.n // self.size)


class Interval(NamedTuple):
    """A row of the first table: one simulated evaluation gives its estimate and the truth."""

    name: str
    trial: Callable[[Generator, Shape], tuple[Estimate, float]]


class Test(NamedTuple):
    """A row of the second table: one simulated evaluation without a difference gives its p."""

    name: str
    trial: Callable[[Generator, Shape], float]


class Promise(NamedTuple):
    """A row of the third table: from the difference that a design promises to find, to a p."""

    name: str
    planned: Callable[[Shape], float]
    trial: Callable[[Generator, Shape, float], float]


# -- simulated judgments ---------------------------------------------------------------------------


def chances(rng: Generator, shape: Shape, mean: float, icc: float) -> Floats:
    """Return (n,) probabilities, one beta-distributed number for each cluster."""
    weight = (1 - icc) / icc
    return rng.beta(weight * mean, weight * (1 - mean), size=shape.count)[shape.clusters]


def verdicts(rng: Generator, shape: Shape, rate: float, icc: float = ICC) -> Floats:
    """Return (n,) verdicts of a win rate, with TIES ties and this correlation within a cluster."""
    decided = (rate - TIES / 2) / (1 - TIES)
    variance = rate * (1 - rate) - TIES / 4
    own = icc * variance / ((1 - TIES) ** 2 * decided * (1 - decided))
    won = rng.random(shape.n) < chances(rng, shape, decided, own)
    return np.where(rng.random(shape.n) < TIES, 0.5, won.astype(float))


def rivals(rng: Generator, shape: Shape, rates: Sequence[float]) -> Floats:
    """Return (n, K) wins: a prompt is hard for all candidates, and for each in its own way."""
    hard = rng.uniform(-0.25, 0.25, size=(shape.count, 1))
    own = rng.uniform(-0.15, 0.15, size=(shape.count, len(rates)))
    chance = np.asarray(rates) + (hard + own)[shape.clusters]
    return (rng.random((shape.n, len(rates))) < chance).astype(float)


def table_of(outcomes: Floats, shape: Shape) -> PromptTable:
    """Return the sums by prompt of outcomes (n, K)."""
    columns = range(outcomes.shape[1])
    sums = np.stack([np.bincount(shape.clusters, outcomes[:, k]) for k in columns], axis=1)
    sizes = np.bincount(shape.clusters).astype(float)
    counts = np.repeat(sizes[:, None], len(columns), axis=1)
    names = tuple(f"m{k}" for k in columns)
    return PromptTable(names, sums, counts, np.zeros(sums.shape, dtype=np.intp))


SHARES = np.array([0.4, 0.1, 0.5])
"""How often the better side of a pair is really the baseline's, neither's, the candidate's."""

READ = 0.75
"""How often a rater sees that; otherwise it says one of the three at random."""


def ratings(rng: Generator, shape: Shape, raters: int) -> Floats:
    """Return (n, raters) verdicts -1, 0 or 1 of raters that read the same noisy truth."""
    weight = (1 - ICC) / ICC
    by_prompt = rng.dirichlet(weight * SHARES, size=shape.count).cumsum(axis=1)[shape.clusters]
    truth = (rng.random((shape.n, 1)) > by_prompt[:, :2]).sum(axis=1)
    read = rng.random((shape.n, raters)) < READ
    return np.where(read, truth[:, None], rng.integers(0, 3, (shape.n, raters))) - 1.0


def joint() -> Floats:
    """Return the probability of each two verdicts of two raters, (3, 3)."""
    said = READ * np.eye(3) + (1 - READ) / 3
    return np.einsum("t,ta,tb->ab", SHARES, said, said)


def corrected(distance: Floats) -> float:
    """Return 1 - expected distance of two raters' verdicts over that of independent ones."""
    margins = joint().sum(axis=0)
    return float(1 - (joint() * distance).sum() / (margins @ distance @ margins))


APART = np.abs(np.subtract.outer(np.arange(3), np.arange(3))).astype(float)


# -- intervals -------------------------------------------------------------------------------------


def verdict_bootstrap(rng: Generator, shape: Shape) -> tuple[Estimate, float]:
    drawn = verdicts(rng, shape, 0.6)
    return cluster_mean(drawn, shape.clusters, rng=rng, resamples=RESAMPLES, within=(0.0, 1.0)), 0.6


def high_win_rate(rng: Generator, shape: Shape) -> tuple[Estimate, float]:
    return clustered_share(verdicts(rng, shape, 0.7), shape.clusters).estimate, 0.7


def degree_bootstrap(rng: Generator, shape: Shape) -> tuple[Estimate, float]:
    """Means of a skewed quantity, such as lengths: log-normal, both between and within prompts."""
    between = rng.normal(0, 0.3, size=shape.count)[shape.clusters]
    drawn = np.exp(between + rng.normal(0, 0.4, size=shape.n))
    return cluster_mean(drawn, shape.clusters, rng=rng, resamples=RESAMPLES), math.exp(
        (0.3**2 + 0.4**2) / 2
    )


def win_rate(rng: Generator, shape: Shape) -> tuple[Estimate, float]:
    return clustered_share(verdicts(rng, shape, 0.6), shape.clusters).estimate, 0.6


def difference_bootstrap(rng: Generator, shape: Shape) -> tuple[Estimate, float]:
    drawn, prompts = rivals(rng, shape, (0.55, 0.45)), shape.clusters.tolist()
    keys = [(f"{prompt:04d}", i) for i, prompt in enumerate(prompts)]
    sides = [dict(zip(keys, map(Weighted, column.tolist()), strict=True)) for column in drawn.T]
    return paired_difference(*sides, rng=rng, resamples=RESAMPLES), 0.1


def difference_clustered(rng: Generator, shape: Shape) -> tuple[Estimate, float]:
    (found,) = contrasts(table_of(rivals(rng, shape, (0.55, 0.45)), shape))
    return found.tested.estimate, 0.1


def agreement_raw(rng: Generator, shape: Shape) -> tuple[Estimate, float]:
    sides = ratings(rng, shape, 2).T
    return raw_agreement(*sides, shape.clusters), float(np.trace(joint()))


def kappa_nominal(rng: Generator, shape: Shape) -> tuple[Estimate, float]:
    sides = ratings(rng, shape, 2).T
    return cohen_kappa(*sides, shape.clusters, rng=rng, resamples=RESAMPLES), corrected(
        (APART > 0).astype(float)
    )


def kappa_quadratic(rng: Generator, shape: Shape) -> tuple[Estimate, float]:
    sides, weighting = ratings(rng, shape, 2).T, Weighting.QUADRATIC
    found = cohen_kappa(*sides, shape.clusters, rng=rng, weighting=weighting, resamples=RESAMPLES)
    return found, corrected(APART**2)


def with_gaps(rng: Generator, drawn: Floats) -> Floats:
    return np.where(rng.random(drawn.shape) < 0.1, np.nan, drawn)


def alpha_nominal(rng: Generator, shape: Shape) -> tuple[Estimate, float]:
    drawn = with_gaps(rng, ratings(rng, shape, 3))
    found = krippendorff_alpha(drawn, shape.clusters, rng=rng, resamples=RESAMPLES)
    return found, corrected((APART > 0).astype(float))


def alpha_interval(rng: Generator, shape: Shape) -> tuple[Estimate, float]:
    drawn = with_gaps(rng, ratings(rng, shape, 3))
    found = krippendorff_alpha(
        drawn, shape.clusters, rng=rng, scale=Scale.INTERVAL, resamples=RESAMPLES
    )
    return found, corrected(APART**2)


def humans(rng: Generator, shape: Shape) -> tuple[Estimate, float]:
    judge, human = ratings(rng, shape, 2).T / 2 + 0.5
    found = human_agreement(judge, human, shape.clusters, rng=rng, resamples=1)
    return found.agreement, float(1 - (joint() * APART).sum() / 2)


def flips(rng: Generator, shape: Shape) -> tuple[Estimate, float]:
    flipped = rng.random(shape.n) < chances(rng, shape, 0.25, ICC)
    both = BothOrders(np.ones(shape.n), 1.0 - flipped, shape.clusters.astype(np.int32), 0)
    return flip_rate(both), 0.25


def slope_of_length(rng: Generator, shape: Shape) -> tuple[Estimate, float]:
    """Length prefers itself by 0.5 a doubling; answers of one prompt share their luck."""
    slope = 0.5
    doublings = rng.normal(0.3, 1, size=shape.n)
    shared, own = rng.normal(size=shape.count)[shape.clusters], rng.normal(size=shape.n)
    luck = ndtr(math.sqrt(ICC) * shared + math.sqrt(1 - ICC) * own)
    won = luck < expit(slope * doublings)
    return length_slope(judged_of(won.astype(float), 300 * 2**doublings, shape)), slope


def judged_of(preference: Floats, length: Floats, shape: Shape) -> Judged:
    """Return judgments of one candidate, whose answers have these lengths, by one judge."""
    zeros = np.zeros(shape.n, dtype=np.int32)
    return Judged(
        models=("baseline", "candidate"),
        judges=("judge",),
        prompts=tuple(f"p{i}" for i in range(shape.count)),
        candidate=zeros + 1,
        baseline=zeros,
        judge=zeros,
        prompt=shape.clusters.astype(np.int32),
        preference=preference,
        order=zeros.astype(np.int8),
        candidate_length=length - 1,
        baseline_length=np.full(shape.n, 299.0),
        item=zeros - 1,
        row=np.arange(shape.n, dtype=np.int32),
    )


INTERVALS = (
    Interval("win rate", win_rate),
    Interval("win rate of 0.7", high_win_rate),
    Interval("mean of verdicts, bootstrap", verdict_bootstrap),
    Interval("mean of lengths, bootstrap", degree_bootstrap),
    Interval("paired difference, bootstrap", difference_bootstrap),
    Interval("paired difference, clustered t", difference_clustered),
    Interval("raw agreement", agreement_raw),
    Interval("kappa", kappa_nominal),
    Interval("kappa, quadratic", kappa_quadratic),
    Interval("alpha, 3 raters, gaps", alpha_nominal),
    Interval("alpha, interval scale", alpha_interval),
    Interval("agreement with humans", humans),
    Interval("flip rate", flips),
    Interval("length slope", slope_of_length),
)


# -- tests -----------------------------------------------------------------------------------------


def certain(p_value: float | None) -> float:
    """Return p; no p value is no finding."""
    return 1.0 if p_value is None else p_value


def null_win_rate(rng: Generator, shape: Shape) -> float:
    return certain(clustered_share(verdicts(rng, shape, 0.5), shape.clusters).p_value)


def null_difference(rng: Generator, shape: Shape) -> float:
    (found,) = contrasts(table_of(rivals(rng, shape, (0.5, 0.5)), shape))
    return certain(found.tested.p_value)


def null_signs(rng: Generator, shape: Shape) -> float:
    return certain(sign_test(verdicts(rng, shape, 0.5) - 0.5, shape.clusters).p_value)


def null_permutation(rng: Generator, shape: Shape) -> float:
    drawn = verdicts(rng, shape, 0.5) - 0.5
    return certain(permutation_test(drawn, shape.clusters, rng=rng, permutations=499).p_value)


def null_mcnemar(rng: Generator, shape: Shape) -> float:
    """McNemar's test takes one outcome a prompt: the first of each cluster."""
    first, second = rivals(rng, shape, (0.5, 0.5))[:: shape.size].T
    return certain(mcnemar(first, second).p_value)


def null_family(rng: Generator, shape: Shape) -> float:
    """Smallest adjusted p of the six differences of four equal candidates."""
    found = contrasts(table_of(rivals(rng, shape, (0.5,) * 4), shape))
    family = holm({f"{c.first} {c.second}": c.tested.p_value for c in found})
    return min(certain(entry.adjusted) for entry in family)


TESTS = (
    Test("win rate, t", null_win_rate),
    Test("paired difference, t", null_difference),
    Test("sign test", null_signs),
    Test("permutation test", null_permutation),
    Test("McNemar's test", null_mcnemar),
    Test("family of 6, Holm", null_family),
)


# -- power -----------------------------------------------------------------------------------------


def planned_win_rate(shape: Shape) -> float:
    design = WinRateDesign(prompts=shape.count, per_prompt=shape.size, icc=ICC, ties=TIES)
    found = minimum_detectable_win_rate(design, power=POWER).difference
    assert found is not None, f"{shape} finds no win rate at all"
    return found


def found_win_rate(rng: Generator, shape: Shape, difference: float) -> float:
    whole = Shape(shape.count * shape.size, shape.size)
    drawn = verdicts(rng, whole, 0.5 + difference)
    return certain(clustered_share(drawn, whole.clusters).p_value)


def planned_difference(shape: Shape) -> float:
    """Plan for the spread that :func:`rivals` have at the difference that is planned for."""
    difference = 0.0
    for _ in range(20):
        design = difference_design(shape, difference)
        found = minimum_detectable_difference(design, power=POWER).difference
        assert found is not None
        difference = found
    return difference


def difference_design(shape: Shape, difference: float) -> Design:
    """Return the design of :func:`rivals` with rates that far apart, around a half.

    A win has the variance (1 - difference^2) / 4. What two candidates share, the hardness of
    variance 0.25^2 / 3, drops out of their difference; what a prompt adds to it are two surprises
    of variance 0.15^2 / 3.
    """
    own, whole = 2 * 0.15**2 / 3, 2 * ((1 - difference**2) / 4 - 0.25**2 / 3)
    return Design(prompts=shape.count, per_prompt=shape.size, icc=own / whole, sd=math.sqrt(whole))


def found_difference(rng: Generator, shape: Shape, difference: float) -> float:
    whole = Shape(shape.count * shape.size, shape.size)
    drawn = rivals(rng, whole, (0.5 + difference / 2, 0.5 - difference / 2))
    (found,) = contrasts(table_of(drawn, whole))
    return certain(found.tested.p_value)


PROMISES = (
    Promise("win rate, t", planned_win_rate, found_win_rate),
    Promise("paired difference, t", planned_difference, found_difference),
)


# -- measuring -------------------------------------------------------------------------------------


def seeded(name: str, shape: Shape) -> Generator:
    return np.random.default_rng([zlib.crc32(name.encode()), *shape])


def coverage(row: Interval, shape: Shape, evaluations: int) -> float:
    """Return the share of simulated intervals that hold the truth; one that is lacking does not."""
    rng, held = seeded(row.name, shape), 0
    for _ in range(evaluations):
        found, truth = row.trial(rng, shape)
        if found.low is not None and found.high is not None:
            held += found.low <= truth <= found.high
    return held / evaluations


def error(row: Test, shape: Shape, evaluations: int) -> float:
    rng = seeded(row.name, shape)
    return float(np.mean([row.trial(rng, shape) <= 0.05 for _ in range(evaluations)]))


def power(row: Promise, shape: Shape, evaluations: int) -> float:
    rng, difference = seeded(row.name, shape), row.planned(shape)
    return float(np.mean([row.trial(rng, shape, difference) <= 0.05 for _ in range(evaluations)]))


SHAPES = tuple(Shape(n, size) for n in SIZES for size in CLUSTERS)


def table(
    title: str,
    names: Sequence[str],
    measured: Callable[[int, Shape], float],
    fits: Callable[[float], bool],
) -> Iterator[bool]:
    """Print a table row by row as it is measured, and yield whether each figure fits."""
    if not names:
        return
    print(f"\n{title}\n{'':32}" + "".join(f"{f'{s.n}/{s.size}':>8}" for s in SHAPES), flush=True)
    for place, name in enumerate(names):
        print(f"{name:32}", end="", flush=True)
        for shape in SHAPES:
            share = measured(place, shape)
            print(f"{share:7.1%}{' ' if fits(share) else '!'}", end="", flush=True)
            yield fits(share)
        print(flush=True)


def main(
    intervals: Sequence[Interval] = (),
    tests: Sequence[Test] = (),
    promises: Sequence[Promise] = (),
    about: str = "intervals, tests and power, simulated",
) -> None:
    """Measure the given rows, or those of them that the command line names."""
    parser = argparse.ArgumentParser(description=about)
    names = list(dict.fromkeys(row.name for row in (*intervals, *tests, *promises)))
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME")
    parser.add_argument("--evaluations", type=int, default=EVALUATIONS, metavar="N")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    given = parser.parse_args()
    if given.list:
        print("\n".join(names))
        return
    wanted, n = set(given.only or names), given.evaluations
    chosen = [[row for row in rows if row.name in wanted] for rows in (intervals, tests, promises)]
    good = all(list(figures(chosen, n)))
    print("\nall within bounds" if good else "\n! out of bounds")
    sys.exit(0 if good else 1)


def figures(chosen: Sequence[Sequence[Interval | Test | Promise]], n: int) -> Iterator[bool]:
    intervals, tests, promises = chosen
    low, high = WANTED_COVERAGE
    yield from table(
        f"intervals at 95 %: share that holds the truth, {n} evaluations, wanted 93 to 97 %",
        [row.name for row in intervals],
        lambda i, shape: coverage(intervals[i], shape, n),
        lambda share: low <= share <= high,
    )
    yield from table(
        f"tests at 5 %: share of false findings, {CHEAPER * n} evaluations, wanted at most 5.5 %",
        [row.name for row in tests],
        lambda i, shape: error(tests[i], shape, CHEAPER * n),
        lambda share: share <= WANTED_ERROR,
    )
    yield from table(
        f"power: share found, 80 % promised, {CHEAPER * n} evaluations, wanted within 3 points",
        [row.name for row in promises],
        lambda i, shape: power(promises[i], shape, CHEAPER * n),
        lambda share: abs(share - POWER) <= WANTED_POWER,
    )


if __name__ == "__main__":
    main(INTERVALS, TESTS, PROMISES)
