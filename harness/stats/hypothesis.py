"""Exact and resampling tests of "no difference", and Holm's correction for many of them.

All tests are two-sided. Observations of one cluster, the prompt, are summed first: what is counted
or flipped is the cluster. The t test is in :mod:`harness.stats.clustered`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from harness.stats.bootstrap import (
    BLOCK_CELLS,
    MANY_CLUSTERS,
    Clusters,
    FloatArray,
    cluster_index,
)
from harness.types import Record

ROUNDING = 1e-12
"""Sums closer than this, in terms of the sum of the absolute values, are equal."""


class Significance(Record):
    """Result of one test.

    Attributes:
        statistic: what the method says it is; None without an observation.
        p_value: None without an observation: no data are no evidence either way.
        n: observations. clusters: independent units among them.
        ties: units that speak for neither side; which tests drop them is said in ``method``.
        missing: observations left out because they have no value.
    """

    statistic: float | None
    p_value: float | None
    n: int
    clusters: int
    ties: int
    missing: int = 0
    method: str


class Adjusted(Record):
    """A p value within its family.

    Attributes:
        family: number of p values that were adjusted together.
    """

    name: str
    raw: float | None
    adjusted: float | None
    family: int
    method: str = "Holm step-down"


def mcnemar(first: FloatArray, second: FloatArray) -> Significance:
    """Return McNemar's exact test of two binary outcomes on the same prompts.

    Only prompts on which the two differ count; under the null each of those favours either side
    with probability 1/2. ``statistic`` is the number that favour ``first``.

    Args:
        first, second: (n,) 0 or 1, NaN where missing, one entry a prompt. Several entries of one
            prompt are not independent: use :func:`sign_test` with clusters for them.

    Raises:
        ValueError: unequal lengths, or a value other than 0, 1 and NaN.

    Source: McNemar (1947), Psychometrika 12; exact form as in Fagerland, Lydersen and Laake
    (2013), BMC Medical Research Methodology 13:91.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} first outcomes but {len(second)} second ones")
    kept = np.isfinite(first) & np.isfinite(second)
    difference = (first - second)[kept]
    if not (np.isin(first[kept], (0, 1)).all() and np.isin(second[kept], (0, 1)).all()):
        raise ValueError("McNemar's test takes 0 and 1 only: use the sign test for ties or degrees")
    return _binomial(
        difference,
        n=len(difference),
        missing=int((~kept).sum()),
        method="McNemar, exact, on prompts whose outcomes differ",
    )


def sign_test(differences: FloatArray, clusters: Clusters | None = None) -> Significance:
    """Return the exact sign test: do as many clusters have a sum above 0 as below?

    Clusters whose sum is 0 are ties; they are dropped and counted. ``statistic`` is the number of
    clusters above 0.

    Args:
        differences: (n,) outcome minus its value under the null, such as preference - 1/2, or one
            side minus the other; NaN is left out and counted missing.
        clusters: (n,) independent unit of each; every observation is its own if None.

    Source: Conover (1999), Practical Nonparametric Statistics, section 3.4.
    """
    sums, kept = _cluster_sums(differences, clusters)
    return _binomial(
        sums,
        n=int(kept.sum()),
        missing=int((~kept).sum()),
        method="sign test on cluster sums, exact, ties dropped",
    )


def _binomial(differences: FloatArray, *, n: int, missing: int, method: str) -> Significance:
    above, below = int((differences > 0).sum()), int((differences < 0).sum())
    return Significance(
        statistic=float(above) if n else None,
        p_value=_half(above, above + below) if n else None,
        n=n,
        clusters=len(differences),
        ties=len(differences) - above - below,
        missing=missing,
        method=method,
    )


def _half(successes: int, trials: int) -> float:
    """Return the two-sided p value of a fair coin; 1 without a trial."""
    from scipy.special import bdtr  # type: ignore[import-untyped]

    fewer = min(successes, trials - successes)
    return min(1.0, 2 * float(bdtr(fewer, trials, 0.5))) if trials else 1.0


