"""Krippendorff's alpha: agreement of any number of raters, some of whose ratings may be missing.

Source: Krippendorff (2011), "Computing Krippendorff's alpha-reliability", University of
Pennsylvania.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import StrEnum

import numpy as np

from harness.stats.agreement import TINY, categories, coefficient
from harness.stats.bootstrap import (
    Clusters,
    FloatArray,
    IntArray,
    bootstrap_method,
    check_settings,
    cluster_index,
)
from harness.types import Estimate


class Scale(StrEnum):
    """How far apart two values are in Krippendorff's alpha."""

    NOMINAL = "nominal"
    ORDINAL = "ordinal"
    INTERVAL = "interval"


def krippendorff_alpha(
    ratings: FloatArray,
    clusters: Clusters,
    *,
    rng: np.random.Generator,
    scale: Scale = Scale.NOMINAL,
    resamples: int = 2000,
    level: float = 0.95,
) -> Estimate:
    """Return Krippendorff's alpha of any number of raters.

    With o_ck the coincidences, sum over units of (pairs of a c and a k) / (m_u - 1), n_c = sum_k
    o_ck and n their sum: 1 - (n - 1) sum(o_ck d_ck) / sum(n_c n_k d_ck). The squared distance d_ck
    is [c != k], (c - k)^2, or for ordinal values
    (n_c/2 + n_(c+1) + ... + n_(k-1) + n_k/2)^2.

    Args:
        ratings: (units, raters), NaN where a rater gave none; units with fewer than two ratings
            cannot show agreement and are counted missing.
        clusters: (units,) name or code of the independent unit of each.

    Returns:
        ``n`` counts the units that can be compared. ``value`` is None without any, and where all
        ratings are one and the same.

    Raises:
        ValueError: more than MOST_CATEGORIES different nominal or ordinal ratings.
    """
    check_settings(resamples, level)
    usable = np.isfinite(ratings).sum(axis=1) >= 2
    kept = ratings[usable]
    count, index = cluster_index(np.asarray(clusters)[usable])
    result = Estimate(
        value=None,
        level=level,
        n=len(kept),
        clusters=count,
        missing=int((~usable).sum()),
        method=f"krippendorff's alpha, {scale}; {bootstrap_method(resamples)}",
    )
    if scale is Scale.INTERVAL:
        sums = _moments(kept, index, count)
        return coefficient(result, sums, _interval_disagreement, rng, resamples)
    squared = _ordinal_distance if scale is Scale.ORDINAL else _nominal_distance

    def disagreement(sums: FloatArray) -> tuple[FloatArray, FloatArray]:
        return _disagreement(sums, squared)

    sums = _coincidences(kept, index, count)
    return coefficient(result, sums, disagreement, rng, resamples)


def _disagreement(
    sums: FloatArray, squared: Callable[[FloatArray], FloatArray]
) -> tuple[FloatArray, FloatArray]:
    size = math.isqrt(sums.shape[-1])
    table = sums.reshape(*sums.shape[:-1], size, size)
    margins = table.sum(axis=-1)
    distance, n = squared(margins), margins.sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        observed = (table * distance).sum(axis=(-1, -2)) / n
        expected = np.einsum("...c,...ck,...k->...", margins, distance, margins) / (n * (n - 1))
    return observed, expected


def _nominal_distance(margins: FloatArray) -> FloatArray:
    size = margins.shape[-1]
    return np.broadcast_to(1 - np.eye(size), (*margins.shape, size))


def _ordinal_distance(margins: FloatArray) -> FloatArray:
    """Return the squared ordinal distances, (..., C, C), over the largest of them."""
    centre = np.cumsum(margins, axis=-1) - margins / 2
    squared = (centre[..., :, None] - centre[..., None, :]) ** 2
    largest = squared.max(axis=(-1, -2), keepdims=True)
    return np.asarray(squared / np.maximum(largest, TINY))


def _coincidences(ratings: FloatArray, index: IntArray, count: int) -> FloatArray:
    """Return the coincidences of each cluster, (clusters, C^2)."""
    present = np.isfinite(ratings)
    values, codes = categories(ratings[present])
    unit, size = np.nonzero(present)[0], len(values)
    seen = np.bincount(unit * size + codes, minlength=len(ratings) * size)
    seen = seen.reshape(len(ratings), size).astype(np.float64)
    share = 1 / (seen.sum(axis=1) - 1)
    table = np.zeros((count, size, size))
    for first in range(size):
        for second in range(size):
            pairs = seen[:, first] * (seen[:, second] - (first == second)) * share
            table[:, first, second] = np.bincount(index, pairs, minlength=count)
    return table.reshape(count, size * size)


def _moments(ratings: FloatArray, index: IntArray, count: int) -> FloatArray:
    """Return for each cluster n, sum v, sum v^2 and sum of o_ck d_ck, (clusters, 4).

    Values are moved to [0, 1], which changes no ratio of squared distances.
    """
    spread = float(np.nanmax(ratings) - np.nanmin(ratings)) if ratings.size else 0.0
    moved = (ratings - np.nanmin(ratings, initial=np.inf)) / max(spread, TINY)
    n, first = np.isfinite(moved).sum(axis=1), np.nansum(moved, axis=1)
    second = np.nansum(moved**2, axis=1)
    apart = 2 * np.nansum((moved - (first / np.maximum(n, 1))[:, None]) ** 2, axis=1) * n / (n - 1)
    columns = [np.bincount(index, c, minlength=count) for c in (n, first, second, apart)]
    return np.stack(columns, axis=1)


def _interval_disagreement(sums: FloatArray) -> tuple[FloatArray, FloatArray]:
    n, first, second, apart = np.moveaxis(sums, -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return apart / n, 2 * (n * second - first**2) / (n * (n - 1))
