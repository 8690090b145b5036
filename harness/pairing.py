"""Recorded answers of two models, paired by the text of their prompts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from harness.adapters.recorded.answers import (
    RecordedAnswer,
    Turns,
    prompt_of,
    turns,
)
from harness.adapters.recorded.plain import ALPACA_EVAL
from harness.adapters.recorded.reading import read_recording
from harness.dialogues import is_later_question
from harness.errors import InputError
from harness.files import sha256_json
from harness.judges import AnswerPair
from harness.judges.llm.questions import dialogue_text
from harness.tables import read_table
from harness.types import Example, Message, Record


class Source(NamedTuple):
    """A file of recorded answers; ``model`` says whose, where it holds those of several."""

    path: Path
    model: str | None = None


class Lacking(Record):
    """Recorded answers that are in no pair, none of them a loss.

    Attributes:
        reference: answers to prompts that the reference file does not have.
        output: reference answers to prompts that the model on trial was not asked.
        null: pairs with an answer that is null in its file.
        repeated: answers to a prompt after the first one of its file.
        dialogues: later questions of a dialogue, before which each model's own answers stood.
    """

    reference: int = 0
    output: int = 0
    null: int = 0
    repeated: int = 0
    dialogues: int = 0


@dataclass(frozen=True)
class Answers:
    """One model's recorded answers.

    Attributes:
        first: the first answer to each prompt.
        repeated: how many came after it.
        datasets: the part of AlpacaEval's set that a prompt is from, by its text.
    """

    path: Path
    name: str
    first: dict[Turns, RecordedAnswer]
    repeated: int
    datasets: dict[str, str]


Match = tuple[RecordedAnswer, RecordedAnswer]
"""The answer on trial and the reference answer, to one prompt."""


def read_answers(source: Source) -> Answers:
    """Read one model's answers; it is called as in the file or, without a name there, as the file.

    Raises:
        InputError: the file cannot be read, is of no known form, holds several models and none is
            chosen, or does not hold the prompts. DataError: a row is broken.
    """
    recording = read_recording(source.path, source.model)
    if unknown := [answer for answer in recording.answers if not answer.chat]:
        raise InputError(
            f"{source.path}: {len(unknown)} answers are recorded without their prompt (first id: "
            f"{unknown[0].id}), by which answers are paired. Put the questions beside them, as "
            "question.jsonl beside MT-Bench answers or examples.jsonl beside a run's "
            "generations.jsonl."
        )
    first: dict[Turns, RecordedAnswer] = {}
    for answer in recording.answers:
        first.setdefault(prompt_of(answer.chat), answer)
    name = source.model or next(iter(recording.models), source.path.name.split(".")[0])
    return Answers(
        path=source.path,
        name=name,
        first=first,
        repeated=len(recording.answers) - len(first),
        datasets=_datasets(source.path) if recording.form is ALPACA_EVAL else {},
    )


def _datasets(path: Path) -> dict[str, str]:
    rows = [row for _, row in read_table(path).rows]
    return {r["instruction"]: r["dataset"] for r in rows if isinstance(r.get("dataset"), str)}


def match(outputs: Answers, references: Answers) -> tuple[list[Match], Lacking]:
    """Return the pairs of answers to one prompt, in the order of ``outputs``, and what is lacking.

    Prompts are one where their turns are, and their system messages where both files have some.

    Raises:
        InputError: there is no pair, or both models have one name.
    """
    if outputs.name == references.name:
        raise InputError(
            f"{outputs.path} and {references.path} both hold answers of '{outputs.name}'; models "
            "that are compared need two names: the rows' 'generator', or the files' own names."
        )
    found = list(_matches(outputs, references))
    both = [match for match in found if all(answer.text is not None for answer in match)]
    pairs = [match for match in both if not is_later_question(match[0].chat)]
    if not pairs:
        raise InputError(
            f"no pair of answers in {outputs.path} and {references.path}; prompts are matched by "
            f"their text. In both files: {len(found)}, of these with a null answer "
            f"{len(found) - len(both)}, later questions of a dialogue {len(both)}."
        )
    return pairs, Lacking(
        reference=len(outputs.first) - len(found),
        output=len(references.first) - len({prompt_of(theirs.chat) for _, theirs in found}),
        null=len(found) - len(both),
        repeated=outputs.repeated + references.repeated,
        dialogues=len(both) - len(pairs),
    )


def _matches(outputs: Answers, references: Answers) -> Iterator[Match]:
    by_turns: dict[Turns, list[RecordedAnswer]] = defaultdict(list)
    for theirs in references.first.values():
        by_turns[turns(theirs.chat)].append(theirs)
    for ours in outputs.first.values():
        alike = by_turns.get(turns(ours.chat), [])
        fits = next((theirs for theirs in alike if theirs.answers(ours.chat)), None)
        if fits is not None:
            yield ours, fits


def make_pairs(
    matched: Sequence[Match], suite: str, candidate: str, baseline: str
) -> list[AnswerPair]:
    """Return pairs for a judge; examples are named by a hash of their prompt."""
    name, _, subset = suite.partition("/")
    return [
        AnswerPair(
            suite=name,
            candidate=candidate,
            baseline=baseline,
            example=Example(
                id=sha256_json(prompt_of(ours.chat)), messages=ours.chat, subset=subset or None
            ),
            candidate_text=ours.text or "",
            baseline_text=theirs.text or "",
        )
        for ours, theirs in matched
    ]


def instruction_text(messages: Sequence[Message]) -> str:
    """Return a prompt as one text, as AlpacaEval has it."""
    return dialogue_text([(message.role, message.content) for message in messages])
