"""Repetition: the share of an answer's n-grams that it has said before."""

from __future__ import annotations

from collections.abc import Sequence

from harness.metrics import by_answer, ngram_score
from harness.metrics.diversity.pooled import GRAMS
from harness.metrics.diversity.words import ngram_counts
from harness.types import Direction, Example, Generation, MetricInfo, Score

_ORDERS = {f"repetition_{n}": n for n in (2, 3, 4)}


def _info(key: str, n: int) -> MetricInfo:
    return MetricInfo(
        key=key,
        title=f"Repetition of {n} words",
        unit="ratio",
        direction=Direction.LOWER,
        definition=f"1 - different {GRAMS[n]} / all {GRAMS[n]} inside one answer, averaged over "
        "answers: 0 where nothing is said twice. An answer shorter than that has no value.",
    )


REPETITION_INFO = tuple(_info(key, n) for key, n in _ORDERS.items())


def repetition(text: str, n: int) -> float | None:
    """Return 1 - different n-grams / all n-grams of one text; None where it has none.

    The n-grams are of words and punctuation marks (`tokens`), where the source has those of the
    model's own tokens, which differ between checkpoints.

    Source: Welleck et al. (2020), "Neural Text Generation with Unlikelihood Training", arXiv
    1908.04319, seq-rep-n.
    """
    counts = ngram_counts(text, n)
    return 1 - len(counts) / counts.total() if counts else None


class Repetition:
    """``repetition_2``, ``repetition_3`` and ``repetition_4`` of every answer, in [0, 1)."""

    info = REPETITION_INFO

    def score(self, examples: Sequence[Example], generations: Sequence[Generation]) -> list[Score]:
        """Return three scores for each answer; None where it is too short."""
        return [
            ngram_score(answer, key, repetition(answer.text, n), n)
            for _, answer in by_answer(examples, generations)
            for key, n in _ORDERS.items()
        ]
