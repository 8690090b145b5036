"""Texts of a training row: what its user said and what its assistant answered.

More is read here than can be trained on (`harness.preference_rows`): pairs, rows of supervised
fine-tuning, and rows that make no pair. Prompt and answers are texts, HH dialogues or chat lists.

| row | fields |
|---|---|
| pair | ``chosen``, ``rejected``, with or without ``prompt`` |
| chat | ``messages`` |
| prompt and answer | ``prompt`` or ``instruction`` (with ``input``), and one of `ANSWERS` |
| plain text | ``text``: an HH dialogue, or an answer to nothing |
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.errors import DataError
from harness.preference_rows import MalformedRowError, Turns, parse_dialogue
from harness.training.sources import Source
from harness.types import Message, Role

_OPENING = re.compile(r"\s*\n\nHuman:")

PROMPTS = ("prompt", "instruction")
ANSWERS = ("chosen", "rejected", "completion", "response", "output", "answer", "messages", "text")

EXPECTED = (
    "Expected an object with 'chosen' and 'rejected', with 'messages', or with 'prompt' and "
    "'completion' or 'response'; each a text, or a list of {\"role\", \"content\"}"
)

_ROLES = {str(Role.USER): Role.USER, str(Role.ASSISTANT): Role.ASSISTANT}


@dataclass(frozen=True)
class TrainingText:
    """What a row says; white space around a turn does not belong to it.

    Attributes:
        prompts: the user turns of each of its dialogues, in order; a pair has one where both
            sides go on from the same prompt.
        answers: every assistant turn once, the last ones included.
    """

    prompts: tuple[tuple[str, ...], ...]
    answers: tuple[str, ...]


def training_text(row: object) -> TrainingText:
    """Return the texts of one row; system turns and those of other roles are left out.

    Raises:
        MalformedRowError: no object, none of the fields, or a value that is no text and no chat.
    """
    if not isinstance(row, Mapping):
        raise MalformedRowError(f"found {type(row).__name__}. {EXPECTED}.")
    prompt = _prompt(row)
    answers = [(name, row[name]) for name in ANSWERS if row.get(name) is not None]
    if not prompt and not answers:
        fields = ", ".join(map(str, row)) or "none"
        raise MalformedRowError(f"no field with a text (fields: {fields}). {EXPECTED}.")
    dialogues = [prompt, *(_dialogue(prompt, value, name) for name, value in answers)]
    users = (_said(turns, Role.USER) for turns in dialogues)
    assistants = (said for turns in dialogues for said in _said(turns, Role.ASSISTANT))
    return TrainingText(
        prompts=tuple(dict.fromkeys(turns for turns in users if turns)),
        answers=tuple(dict.fromkeys(assistants)),
    )


def training_texts(sources: Iterable[Source]) -> Iterator[tuple[TrainingText, str]]:
    """Yield the texts of every row of the sources, each with its origin, such as 'a.jsonl:118'.

    Raises:
        DataError: a row is not JSON, or holds no text (file and line are named).
        InputError: a source cannot be read.
    """
    for source in sources:
        for place, row in source.rows():
            try:
                text = training_text(row)
            except MalformedRowError as error:
                raise DataError(f"{source}{place}", None, str(error)) from error
            yield text, f"{source.name}{place}"


def _said(turns: Turns, role: Role) -> tuple[str, ...]:
    said = (turn.content.strip() for turn in turns if turn.role == role)
    return tuple(text for text in said if text)


def _prompt(row: Mapping[str, Any]) -> Turns:
    """Return the turns of a separate prompt; none where the row has none."""
    for name in PROMPTS:
        value = row.get(name)
        if isinstance(value, str) and isinstance(row.get("input"), str):
            value = f"{value}\n\n{row['input']}"
        if value is not None:
            return _turns(value, name, Role.USER)
    return ()


def _dialogue(prompt: Turns, value: object, name: str) -> Turns:
    """Return a whole dialogue, or the prompt with the answer that ``value`` alone is."""
    turns = _turns(value, name, Role.ASSISTANT)
    alone = not turns or turns[0].role == Role.ASSISTANT
    return (*prompt, *turns) if alone else turns


def _turns(value: object, name: str, plain: Role) -> Turns:
    """Return the user and assistant turns of a field; a plain text is one turn by ``plain``."""
    if isinstance(value, str):
        opened = _OPENING.match(value)
        return parse_dialogue(value) if opened else (Message(role=plain, content=value),)
    if isinstance(value, Sequence):
        turns = [_turn(entry, f"'{name}'[{i}]") for i, entry in enumerate(value)]
        return tuple(turn for turn in turns if turn is not None)
    raise MalformedRowError(
        f"'{name}' must be a text or a list, found {type(value).__name__}. {EXPECTED}."
    )


def _turn(entry: object, where: str) -> Message | None:
    """Return a turn of a chat; None where neither user nor assistant speaks."""
    if not isinstance(entry, Mapping) or not isinstance(entry.get("role"), str):
        raise MalformedRowError(f'{where} must be an object {{"role", "content"}}. {EXPECTED}.')
    role = _ROLES.get(entry["role"])
    if role is None:
        return None
    if not isinstance(entry.get("content"), str):
        found = type(entry.get("content")).__name__
        raise MalformedRowError(f"{where}.content must be a text, found {found}. {EXPECTED}.")
    return Message(role=role, content=entry["content"])
