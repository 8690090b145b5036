"""Distinct-3 and -4, and Distinct-n over what random text of that length would have."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

from harness.metrics import by_answer
from harness.metrics.diversity.pooled import (
    GRAMS,
    Statistic,
    corpus_scores,
    distinct_info,
    in_order,
    pool,
    ratio,
)
from harness.types import Direction, Example, Generation, MetricInfo, Score

VOCABULARY = 30_522
"""V of the adjustment: the size of BERT's vocabulary, which Liu et al. (2022) take."""

_PLAIN_ORDERS = {"distinct_3": 3, "distinct_4": 4}
_ADJUSTED_ORDERS = {f"distinct_{n}_adjusted": n for n in GRAMS}


def _adjusted_info(key: str, n: int) -> MetricInfo:
    return MetricInfo(
        key=key,
        title=f"Distinct-{n}, adjusted for length",
        unit="ratio",
        direction=Direction.HIGHER,
        definition=f"Different {GRAMS[n]} / those expected if all of them were drawn at random "
        f"from V = {VOCABULARY:,}, pooled over the first sample of every prompt "
        "(expectation-adjusted distinct): does not fall only because answers are longer. "
        "May exceed 1. The score of one prompt is its jackknife contribution.",
    )


DISTINCT_N_INFO = (
    *(distinct_info(key, n) for key, n in _PLAIN_ORDERS.items()),
    *(_adjusted_info(key, n) for key, n in _ADJUSTED_ORDERS.items()),
)


def expected_distinct(total: int, vocabulary: int = VOCABULARY) -> float:
    """Return V [1 - ((V - 1)/V)^C]: how many of V symbols C uniform draws are expected to show.

    Args:
        total: C. vocabulary: V, 2 or more.

    Source: Liu et al. (2022), "Rethinking and Refining the Distinct Metric", arXiv 2202.13587.
    """
    return -vocabulary * math.expm1(total * math.log1p(-1 / vocabulary))


def _adjusted(different: int, total: int, vocabulary: int = VOCABULARY) -> float:
    return different / expected_distinct(total, vocabulary)


def adjusted_distinct(texts: Sequence[str], n: int, vocabulary: int = VOCABULARY) -> float | None:
    """Return expectation-adjusted distinct: different n-grams over `expected_distinct`.

    C is the number of n-grams of all texts, and V the same for every n, as in later work on
    preference training (Kirk et al. 2024, arXiv 2310.06452). With n of 2 or more a corpus can
    have more than V different n-grams, and the value exceeds 1. None where no text has an n-gram.
    """
    return pool(texts, n).of(partial(_adjusted, vocabulary=vocabulary))


class DistinctN:
    """``distinct_3``, ``distinct_4`` and ``distinct_1_adjusted`` to ``_4_adjusted``.

    All are figures of the first samples together, given as jackknife contributions.
    """

    info = DISTINCT_N_INFO

    def score(self, examples: Sequence[Example], generations: Sequence[Generation]) -> list[Score]:
        """Return six scores for each sample 0, by example."""
        firsts = [a for _, a in by_answer(examples, generations) if a.sample == 0]
        texts = [answer.text for answer in firsts]
        pools = {n: pool(texts, n) for n in GRAMS}
        wanted: list[tuple[str, int, Statistic]] = [
            *((key, n, ratio) for key, n in _PLAIN_ORDERS.items()),
            *((key, n, _adjusted) for key, n in _ADJUSTED_ORDERS.items()),
        ]
        scores = [
            score
            for key, n, statistic in wanted
            for score in corpus_scores(firsts, key, pools[n].contributions(statistic))
        ]
        return in_order(scores, examples)
