"""Judge by verifiable instructions: the answer that keeps more of them is better."""

from __future__ import annotations

from collections.abc import Sequence

from harness.judges import AnswerPair, invalid, judge_identity, three_way
from harness.metrics.instructions import check, unavailable
from harness.types import Example, JudgeInfo, Judgment

NAME = "verifiable"
VERSION = 1

VERIFIABLE_INFO = JudgeInfo(
    name=NAME,
    title="Instructions kept",
    definition="The answer that keeps more of the prompt's verifiable instructions wins, by "
    "IFEval's strict checkers; equal counts tie.",
    identity=judge_identity(NAME, VERSION, {"checks": "strict"}),
)


class Verifiable:
    """Counts instructions kept under IFEval's strict reading, as `harness.metrics.instructions`.

    An answer is checked once, however many pairs it appears in.
    """

    info = VERIFIABLE_INFO

    def __init__(self) -> None:
        self._kept: dict[tuple[str, str, str], int] = {}

    def compare(self, pairs: Sequence[AnswerPair]) -> list[Judgment]:
        """Return WIN, TIE or LOSS; INVALID where the prompt's instructions cannot be checked."""
        return [self._judge(pair) for pair in pairs]

    def _judge(self, pair: AnswerPair) -> Judgment:
        if reason := unavailable(pair.example):
            return invalid(pair, NAME, reason)
        candidate = self._count(pair.suite, pair.example, pair.candidate_text)
        baseline = self._count(pair.suite, pair.example, pair.baseline_text)
        return three_way(pair, NAME, candidate - baseline)

    def _count(self, suite: str, example: Example, text: str) -> int:
        key = (suite, example.id, text)
        if key not in self._kept:
            self._kept[key] = sum(check(example, text).strict)
        return self._kept[key]
