"""A metric and a judge of your own; suites name them once the package is installed."""

from __future__ import annotations

import re
from collections.abc import Sequence

from harness.judges import AnswerPair, judge_identity, length_difference, three_way
from harness.metrics import answer_score, by_answer
from harness.types import Direction, Example, Generation, JudgeInfo, Judgment, MetricInfo, Score

ITEM = re.compile(r"^\s*(?:[-*+]|\d+[.)])\s", re.MULTILINE)
MARGIN = 10


class Lists:
    """``lists``: whether an answer holds a list."""

    info = (
        MetricInfo(
            key="lists",
            title="Answers with a list",
            unit="share",
            direction=Direction.NEITHER,
            definition="Share of answers with a line that opens with a bullet or a number.",
        ),
    )

    def score(self, examples: Sequence[Example], generations: Sequence[Generation]) -> list[Score]:
        """Return one score for each answer: 1 with a list, 0 without."""
        return [
            answer_score(answer, "lists", float(ITEM.search(answer.text) is not None))
            for _, answer in by_answer(examples, generations)
        ]


class Shorter:
    """Prefers the answer with fewer characters; differences below MARGIN tie."""

    info = JudgeInfo(
        name="shorter",
        title="Shorter answer",
        definition=f"The shorter answer wins; differences below {MARGIN} characters tie.",
        identity=judge_identity("shorter", 1, {"margin": MARGIN}),
    )

    def compare(self, pairs: Sequence[AnswerPair]) -> list[Judgment]:
        """Return WIN, TIE or LOSS of each candidate."""
        return [three_way(pair, "shorter", -length_difference(pair), MARGIN) for pair in pairs]
