"""A file of recorded outputs -> its answers, of one model, numbered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.adapters.recorded.answers import RecordedAnswer, Turns, prompt_of
from harness.adapters.recorded.choices import CHOICES
from harness.adapters.recorded.dialogues import DIALOGUES
from harness.adapters.recorded.forms import RecordedForm, RowReader, recognise, row_of
from harness.adapters.recorded.generations import GENERATIONS
from harness.adapters.recorded.lm_eval import LM_EVAL
from harness.adapters.recorded.plain import ALPACA_EVAL, IFEVAL, PLAIN
from harness.errors import DataError, InputError, unknown_name
from harness.tables import Row, Table, read_table

FORMS = (GENERATIONS, LM_EVAL, CHOICES, DIALOGUES, ALPACA_EVAL, IFEVAL, PLAIN)
"""Known forms; the first that fits a file's first row is taken."""

Numbered = tuple[int, RecordedAnswer]
"""A line of the file, and an answer from it."""

Prompt = tuple[str | None, Turns]
"""Id, system message and turns: what the samples of one prompt share."""


@dataclass(frozen=True)
class Recording:
    """A file of recorded outputs: its form, all its models, and the answers of one of them."""

    form: RecordedForm
    models: tuple[str, ...]
    answers: tuple[RecordedAnswer, ...]


def read_recorded(path: Path, model: str | None = None) -> tuple[RecordedAnswer, ...]:
    """Return the answers in a file, in its order; see `read_recording` for what is raised."""
    return read_recording(path, model).answers


def read_recording(path: Path, model: str | None = None) -> Recording:
    """Read a file of recorded outputs, whose form is told by its content.

    Answers to one prompt under one id are its samples; where the file does not number them, they
    are numbered from 0 in its order.

    Args:
        path: JSON, JSONL, CSV or Parquet; the text forms may be gzip.
        model: whose answers are wanted, where the file holds those of several models.

    Raises:
        InputError: the file cannot be read, is of no known form, or holds answers of several
            models and none is chosen, or not the chosen one.
        DataError: a row is broken (file and line are named), or a sample occurs twice.
    """
    table = read_table(path)
    form = recognise_form(table)
    found = list(_answers(table, form.reader(table)))
    models = _models(path, found)
    chosen = _choose(path, found, models, model)
    return Recording(form, models, tuple(_number(path, chosen)))


def recognise_form(table: Table) -> RecordedForm:
    """Return the form of a file's rows.

    Raises:
        InputError: none is known; columns and known forms are listed.
    """
    return recognise(table, FORMS, "recorded outputs")


def _answers(table: Table, read: RowReader) -> Iterator[Numbered]:
    for line, row in table.rows:
        for answer in _row_answers(table.path, line, row, read):
            yield line, answer


def _row_answers(path: Path, line: int, row: Row, read: RowReader) -> list[RecordedAnswer]:
    with row_of(path, line):
        answers = list(read(row))
        for answer in answers:
            answer.model_dump_json().encode()  # half a surrogate pair could not be written again
    return answers


def _models(path: Path, found: Sequence[Numbered]) -> tuple[str, ...]:
    models = dict.fromkeys(answer.model for _, answer in found)
    if None in models and len(models) > 1:
        line = next(line for line, answer in found if answer.model is None)
        raise DataError(path, line, "the row does not say which model answered; others do")
    return tuple(model for model in models if model is not None)


def _choose(
    path: Path, found: Sequence[Numbered], models: Sequence[str], model: str | None
) -> list[Numbered]:
    if model is None and len(models) > 1:
        raise InputError(
            f"{path} holds answers of {len(models)} models; choose one with model=NAME. "
            f"Found: {', '.join(sorted(models))}."
        )
    if model is not None and not models:
        raise InputError(f"{path} names no model; leave model={model} out.")
    if model is not None and model not in models:
        raise InputError(f"{path}: {unknown_name('model', model, models)}")
    return [(line, answer) for line, answer in found if model in (None, answer.model)]


def _number(path: Path, found: Iterable[Numbered]) -> Iterator[RecordedAnswer]:
    next_sample: Counter[Prompt] = Counter()
    seen: set[tuple[Prompt, int]] = set()
    for line, answer in found:
        prompt = (answer.id, prompt_of(answer.chat))
        sample = next_sample[prompt] if answer.sample is None else answer.sample
        next_sample[prompt] = sample + 1
        if (prompt, sample) in seen:
            raise DataError(path, line, f"sample {sample} of {_name(answer)} occurs twice")
        seen.add((prompt, sample))
        yield answer.model_copy(update={"sample": sample})


def _name(answer: RecordedAnswer) -> str:
    return "the prompt" if answer.id is None else f"'{answer.id}'"
