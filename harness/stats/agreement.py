"""How far two raters agree: raw, corrected for chance, and a judge with human labels.

Every coefficient here is 1 - D_o / D_e: the disagreement observed over the disagreement expected.
Both are functions of sums over clusters, so that a bootstrap sample costs one matrix product,
whatever the number of ratings. More raters are compared in :mod:`harness.stats.krippendorff`.

Sources: Cohen (1960), Educational and Psychological Measurement 20; Cohen (1968), Psychological
Bulletin 70, for the weighted form.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from harness.stats.bootstrap import (
    Clusters,
    FloatArray,
    IntArray,
    bootstrap_method,
    check_settings,
    cluster_index,
    interval_of_sums,
)
from harness.stats.clustered import clustered_share
from harness.stats.proportion import wilson
from harness.types import Estimate, Record

MOST_CATEGORIES = 30
"""Most different values of a nominal or ordinal coefficient: its tables grow with their square."""

TINY = float(np.finfo(np.float64).tiny)
"""Stands in for a divisor of 0 where the dividend is 0 too."""

ROUNDING = 1e-12
"""An observed disagreement below this is none."""

NO_LOWEST = (-np.inf, 1.0)
"""Range of a coefficient: chance may disagree so little that there is no least value."""

_ALL_AGREE = "low bound from wilson's on clusters, as all ratings agree"
_NO_CHANCE = "no value, as all ratings are the same and chance would agree too"


class Weighting(StrEnum):
    """What a disagreement of two categories weighs in Cohen's kappa."""

    NOMINAL = "nominal"
    LINEAR = "linear"
    QUADRATIC = "quadratic"


class HumanAgreement(Record):
    """How a judge's verdicts compare with human labels of the same pairs.

    Attributes:
        agreement: share decided alike; a tie on one side only counts one half.
        kappa: Cohen's kappa of win, tie and loss, linear weights: a tie is half a disagreement.
        alike, half, opposed: pairs on which both say the same, only one says tie, each says
            another side is better.
    """

    agreement: Estimate
    kappa: Estimate
    alike: int
    half: int
    opposed: int


Disagreement = Callable[[FloatArray], tuple[FloatArray, FloatArray]]
"""Sums (..., k) to the disagreement observed and expected, (...) each; 1 is the largest of one pair
of ratings."""


# Two raters.


def raw_agreement(
    first: FloatArray,
    second: FloatArray,
    clusters: Clusters,
    *,
    level: float = 0.95,
    missing: int = 0,
) -> Estimate:
    """Return the share of units that both raters rate alike.

    Args:
        first, second: (n,) ratings; NaN is left out and counted missing.
        clusters: (n,) name or code of the independent unit of each.
    """
    pairs = _Pairs.of(first, second, clusters)
    alike = (pairs.first == pairs.second).astype(np.float64)
    return pairs.share(alike, "share rated alike", level, missing)


def cohen_kappa(
    first: FloatArray,
    second: FloatArray,
    clusters: Clusters,
    *,
    rng: np.random.Generator,
    weighting: Weighting = Weighting.NOMINAL,
    resamples: int = 2000,
    level: float = 0.95,
    missing: int = 0,
) -> Estimate:
    """Return Cohen's kappa 1 - sum(w_ab p_ab) / sum(w_ab p_a. p_.b).

    w_ab is the distance of the categories: 0 or 1, |a - b| or (a - b)^2 of their values, over the
    largest.

    Args:
        first, second: (n,) ratings; NaN is left out and counted missing.
        clusters: (n,) name or code of the independent unit of each.

    Returns:
        ``value`` is None without a unit and where both raters give one and the same rating to all.

    Raises:
        ValueError: more than MOST_CATEGORIES different ratings.
    """
    pairs = _Pairs.of(first, second, clusters)
    values, codes = categories(np.stack([pairs.first, pairs.second]))
    cells = len(values) ** 2
    flat = (pairs.index * len(values) + codes[0]) * len(values) + codes[1]
    tables = np.bincount(flat, minlength=pairs.clusters * cells).astype(np.float64)
    weights = _weights(values, weighting)
    result = pairs.result(f"cohen's kappa, {weighting}", resamples, level, missing)

    def disagreement(sums: FloatArray) -> tuple[FloatArray, FloatArray]:
        return _kappa_disagreement(sums, weights)

    return coefficient(result, tables.reshape(pairs.clusters, cells), disagreement, rng, resamples)


