"""This harness's own ``generations.jsonl``, with the run's ``examples.jsonl`` beside it."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel

from harness.adapters.recorded.answers import RecordedAnswer
from harness.adapters.recorded.forms import RecordedForm, RowReader
from harness.store import EXAMPLES, read_records
from harness.tables import Row, Table
from harness.types import FinishReason


class _Answered(BaseModel):
    """What every version of the record holds."""

    checkpoint: str
    suite: str
    example_id: str
    sample: int
    text: str
    finish_reason: FinishReason | None = None
    tokens: int | None = None


def _reader(table: Table) -> RowReader:
    path = table.path.parent / EXAMPLES.file
    asked = {(e.suite, e.example.id): e.example for e in read_records(EXAMPLES, path)}

    def read(row: Row) -> Iterator[RecordedAnswer]:
        found = _Answered.model_validate(row)
        example = asked.get((found.suite, found.example_id))
        yield RecordedAnswer(
            id=found.example_id,
            messages=example.messages if example else (),
            text=found.text,
            sample=found.sample,
            finish_reason=found.finish_reason,
            tokens=found.tokens,
            model=found.checkpoint,
            reference=example.reference if example else None,
        )

    return read


GENERATIONS = RecordedForm(
    name="generations of a run",
    columns="checkpoint, suite, example_id, sample, text",
    fits=lambda row: {"checkpoint", "suite", "example_id", "sample", "text"} <= row.keys(),
    reader=_reader,
)
