"""Jackknife contributions: corpus statistics that can be averaged, resampled and paired."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def contributions(total: float, leave_one_out: Sequence[float]) -> list[float]:
    """Return one number per example whose mean is ``total``.

    A statistic theta of a whole corpus, such as Distinct-n, has no value per example. Its
    linearised contributions are

        c_i = theta + (n - 1) (mean_j theta_(-j) - theta_(-i))

    with theta_(-i) the statistic without example i. Their mean is theta, and their sample
    variance over n is the jackknife variance of theta, so that intervals and paired differences
    of means apply to theta to first order.

    Args:
        total: theta, on all n examples.
        leave_one_out: theta_(-i) for each example, in the order of the result. With one example
            theta_(-1) does not exist; its entry is ignored.

    Raises:
        ValueError: no example, or a number that is not finite.

    Source: Efron and Stein (1981), "The jackknife estimate of variance", Annals of Statistics 9.
    """
    n = len(leave_one_out)
    if n == 0:
        raise ValueError("contributions need at least one example, found none")
    if n == 1:
        return [total]
    left_out = np.asarray(leave_one_out, dtype=np.float64)
    if not (np.isfinite(total) and np.isfinite(left_out).all()):
        raise ValueError("contributions need finite numbers: give examples without one no score")
    spread: list[float] = (total + (n - 1) * (left_out.mean() - left_out)).tolist()
    return spread
