"""Rows whose ``messages`` end in the answer, as Arena-Hard's do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from harness.adapters.recorded.answers import RecordedAnswer
from harness.adapters.recorded.chats import as_list, chat, identifier, text, whole
from harness.adapters.recorded.forms import RecordedForm, RowReader
from harness.adapters.recorded.plain import ANSWERS, IDS, MODELS, SAMPLES, cell, column
from harness.tables import Row, Table


def _fits(row: Row) -> bool:
    listed = as_list(row.get("messages")) or ()
    return column(row, ANSWERS) is None and any(map(_spoken, listed[-1:]))


def _spoken(turn: Any) -> bool:
    return isinstance(turn, dict) and turn.get("role") == "assistant"


def _answer(turn: Any) -> str | None:
    if not _spoken(turn):
        raise ValueError("the last turn must be the assistant's answer")
    content = turn.get("content")
    if isinstance(content, dict):
        if "answer" not in content:
            raise ValueError(f"the answer's content has no 'answer', only {sorted(content)}")
        content = content["answer"]
    return text(content, "the answer")


def _reader(table: Table) -> RowReader:
    def read(row: Row) -> Iterator[RecordedAnswer]:
        listed = as_list(row["messages"])
        if not listed:
            raise ValueError("'messages' must be a list of turns")
        yield RecordedAnswer(
            id=identifier(cell(row, IDS)),
            messages=chat(list(listed[:-1])),
            text=_answer(listed[-1]),
            sample=whole(cell(row, SAMPLES), "sample"),
            model=text(cell(row, MODELS), "the model's name"),
        )

    return read


DIALOGUES = RecordedForm(
    name="Arena-Hard answers",
    columns="messages that end in the assistant's turn",
    fits=_fits,
    reader=_reader,
)
