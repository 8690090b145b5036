"""What a number of prompts can detect, before a run: power of the clustered t test.

The test is the two-sided one of :func:`harness.stats.clustered.clustered_mean`: of a win rate
against 1/2, or of a paired difference against 0. The unit is the prompt; m observations of one
prompt, such as samples or orders, are worth fewer than m prompts.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from pydantic import Field

from harness.stats.bootstrap import t_quantile
from harness.types import Record

METHOD = "noncentral t, two-sided, prompts as clusters"

MOST_PROMPTS = 100_000_000
"""Largest number of prompts that is tried."""


class Design(Record):
    """How many observations a mean rests on, and how they vary.

    Attributes:
        prompts: independent units.
        per_prompt: observations of each.
        icc: correlation of two observations of one prompt; plays no part with one of each.
        sd: standard deviation of one observation.
    """

    prompts: int = Field(ge=2)
    per_prompt: int = Field(default=1, ge=1)
    icc: float = Field(default=0.0, ge=0, le=1)
    sd: float = Field(gt=0)

    @property
    def design_effect(self) -> float:
        """Variance of the mean in terms of that of as many independent observations.

        1 + (m - 1) icc. Source: Kish (1965), Survey Sampling, section 5.4.
        """
        return 1 + (self.per_prompt - 1) * self.icc

    @property
    def standard_error(self) -> float:
        """Standard error of the mean: sd sqrt(design effect / observations)."""
        return self.sd * math.sqrt(self.design_effect / (self.prompts * self.per_prompt))


class WinRateDesign(Record):
    """How many verdicts a win rate rests on; their spread follows from the rate and the ties.

    Attributes:
        prompts, per_prompt, icc: as in :class:`Design`.
        ties: share of verdicts that are ties. None expected is the cautious choice.
    """

    prompts: int = Field(ge=2)
    per_prompt: int = Field(default=1, ge=1)
    icc: float = Field(default=0.0, ge=0, le=1)
    ties: float = Field(default=0.0, ge=0, lt=1)

    @property
    def highest(self) -> float:
        """The win rate where every decided verdict is a win."""
        return 1 - self.ties / 2

    def at(self, rate: float) -> Design:
        """Return the design with the spread of verdicts at a win rate."""
        return Design(
            prompts=self.prompts,
            per_prompt=self.per_prompt,
            icc=self.icc,
            sd=verdict_sd(rate, self.ties),
        )


class Planned(Record):
    """What a design promises.

    Attributes:
        difference: from 1/2 for a win rate, from 0 for a paired difference; None where the design
            cannot reach ``power`` for any.
        power: probability that the test finds that difference.
        alpha: level of the test.
        prompts: independent units; MOST_PROMPTS means at least so many.
        standard_error: of the mean at that difference.
        design_effect: factor on the variance for observations that share a prompt.
    """

    difference: float | None
    power: float
    alpha: float
    prompts: int
    standard_error: float
    design_effect: float
    method: str = METHOD


def verdict_sd(rate: float, ties: float = 0.0) -> float:
    """Return the standard deviation of one verdict, win 1, tie 1/2, loss 0.

    sqrt(rate (1 - rate) - ties / 4). A floor keeps it above 0 at rates where all are alike.

    Raises:
        ValueError: a rate that so many ties leave no room for.
    """
    if not ties / 2 - 1e-9 <= rate <= 1 - ties / 2 + 1e-9:
        raise ValueError(f"with a share of {ties} ties no win rate can be {rate}")
    return math.sqrt(max(1e-6, rate * (1 - rate) - ties / 4))


def difference_sd(first: float, second: float, correlation: float) -> float:
    """Return the standard deviation of a paired difference of outcomes with these two."""
    return math.sqrt(max(0.0, first**2 + second**2 - 2 * correlation * first * second))


def detection_power(design: Design, difference: float, *, alpha: float = 0.05) -> float:
    """Return the probability that the test at level ``alpha`` finds a true difference.

    With F the noncentral t distribution of G - 1 degrees and noncentrality
    difference / standard error: 1 - F(t) + F(-t), t the two-sided critical value.
    """
    critical = t_quantile(1 - alpha, design.prompts - 1)
    return _beyond(design, difference, critical)


def win_rate_power(design: WinRateDesign, difference: float, *, alpha: float = 0.05) -> float:
    """Return the probability that the test tells the win rate 1/2 + difference from 1/2.

    Verdicts spread less the further their rate is from 1/2, and the test of a share takes their
    error at 1/2. With c = design effect x G / ((G - 1) observations) and a share of ties, a
    difference d between rates has the error sqrt(c / 4 (1 - ties / (1 - 4 d^2))) under the null;
    the smallest significant d* is t of these errors. The critical value becomes d* over the error
    at the true rate: without it, 50 prompts promise 4 points of power that are not there.
    """
    actual = design.at(0.5 + difference)
    smallest = _smallest_significant(design, actual.design_effect, alpha)
    return _beyond(actual, difference, smallest / actual.standard_error)


def _smallest_significant(design: WinRateDesign, design_effect: float, alpha: float) -> float:
    """Return d*, the smaller root of 4 x^2 - (1 + 4 a) x + a (1 - ties) in x = d*^2.

    Infinite where not even winning all decided verdicts would be significant.
    """
    scaled = design_effect / ((design.prompts - 1) * design.per_prompt)
    a = scaled * t_quantile(1 - alpha, design.prompts - 1) ** 2 / 4
    middle = 1 + 4 * a
    found = math.sqrt((middle - math.sqrt(middle**2 - 16 * a * (1 - design.ties))) / 8)
    return found if found < design.highest - 0.5 else math.inf


def _beyond(design: Design, difference: float, critical: float) -> float:
    """Return the probability of a noncentral t beyond -+ critical."""
    from scipy.special import nctdtr  # type: ignore[import-untyped]

    degrees, shift = design.prompts - 1, abs(difference) / design.standard_error
    upper, lower = (float(nctdtr(degrees, shift, t)) for t in (critical, -critical))
    return min(1.0, 1 - upper + lower)


def minimum_detectable_difference(
    design: Design, *, power: float = 0.8, alpha: float = 0.05
) -> Planned:
    """Return the smallest difference that the test finds with probability ``power``."""
    found = _smallest(
        lambda d: detection_power(design, d, alpha=alpha), power, 1e6 * design.standard_error
    )
    return _planned(design, found, power, alpha)


def minimum_detectable_win_rate(
    design: WinRateDesign, *, power: float = 0.8, alpha: float = 0.05
) -> Planned:
    """Return the smallest distance of a win rate from 1/2 that is found so often.

    ``difference`` is None where not even winning all decided verdicts would be.
    """

    found = _smallest(lambda d: win_rate_power(design, d, alpha=alpha), power, design.highest - 0.5)
    return _planned(design.at(0.5 + (found or 0.0)), found, power, alpha)


def required_prompts(
    power_with: Callable[[int], float], *, power: float = 0.8, fewest: int = 2
) -> int | None:
    """Return the smallest number of prompts with the wanted power; None above MOST_PROMPTS.

    Args:
        power_with: power with so many prompts, rising in them, such as
            ``lambda n: detection_power(design.model_copy(update={"prompts": n}), 0.05)``.
    """
    high = fewest
    while power_with(high) < power:
        if high >= MOST_PROMPTS:
            return None
        high *= 2
    low = max(fewest - 1, high // 2 - 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power_with(middle) >= power else (middle, high)
    return high


def prompts_for_difference(
    design: Design, difference: float, *, power: float = 0.8, alpha: float = 0.05
) -> Planned:
    """Return how many prompts it takes to find a difference; ``design.prompts`` plays no part."""
    needed = required_prompts(
        lambda n: detection_power(_resized(design, n), difference, alpha=alpha), power=power
    )
    return _planned(_resized(design, needed), difference, power, alpha)


def prompts_for_win_rate(
    design: WinRateDesign, rate: float, *, power: float = 0.8, alpha: float = 0.05
) -> Planned:
    """Return how many prompts it takes to tell a win rate from 1/2."""
    needed = required_prompts(
        lambda n: win_rate_power(design.model_copy(update={"prompts": n}), rate - 0.5, alpha=alpha),
        power=power,
    )
    return _planned(_resized(design.at(rate), needed), rate - 0.5, power, alpha)


def _resized(design: Design, prompts: int | None) -> Design:
    """Return the design with so many prompts; with the most where no number is enough."""
    return design.model_copy(update={"prompts": prompts or MOST_PROMPTS})


def _smallest(power_at: Callable[[float], float], power: float, upper: float) -> float | None:
    """Return the difference in (0, upper] at which a rising power reaches ``power``."""
    if power_at(upper) < power:
        return None
    low, high = 0.0, upper
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if power_at(middle) >= power else (middle, high)
    return high


def _planned(design: Design, difference: float | None, power: float, alpha: float) -> Planned:
    return Planned(
        difference=difference,
        power=power,
        alpha=alpha,
        prompts=design.prompts,
        standard_error=design.standard_error,
        design_effect=design.design_effect,
    )
