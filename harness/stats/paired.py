"""Tests of a difference between two sides on the same prompts: are the sides exchangeable?"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from harness.stats.bootstrap import Key, Weighted, shared_sums
from harness.stats.contrasts import PromptTable, contrasts
from harness.stats.hypothesis import ROUNDING, permutation_test, sign_test
from harness.stats.proportion import alike
from harness.types import DifferenceTest, Estimate

PERMUTATIONS = 9_999
"""Exchanges drawn at random; where fewer than ten are as extreme, ten times as many are drawn.

The smallest p, 1e-5, is then small enough to stand in a family of thousands of tests.
"""

Side = Mapping[Key, Weighted]


def paired_tests(candidate: Side, baseline: Side, *, rng: np.random.Generator) -> DifferenceTest:
    """Return the tests of "no difference" that belong to ``bootstrap.paired_difference``.

    The sides of a whole prompt are exchanged. With m the weighted mean of each side on prompt g
    and W its weight, what changes sign is

        d_g = (m_c - m_b) / (1/W_c + 1/W_b)

    which is each prompt's share of the difference where both sides have the same weight, and
    stays exchangeable where they have not, as with a sample missing. The p value is that of the
    permutation test, which keeps its level with any number of prompts, also where few of them
    differ; there a t test does not.

    Args:
        candidate, baseline: values by (example id, sample); prompts of one side only are left out.
    """
    shared = {unit for unit, _ in candidate} & {unit for unit, _ in baseline}
    sums = np.stack([shared_sums(side, shared) for side in (candidate, baseline)])
    means, weights = sums[..., 0] / sums[..., 1], sums[..., 1]
    moved = means[0] - means[1]
    moved[np.abs(moved) <= ROUNDING * np.abs(means).max(axis=0, initial=0.0)] = 0.0
    shares = moved / (1 / weights[0] + 1 / weights[1])
    found = permutation_test(shares, rng=rng, permutations=PERMUTATIONS)
    if found.p_value is not None and found.p_value < 10 / PERMUTATIONS:
        found = permutation_test(shares, rng=rng, permutations=10 * PERMUTATIONS)
    totals, counts = sums[..., 0].T, sums[..., 1].T
    table = PromptTable(("candidate", "baseline"), totals, counts, np.zeros(totals.shape, np.intp))
    (contrast,) = contrasts(table)
    return DifferenceTest(
        standard_error=contrast.tested.standard_error,
        p_value=found.p_value,
        sign_p_value=sign_test(shares).p_value,
        method=found.method,
    )


def bounded(estimate: Estimate) -> Estimate:
    """Return a difference of shares with exact bounds where all prompts have the same one.

    A bootstrap cannot draw what it has not seen, and would claim to know such a difference exactly.
    See :func:`harness.stats.proportion.alike`.
    """
    if estimate.value is None or estimate.low is None or estimate.low != estimate.high:
        return estimate
    low, high = alike(estimate.value, estimate.clusters, estimate.level, within=(-1.0, 1.0))
    method = f"{estimate.method}; exact bounds instead, as all prompts have the same difference"
    return estimate.model_copy(update={"low": low, "high": high, "method": method})
