"""Judge by likeness to the reference answer: the higher ROUGE-L wins."""

from __future__ import annotations

from collections.abc import Sequence

from harness.judges import AnswerPair, invalid, judge_identity, three_way
from harness.metrics.overlap import NO_REFERENCE, UNSEEN_REFERENCE, rouge
from harness.types import JudgeInfo, Judgment

NAME = "reference"
VERSION = 1
MARGIN = 0.02

AGAINST_ITSELF = "the reference answer cannot be judged by its likeness to itself"


class Reference:
    """Holds two answers against the suite's reference answer.

    It cannot judge the reference answer, which it takes for the truth:
    ``info.judges_reference`` is False, and such a pair is INVALID.

    Args:
        margin: difference in ROUGE-L F1 below which a pair is a tie.
    """

    def __init__(self, margin: float = MARGIN) -> None:
        self._margin = margin
        self.info = JudgeInfo(
            name=NAME,
            title="Closer to the reference",
            definition="The answer with the higher ROUGE-L F1 against the reference answer wins; "
            f"differences below {margin:g} tie.",
            identity=judge_identity(NAME, VERSION, {"margin": margin}),
            judges_reference=False,
        )

    def compare(self, pairs: Sequence[AnswerPair]) -> list[Judgment]:
        """Return WIN, TIE or LOSS; INVALID without a usable reference, or against it."""
        return [self._judge(pair) for pair in pairs]

    def _judge(self, pair: AnswerPair) -> Judgment:
        if pair.against_reference:
            return invalid(pair, NAME, AGAINST_ITSELF)
        if pair.example.reference is None:
            return invalid(pair, NAME, NO_REFERENCE)
        candidate = rouge(pair.example.reference, pair.candidate_text)
        baseline = rouge(pair.example.reference, pair.baseline_text)
        if candidate is None or baseline is None:
            return invalid(pair, NAME, UNSEEN_REFERENCE)
        return three_way(pair, NAME, candidate["rouge_l"] - baseline["rouge_l"], self._margin)
