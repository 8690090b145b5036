"""Predictive entropy of the answers."""

from __future__ import annotations

from collections.abc import Sequence

from harness.metrics import answer_score, by_answer
from harness.types import Direction, Example, Generation, MetricInfo, Score

ENTROPY_INFO = (
    MetricInfo(
        key="entropy",
        title="Predictive entropy",
        unit="nats per token",
        direction=Direction.NEITHER,
        definition="Entropy of the next-token distribution, exact over the whole vocabulary and "
        "before temperature and truncation, averaged over the tokens of the answer.",
    ),
)


def _score(answer: Generation) -> Score:
    if answer.tokens == 0:
        return answer_score(answer, "entropy", None, reason="the answer has no token")
    if answer.entropy is None:
        return answer_score(answer, "entropy", None, reason="the engine did not report entropy")
    return answer_score(answer, "entropy", answer.entropy)


class Entropy:
    """``entropy`` of every answer, as the engine measured it while generating.

    H = -(1/T) sum_t sum_v p_t(v) log p_t(v) with p_t the model's distribution at token t; the
    TokenRatio paper's predictive entropy (arXiv 2605.12288), here without its top-k cut.
    """

    info = ENTROPY_INFO

    def score(self, examples: Sequence[Example], generations: Sequence[Generation]) -> list[Score]:
        """Return one score for each answer; None where it was not reported or has no token."""
        return [_score(answer) for _, answer in by_answer(examples, generations)]
