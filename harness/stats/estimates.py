"""Estimates derived from other estimates without resampling."""

from __future__ import annotations

from harness.types import Estimate


def reflected(estimate: Estimate, total: float) -> Estimate:
    """Return the estimate of ``total`` minus the statistic: the bounds change places.

    ``total`` 1 turns a win rate into the opponent's; 0 turns round a difference.
    """
    value, low, high = (
        None if bound is None else total - bound
        for bound in (estimate.value, estimate.high, estimate.low)
    )
    return estimate.model_copy(update={"value": value, "low": low, "high": high})
