"""Answers of FastChat's form, by the question's id: MT-Bench, and Arena-Hard's older files.

The questions stand in another file, ``question.jsonl``, which is looked for beside the answers and
one folder up, as the benchmarks lay them out. Without it, answers are known by id alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import AliasChoices, BaseModel, Field, ValidationError

from harness.adapters.recorded.answers import RecordedAnswer
from harness.adapters.recorded.chats import identifier, user
from harness.adapters.recorded.forms import RecordedForm, RowReader
from harness.errors import DataError
from harness.files import json_lines
from harness.suites import validation_text
from harness.tables import Row, Table

QUESTION_FILES = ("question.jsonl", "question.jsonl.gz")


class _Turn(BaseModel):
    content: str


class _Choice(BaseModel):
    turns: tuple[str | _Turn, ...] = Field(min_length=1)


class _Answered(BaseModel):
    question_id: int | str
    choices: tuple[_Choice, ...] = Field(min_length=1)
    model_id: str | None = None
    model: str | None = None


class _Question(BaseModel):
    """A question of MT-Bench, or of Arena-Hard, whose newer files have ``uid`` and ``prompt``."""

    question_id: int | str = Field(validation_alias=AliasChoices("question_id", "uid"))
    turns: tuple[str | _Turn, ...] | str = Field(
        min_length=1, validation_alias=AliasChoices("turns", "prompt")
    )


def _text(turn: str | _Turn) -> str:
    return turn if isinstance(turn, str) else turn.content


def questions_beside(path: Path) -> dict[str, tuple[str, ...]]:
    """Return the questions' turns by id, from the question file that belongs to ``path``.

    Empty where there is no such file.

    Raises:
        DataError: a row of the file is broken.
    """
    places = [folder / name for folder in path.absolute().parents[:2] for name in QUESTION_FILES]
    file = next((place for place in places if place.is_file()), None)
    return {} if file is None else dict(_question(file, *row) for row in json_lines(file))


def _question(file: Path, line: int, row: Row) -> tuple[str, tuple[str, ...]]:
    try:
        found = _Question.model_validate(row)
    except ValidationError as error:
        raise DataError(file, line, f"not a question: {validation_text(error)}") from error
    asked = (found.turns,) if isinstance(found.turns, str) else found.turns
    return str(found.question_id), tuple(map(_text, asked))


def _reader(table: Table) -> RowReader:
    questions = questions_beside(table.path)

    def read(row: Row) -> Iterator[RecordedAnswer]:
        found = _Answered.model_validate(row)
        for sample, choice in enumerate(found.choices):
            yield from _dialogue(found, sample, choice, questions)

    return read


def _dialogue(
    found: _Answered, sample: int, choice: _Choice, questions: Mapping[str, tuple[str, ...]]
) -> Iterator[RecordedAnswer]:
    name = identifier(found.question_id)
    asked = questions.get(str(name), ())
    for place, turn in enumerate(choice.turns, start=1):
        yield RecordedAnswer(
            id=name if place == 1 else f"{name}/{place}",
            dialogue=name if len(choice.turns) > 1 else None,
            messages=tuple(map(user, asked[:place])) if place <= len(asked) else (),
            text=_text(turn),
            sample=sample,
            model=found.model_id or found.model,
        )


CHOICES = RecordedForm(
    name="MT-Bench answers",
    columns="question_id, choices",
    fits=lambda row: {"question_id", "choices"} <= row.keys(),
    reader=_reader,
)
