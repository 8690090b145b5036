"""AlpacaEval's ``annotations.json``, and rows that hold one model's output and the preference.

The preference lies in [1, 2]: 1 where the baseline's answer is better, 2 where the model's is, 1.5
for a draw, which older files write as 0. Null means that the judge's reply could not be read.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from harness.adapters.recorded.chats import text, whole
from harness.judgments.forms import JudgmentForm, RowReader, has, named, number
from harness.judgments.verdicts import UNKNOWN_ITEM, Verdict
from harness.stats.judged import BASELINE_FIRST, CANDIDATE_FIRST, ORDER_UNKNOWN
from harness.tables import Row, Table

DRAW = 0.0
"""How older files write a draw."""

SHOWN_FIRST = {"model": CANDIDATE_FIRST, "reference": BASELINE_FIRST, None: ORDER_UNKNOWN}


def _preference(value: Any) -> float | None:
    found = number(value, "preference")
    if found is None:
        return None
    if found == DRAW:
        return 0.5
    if not 1 <= found <= 2:
        raise ValueError(f"'preference' must lie in [1, 2], or be 0 for a draw; found {value!r}")
    return found - 1


def _order(value: Any) -> int:
    shown = value or None
    if shown not in SHOWN_FIRST:
        raise ValueError(f"'shown_first' must be model, reference or null, found {value!r}")
    return SHOWN_FIRST[shown]


def _verdict(row: Row, model: str, baseline: str, lengths: tuple[int, int] | None) -> Verdict:
    instruction = named(row["instruction"], "instruction")
    item = whole(row.get("index"), "index")
    return Verdict(
        candidate=named(row[model], model),
        baseline=named(row[baseline], baseline),
        judge=named(row["annotator"], "annotator"),
        prompt=instruction,
        asked=instruction,
        preference=_preference(row["preference"]),
        order=_order(row.get("shown_first")),
        lengths=lengths,
        item=UNKNOWN_ITEM if item is None else item,
        row=whole(row.get("row"), "row"),
    )


def _lengths(candidate: int | None, baseline: int | None) -> tuple[int, int] | None:
    return None if candidate is None or baseline is None else (candidate, baseline)


def _characters(row: Row, name: str) -> int | None:
    output = text(row[name], f"'{name}'")
    return None if output is None else len(output)


def _annotations(table: Table) -> RowReader:
    def read(row: Row) -> Iterator[Verdict]:
        lengths = _lengths(_characters(row, "output_2"), _characters(row, "output_1"))
        yield _verdict(row, "generator_2", "generator_1", lengths)

    return read


def _rows(table: Table) -> RowReader:
    def read(row: Row) -> Iterator[Verdict]:
        length = whole(row.get("len_output"), "len_output")
        if length is None:
            length = _characters(row, "output")
        lengths = _lengths(length, whole(row.get("len_reference"), "len_reference"))
        yield _verdict(row, "generator", "reference_generator", lengths)

    return read


ANNOTATIONS = JudgmentForm(
    name="AlpacaEval annotations",
    columns="instruction, output_1, output_2, generator_1, generator_2, annotator, preference",
    fits=has("output_1", "output_2", "generator_1", "generator_2", "preference"),
    reader=_annotations,
)

ROWS = JudgmentForm(
    name="AlpacaEval rows of one model",
    columns="instruction, output, generator, reference_generator, annotator, preference",
    fits=has("output", "generator", "reference_generator", "preference"),
    reader=_rows,
)
