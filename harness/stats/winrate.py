"""Win rates from pairwise verdicts: raw, and at equal length."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from harness.stats.bootstrap import (
    FloatArray,
    check_settings,
    cluster_index,
    cluster_mean,
    with_interval,
)
from harness.stats.proportion import wilson
from harness.types import Estimate, Outcome, Record

LABELS = {Outcome.WIN: 1.0, Outcome.TIE: 0.5, Outcome.LOSS: 0.0}

RIDGE = 0.01
"""Penalty RIDGE/2 (a^2 + b^2) of the length model: a Gaussian prior of standard deviation 10.

Without it, data that one side wins throughout have no finite maximum. On 60 balanced verdicts it
moves the constant by some tenth of a percent.
"""

CURVATURE = 2.0**0.5
"""Bound of the norm of (1, tanh): the generalised self-concordance constant of the length model."""

MAX_STEPS = 200
"""Newton steps allowed; most fits need about 10, thousands of separated verdicts some 50."""

CONVERGED = 1e-7
"""Step that ends the fit; convergence is quadratic, so that what is left is of the order 1e-14."""

_MODEL = "logistic on tanh(length difference / sd), at equal length"
_NOT_IDENTIFIABLE = "raw rate, as all length differences are equal and show no length effect"


class OutcomeCounts(Record):
    """Verdicts by outcome; ``invalid`` ones carry no verdict and count as neither side's."""

    wins: int
    ties: int
    losses: int
    invalid: int


def count_outcomes(outcomes: Sequence[Outcome]) -> OutcomeCounts:
    """Return how often each outcome occurs."""
    found = Counter(outcomes)
    return OutcomeCounts(
        wins=found[Outcome.WIN],
        ties=found[Outcome.TIE],
        losses=found[Outcome.LOSS],
        invalid=found[Outcome.INVALID],
    )


def win_rate(
    outcomes: Sequence[Outcome],
    clusters: Sequence[str],
    *,
    rng: np.random.Generator,
    resamples: int = 2000,
    level: float = 0.95,
    missing: int = 0,
) -> Estimate:
    """Return (wins + ties/2) / (wins + ties + losses) with its cluster bootstrap interval.

    Where every verdict is the same, resampling would return an interval of no width; the Wilson
    interval with one trial per cluster takes its place, and the method says so.

    Args:
        outcomes: (n,) verdicts on the candidate; INVALID ones are excluded and counted missing.
        clusters: (n,) name of the independent unit, the prompt, of each verdict.
        missing: verdicts that should exist and do not, beyond the INVALID ones.

    Raises:
        ValueError: unequal lengths.
    """
    labels, kept = _valid(outcomes, clusters)
    raw = cluster_mean(
        labels.tolist(),
        [clusters[place] for place in kept],
        rng=rng,
        resamples=resamples,
        level=level,
        missing=missing + len(outcomes) - len(kept),
    )
    return _never_certain(raw, labels)


def length_controlled_win_rate(
    outcomes: Sequence[Outcome],
    length_differences: Sequence[float],
    clusters: Sequence[str],
    *,
    rng: np.random.Generator,
    resamples: int = 2000,
    level: float = 0.95,
    missing: int = 0,
) -> Estimate | None:
    """Return the win rate that a logistic model predicts for answers of equal length.

    The label y (win 1, tie 1/2, loss 0) is modelled as

        P(y = 1) = sigma(a + b tanh(d / s)),    reported: sigma(a)

    with d the candidate's length minus the baseline's and s the standard deviation of d. The
    coefficients minimise the cross-entropy plus RIDGE/2 (a^2 + b^2). Every bootstrap sample of
    clusters is fitted anew. s is kept from the full data: it only fixes the unit in which b is
    measured, and recomputing it would let the meaning of the covariate vary between samples.

    Where all d are equal, the length effect cannot be told from the constant: the raw win rate
    stands in, and the method says so.

    Args:
        outcomes: (n,) verdicts on the candidate; INVALID ones are excluded and counted missing.
        length_differences: (n,) candidate minus baseline, in any unit of length.
        clusters: (n,) name of the independent unit, the prompt, of each verdict.
        missing: verdicts that should exist and do not, beyond the INVALID ones.

    Returns:
        None without a valid verdict. Swapping candidate and baseline turns p into 1 - p.

    Raises:
        ValueError: unequal lengths, a length difference that is not finite.

    Source: TokenRatio (arXiv 2605.12288), evaluation protocol, without the optional item effect.
    """
    check_settings(resamples, level)
    labels, kept = _valid(outcomes, clusters)
    lengths = _finite(length_differences, len(outcomes))[kept]
    if not kept:
        return None
    if np.ptp(lengths) == 0:
        raw = win_rate(
            outcomes, clusters, rng=rng, resamples=resamples, level=level, missing=missing
        )
        return raw.model_copy(update={"method": f"{raw.method}; {_NOT_IDENTIFIABLE}"})
    covariate = np.tanh(lengths / lengths.std())
    count, index = cluster_index([clusters[place] for place in kept])

    def statistic(counts: FloatArray) -> FloatArray:
        return predicted_at_equal_length(counts[:, index], labels, covariate)

    empty = Estimate(
        value=None,
        level=level,
        n=len(kept),
        clusters=count,
        missing=missing + len(outcomes) - len(kept),
        method=f"{_MODEL}; cluster bootstrap with refitting, percentile, {resamples} resamples",
    )
    value = float(statistic(np.ones((1, count)))[0])
    return _never_certain(with_interval(empty, value, statistic, rng, resamples), labels)


