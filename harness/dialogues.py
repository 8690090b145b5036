"""Dialogues of several questions: which come before which, and a model's own answers in between.

An example whose chat has neighbouring turns of the user is a later question of a dialogue: between
those turns stands what the model itself answered. The questions of one dialogue share a ``unit``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise

from harness.types import Example, Message, Role


def is_later_question(messages: Sequence[Message]) -> bool:
    """Return whether a chat goes on from answers of the model's own, which are no part of it."""
    roles = [message.role for message in messages]
    return (Role.USER, Role.USER) in pairwise(roles)


def earlier_questions(examples: Sequence[Example]) -> dict[str, tuple[str, ...]]:
    """Return, by id of each later question, the ids of those before it, in order.

    Questions that are not in ``examples`` are left out, so that there may be fewer than turns.
    """
    dialogues: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        if example.unit is not None:
            dialogues[example.unit].append(example)
    return {
        later.id: _before(later, dialogues.get(later.unit or "", []))
        for later in examples
        if is_later_question(later.messages)
    }


def _before(later: Example, dialogue: Sequence[Example]) -> tuple[str, ...]:
    found = [
        example
        for example in dialogue
        if len(example.messages) < len(later.messages)
        and later.messages[: len(example.messages)] == example.messages
    ]
    return tuple(example.id for example in sorted(found, key=lambda e: len(e.messages)))


def answers_needed(messages: Sequence[Message]) -> int:
    """Return how many answers of the model's own stand within a chat."""
    roles = [message.role for message in messages]
    return sum(pair == (Role.USER, Role.USER) for pair in pairwise(roles))


def with_answers(messages: Sequence[Message], answers: Sequence[str]) -> tuple[Message, ...]:
    """Return a chat with a model's own answers between the neighbouring turns of the user.

    Raises:
        ValueError: there are more or fewer answers than places for them.
    """
    waiting = list(answers)
    if len(waiting) != answers_needed(messages):
        raise ValueError(f"{answers_needed(messages)} answers are needed, {len(waiting)} given")
    chat: list[Message] = []
    for message in messages:
        if chat and (chat[-1].role, message.role) == (Role.USER, Role.USER):
            chat.append(Message(role=Role.ASSISTANT, content=waiting.pop(0)))
        chat.append(message)
    return tuple(chat)


def depth(example: Example, earlier: Mapping[str, tuple[str, ...]]) -> int:
    """Return how many of the model's own answers must be there before an example can be asked."""
    return len(earlier.get(example.id, ()))
