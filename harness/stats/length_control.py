"""Win rates at equal length: AlpacaEval 2's published form and the paper's, on any data set.

Both model the label y in [0, 1] of a judgment, the degree to which the candidate's answer is
better, as

    P(y = 1) = sigma(a tanh(d / s) + b q + c)

with d the baseline's length minus the candidate's, s the standard deviation of d, and q the
difficulty of the item, and report the mean over the items of sigma(b q + c): the win rate that the
model predicts for answers of equal length.

They differ in how a, b and c are found. AlpacaEval adds judgments of the baseline's own verbose
and concise variants, penalises |a| + |b| + |c| and chooses the strength by cross-validation. The
paper maximises the likelihood of the judgments alone.

Sources: Dubois et al. (2024), "Length-controlled AlpacaEval", arXiv 2404.04475. TokenRatio, arXiv
2605.12288, evaluation protocol.
"""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from harness.stats.bootstrap import (
    Clusters,
    FloatArray,
    check_settings,
    replicate,
    t_quantile,
)
from harness.stats.clustered import share_test
from harness.stats.length_fit import lasso, ridge, sigma
from harness.stats.length_model import (
    Model,
    Regulariser,
    chosen_penalty,
    coefficient_effects,
    fit,
    length_model,
    rates,
    valid_rows,
)
from harness.types import Estimate, Record

__all__ = [
    "LengthControlled",
    "Regulariser",
    "alpaca_eval_win_rate",
    "never_certain",
    "paper_win_rate",
    "rate_from_coefficients",
]

UPSTREAM_PENALTIES = np.logspace(-4, 4, 10)
"""Values of C that alpaca-eval chooses from: the weight of the likelihood against |a|+|b|+|c|."""

PENALTIES = UPSTREAM_PENALTIES[5:]
"""Values of C chosen from by default: from 2.78 up.

Every published model chose 2.78 or 21.5. On 50 judgments cross-validation often takes a smaller C,
down to 1e-4; it shrinks the win rate itself, to exactly one half at the end, and the interval
then holds the truth 60 to 75 times in 100.
"""

RIDGE = 0.01
"""Penalty RIDGE/2 (a^2 + b^2 + c^2) of the paper's form: a Gaussian prior of deviation 10.

Without it, data that one side wins throughout have no finite maximum. On 60 balanced verdicts it
moves the constant by some tenth of a percent.
"""

REFITTED_CELLS = 10_000_000
"""Most cells (resamples x rows) that are refitted: some three seconds."""

LINEAR_CLUSTERS = 200
"""Fewest prompts for which a linearised interval may stand in for refitting."""

QUARTILES = 2 * NormalDist().inv_cdf(0.75)
"""Distance of the quartiles of a normal distribution, in standard deviations."""

TINY = 1e-12


class LengthControlled(Record):
    """A win rate at equal length, with the model behind it.

    Attributes:
        estimate: the rate in [0, 1], its interval from refitting on resampled prompts.
        standard_error: sd of the predictions over items / sqrt(items), as alpaca-eval reports it:
            it tells how much items differ, not how uncertain the rate is. None without difficulty.
        length, difficulty, constant: a, b, c.
        penalty: the chosen C (alpaca-eval), the ridge (paper).
    """

    estimate: Estimate
    standard_error: float | None
    length: float
    difficulty: float
    constant: float
    penalty: float


def rate_from_coefficients(difficulty: float, constant: float, item_difficulty: ArrayLike) -> float:
    """Return the mean over items of sigma(b q + c), from published coefficients b and c."""
    return float(sigma(difficulty * np.asarray(item_difficulty, np.float64) + constant).mean())


def alpaca_eval_win_rate(
    labels: ArrayLike,
    length_differences: ArrayLike,
    clusters: Clusters,
    *,
    rng: np.random.Generator,
    difficulty: ArrayLike | None = None,
    predict_difficulty: ArrayLike | None = None,
    regulariser: Regulariser | None = None,
    penalties: FloatArray = PENALTIES,
    resamples: int = 1000,
    level: float = 0.95,
    missing: int = 0,
) -> LengthControlled | None:
    """Return AlpacaEval 2's length-controlled win rate, with an interval.

    a, b and c maximise C * sum(weight * log-likelihood) - |a| - |b| - |c|. C has the least mean
    loss in 5-fold cross-validation, the stronger penalty in a tie. As upstream, item k of the
    regulariser's and then the judgments' items, in order of appearance, is in fold k mod 5: the
    order of rows decides between values of C that are nearly as good, and nothing else.

    C and s are kept in the resamples: s fixes the unit of a, and the choice of C is a coin toss
    between values that hardly differ.

    Args:
        labels: (n,) in [0, 1], ties 0.5; NaN where there is no valid verdict (left out, counted).
        length_differences: (n,) the BASELINE's length minus the candidate's, in characters.
        clusters: (n,) the independent unit, the prompt, of each judgment.
        difficulty: (n,) of each judgment's item; no difficulty effect if None.
        predict_difficulty: (k,) of the items averaged over, a fixed set; if None the items of the
            judgments, which are resampled with them.
        penalties: values of C, ascending; ``UPSTREAM_PENALTIES`` for alpaca-eval's own.
        missing: judgments that should exist and do not, beyond the NaN ones.

    Returns:
        None without a valid judgment.

    Raises:
        ValueError: unequal lengths, a label outside [0, 1], a covariate that is not finite.
    """
    check_settings(resamples, level)
    rows = valid_rows(labels, length_differences, clusters, difficulty, missing)
    if rows is None:
        return None
    model = length_model(rows, lasso(1.0), predict_difficulty, regulariser)
    model = replace(model, scale=chosen_penalty(model, np.asarray(penalties, np.float64)))
    name = f"alpaca-eval's length-controlled model, C = {model.scale:.3g}"
    return _result(model, name, model.scale, difficulty is not None, rng, resamples, level)


