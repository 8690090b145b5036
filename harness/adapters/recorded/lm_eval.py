"""lm-eval's ``samples_*.jsonl``, written with ``--log_samples`` by tasks that generate."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from harness.adapters.recorded.answers import RecordedAnswer
from harness.adapters.recorded.chats import as_list, chat, identifier, text
from harness.adapters.recorded.forms import RecordedForm, RowReader
from harness.adapters.recorded.plain import IDS, cell
from harness.tables import Row, Table


class _Sample(BaseModel):
    doc_id: int | str
    doc: dict[str, Any]
    arguments: list[Any] | dict[str, Any]
    resps: list[list[Any]]
    target: Any = None


def _context(arguments: Any) -> Any:
    """Return the first argument of the first request: the prompt as it was sent."""
    for _ in range(2):
        values = list(arguments.values()) if isinstance(arguments, dict) else arguments
        if not isinstance(values, list) or not values:
            raise ValueError(f"'arguments' holds no prompt: {arguments!r}")
        arguments = values[0]
    # A chat for an API stands in a list of its own, as JSON.
    return arguments[0] if isinstance(arguments, list) else arguments


def _prompt(context: Any) -> dict[str, Any]:
    if as_list(context) is not None:
        return {"messages": chat(context)}
    return {"prompt": text(context, "the prompt")}


def _texts(sample: _Sample) -> list[str | None]:
    if len(sample.resps) != 1 or any(isinstance(reply, list) for reply in sample.resps[0]):
        raise ValueError(
            "'resps' holds log-likelihoods, no text. Give the samples of a task that generates"
        )
    return [text(reply, "a reply") for reply in sample.resps[0]]


def _reference(target: Any) -> str | None:
    # lm-eval writes "0" or "None" for tasks whose answers have no target text.
    spoken = isinstance(target, str) and any(c.isalpha() for c in target) and target != "None"
    return target if spoken else None


def _reader(table: Table) -> RowReader:
    filtered = table.first.get("filter")

    def read(row: Row) -> Iterator[RecordedAnswer]:
        # Each of a task's filters writes every answer again.
        if row.get("filter") != filtered:
            return
        found = _Sample.model_validate(row)
        own = cell(found.doc, IDS)
        for number, reply in enumerate(_texts(found)):
            yield RecordedAnswer(
                id=identifier(found.doc_id if own is None else own),
                text=reply,
                sample=number,
                reference=_reference(found.target),
                **_prompt(_context(found.arguments)),
            )

    return read


LM_EVAL = RecordedForm(
    name="lm-eval samples",
    columns="doc_id, doc, arguments, resps",
    fits=lambda row: {"doc_id", "doc", "arguments", "resps"} <= row.keys(),
    reader=_reader,
)
"""The raw replies are read, not the filtered ones, which a task's own scorer cut to size."""
