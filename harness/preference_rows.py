"""One row of preference data to a pair: HH text, chat lists, or two answers beside a prompt.

| format | ``prompt`` | ``chosen``, ``rejected`` |
|---|---|---|
| HH text | none | '\\n\\nHuman: ...\\n\\nAssistant: ...' |
| chat lists, implicit prompt | none | lists of {role, content}: the whole dialogue |
| chat lists, explicit prompt | text or list | lists: the answer alone, or the whole dialogue |
| plain answers | text, HH text or list | texts: the answer alone |

A prompt that is a plain text is one user turn. A prompt beside whole dialogues (as in UltraFeedback
Binarized) says nothing new, but it has to agree with them. Other fields are ignored. Every
dialogue has at most one system turn, at its beginning, and alternates from a user turn to a last
assistant turn, which is the answer; white space around an answer does not belong to it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from harness.types import Message, Role

_TURN = re.compile(r"\n\n(Human|Assistant):")
_OPENING = re.compile(r"\s*\n\nHuman:")
_HH_ROLES = {"Human": Role.USER, "Assistant": Role.ASSISTANT}

PAIR_KEYS = ("chosen", "rejected")

EXPECTED = (
    "Expected an object whose 'chosen' and 'rejected' are both texts in the HH format, both lists "
    'of {"role", "content"}, or both plain answers to a \'prompt\''
)

Turns = tuple[Message, ...]


@dataclass(frozen=True)
class Pair:
    """A dialogue with a better and a worse final answer.

    Attributes:
        messages: the prompt: an optional system turn, then user and assistant turns in
            alternation, the last one the user's.
        origin: where the pair was read, such as 'helpful.jsonl.gz:118'; no part of its identity.
    """

    messages: Turns
    chosen: str
    rejected: str
    origin: str = field(default="", compare=False)


class SkipReason(StrEnum):
    """Why a well-formed row, or a pair made of one, cannot be trained on."""

    NO_OPENING = "text does not open with '\\n\\nHuman:' and the row has no prompt"
    NO_PROMPT = "no prompt before the answer"
    EMPTY_PROMPT = "empty prompt"
    UNKNOWN_ROLE = "role other than system, user and assistant"
    ROLE_ORDER = "wrong role order"
    NO_FINAL_ANSWER = "no assistant turn at the end"
    EMPTY_ANSWER = "empty answer"
    DIFFERENT_PROMPTS = "different prompts"
    EQUAL_ANSWERS = "equal answers"
    NOT_UNICODE = "text that is not valid Unicode"
    LONG_PROMPT = "prompt longer than max_prompt tokens"
    NO_ROOM = "no room for an answer within max_length tokens"
    LONG_ANSWER = "answer longer than the limit"
    END_INSIDE = "end-of-turn token inside an answer"
    EQUAL_TOKENS = "answers equal after the cut"


class UnusablePairError(ValueError):
    """A well-formed row makes no pair; it is skipped and counted under ``reason``."""

    def __init__(self, reason: str) -> None:
        super().__init__(str(reason))
        self.reason = reason


class MalformedRowError(ValueError):
    """A row is in none of the formats; the message says what was found and what is expected."""


def parse_dialogue(text: str) -> Turns:
    """Return the turns of an HH dialogue ('\\n\\nHuman: ...\\n\\nAssistant: ...').

    Neighbouring turns of one speaker, which some HH dialogues have, are joined by a blank line.

    Raises:
        UnusablePairError: it does not open with a human turn.
    """
    if not _OPENING.match(text):
        raise UnusablePairError(SkipReason.NO_OPENING)
    parts = _TURN.split(text)
    turns = zip(parts[1::2], parts[2::2], strict=True)
    return _merge_turns([Message(role=_HH_ROLES[who], content=said.strip()) for who, said in turns])


def _merge_turns(turns: Sequence[Message]) -> Turns:
    merged: list[Message] = []
    for turn in turns:
        if merged and merged[-1].role == turn.role:
            joined = f"{merged[-1].content}\n\n{turn.content}"
            merged[-1] = Message(role=turn.role, content=joined)
        else:
            merged.append(turn)
    return tuple(merged)


def _kind(value: object) -> str:
    names = {
        type(None): "null",
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "a text",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), f"a value of type {type(value).__name__}")


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise MalformedRowError(f"{where} must be a text, found {_kind(value)}. {EXPECTED}.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        # JSON can escape half of a surrogate pair, which no tokenizer takes.
        raise UnusablePairError(SkipReason.NOT_UNICODE) from error
    return value


def _message(entry: object, where: str) -> Message:
    if not isinstance(entry, dict):
        raise MalformedRowError(
            f'{where} must be an object {{"role", "content"}}, found {_kind(entry)}. {EXPECTED}.'
        )
    role, content = (_text(entry.get(key), f"{where}.{key}") for key in ("role", "content"))
    if role not in tuple(Role):
        raise UnusablePairError(SkipReason.UNKNOWN_ROLE)
    return Message(role=Role(role), content=content)


def _chat(entries: Sequence[object], where: str) -> Turns:
    return tuple(_message(entry, f"{where}[{i}]") for i, entry in enumerate(entries))


def _prompt(value: object) -> Turns | None:
    """Return the turns of the field ``prompt``, None where the row has none."""
    if value is None:
        return None
    if isinstance(value, list):
        turns = _chat(value, "'prompt'")
    else:
        text = _text(value, "'prompt'")
        is_hh = _OPENING.match(text)
        turns = parse_dialogue(text) if is_hh else (Message(role=Role.USER, content=text),)
        if is_hh and turns[-1] == Message(role=Role.ASSISTANT, content=""):
            # Prompts of this format end with the marker after which the answer goes on.
            turns = turns[:-1]
    if not turns:
        raise UnusablePairError(SkipReason.EMPTY_PROMPT)
    return turns


def _whole(turns: Turns, prompt: Turns | None) -> Turns:
    """Return a whole dialogue after a look at whether the separate prompt agrees with it."""
    said = {(turn.role, turn.content.strip()) for turn in turns[:-1]}
    if not all((turn.role, turn.content.strip()) in said for turn in prompt or ()):
        raise UnusablePairError(SkipReason.DIFFERENT_PROMPTS)
    return turns


def _dialogue(prompt: Turns | None, value: object, where: str) -> Turns:
    """Return prompt and answer of one side, in whichever format it is."""
    if not isinstance(value, list):
        text = _text(value, where)
        if prompt is None or _OPENING.match(text):
            return _whole(parse_dialogue(text), prompt)
        return (*prompt, Message(role=Role.ASSISTANT, content=text))
    turns = _chat(value, where)
    if not turns or turns[0].role != Role.ASSISTANT:
        return _whole(turns, prompt)
    if prompt is None:
        raise UnusablePairError(SkipReason.NO_PROMPT)
    return (*prompt, *turns)


def _check(turns: Turns) -> None:
    """Refuse a dialogue without an answer at its end, without a prompt, or out of order."""
    if not turns or turns[-1].role != Role.ASSISTANT:
        raise UnusablePairError(SkipReason.NO_FINAL_ANSWER)
    if not turns[-1].content.strip():
        raise UnusablePairError(SkipReason.EMPTY_ANSWER)
    spoken = turns[1:] if turns[0].role == Role.SYSTEM else turns
    order = [Role.USER, Role.ASSISTANT] * (len(spoken) // 2)
    if [turn.role for turn in spoken] != order:
        raise UnusablePairError(SkipReason.ROLE_ORDER)
    if not spoken[-2].content.strip():
        raise UnusablePairError(SkipReason.EMPTY_PROMPT)


def _pair(better: Turns, worse: Turns) -> Pair:
    for turns in (better, worse):
        _check(turns)
    if better[:-1] != worse[:-1]:
        raise UnusablePairError(SkipReason.DIFFERENT_PROMPTS)
    chosen, rejected = (turns[-1].content.strip() for turns in (better, worse))
    if chosen == rejected:
        raise UnusablePairError(SkipReason.EQUAL_ANSWERS)
    return Pair(better[:-1], chosen, rejected)


def parse_row(row: object) -> Pair:
    """Return the pair of one row, a JSON object in one of the formats above.

    Raises:
        MalformedRowError: no object, a field is missing, or a value has the wrong type.
        UnusablePairError: the row is well-formed, but its dialogues make no pair.
    """
    if not isinstance(row, Mapping):
        raise MalformedRowError(f"found {_kind(row)}. {EXPECTED}.")
    for key in PAIR_KEYS:
        if row.get(key) is None:
            fields = ", ".join(map(str, row)) or "none"
            raise MalformedRowError(f"'{key}' is missing or null (fields: {fields}). {EXPECTED}.")
    chosen, rejected = (row[key] for key in PAIR_KEYS)
    if isinstance(chosen, list) != isinstance(rejected, list):
        raise MalformedRowError(
            f"'chosen' is {_kind(chosen)} and 'rejected' is {_kind(rejected)}. {EXPECTED}."
        )
    prompt = _prompt(row.get("prompt"))
    return _pair(_dialogue(prompt, chosen, "'chosen'"), _dialogue(prompt, rejected, "'rejected'"))
