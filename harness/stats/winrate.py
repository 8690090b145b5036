"""Win rates from pairwise verdicts: raw, and at equal length."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from harness.stats.bootstrap import FloatArray, check_settings
from harness.stats.clustered import MeanTest, clustered_share
from harness.stats.hypothesis import sign_test
from harness.stats.length_control import paper_win_rate
from harness.types import DifferenceTest, Estimate, Outcome, Record

LABELS = {Outcome.WIN: 1.0, Outcome.TIE: 0.5, Outcome.LOSS: 0.0}

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
    level: float = 0.95,
    missing: int = 0,
) -> MeanTest:
    """Return (wins + ties/2) / (wins + ties + losses) with its interval and its test of 1/2.

    The interval is Wilson's with the cluster-robust effective size, see
    :func:`harness.stats.clustered.share_test`: it has a width also where all verdicts agree.

    Args:
        outcomes: (n,) verdicts on the candidate; INVALID ones are excluded and counted missing.
        clusters: (n,) name of the independent unit, the prompt, of each verdict.
        missing: verdicts that should exist and do not, beyond the INVALID ones.

    Raises:
        ValueError: unequal lengths.
    """
    labels, kept = _valid(outcomes, clusters)
    return clustered_share(
        labels,
        [clusters[place] for place in kept],
        level=level,
        missing=missing + len(outcomes) - len(kept),
    )


def win_rate_tests(
    rate: MeanTest, outcomes: Sequence[Outcome], clusters: Sequence[str]
) -> DifferenceTest:
    """Return the tests of a win rate of 1/2; the p value is the one that its interval goes with."""
    labels, kept = _valid(outcomes, clusters)
    signs = sign_test(labels - 0.5, [clusters[place] for place in kept])
    return DifferenceTest(
        standard_error=rate.standard_error,
        p_value=rate.p_value,
        sign_p_value=signs.p_value,
        method=rate.estimate.method,
    )


def mean_preference(
    outcomes: Sequence[Outcome],
    degrees: Sequence[float | None],
    clusters: Sequence[str],
    *,
    level: float = 0.95,
    missing: int = 0,
) -> Estimate | None:
    """Return the mean degree of preference over the valid verdicts, as AlpacaEval's win rate is.

    Returns:
        None where no degree says more than its outcome: the win rate has it all.
    """
    labels, kept = _valid(outcomes, clusters)
    given = [degrees[place] for place in kept]
    values = np.array([np.nan if degree is None else degree for degree in given], dtype=np.float64)
    if not len(kept) or np.array_equal(np.where(np.isnan(values), labels, values), labels):
        return None
    lacking = missing + len(outcomes) - len(kept)
    names = [clusters[place] for place in kept]
    return clustered_share(values, names, level=level, missing=lacking).estimate


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

    The label y (win 1, tie 1/2, loss 0) is modelled as ``length_control.paper_win_rate`` says,
    without an item effect.

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

    Source: TokenRatio (arXiv 2605.12288), evaluation protocol.
    """
    check_settings(resamples, level)
    labels, kept = _valid(outcomes, clusters)
    lengths = _finite(length_differences, len(outcomes))[kept]
    if not kept:
        return None
    if np.ptp(lengths) == 0:
        raw = win_rate(outcomes, clusters, level=level, missing=missing).estimate
        return raw.model_copy(update={"method": f"{raw.method}; {_NOT_IDENTIFIABLE}"})
    found = paper_win_rate(
        labels,
        -lengths,
        [clusters[place] for place in kept],
        rng=rng,
        resamples=resamples,
        level=level,
        missing=missing + len(outcomes) - len(kept),
    )
    return None if found is None else found.estimate


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