def paper_win_rate(
    labels: ArrayLike,
    length_differences: ArrayLike,
    clusters: Clusters,
    *,
    rng: np.random.Generator,
    difficulty: ArrayLike | None = None,
    predict_difficulty: ArrayLike | None = None,
    resamples: int = 1000,
    level: float = 0.95,
    missing: int = 0,
) -> LengthControlled | None:
    """Return the paper's length-controlled win rate, with its item effect where one is given.

    Arguments, result and errors are those of ``alpaca_eval_win_rate``. Swapping candidate and
    baseline, with difficulty kept, turns p into 1 - p.
    """
    check_settings(resamples, level)
    rows = valid_rows(labels, length_differences, clusters, difficulty, missing)
    if rows is None:
        return None
    model = length_model(rows, ridge(RIDGE), predict_difficulty)
    item = "" if difficulty is None else " and item difficulty"
    name = f"logistic on tanh(length difference / sd){item}, at equal length"
    return _result(model, name, RIDGE, difficulty is not None, rng, resamples, level)


def never_certain(estimate: Estimate, labels: FloatArray) -> Estimate:
    """Return the estimate, with the raw rate's Wilson interval where all verdicts agree."""
    if estimate.clusters < 2 or np.ptp(labels) > 0:
        return estimate
    sums = np.tile([float(labels[0]), 1.0], (estimate.clusters, 1))
    raw = share_test(estimate, sums).estimate
    method = f"{estimate.method}; wilson interval on clusters, as all verdicts agree"
    return estimate.model_copy(update={"low": raw.low, "high": raw.high, "method": method})


def _result(
    model: Model,
    name: str,
    penalty: float,
    with_difficulty: bool,
    rng: np.random.Generator,
    resamples: int,
    level: float,
) -> LengthControlled:
    """Return the fit on all judgments with its interval."""
    rows, once = model.rows, np.ones((1, model.rows.clusters))
    found = fit(model, once)
    value = float(rates(model, found, once)[0])
    plain = Estimate(
        value=value,
        level=level,
        n=len(rows.labels),
        clusters=rows.clusters,
        missing=rows.missing,
        method="; ".join([name, *rows.notes]),
    )
    a, b, c = (float(value) for value in found[0])
    whole = _with_interval(model, plain, value, found[0], rng, resamples)
    return LengthControlled(
        estimate=never_certain(whole, rows.labels),
        standard_error=_item_error(model, found[0]) if with_difficulty else None,
        length=a,
        difficulty=b,
        constant=c,
        penalty=penalty,
    )


def _item_error(model: Model, coefficients: FloatArray) -> float | None:
    predicted = sigma(model.items @ coefficients)
    if len(predicted) < 2:
        return None
    return float(predicted.std(ddof=1) / math.sqrt(len(predicted)))


def _with_interval(
    model: Model,
    estimate: Estimate,
    value: float,
    found: FloatArray,
    rng: np.random.Generator,
    resamples: int,
) -> Estimate:
    """Return the estimate with its interval: refitted, or linearised where that takes too long."""
    if estimate.clusters < 2:
        return estimate
    many = resamples * len(model.labels) > REFITTED_CELLS
    if many and estimate.clusters >= LINEAR_CLUSTERS:
        error, how = _linearised_error(model, value, found), "linearised by prompt"
    else:
        error = _refitted_error(model, found, estimate.clusters, rng, resamples)
        how = f"cluster bootstrap, refitted with sd and penalty kept, {resamples} resamples"
    centre = float(_logit(np.array(value)))
    half = t_quantile(estimate.level, estimate.clusters - 1) * error
    low, high = sigma(np.array([centre - half, centre + half])).tolist()
    method = f"{estimate.method}; {how}, t on the logit scale"
    return estimate.model_copy(update={"low": low, "high": high, "method": method})


def _refitted_error(
    model: Model, found: FloatArray, clusters: int, rng: np.random.Generator, resamples: int
) -> float:
    """Return the standard error of logit(rate): the quartiles of the refits, as of a normal one.

    Their standard deviation would follow the resamples in which one side wins all, whose rate is
    bounded by the penalty alone: on 50 judgments it makes intervals that cover 98 to 99 %. Their
    percentiles repeat the small-sample bias of the fit: where the truth is 0.77 they cover 89 %.
    """

    def statistic(counts: FloatArray) -> FloatArray:
        return _logit(rates(model, fit(model, counts, found), counts))

    low, high = np.quantile(replicate(statistic, clusters, resamples, rng), [0.25, 0.75])
    return float(high - low) / QUARTILES


def _logit(rate: FloatArray) -> FloatArray:
    """Return log(p / (1 - p)); rates that round to 0 or 1 are taken as TINY from there."""
    inside = np.clip(rate, TINY, 1 - TINY)
    return np.asarray(np.log(inside / (1 - inside)))


def _linearised_error(model: Model, rate: float, found: FloatArray) -> float:
    """Return the standard error of logit(rate) from the first-order effect of each cluster.

    The effect is that of the judgments on the coefficients and, unless the items are a fixed set,
    of the items on the mean. A coefficient that the penalty holds at 0 stays there.
    """
    rows = model.rows
    predicted = sigma(model.items @ found)
    slope = (predicted * (1 - predicted)) @ model.items / len(model.items)
    change = coefficient_effects(model, found)[: len(rows.labels)] @ slope
    if not model.fixed_items:
        change += (predicted - rate) / len(predicted)
    total = np.bincount(rows.cluster, change) / max(rate * (1 - rate), TINY)
    return math.sqrt(rows.clusters / (rows.clusters - 1) * float(total @ total))
