"""Summaries held against the post's own: which of the two a judge preferred."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from harness.adapters.recorded.chats import text, whole
from harness.judgments.forms import JudgmentForm, RowReader, has, named
from harness.judgments.verdicts import Verdict
from harness.stats.judged import BASELINE_FIRST, CANDIDATE_FIRST, ORDER_UNKNOWN
from harness.tables import Row, Table
from harness.types import REFERENCE

OURS = "ours"
"""The rows' own word for the model's summary."""

JUDGE = "unnamed judge"
"""The rows do not say whose verdict they hold."""

PREFERRED = {OURS: 1.0, REFERENCE: 0.0, None: None}
ORDERS = {0: CANDIDATE_FIRST, 1: BASELINE_FIRST, None: ORDER_UNKNOWN}
"""By ``shuffled_index``: 1 where the model's summary was shown second."""


def _preference(value: Any) -> float | None:
    preferred = value or None
    if preferred not in PREFERRED:
        raise ValueError(f"'preferred' must be {OURS}, {REFERENCE} or null, found {value!r}")
    return PREFERRED[preferred]


def _order(value: Any) -> int:
    place = whole(value, "shuffled_index")
    if place not in ORDERS:
        raise ValueError(f"'shuffled_index' must be 0 or 1, found {value!r}")
    return ORDERS[place]


def _lengths(row: Row) -> tuple[int, int] | None:
    found = [text(row[name], f"'{name}'") for name in ("model_summary", "reference_summary")]
    known = [len(summary) for summary in found if summary is not None]
    return (known[0], known[1]) if len(known) == len(found) else None


def _reader(table: Table) -> RowReader:
    def read(row: Row) -> Iterator[Verdict]:
        prompt = named(row["prompt"], "prompt")
        yield Verdict(
            candidate=OURS,
            baseline=REFERENCE,
            judge=JUDGE,
            prompt=prompt,
            asked=prompt,
            preference=_preference(row["preferred"]),
            order=_order(row.get("shuffled_index")),
            lengths=_lengths(row),
        )

    return read


SUMMARIES = JudgmentForm(
    name="judged summaries",
    columns="prompt, reference_summary, model_summary, preferred",
    fits=has("prompt", "reference_summary", "model_summary", "preferred"),
    reader=_reader,
)
