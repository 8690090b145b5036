"""Pairs of answers that were decided before, read from files, as a judge is asked about them.

| form | decided by | columns |
|---|---|---|
| preference pairs | people | those of ``harness.preference_rows`` |
| TL;DR comparisons | a model | prompt, model_summary, reference_summary, preferred |

``preferred`` is ``ours`` for the model's summary or ``reference`` for the author's: what the public
re-implementation of "Learning to summarize from human feedback" writes, which asks a model. Beside
a prompt an answer may be empty: nobody can be trained on it, but people do compare it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from harness.errors import InputError
from harness.files import sha256_json
from harness.judges import AnswerPair
from harness.preference_rows import PAIR_KEYS, MalformedRowError, UnusablePairError, parse_row
from harness.training.data import Pair, Skips, usable_rows
from harness.training.sources import Source, resolve_source
from harness.types import Example

ONE, OTHER = "one", "other"
"""Names of the two answers of a pair, in an order that says nothing about which is preferred."""

PREFERRED = "preferred"
SUMMARIES = {"ours": "model_summary", "reference": "reference_summary"}
"""Column of the better summary of a TL;DR comparison, by what ``preferred`` says."""

NO_TEXT = "answer that is a value and no text"
"""Why a row is left out whose answer was written as ``true`` or a number: how it read is lost."""

OR_SUMMARIES = "Or a TL;DR comparison: prompt, model_summary, reference_summary and preferred."

FILLER = "(empty)"
"""Stands in for an empty answer while a row is checked."""


class Deciders(StrEnum):
    """Who decided which answer of a pair is better."""

    PEOPLE = "people"
    MODEL = "a model"


@dataclass(frozen=True)
class Labelled:
    """A pair as a judge is asked about it.

    Attributes:
        preferred: whether the candidate is the better one by its label.
    """

    asked: AnswerPair
    preferred: bool


def read_labelled(files: Sequence[Path], skips: Skips) -> tuple[list[Pair], Deciders]:
    """Return the pairs of files, in order, and who decided them.

    Rows that make no pair are counted in ``skips``.

    Raises:
        DataError: a row is not JSON, or in none of the forms (file and line are named).
        InputError: a file cannot be read, no usable pair is left, or people decided the pairs of
            one file and a model those of another.
    """
    found = [row for path in files for row in _rows(resolve_source(path), skips)]
    names = ", ".join(map(str, files))
    if not found:
        raise InputError(f"no usable pair in {names} ({str(skips) or 'no rows'})")
    deciders = {decider for decider, _ in found}
    if len(deciders) > 1:
        raise InputError(
            f"{names}: some of the pairs were decided by people and some by a model, so that "
            "agreement with both together says nothing. Check them one after the other."
        )
    return [pair for _, pair in found], deciders.pop()


def _rows(source: Source, skips: Skips) -> Iterator[tuple[Deciders, Pair]]:
    for (decider, pair), origin in usable_rows(source, skips, _decided):
        yield decider, replace(pair, origin=origin)


def _decided(row: Any) -> tuple[Deciders, Pair]:
    decider, labelled = _labelled_row(row)
    if _has_value(labelled):
        raise UnusablePairError(NO_TEXT)
    return decider, _pair(labelled)


def _has_value(row: Mapping[str, Any]) -> bool:
    answers = [row.get(key) for key in PAIR_KEYS]
    return None not in answers and any(isinstance(x, bool | int | float) for x in answers)


def _labelled_row(row: Any) -> tuple[Deciders, Mapping[str, Any]]:
    """Return who decided a row, and the row as preference pairs have it."""
    if not isinstance(row, Mapping):
        raise MalformedRowError(f"expected an object, found {type(row).__name__}")
    if any(column not in row for column in SUMMARIES.values()):
        return Deciders.PEOPLE, row
    said = row.get(PREFERRED)
    if said not in tuple(SUMMARIES):
        raise MalformedRowError(
            f"'{PREFERRED}' must be 'ours', where the model's summary is the better one, or "
            f"'reference', where the author's is; found {said!r}"
        )
    for column in SUMMARIES.values():
        if row[column] is None:
            raise MalformedRowError(f"'{column}' is null. Leave the row out where there is none.")
    better, worse = sorted(SUMMARIES, key=lambda name: name != said)
    answers = {"chosen": row[SUMMARIES[better]], "rejected": row[SUMMARIES[worse]]}
    return Deciders.MODEL, {"prompt": row.get("prompt"), **answers}


def _pair(row: Mapping[str, Any]) -> Pair:
    """Return a row's pair; beside a prompt one of the answers may be empty."""
    empty = [key for key in PAIR_KEYS if isinstance(row.get(key), str) and not row[key].strip()]
    blank = empty[0] if len(empty) == 1 and row.get("prompt") is not None else None
    try:
        pair = parse_row({**row, blank: FILLER} if blank else row)
    except MalformedRowError as error:
        raise MalformedRowError(f"{error} {OR_SUMMARIES}") from error
    return Pair(pair.messages, *("" if key == blank else getattr(pair, key) for key in PAIR_KEYS))


def labelled_pairs(pairs: Sequence[Pair], suite: str) -> list[Labelled]:
    """Return decided pairs for a judge; which answer is the candidate is up to a hash.

    Were it always the preferred one, chance agreement of two judges would be near 1. Examples are
    named by their prompt and the pair's place, so that equal prompts share a cluster.
    """
    return [_labelled(pair, place, *suite.partition("/")[::2]) for place, pair in enumerate(pairs)]


def _labelled(pair: Pair, place: int, suite: str, subset: str) -> Labelled:
    preferred = int(sha256_json([pair.chosen, pair.rejected]), 16) % 2 == 0
    texts = (pair.chosen, pair.rejected) if preferred else (pair.rejected, pair.chosen)
    name = f"{_prompt(pair)}-{place}"
    example = Example(id=name, messages=pair.messages, subset=subset or None)
    return Labelled(AnswerPair(suite, ONE, OTHER, example, *texts), preferred)


def _prompt(pair: Pair) -> str:
    return sha256_json([[m.role, m.content] for m in pair.messages])[:16]


def prompt_of(example_id: str) -> str:
    """Return the prompt's part of an example's name."""
    return example_id.rpartition("-")[0]
