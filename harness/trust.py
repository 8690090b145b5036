"""How far the judges of a run can be trusted, read from their verdicts."""

from __future__ import annotations

from collections.abc import Mapping

from harness.alignment import AlignedRun
from harness.stats.judged import Judged, Lengths, from_judgments
from harness.types import REFERENCE, Judgment


def opinions(run: AlignedRun) -> Mapping[str, Judged]:
    """Return the judgments whose verdicts do not follow from a rule, by suite that has some."""
    rules = {judge.name for judge in run.manifest.judges if judge.by_rule}
    lengths = _lengths(run)
    found: dict[str, list[Judgment]] = {card.name: [] for card in run.manifest.suites}
    for pair in sorted(run.judgments):
        if pair.judge not in rules:
            found[pair.suite] += [judged for _, judged in sorted(run.judgments[pair].items())]
    return {suite: from_judgments(rows, lengths) for suite, rows in found.items() if rows}


def _lengths(run: AlignedRun) -> Lengths:
    references = {
        (suite, e.id): len(e.reference.strip())
        for suite, examples in run.examples.items()
        for e in examples
        if e.reference is not None
    }

    def length(suite: str, side: str, example: str) -> int | None:
        if side == REFERENCE:
            return references.get((suite, example))
        answer = run.answers(suite, side).get((example, 0))
        return None if answer is None else len(answer.text.strip())

    def both(found: Judgment) -> tuple[float, float] | None:
        sides = (found.candidate, found.baseline)
        sizes = [length(found.suite, side, found.example_id) for side in sides]
        return None if None in sizes else (float(sizes[0] or 0), float(sizes[1] or 0))

    return both
