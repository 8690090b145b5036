"""How far a judge can be trusted: what order, length and chance do to its verdicts.

A verdict is the side of 1/2 on which a preference lies; exactly 1/2 is a tie. Everything is
clustered by prompt. Two rows show the same pair in both orders where judge, prompt and the two
models are the same and the order is the other one; of several such rows, as of two turns, the
first in the file in one order belongs to the first in the other.

Source: Zheng et al. (2023), "Judging LLM-as-a-judge with MT-Bench and Chatbot Arena",
arXiv 2306.05685, section 3.3, for position bias, consistency and verbosity bias.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.stats.bootstrap import FloatArray, cluster_index, jackknife_interval
from harness.stats.clustered import clustered_share
from harness.stats.judged import Codes, Judged, select
from harness.types import Estimate, JudgeQuality

RIDGE = 0.01
"""Penalty RIDGE/2 b^2 of the length slope b: a judge that always prefers the longer answer has no
finite one."""

MAX_STEPS, CONVERGED = 200, 1e-10
"""Newton steps allowed, and the step that ends the fit of the length slope."""

_SLOPE = "logistic without constant, cluster-robust (CR2), t"

Flags = NDArray[np.bool_]
Wide = NDArray[np.int64]


def judge_quality(judged: Judged, *, level: float = 0.95) -> tuple[JudgeQuality, ...]:
    """Return the quality of each judge that has a row, in the order of ``judged.judges``."""
    present = np.bincount(judged.judge, minlength=len(judged.judges))
    several = int((present > 0).sum()) > 1
    return tuple(
        _quality(select(judged, judged.judge == code) if several else judged, name, level)
        for code, name in enumerate(judged.judges)
        if present[code]
    )


def _quality(judged: Judged, name: str, level: float) -> JudgeQuality:
    both = both_orders(judged)
    return JudgeQuality(
        judge=name,
        rows=len(judged),
        flip_rate=flip_rate(both, level),
        consistency=consistency(both, level),
        position_preference=position_preference(both, level),
        length_preference=length_preference(judged, level),
        length_slope=length_slope(judged, level),
        ties=tie_share(judged, level),
        invalid=invalid_share(judged, level),
    )


# Order.


@dataclass(frozen=True)
class BothOrders:
    """Pairs with a valid verdict in both orders, (m,) each.

    Attributes:
        shown_first, shown_second: preference for one and the same answer of the pair, where it was
            shown first and where it was shown second.
        prompt: code of the prompt.
        missing: pairs without a valid verdict in one of the orders.
    """

    shown_first: FloatArray
    shown_second: FloatArray
    prompt: Codes
    missing: int


@dataclass(frozen=True)
class Showings:
    """Judgments turned so that the two models have a fixed order, whoever was the candidate.

    Attributes:
        comparison: (n,) code of prompt and the two models.
        preference: (n,) for the model of lower code. order: (n,) 1 where it was shown first.
    """

    comparison: Wide
    preference: FloatArray
    order: NDArray[np.int8]

    @classmethod
    def of(cls, judged: Judged) -> Showings:
        """Return all rows turned."""
        turned = judged.candidate > judged.baseline
        low = np.minimum(judged.candidate, judged.baseline).astype(np.int64)
        high = np.maximum(judged.candidate, judged.baseline)
        return cls(
            (low * len(judged.models) + high) * len(judged.prompts) + judged.prompt,
            np.where(turned, 1 - judged.preference, judged.preference),
            np.where(turned, -judged.order, judged.order),
        )


def both_orders(judged: Judged) -> BothOrders:
    """Return the pairs that were judged in both orders.

    Where a pair has more rows in one order than in the other, nobody knows which belong together:
    all of them are counted missing. Rows of unknown order take no part.
    """
    seen = Showings.of(judged)
    known = np.flatnonzero(seen.order)
    key = seen.comparison[known] * len(judged.judges) + judged.judge[known]
    groups, group = np.unique(key, return_inverse=True)
    ahead = seen.order[known] > 0
    counts = [np.bincount(group[side], minlength=len(groups)) for side in (ahead, ~ahead)]
    matched = (counts[0] == counts[1])[group]
    place = np.lexsort((judged.row[known], group))
    first, second = (known[place[(side & matched)[place]]] for side in (ahead, ~ahead))
    valid = np.isfinite(seen.preference[first]) & np.isfinite(seen.preference[second])
    return BothOrders(
        seen.preference[first[valid]],
        seen.preference[second[valid]],
        judged.prompt[first[valid]],
        missing=int(np.maximum(*counts).sum()) - int(valid.sum()),
    )


def flip_rate(both: BothOrders, level: float = 0.95) -> Estimate:
    """Return the share of pairs whose winner changes with the order.

    A judge that always prefers the first answer has 1, at a win rate of 1/2. Ties do not flip.
    """
    flips = np.sign(both.shown_first - 0.5) * np.sign(both.shown_second - 0.5) < 0
    return _share(flips, both.prompt, both.missing, "share of pairs in both orders", level)


def consistency(both: BothOrders, level: float = 0.95) -> Estimate:
    """Return the share of pairs with the same verdict, win, tie or loss, in both orders."""
    same = np.sign(both.shown_first - 0.5) == np.sign(both.shown_second - 0.5)
    return _share(same, both.prompt, both.missing, "share of pairs in both orders", level)


def position_preference(both: BothOrders, level: float = 0.95) -> Estimate:
    """Return the mean preference for the answer shown first, 1/2 where position plays no part."""
    worth = (both.shown_first + 1 - both.shown_second) / 2
    return _share(worth, both.prompt, both.missing, "mean over pairs in both orders", level)


# Length.


@dataclass(frozen=True)
class _Doublings:
    """Decided verdicts on answers of known, different length, (m,) each.

    Attributes:
        won: 1 where the candidate is better. doublings: log2 of its length over the baseline's.
        missing: rows without a verdict or without a length.
    """

    won: FloatArray
    doublings: FloatArray
    prompt: Codes
    missing: int

    @classmethod
    def of(cls, judged: Judged) -> _Doublings:
        doublings = np.log2(judged.candidate_length + 1) - np.log2(judged.baseline_length + 1)
        known = np.isfinite(judged.preference) & np.isfinite(doublings)
        used = known & (judged.preference != 0.5) & (doublings != 0)
        won = (judged.preference[used] > 0.5).astype(np.float64)
        return cls(won, doublings[used], judged.prompt[used], int((~known).sum()))


def length_preference(judged: Judged, level: float = 0.95) -> Estimate:
    """Return the share of decided verdicts that go to the longer answer."""
    found = _Doublings.of(judged)
    longer = (found.won > 0.5) == (found.doublings > 0)
    about = "share of decided verdicts on answers of different length"
    return _share(longer, found.prompt, found.missing, about, level)


def length_slope(judged: Judged, level: float = 0.95) -> Estimate:
    """Return b of P(candidate wins) = sigma(b log2(its length / the baseline's)).

    b is the log-odds for each doubling; one character is added to both lengths, so that an empty
    answer has a logarithm. There is no constant: swapping the sides changes nothing. The standard
    error is cluster-robust, each cluster's score widened by its leverage h as (1 - h)^(-1/2): the
    jackknife's (1 - h)^(-1) covers 97 % on 50 single judgments.
    """
    found = _Doublings.of(judged)
    count, index = cluster_index(found.prompt)
    result = Estimate(
        value=None,
        level=level,
        n=len(found.won),
        clusters=count,
        missing=found.missing,
        method=_SLOPE,
    )
    if not count:
        return result
    slope = _slope(found.won, found.doublings)
    if count < 2:
        return result.model_copy(update={"value": slope})
    low, high = jackknife_interval(slope, _moved_by_each(slope, found, index), level)
    return result.model_copy(update={"value": slope, "low": low, "high": high})


def _slope(won: FloatArray, doublings: FloatArray) -> float:
    """Return the penalised maximum; steps are damped as in the length model of win rates."""
    slope, largest = 0.0, float(np.abs(doublings).max())
    for _ in range(MAX_STEPS):
        gradient, curvature = _terms(slope, won, doublings)
        step = (gradient.sum() - RIDGE * slope) / (curvature.sum() + RIDGE)
        length = abs(step) * largest
        slope += float(step * np.log1p(length) / length) if length > 0 else 0.0
        if length < CONVERGED:
            return slope
    raise ArithmeticError(f"the length slope did not converge in {MAX_STEPS} Newton steps")


def _terms(slope: float, won: FloatArray, doublings: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return each row's part of the gradient and of the curvature."""
    half = np.tanh(slope * doublings / 2)
    return doublings * (won - 0.5 - half / 2), doublings**2 * (1 - half * half) / 4


def _moved_by_each(slope: float, found: _Doublings, index: NDArray[np.intp]) -> FloatArray:
    """Return the slope moved by each cluster's widened score."""
    gradient, curvature = _terms(slope, found.won, found.doublings)
    whole = curvature.sum() + RIDGE
    rest = whole - np.bincount(index, curvature)
    return np.asarray(slope - np.bincount(index, gradient) / np.sqrt(whole * rest))


# Ties and invalid replies.


def tie_share(judged: Judged, level: float = 0.95) -> Estimate:
    """Return the share of valid verdicts that are ties."""
    valid = np.isfinite(judged.preference)
    ties = judged.preference[valid] == 0.5
    missing = int((~valid).sum())
    return _share(ties, judged.prompt[valid], missing, "share of valid verdicts", level)


def invalid_share(judged: Judged, level: float = 0.95) -> Estimate:
    """Return the share of rows without a valid verdict."""
    return _share(np.isnan(judged.preference), judged.prompt, 0, "share of rows", level)


def _share(worth: NDArray[Any], prompt: Codes, missing: int, about: str, level: float) -> Estimate:
    values = worth.astype(np.float64)
    found = clustered_share(values, prompt, level=level, missing=missing).estimate
    return found.model_copy(update={"method": f"{about}; {found.method}"})