def _kappa_disagreement(sums: FloatArray, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
    size = len(weights)
    table = sums.reshape(*sums.shape[:-1], size, size)
    n = table.sum(axis=(-1, -2))
    with np.errstate(invalid="ignore"):
        rows, columns = table.sum(axis=-1) / n[..., None], table.sum(axis=-2) / n[..., None]
        observed = (table * weights).sum(axis=(-1, -2)) / n
    return observed, np.einsum("...a,ab,...b->...", rows, weights, columns)


def _weights(values: FloatArray, weighting: Weighting) -> FloatArray:
    distance = np.abs(values[:, None] - values)
    if weighting is Weighting.NOMINAL:
        return (distance > 0).astype(np.float64)
    largest = distance.max(initial=TINY)
    return np.asarray((distance / largest) ** (2 if weighting is Weighting.QUADRATIC else 1))


# A judge and humans.


def human_agreement(
    judge: FloatArray,
    human: FloatArray,
    clusters: Clusters,
    *,
    rng: np.random.Generator,
    resamples: int = 2000,
    level: float = 0.95,
    missing: int = 0,
) -> HumanAgreement:
    """Return how far a judge decides as humans do.

    Args:
        judge, human: (n,) preference for the same answer of each pair, above 1/2 where it is
            better, 1/2 for a tie; NaN, such as an invalid verdict, is left out and counted missing.
        clusters: (n,) name or code of the independent unit of each pair.
        missing: human-labelled pairs that the judge was not shown.
    """
    sides = np.sign(judge - 0.5), np.sign(human - 0.5)
    pairs = _Pairs.of(*sides, clusters)
    apart = np.abs(pairs.first - pairs.second)
    return HumanAgreement(
        agreement=pairs.share(1 - apart / 2, "share decided alike, half for a tie", level, missing),
        kappa=cohen_kappa(
            *sides,
            clusters,
            rng=rng,
            weighting=Weighting.LINEAR,
            resamples=resamples,
            level=level,
            missing=missing,
        ),
        alike=int((apart == 0).sum()),
        half=int((apart == 1).sum()),
        opposed=int((apart == 2).sum()),
    )


# What they share.


@dataclass(frozen=True)
class _Pairs:
    """Units that both raters rated, with the rank of their cluster."""

    first: FloatArray
    second: FloatArray
    index: IntArray
    clusters: int
    missing: int

    @classmethod
    def of(cls, first: FloatArray, second: FloatArray, clusters: Clusters) -> _Pairs:
        if not len(first) == len(second) == len(clusters):
            raise ValueError(
                f"{len(first)} first and {len(second)} second ratings, {len(clusters)} clusters"
            )
        kept = np.isfinite(first) & np.isfinite(second)
        count, index = cluster_index(np.asarray(clusters)[kept])
        return cls(first[kept], second[kept], index, count, int((~kept).sum()))

    def share(self, worth: FloatArray, what: str, level: float, missing: int) -> Estimate:
        found = clustered_share(
            worth, self.index, level=level, missing=self.missing + missing
        ).estimate
        return found.model_copy(update={"method": f"{what}; {found.method}"})

    def result(self, what: str, resamples: int, level: float, missing: int) -> Estimate:
        check_settings(resamples, level)
        return Estimate(
            value=None,
            level=level,
            n=len(self.first),
            clusters=self.clusters,
            missing=self.missing + missing,
            method=f"{what}; {bootstrap_method(resamples)}",
        )


def coefficient(
    result: Estimate,
    sums: FloatArray,
    disagreement: Disagreement,
    rng: np.random.Generator,
    resamples: int,
) -> Estimate:
    """Return ``result`` with 1 - observed / expected and its interval.

    Args:
        sums: (clusters, k) what ``disagreement`` takes, of each cluster.
    """
    if not result.n:
        return result
    observed, expected = (float(part) for part in disagreement(sums.sum(axis=0)))
    if not expected > 0:
        return result.model_copy(update={"method": f"{result.method}; {_NO_CHANCE}"})
    if observed <= ROUNDING:
        return _all_agree(result, expected)

    def statistic(sums: FloatArray) -> FloatArray:
        seen, chance = disagreement(sums)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(chance > 0, 1 - seen / chance, np.nan)

    return interval_of_sums(result, sums, statistic, rng, resamples, NO_LOWEST)


def _all_agree(result: Estimate, expected: float) -> Estimate:
    """Return a coefficient of 1; resampling full agreement would claim to know it exactly.

    With Wilson's low bound w of the share of clusters that agree, the observed disagreement is at
    most 1 - w.
    """
    bound = wilson(result.clusters, result.clusters, level=result.level).low or 0.0
    update = {"value": 1.0, "low": 1 - (1 - bound) / expected, "high": 1.0}
    return result.model_copy(update={**update, "method": f"{result.method}; {_ALL_AGREE}"})


def categories(ratings: FloatArray) -> tuple[FloatArray, IntArray]:
    """Return the different ratings in order and the place of each given one among them.

    Raises:
        ValueError: more than MOST_CATEGORIES.
    """
    values, codes = np.unique(ratings, return_inverse=True)
    if len(values) > MOST_CATEGORIES:
        raise ValueError(
            f"{len(values)} different ratings, at most {MOST_CATEGORIES} are categories: "
            "turn degrees into verdicts, or use the interval scale"
        )
    return values, codes
