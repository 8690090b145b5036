"""Prompts and other cells of a row, checked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from harness.types import FinishReason, Message, Role

FINISH_REASONS = {
    "stop": FinishReason.STOP,
    "eos": FinishReason.STOP,
    "end_turn": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "max_tokens": FinishReason.LENGTH,
}
"""What servers call the two ends of an answer; anything else is not known."""


def user(text: str) -> Message:
    """Return a user's turn."""
    return Message(role=Role.USER, content=text)


def message(value: Any) -> Message:
    """Return a chat turn given as ``{"role", "content"}``.

    Raises:
        ValueError: wrong role, or a content that is not text (pydantic's error is one).
    """
    if not isinstance(value, dict):
        raise ValueError(f"a turn must be an object with role and content, found {value!r}")
    return Message(role=value.get("role"), content=value.get("content"))


def chat(value: Any) -> tuple[Message, ...]:
    """Return a prompt: text is one user turn, a list (or its JSON) is a chat.

    Raises:
        ValueError: neither, or a chat whose last turn is not the user's.
    """
    listed = as_list(value)
    if listed is None:
        return (user(text(value, "the prompt") or ""),)
    messages = tuple(map(message, listed))
    if not messages or messages[-1].role != Role.USER:
        raise ValueError("the last turn of the prompt must be the user's")
    return messages


def as_list(value: Any) -> Sequence[Any] | None:
    """Return a list of turns, also where it stands as JSON in a text; None where it is none."""
    if isinstance(value, list):
        return value
    if isinstance(value, str) and value.lstrip().startswith("[{"):
        try:
            found = json.loads(value)
        except ValueError:
            return None
        spoken = all(isinstance(turn, dict) and "role" in turn for turn in found)
        return found if spoken else None
    return None


def text(value: Any, name: str) -> str | None:
    """Return a cell that holds text or null; ValueError where it holds anything else."""
    if value is None or isinstance(value, str):
        return value
    raise ValueError(f"{name} must be text, found {type(value).__name__}")


def identifier(value: Any) -> str | None:
    """Return an id as text; a whole number is one too.

    Raises:
        ValueError: neither text nor a whole number, or not one line.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f"an id is text or a whole number, found {type(value).__name__}")
    if not str(value).strip() or len(str(value).splitlines()) != 1:
        raise ValueError(f"an id is one line of text, found {value!r}")
    return str(value)


def whole(value: Any, name: str) -> int | None:
    """Return a whole number, which a CSV file holds as text; None where the cell is empty."""
    if value is None or value == "":
        return None
    if isinstance(value, str) and value.isdecimal():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"'{name}' must be a whole number, found {value!r}")
    return value


def finish_reason(value: Any) -> FinishReason | None:
    """Return why an answer ended, as far as it is said in known words."""
    return FINISH_REASONS.get(value.lower()) if isinstance(value, str) else None
