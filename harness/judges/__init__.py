"""Judges: pairs of answers to one prompt -> verdicts, each by a rule with a stated identity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from harness.files import sha256_json
from harness.types import REFERENCE, Example, JudgeInfo, Judgment, Outcome


@dataclass(frozen=True)
class AnswerPair:
    """Two answers to one prompt.

    Attributes:
        candidate: name of the checkpoint on trial.
        baseline: name of the checkpoint it is held against, or ``types.REFERENCE``.
        example: the prompt with what is known about its answers.
    """

    suite: str
    candidate: str
    baseline: str
    example: Example
    candidate_text: str
    baseline_text: str

    @property
    def against_reference(self) -> bool:
        """Whether the baseline is the suite's own reference answer."""
        return self.baseline == REFERENCE


class Judge(Protocol):
    """A rule that decides which of two answers is better.

    Where ``info.judges_reference`` is False, no pair against ``types.REFERENCE`` is to be given:
    the judge takes the reference answer for the truth.
    """

    @property
    def info(self) -> JudgeInfo:
        """The judge's identity and how far it can be trusted."""
        ...

    def compare(self, pairs: Sequence[AnswerPair]) -> list[Judgment]:
        """Return one judgment for each pair, in order."""
        ...


@runtime_checkable
class HoldingJudge(Protocol):
    """A judge that holds something, such as an engine, between calls."""

    def close(self) -> None:
        """Give back what is held; the judge may be asked again."""
        ...


def judge_identity(name: str, version: int, parameters: Mapping[str, Any]) -> str:
    """Return the hash that two judgments must share to be the work of one judge.

    Args:
        name: the judge's name.
        version: raised whenever the rule changes.
        parameters: JSON values that decide verdicts.
    """
    return sha256_json({"name": name, "version": version, "parameters": dict(parameters)})


def length_difference(pair: AnswerPair) -> int:
    """Return the candidate's length minus the baseline's, in characters, outer space aside."""
    return len(pair.candidate_text.strip()) - len(pair.baseline_text.strip())


def verdict(pair: AnswerPair, judge: str, outcome: Outcome, preference: float) -> Judgment:
    """Return the judgment of a pair that could be decided.

    Args:
        pair: the answers.
        judge: the judge's name.
        outcome: WIN, TIE or LOSS of the candidate.
        preference: degree in [0, 1] to which the candidate is better.
    """
    return Judgment(
        suite=pair.suite,
        judge=judge,
        candidate=pair.candidate,
        baseline=pair.baseline,
        example_id=pair.example.id,
        outcome=outcome,
        preference=preference,
        length_difference=length_difference(pair),
    )


def three_way(pair: AnswerPair, judge: str, advantage: float, margin: float = 0.0) -> Judgment:
    """Return the judgment of a rule without degrees: preference 1, 0.5 or 0.

    Args:
        pair: the answers.
        judge: the judge's name.
        advantage: candidate's quantity minus baseline's, higher being better.
        margin: the pair is a tie where ``|advantage| < margin``, or where the advantage is 0.
    """
    if advantage == 0 or abs(advantage) < margin:
        return verdict(pair, judge, Outcome.TIE, 0.5)
    won = advantage > 0
    return verdict(pair, judge, Outcome.WIN if won else Outcome.LOSS, float(won))


def invalid(pair: AnswerPair, judge: str, reason: str) -> Judgment:
    """Return the judgment of a pair that could not be decided, with the reason."""
    return Judgment(
        suite=pair.suite,
        judge=judge,
        candidate=pair.candidate,
        baseline=pair.baseline,
        example_id=pair.example.id,
        outcome=Outcome.INVALID,
        preference=None,
        length_difference=length_difference(pair),
        reason=reason,
    )
