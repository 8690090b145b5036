"""Estimates derived from other estimates without resampling."""

from __future__ import annotations

from harness.types import Estimate, WinRate


def reflected(estimate: Estimate, total: float) -> Estimate:
    """Return the estimate of ``total`` minus the statistic: the bounds change places.

    ``total`` 1 turns a win rate into the opponent's; 0 turns round a difference.
    """
    value, low, high = (
        None if bound is None else total - bound
        for bound in (estimate.value, estimate.high, estimate.low)
    )
    return estimate.model_copy(update={"value": value, "low": low, "high": high})


def mirrored(found: WinRate) -> WinRate:
    """Return the same verdicts from the baseline's side; nothing is resampled."""
    controlled, length = found.length_controlled, found.mean_length_difference
    degree = found.mean_preference
    changed = {
        "candidate": found.baseline,
        "baseline": found.candidate,
        "wins": found.losses,
        "losses": found.wins,
        "estimate": reflected(found.estimate, 1.0),
        "length_controlled": None if controlled is None else reflected(controlled, 1.0),
        "mean_preference": None if degree is None else reflected(degree, 1.0),
        "mean_length_difference": None if length is None else 0.0 - length,
    }
    return found.model_copy(update=changed)
