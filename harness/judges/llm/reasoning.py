"""The reasoning that a reply may open with, which is no part of what it says.

Models that think aloud write ``<think>...</think>`` before they answer, where their server does not
take it out. Some chat templates write the opening tag into the prompt: the reply then has the
closing one alone, at the end of a line.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

OPEN, CLOSE = "<think>", "</think>"

REASONING = re.compile(rf"\s*{OPEN}.*?{CLOSE}|(?:(?!{OPEN}).)*?{CLOSE}[ \t]*(?:\r?\n|$)", re.DOTALL)


def behind_reasoning(text: str) -> str | None:
    """Return what a reply says behind its reasoning; None where the reasoning does not end."""
    if found := REASONING.match(text):
        return text[found.end() :]
    return None if text.lstrip().startswith(OPEN) else text


def end_of_reasoning(tokens: Sequence[str]) -> int:
    """Return the place behind the token that closes the reasoning; 0 where none does."""
    seen = ""
    for place, token in enumerate(tokens, start=1):
        seen += token
        if CLOSE in seen:
            return place
        seen = seen[-len(CLOSE) :]
    return 0
