"""Rows with a prompt and an answer under one of their usual names.

AlpacaEval's ``model_outputs.json`` and IFEval's responses are such rows; they are told apart for
the notes alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from harness.adapters.recorded.answers import RecordedAnswer
from harness.adapters.recorded.chats import chat, finish_reason, identifier, text, whole
from harness.adapters.recorded.forms import RecordedForm, RowReader
from harness.tables import Row, Table
from harness.types import Message

IDS = ("id", "example_id", "uid", "key", "question_id", "prompt_id", "doc_id", "index")
PROMPTS = ("messages", "prompt", "instruction", "question")
ANSWERS = ("output", "response", "completion", "generation", "answer", "text")
MODELS = ("model", "generator", "model_id", "model_name", "checkpoint")
SAMPLES = ("sample", "sample_id", "sample_index")
REFERENCES = ("reference", "target")
FINISH = ("finish_reason", "stop_reason")
TOKENS = ("tokens", "completion_tokens")
"""Names of columns, the first of each that a row has counts."""


def column(row: Row, names: Sequence[str]) -> str | None:
    """Return the first of ``names`` that a row has as a column."""
    return next((name for name in names if name in row), None)


def cell(row: Row, names: Sequence[str]) -> Any:
    """Return the value under the first of ``names`` that a row has; None where it has none."""
    name = column(row, names)
    return None if name is None else row[name]


def _fits(row: Row) -> bool:
    return column(row, ANSWERS) is not None and column(row, (*PROMPTS, *IDS)) is not None


def _reader(table: Table) -> RowReader:
    answer, prompt = str(column(table.first, ANSWERS)), column(table.first, PROMPTS)

    def read(row: Row) -> Iterator[RecordedAnswer]:
        about = _about(row, () if prompt is None else chat(row[prompt]))
        for sample, value in _texts(row, row[answer]):
            yield RecordedAnswer(text=text(value, f"'{answer}'"), sample=sample, **about)

    return read


def _texts(row: Row, value: Any) -> list[tuple[int | None, Any]]:
    """Return the answers of a row with their sample numbers; a list holds several."""
    if isinstance(value, list):
        return list(enumerate(value))
    return [(whole(cell(row, SAMPLES), "sample"), value)]


def _about(row: Row, messages: tuple[Message, ...]) -> dict[str, Any]:
    return {
        "id": identifier(cell(row, IDS)),
        "messages": messages,
        "finish_reason": finish_reason(cell(row, FINISH)),
        "tokens": whole(cell(row, TOKENS), "tokens"),
        "model": text(cell(row, MODELS), "the model's name") or None,
        "reference": text(cell(row, REFERENCES), "the reference") or None,
    }


ALPACA_EVAL = RecordedForm(
    name="AlpacaEval outputs",
    columns="instruction, output, generator",
    fits=lambda row: {"instruction", "output", "generator"} <= row.keys(),
    reader=_reader,
)

_IFEVAL_COLUMNS = {"prompt", "response", "key", "instruction_id_list", "kwargs", "strict", "loose"}

IFEVAL = RecordedForm(
    name="IFEval responses",
    columns="prompt, response",
    fits=lambda row: {"prompt", "response"} <= row.keys() <= _IFEVAL_COLUMNS,
    reader=_reader,
)

PLAIN = RecordedForm(
    name="plain rows",
    columns=f"an answer ({', '.join(ANSWERS)}) and a prompt ({', '.join(PROMPTS)}) or an id "
    f"({', '.join(IDS)})",
    fits=_fits,
    reader=_reader,
)
