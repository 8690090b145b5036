"""Preference pairs in the HH-RLHF text format, and their tokens rendered as at generation."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from harness.errors import DataError, InputError
from harness.prompts import render
from harness.types import Message, Role

_TURN = re.compile(r"\n\n(Human|Assistant):")

PAIR_KEYS = ("chosen", "rejected")


@dataclass(frozen=True)
class Pair:
    """A dialogue with a better and a worse final answer."""

    messages: tuple[Message, ...]
    chosen: str
    rejected: str


@dataclass(frozen=True)
class TokenPair:
    """Token ids of a pair: the rendered prompt and both answers, end-of-sequence included."""

    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]


@dataclass
class Skips:
    """Counts of pairs left out and of answers cut, by reason."""

    counts: Counter[str] = field(default_factory=Counter)


def parse_dialogue(text: str) -> tuple[Message, ...]:
    """Return the turns of an HH dialogue ('\\n\\nHuman: ...\\n\\nAssistant: ...').

    Raises:
        ValueError: it does not open with a human turn.
    """
    parts = _TURN.split(text)
    if parts[0].strip() or len(parts) < 3 or parts[1] != "Human":
        raise ValueError("a dialogue opens with '\\n\\nHuman:'")
    roles = {"Human": Role.USER, "Assistant": Role.ASSISTANT}
    turns = zip(parts[1::2], parts[2::2], strict=True)
    return tuple(Message(role=roles[who], content=said.strip()) for who, said in turns)


def _merge_turns(turns: Sequence[Message]) -> tuple[Message, ...]:
    """Join neighbouring turns of one speaker, which some HH dialogues have."""
    merged: list[Message] = []
    for turn in turns:
        if merged and merged[-1].role == turn.role:
            joined = f"{merged[-1].content}\n\n{turn.content}"
            merged[-1] = Message(role=turn.role, content=joined)
        else:
            merged.append(turn)
    return tuple(merged)


def parse_pair(chosen: str, rejected: str) -> Pair:
    """Return the pair of two HH dialogues that differ in their last assistant turn.

    Raises:
        ValueError: roles out of order, an empty or equal last answer, or different prompts.
    """
    better, worse = (_merge_turns(parse_dialogue(text)) for text in (chosen, rejected))
    for turns in (better, worse):
        if turns[-1].role != Role.ASSISTANT:
            raise ValueError("a dialogue ends with an assistant turn")
        if not turns[-1].content:
            raise ValueError("empty answer")
    if better[:-1] != worse[:-1]:
        raise ValueError("different prompts")
    if better[-1].content == worse[-1].content:
        raise ValueError("equal answers")
    return Pair(better[:-1], better[-1].content, worse[-1].content)


def _open_lines(path: Path) -> Iterator[tuple[int, str]]:
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as stream:
            yield from enumerate(stream, start=1)
    except (OSError, UnicodeDecodeError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read as UTF-8 JSONL: {error}") from error


def _row(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(path, number, f"not valid JSON: {error.msg}") from error
    if not isinstance(row, dict) or not all(isinstance(row.get(k), str) for k in PAIR_KEYS):
        raise DataError(path, number, "expected an object with texts 'chosen' and 'rejected'")
    return row


def read_pairs(paths: Iterable[Path], skips: Skips) -> list[Pair]:
    """Read HH preference pairs from JSONL files (plain or .gz), in file order.

    Pairs whose dialogues cannot be used are counted in ``skips`` by reason.

    Raises:
        DataError: a line is not a JSON object with both texts (file and line are named).
        InputError: a file cannot be read, or no usable pair is left.
    """
    files = tuple(paths)
    pairs: list[Pair] = []
    for path in files:
        for number, line in _open_lines(path):
            row = _row(path, number, line)
            try:
                pairs.append(parse_pair(row["chosen"], row["rejected"]))
            except ValueError as reason:
                skips.counts[str(reason)] += 1
    if not pairs:
        why = ", ".join(f"{reason}: {n}" for reason, n in skips.counts.items()) or "no lines"
        raise InputError(f"no usable preference pair in {', '.join(map(str, files))} ({why})")
    return pairs


def _fit_prompt(tokenizer: Any, messages: tuple[Message, ...], limit: int) -> list[int] | None:
    """Render the longest tail of whole turns, opening with a user turn, within ``limit``."""
    for start in range(0, len(messages), 2):
        if messages[start].role != Role.USER:
            return None
        ids = render(tokenizer, messages[start:])
        if len(ids) <= limit:
            return ids
    return None


def tokenize_pair(
    tokenizer: Any, pair: Pair, *, max_prompt: int, max_response: int, skips: Skips
) -> TokenPair | None:
    """Return the tokens of a pair, or None (counted in ``skips``) where it cannot be used.

    The oldest turns are dropped until the prompt fits ``max_prompt`` tokens; an answer longer
    than ``max_response`` tokens is cut there and then carries no end-of-sequence token. A pair is
    left out where its last user turn alone is too long, or where the cut makes the answers equal.
    """
    prompt = _fit_prompt(tokenizer, pair.messages, max_prompt)
    if prompt is None:
        skips.counts["prompt longer than max_prompt tokens"] += 1
        return None
    sides: list[tuple[int, ...]] = []
    for answer in (pair.chosen, pair.rejected):
        ids = [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        if len(ids) > max_response:
            skips.counts["answers cut at max_response tokens"] += 1
        sides.append(tuple(ids[:max_response]))
    if sides[0] == sides[1]:
        skips.counts["answers equal after the cut"] += 1
        return None
    return TokenPair(tuple(prompt), *sides)


def split_holdout(
    pairs: Sequence[Pair], holdout: int, rng: np.random.Generator
) -> tuple[list[Pair], list[Pair]]:
    """Shuffle and return (training pairs, ``holdout`` held-out pairs).

    Raises:
        InputError: nothing would be left to train on.
    """
    if holdout >= len(pairs):
        raise InputError(f"cannot hold out {holdout} of {len(pairs)} pairs")
    order = rng.permutation(len(pairs))
    shuffled = [pairs[int(i)] for i in order]
    return shuffled[holdout:], shuffled[:holdout]
