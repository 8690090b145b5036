"""A run's ``judgments.jsonl``, with the answers' lengths from ``generations.jsonl`` beside it.

Where a judge was shown the answers in both orders, each order is a verdict of its own.

A judgment keeps how much longer the candidate's answer was, which is all that length control
needs. The lengths themselves come from the answers, where those lie beside.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from harness.judgments.forms import JudgmentForm, RowReader, has
from harness.judgments.verdicts import UNKNOWN_ITEM, Verdict
from harness.stats.judged import BASELINE_FIRST, CANDIDATE_FIRST
from harness.stats.winrate import LABELS
from harness.store import GENERATIONS, read_records
from harness.tables import Row, Table
from harness.types import Judgment, OrderedVerdict, Outcome, Shown

ORDERS = {Shown.CANDIDATE_FIRST: CANDIDATE_FIRST, Shown.BASELINE_FIRST: BASELINE_FIRST}

Lengths = Mapping[tuple[str, str, str], int]
"""(suite, checkpoint, example) -> characters of the first answer, outer space aside."""


def _lengths(table: Table) -> Lengths:
    answers = read_records(GENERATIONS, table.path.parent / GENERATIONS.file)
    return {
        (g.suite, g.checkpoint, g.example_id): len(g.text.strip()) for g in answers if g.sample == 0
    }


def _both(found: Judgment, lengths: Lengths) -> tuple[float, float] | None:
    own = lengths.get((found.suite, found.candidate, found.example_id))
    return None if own is None else (own, own - found.length_difference)


def _preference(found: Judgment | OrderedVerdict) -> float | None:
    """Return the degree; where a judge gives none, its outcome's."""
    if found.preference is not None and found.outcome in LABELS:
        return found.preference
    return LABELS.get(found.outcome)


def _reader(table: Table) -> RowReader:
    lengths = _lengths(table)

    def read(row: Row) -> Iterator[Verdict]:
        found = Judgment.model_validate(row)
        pair = Verdict(
            candidate=found.candidate,
            baseline=found.baseline,
            judge=f"{found.suite}/{found.judge}",
            prompt=f"{found.suite}/{found.example_id}",
            asked=found.example_id,
            preference=_preference(found),
            lengths=_both(found, lengths),
            difference=found.length_difference,
            item=UNKNOWN_ITEM if found.item is None else found.item,
        )
        valid = found.outcome is not Outcome.INVALID
        for order in found.orders:
            degree = _preference(order) if valid else None
            yield pair._replace(preference=degree, order=ORDERS[order.shown])
        if not found.orders:
            yield pair

    return read


OWN = JudgmentForm(
    name="judgments of a run",
    columns="suite, judge, candidate, baseline, example_id, outcome, preference, length_difference",
    fits=has("suite", "judge", "candidate", "baseline", "example_id", "outcome"),
    reader=_reader,
)