def predicted_at_equal_length(
    counts: FloatArray, labels: FloatArray, covariate: FloatArray
) -> FloatArray:
    """Return sigma(a) of the length model for each row of ``counts``, all rows fitted at once.

    Args:
        counts: (r, n) weight of each observation in each fit.
        labels: (n,) in [0, 1]. covariate: (n,) in [-1, 1], odd in the length difference.
    """
    constant, _ = fit_length_model(counts, labels, covariate)
    return 0.5 + np.tanh(constant / 2) / 2


def fit_length_model(
    counts: FloatArray, labels: FloatArray, covariate: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Return a and b, each (r,), that minimise the penalised cross-entropy of each row.

    Damped Newton steps: the objective is generalised self-concordant, so a step shortened by
    log(1 + d) / d, d = CURVATURE |step|, always descends, and no line search is needed. Full
    steps run away on very uneven weights.
    The probabilities are written as 1/2 + tanh(z/2)/2, which is odd about 1/2 to the last bit:
    swapping the sides negates a exactly.

    Source: Sun and Tran-Dinh (2019), "Generalized self-concordant functions: a recipe for
    Newton-type methods", Mathematical Programming 178, damped step for nu = 2.
    """
    constant, slope = np.zeros(len(counts)), np.zeros(len(counts))
    for _ in range(MAX_STEPS):
        first, second = _newton_step(constant, slope, counts, labels, covariate)
        length = CURVATURE * np.hypot(first, second)
        damping = np.log1p(length) / np.maximum(length, np.finfo(np.float64).tiny)
        constant += damping * first
        slope += damping * second
        if length.max() < CONVERGED:
            return constant, slope
    raise ArithmeticError(f"the length model did not converge in {MAX_STEPS} Newton steps")


def _newton_step(
    constant: FloatArray,
    slope: FloatArray,
    counts: FloatArray,
    labels: FloatArray,
    covariate: FloatArray,
) -> tuple[FloatArray, FloatArray]:
    """Return the full Newton step of each row: the 2 x 2 systems solved in closed form."""
    half = np.tanh((constant[:, None] + slope[:, None] * covariate) / 2)
    residual = counts * (labels - 0.5 - half / 2)
    curvature = counts * (1 - half * half) / 4
    gradient = residual.sum(axis=1) - RIDGE * constant, residual @ covariate - RIDGE * slope
    weighted = curvature @ covariate
    aa, bb = curvature.sum(axis=1) + RIDGE, curvature @ covariate**2 + RIDGE
    determinant = aa * bb - weighted * weighted
    return (
        (bb * gradient[0] - weighted * gradient[1]) / determinant,
        (aa * gradient[1] - weighted * gradient[0]) / determinant,
    )


def _valid(outcomes: Sequence[Outcome], clusters: Sequence[str]) -> tuple[FloatArray, list[int]]:
    """Return labels and places of the verdicts that are not INVALID."""
    if len(outcomes) != len(clusters):
        raise ValueError(f"{len(outcomes)} outcomes but {len(clusters)} clusters")
    kept = [place for place, outcome in enumerate(outcomes) if outcome in LABELS]
    return np.array([LABELS[outcomes[place]] for place in kept], dtype=np.float64), kept


def _finite(length_differences: Sequence[float], expected: int) -> FloatArray:
    lengths = np.asarray(length_differences, dtype=np.float64)
    if lengths.shape != (expected,):
        raise ValueError(f"{expected} outcomes but {lengths.size} length differences")
    if not np.isfinite(lengths).all():
        raise ValueError("a length difference is not finite")
    return lengths


def _never_certain(estimate: Estimate, labels: FloatArray) -> Estimate:
    """Return the estimate, with a Wilson interval over the clusters where all verdicts agree."""
    if estimate.clusters < 2 or np.ptp(labels) > 0:
        return estimate
    trials = estimate.clusters
    bounds = wilson(float(labels[0]) * trials, trials, level=estimate.level)
    method = f"{estimate.method}; wilson interval on clusters, as all verdicts agree"
    return estimate.model_copy(update={"low": bounds.low, "high": bounds.high, "method": method})
