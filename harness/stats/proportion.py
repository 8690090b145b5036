"""Intervals of a proportion, and of what all observations have the same value of."""

from __future__ import annotations

import math
from statistics import NormalDist

from harness.types import Estimate


def wilson(successes: float, n: int, *, level: float = 0.95, missing: int = 0) -> Estimate:
    """Return a proportion with its Wilson score interval; ties may count one half.

    Source: Wilson (1927), "Probable inference, the law of succession, and statistical inference".
    """
    if n == 0:
        return Estimate(value=None, level=level, n=0, clusters=0, missing=missing, method="wilson")
    z = NormalDist().inv_cdf(0.5 + level / 2)
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Estimate(
        value=share,
        low=max(0.0, min(share, centre - half)),
        high=min(1.0, max(share, centre + half)),
        level=level,
        n=n,
        clusters=n,
        missing=missing,
        method="wilson",
    )


def alike(
    value: float, n: int, level: float, within: tuple[float, float] = (0.0, 1.0)
) -> tuple[float, float]:
    """Return exact bounds on the mean of n independent units that were all seen at one value.

    At most a share h = 1 - (alpha/2)^(1/n) of all units has another value, were it the farthest
    one ``within`` the possible ones: low = value - h (value - lowest), and high alike.

    Source: Clopper and Pearson (1934), Biometrika 26, with none of n seen.
    """
    share = 1 - ((1 - level) / 2) ** (1 / n)
    lowest, highest = within
    return value - share * (value - lowest), value + share * (highest - value)
