"""Length of the answers: descriptive, and the first thing to hold against a win rate."""

from __future__ import annotations

from collections.abc import Sequence

from harness.metrics import answer_score, by_answer
from harness.types import Direction, Example, FinishReason, Generation, MetricInfo, Score

LENGTH_INFO = (
    MetricInfo(
        key="tokens",
        title="Length",
        unit="tokens",
        direction=Direction.NEITHER,
        definition="Tokens of the answer in the checkpoint's own tokenizer, end-of-sequence "
        "token included.",
    ),
    MetricInfo(
        key="characters",
        title="Length in characters",
        unit="characters",
        direction=Direction.NEITHER,
        definition="Characters of the answer without leading and trailing space.",
    ),
    MetricInfo(
        key="truncated",
        title="Cut at the token limit",
        unit="share",
        direction=Direction.NEITHER,
        definition="Share of answers that ended at the suite's token limit and not at an "
        "end-of-sequence token.",
    ),
)


UNKNOWN = {
    "tokens": "nobody counted the answer's tokens",
    "truncated": "nobody said why the answer ended",
}
"""By key, why a value is missing."""


def _values(answer: Generation) -> dict[str, float | None]:
    ended = answer.finish_reason
    return {
        "tokens": answer.tokens,
        "characters": len(answer.text.strip()),
        "truncated": None if ended is None else float(ended == FinishReason.LENGTH),
    }


class Length:
    """``tokens``, ``characters`` and ``truncated`` of every answer."""

    info = LENGTH_INFO

    def score(self, examples: Sequence[Example], generations: Sequence[Generation]) -> list[Score]:
        """Return three scores for each answer; None where a recorded answer does not say."""
        return [
            answer_score(answer, key, value, reason=UNKNOWN[key] if value is None else None)
            for _, answer in by_answer(examples, generations)
            for key, value in _values(answer).items()
        ]