def permutation_test(
    differences: FloatArray,
    clusters: Clusters | None = None,
    *,
    rng: np.random.Generator,
    permutations: int = 9999,
) -> Significance:
    """Return the paired permutation test: the signs of whole clusters are exchanged.

    Under the null, that the two sides are exchangeable within a cluster, its sum is as likely to
    have the other sign. With D the sum over all and D* that after random signs,

        p = (1 + #{|D*| >= |D|}) / (1 + permutations)

    which keeps the level exactly for any number of permutations. All 2^G signs are enumerated
    where they are no more than ``permutations`` + 1; above MANY_CLUSTERS clusters D* is taken as
    normal with the variance that it has, the sum of the squared cluster sums.
    ``statistic`` is the mean difference D / n; ties are clusters whose sum is 0, which are kept.

    Args:
        differences, clusters: as in :func:`sign_test`.

    Source: Phipson and Smyth (2010), "Permutation p-values should never be zero", Statistical
    Applications in Genetics and Molecular Biology 9.
    """
    if permutations < 1:
        raise ValueError(f"permutations must be at least 1, given {permutations}")
    sums, kept = _cluster_sums(differences, clusters)
    n, moved = int(kept.sum()), sums[sums != 0]
    p_value, how = _flipped(moved, rng, permutations)
    return Significance(
        statistic=float(sums.sum()) / n if n else None,
        p_value=p_value if n else None,
        n=n,
        clusters=len(sums),
        ties=len(sums) - len(moved),
        missing=int((~kept).sum()),
        method=f"permutation of the signs of clusters, {how}",
    )


def _flipped(sums: FloatArray, rng: np.random.Generator, permutations: int) -> tuple[float, str]:
    """Return the p value of sums that are not 0, and how it was found."""
    count = len(sums)
    if count == 0:
        return 1.0, "nothing to permute"
    if count > MANY_CLUSTERS:
        return _normal(sums), f"normal limit above {MANY_CLUSTERS} clusters"
    if count < 60 and 2**count <= permutations + 1:
        signs = (np.arange(2**count)[:, None] >> np.arange(count)) & 1
        return _extreme(signs, sums) / 2**count, f"all {2**count} enumerated"
    rows = max(1, BLOCK_CELLS // count)
    blocks = [min(rows, permutations - start) for start in range(0, permutations, rows)]
    extreme = sum(_extreme(_random_signs(r, count, rng), sums) for r in blocks)
    return (1 + extreme) / (1 + permutations), f"{permutations} random ones"


def _random_signs(rows: int, count: int, rng: np.random.Generator) -> FloatArray:
    """Return fair bits, shape (rows, count); unpacking bytes is the fastest way to draw them."""
    width = -(-count // 8)
    drawn = np.frombuffer(rng.bytes(rows * width), dtype=np.uint8).reshape(rows, width)
    return np.unpackbits(drawn, axis=1, count=count).astype(np.float64)


def _extreme(signs: FloatArray, sums: FloatArray) -> int:
    """Return how many rows of bits, 1 for a kept sign, give a sum as far from 0 as the data's."""
    total = sums.sum()
    permuted = np.abs(2 * (signs @ sums) - total)
    return int((permuted >= abs(total) - ROUNDING * np.abs(sums).sum()).sum())


def _normal(sums: FloatArray) -> float:
    from scipy.special import ndtr

    return float(2 * ndtr(-abs(sums.sum()) / np.sqrt(sums @ sums)))


def _cluster_sums(
    differences: FloatArray, clusters: Clusters | None
) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Return the sum of each cluster, rounding errors removed, and which observations counted."""
    if clusters is not None and len(clusters) != len(differences):
        raise ValueError(f"{len(differences)} differences but {len(clusters)} clusters")
    kept = np.isfinite(differences)
    values = differences[kept]
    if clusters is None:
        return values, kept
    _, index = cluster_index(np.asarray(clusters)[kept])
    sums, sizes = np.bincount(index, values), np.bincount(index, np.abs(values))
    return np.where(np.abs(sums) <= ROUNDING * sizes, 0.0, sums), kept


def holm(p_values: Mapping[str, float | None]) -> tuple[Adjusted, ...]:
    """Return each p value adjusted so that the family's error rate is kept, in the given order.

    With p_(1) <= ... <= p_(m): adjusted p_(i) = max over j <= i of min(1, (m - j + 1) p_(j)). It
    assumes nothing about how the tests depend on each other. None, a test without data, stays
    None and makes the family no larger.

    Raises:
        ValueError: a p value outside [0, 1].

    Source: Holm (1979), "A simple sequentially rejective multiple test procedure", Scandinavian
    Journal of Statistics 6.
    """
    given = {name: p for name, p in p_values.items() if p is not None}
    for name, p in given.items():
        if not 0 <= p <= 1:
            raise ValueError(f"the p value of '{name}' is {p}, not between 0 and 1")
    adjusted, largest = {}, 0.0
    for step, (name, p) in enumerate(sorted(given.items(), key=lambda entry: entry[1])):
        largest = max(largest, min(1.0, (len(given) - step) * p))
        adjusted[name] = largest
    return tuple(
        Adjusted(name=name, raw=p, adjusted=adjusted.get(name), family=len(given))
        for name, p in p_values.items()
    )
