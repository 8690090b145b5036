"""Preference pairs, and their tokens rendered as at generation; what is left out is counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from harness.errors import CheckpointError, DataError, InputError
from harness.preference_rows import (
    MalformedRowError,
    Pair,
    SkipReason,
    Turns,
    UnusablePairError,
    parse_row,
)
from harness.prompts import answer_ids, check_bos, end_of_turn, render
from harness.training.sources import Source, resolve_source, source_identity
from harness.types import Role

T = TypeVar("T")

__all__ = [
    "LongResponses",
    "Pair",
    "SkipReason",
    "Skips",
    "TokenPair",
    "read_pairs",
    "source_identity",
    "split_holdout",
    "tokenize_pair",
]

LongResponses = Literal["cut", "skip"]
"""What becomes of a pair with an answer over the limit: the answer is cut, or the pair left out."""


@dataclass(frozen=True)
class TokenPair:
    """Token ids of a pair: the rendered prompt and both answers, end-of-turn token included.

    ``origin`` as in ``Pair``: it lets an error name the pair, and is no part of its identity.
    """

    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]
    origin: str = field(default="", compare=False)


@dataclass
class Skips:
    """Pairs left out, by reason, and answers cut.

    Attributes:
        counts: number of pairs left out. first: origin of the first one.
        cut_answers: answers shortened to the limit in pairs that were kept.
    """

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)
    cut_answers: int = 0

    def add(self, reason: str, origin: str) -> None:
        """Count one pair as left out for ``reason``."""
        self.counts[reason] += 1
        self.first.setdefault(reason, origin)

    def __str__(self) -> str:
        return "; ".join(
            f"{reason}: {n} (first: {self.first[reason]})"
            for reason, n in self.counts.most_common()
        )

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """Return what was left out and cut as plain JSON values, for a manifest.

        reason -> {pairs, first}, and 'answers cut' -> {answers}; empty where nothing was.
        """
        found: dict[str, dict[str, Any]] = {
            str(reason): {"pairs": n, "first": self.first[reason]}
            for reason, n in sorted(self.counts.items())
        }
        return found | ({"answers cut": {"answers": self.cut_answers}} if self.cut_answers else {})


def usable_rows(source: Source, skips: Skips, parse: Callable[[Any], T]) -> Iterator[tuple[T, str]]:
    """Yield what ``parse`` makes of each row, with its origin; unusable rows are counted.

    Raises:
        DataError: ``parse`` calls a row malformed.
    """
    for place, row in source.rows():
        origin = f"{source.name}{place}"
        try:
            found = parse(row)
        except UnusablePairError as skip:
            skips.add(skip.reason, origin)
        except MalformedRowError as error:
            raise DataError(f"{source}{place}", None, str(error)) from error
        else:
            yield found, origin


def _pairs_of(source: Source, skips: Skips) -> Iterator[Pair]:
    for found, origin in usable_rows(source, skips, parse_row):
        yield Pair(found.messages, found.chosen, found.rejected, origin)


def read_pairs(sources: Iterable[str | Path], skips: Skips) -> list[Pair]:
    """Read preference pairs from files and hub data sets, in order.

    Sources are those of ``harness.training.sources.resolve_source``, rows those of
    ``harness.preference_rows``. Rows that make no pair are counted in ``skips``.

    Raises:
        DataError: a row is not JSON, or in none of the formats (file and line are named).
        InputError: a source cannot be read, or no usable pair is left.
    """
    resolved = [resolve_source(source) for source in sources]
    pairs = [pair for source in resolved for pair in _pairs_of(source, skips)]
    if not pairs:
        raise InputError(
            f"no usable preference pair in {', '.join(map(str, resolved))} "
            f"({str(skips) or 'no rows'})"
        )
    return pairs


def _tails(messages: Turns) -> Iterator[Turns]:
    """Yield the dialogue, then ever shorter ends of it that open with a user turn.

    A leading system turn stays: it says how to answer, whatever else is forgotten.
    """
    kept = 1 if messages[0].role == Role.SYSTEM else 0
    for start in range(kept, len(messages), 2):
        yield messages[:kept] + messages[start:]


@contextmanager
def _template_of(origin: str) -> Iterator[None]:
    """Name the pair whose rendering fails."""
    try:
        yield
    except Exception as error:  # templates raise whatever their authors chose
        raise CheckpointError(f"{origin}: the chat template failed: {error}") from error


def _rendered(tokenizer: Any, messages: Turns, origin: str) -> list[int]:
    with _template_of(origin):
        ids = render(tokenizer, messages)
    check_bos(tokenizer, ids, origin)
    return ids


def _longest_prompt(tokenizer: Any, pair: Pair, limit: float) -> list[int]:
    """Return the longest tail within ``limit`` tokens; the shortest where none is."""
    ids: list[int] = []
    for tail in _tails(pair.messages):
        ids = _rendered(tokenizer, tail, pair.origin)
        if len(ids) <= limit:
            break
    return ids


def _answers(tokenizer: Any, pair: Pair, end: int) -> list[list[int]]:
    """Return the tokens of the chosen and of the rejected answer, each with its end."""
    with _template_of(pair.origin):
        found = answer_ids(tokenizer, pair.messages, (pair.chosen, pair.rejected))
    for ids in found:
        if not ids:
            raise UnusablePairError(SkipReason.EMPTY_ANSWER)
        if end in ids:
            raise UnusablePairError(SkipReason.END_INSIDE)
    return [[*ids, end] for ids in found]


@dataclass(frozen=True)
class _Limits:
    """Limits in tokens, infinite where there is none."""

    both: float
    prompt: float
    response: float

    @classmethod
    def of(cls, both: int | None, prompt: int | None, response: int | None) -> _Limits:
        return cls(*(float("inf") if n is None else n for n in (both, prompt, response)))

    def fit(self, tokenizer: Any, pair: Pair, longest: int) -> tuple[list[int], float]:
        """Return the prompt and how many tokens an answer may have.

        ``longest``: tokens of the longer answer, for which old turns make room.
        """
        wanted = self.both - min(longest, self.response)
        prompt = _longest_prompt(tokenizer, pair, min(self.prompt, wanted))
        if len(prompt) > self.prompt:
            raise UnusablePairError(SkipReason.LONG_PROMPT)
        room = min(self.both - len(prompt), self.response)
        if room < 1:
            raise UnusablePairError(SkipReason.NO_ROOM)
        return prompt, room


def _tokens(
    tokenizer: Any, pair: Pair, limits: _Limits, long_responses: LongResponses
) -> tuple[TokenPair, int]:
    """Return the tokens of a pair and how many answers were cut."""
    end = end_of_turn(tokenizer)
    sides = _answers(tokenizer, pair, end)
    prompt, room = limits.fit(tokenizer, pair, max(map(len, sides)))
    cut = sum(len(side) > room for side in sides)
    if cut and long_responses == "skip":
        raise UnusablePairError(SkipReason.LONG_ANSWER)
    chosen, rejected = (tuple(side[: int(min(room, len(side)))]) for side in sides)
    if chosen == rejected:
        raise UnusablePairError(SkipReason.EQUAL_TOKENS)
    return TokenPair(tuple(prompt), chosen, rejected, pair.origin), cut


def tokenize_pair(
    tokenizer: Any,
    pair: Pair,
    *,
    max_length: int | None = None,
    max_prompt: int | None = None,
    max_response: int | None = None,
    long_responses: LongResponses = "cut",
    skips: Skips,
) -> TokenPair | None:
    """Return the tokens of a pair, or None (counted in ``skips``) where it cannot be used.

    The prompt is what generation would be given. An answer is its text's tokens as they follow the
    prompt, ``harness.prompts.answer_ids``, and then the token on which generation stops,
    ``harness.prompts.end_of_turn``.

    The oldest turns, but not a leading system turn, are dropped until the prompt fits
    ``max_prompt`` and prompt and longer answer together fit ``max_length``. Where the last user
    turn alone leaves less room, or an answer is longer than ``max_response``, answers are cut and
    then carry no end token; with ``long_responses="skip"`` the pair is left out instead. So are
    pairs whose last user turn is itself too long, or whose answers the cut makes equal.

    Args:
        tokenizer: with a chat template.
        pair: see ``Pair``.
        max_length: most tokens of prompt and answer together; None is no limit, here as below.
        max_prompt: most tokens of the rendered prompt.
        max_response: most tokens of an answer, its end token included.
        long_responses: "cut" or "skip".
        skips: counts what is left out and cut.

    Raises:
        CheckpointError: the chat template fails or doubles the BOS, or there is no end token.
    """
    limits = _Limits.of(max_length, max_prompt, max_response)
    try:
        tokens, cut = _tokens(tokenizer, pair, limits, long_responses)
    except UnusablePairError as skip:
        skips.add(skip.reason, pair.origin)
        return None
    skips.cut_answers += cut
    return tokens


def split_holdout(
    pairs: Sequence[Pair], holdout: int, rng: np.random.Generator
) -> tuple[list[Pair], list[Pair]]:
    """Shuffle by prompt and return (training pairs, held-out pairs).

    All pairs of one prompt go to the same side, so that no prompt of the held-out pairs was
    trained on. Prompts are held out in shuffled order until they have ``holdout`` pairs or more:
    exactly that many where every pair has its own prompt.

    Raises:
        InputError: nothing would be left to train on.
    """
    by_prompt: dict[Turns, list[Pair]] = {}
    for pair in pairs:
        by_prompt.setdefault(pair.messages, []).append(pair)
    groups = list(by_prompt.values())
    training: list[Pair] = []
    held: list[Pair] = []
    for i in rng.permutation(len(groups)):
        (held if len(held) < holdout else training).extend(groups[int(i)])
    if not training:
        raise InputError(
            f"cannot hold out {holdout} of {len(pairs)} pairs ({len(groups)} prompts; a prompt's "
            "pairs stay together). Give more pairs, or lower holdout."
        )
    return training, held
