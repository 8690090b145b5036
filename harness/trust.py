"""How far the judges of a run can be trusted, read from their verdicts."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from harness.alignment import AlignedRun
from harness.stats.judged import Judged, Lengths, by_name, from_judgments
from harness.types import REFERENCE, Judgment


def opinions(run: AlignedRun) -> Mapping[str, Judged]:
    """Return the judgments whose verdicts do not follow from a rule, by suite that has some."""
    rules = {judge.name for judge in run.manifest.judges if judge.by_rule}
    lengths = _lengths(run)
    places = {suite: {e: i for i, e in enumerate(found)} for suite, found in run.units.items()}
    found: dict[str, list[Judgment]] = {card.name: [] for card in run.manifest.suites}
    for pair in sorted(run.judgments):
        if pair.judge not in rules:
            found[pair.suite] += [judged for _, judged in sorted(run.judgments[pair].items())]

    def unit(judgment: Judgment) -> str:
        return by_name(judgment.suite, run.units[judgment.suite][judgment.example_id])

    def item(judgment: Judgment) -> int:
        return places[judgment.suite][judgment.example_id]

    return {
        suite: from_judgments(rows, lengths, unit, item) for suite, rows in found.items() if rows
    }


AnswerText = Callable[[str, str, str], str | None]
"""Text of an answer by suite, side and example, without outer white space; None if not there."""


def answer_text(run: AlignedRun) -> AnswerText:
    """Return the look-up of what judges were shown: first samples, and the reference answers."""
    references = {
        (suite, e.id): e.reference.strip()
        for suite, examples in run.examples.items()
        for e in examples
        if e.reference is not None
    }

    def text(suite: str, side: str, example: str) -> str | None:
        if side == REFERENCE:
            return references.get((suite, example))
        answer = run.answers(suite, side).get((example, 0))
        return None if answer is None else answer.text.strip()

    return text


def _lengths(run: AlignedRun) -> Lengths:
    text = answer_text(run)

    def both(found: Judgment) -> tuple[float, float] | None:
        first, second = (
            text(found.suite, side, found.example_id) for side in (found.candidate, found.baseline)
        )
        return None if first is None or second is None else (float(len(first)), float(len(second)))

    return both
