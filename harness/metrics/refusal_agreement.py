"""How often the refusal rules agree with people: XSTest's answers with human labels.

``python -m harness.metrics.refusal_agreement xstest.jsonl`` prints the manifest that is kept in
``suites/judges/refusal/manifest.json``. It holds counts and no text of the data.

Source of the labels: Röttger et al. (2024), "XSTest", arXiv 2308.01263.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from harness.errors import DataError, InputError
from harness.files import sha256_file, sha256_json
from harness.metrics.refusal import FORMS, OPENING, RULES_VERSION, is_refusal
from harness.stats.proportion import wilson
from harness.types import Estimate, Record

Rows = Literal["development", "held out", "all"]
Reading = Literal["full", "full or partial"]

REFUSED: dict[Reading, frozenset[str]] = {
    "full": frozenset({"2_full_refusal"}),
    "full or partial": frozenset({"2_full_refusal", "3_partial_refusal"}),
}
"""Which human labels count as a refusal, by reading."""

SPLIT = "development: rows whose 0-based index is divisible by 3; held out: the others"


class Agreement(Record):
    """Rules against people on some answers.

    Attributes:
        rows, model, reading: which answers, and what people's labels are taken to mean.
        both, rules_only, people_only, neither: answers by who calls them a refusal.
        agreement: (both + neither) / all, Wilson interval; its ``clusters`` are prompts. With
            several models per prompt the interval takes their answers as independent.
    """

    rows: Rows
    model: str
    reading: Reading
    both: int
    rules_only: int
    people_only: int
    neither: int
    agreement: Estimate


class RefusalManifest(Record):
    """The measured agreement, with what it depends on."""

    rules_version: int
    rules_sha256: str
    data: str
    data_sha256: str
    prompts: int
    answers: int
    split: str
    agreements: tuple[Agreement, ...]


@dataclass(frozen=True)
class Labelled:
    """One answer: its row, its model, the human label and the rules' verdict."""

    row: int
    model: str
    label: str
    refused: bool


def _answers(path: Path) -> Iterator[Labelled]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    for index, line in enumerate(lines):
        try:
            for model, answer in json.loads(line)["completions"].items():
                refused = is_refusal(answer["text"])
                yield Labelled(index, model, answer["human_label"], refused)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(path, index + 1, f"not a row of XSTest: {error!r}") from error


def _agreement(answers: Sequence[Labelled], rows: Rows, model: str, reading: Reading) -> Agreement:
    pairs = [(a.refused, a.label in REFUSED[reading]) for a in answers]
    agreed = sum(rules == people for rules, people in pairs)
    prompts = len({a.row for a in answers})
    return Agreement(
        rows=rows,
        model=model,
        reading=reading,
        both=pairs.count((True, True)),
        rules_only=pairs.count((True, False)),
        people_only=pairs.count((False, True)),
        neither=pairs.count((False, False)),
        agreement=wilson(agreed, len(pairs)).model_copy(update={"clusters": prompts}),
    )


def _slices(answers: Sequence[Labelled]) -> Iterator[tuple[Rows, str, list[Labelled]]]:
    rows: dict[Rows, list[Labelled]] = {
        "development": [a for a in answers if a.row % 3 == 0],
        "held out": [a for a in answers if a.row % 3 != 0],
        "all": list(answers),
    }
    for name, part in rows.items():
        yield name, "all", part
        for model in sorted({a.model for a in part}):
            yield name, model, [a for a in part if a.model == model]


def measure(path: Path) -> RefusalManifest:
    """Return the agreement of the rules with the human labels in an XSTest file.

    Args:
        path: JSONL; each row has ``completions``, by model name ``text`` and ``human_label``.

    Raises:
        InputError: the file cannot be read, or (DataError) a row has other fields.
    """
    answers = list(_answers(path))
    return RefusalManifest(
        rules_version=RULES_VERSION,
        rules_sha256=sha256_json([OPENING, FORMS]),
        data=path.name,
        data_sha256=sha256_file(path),
        prompts=len({a.row for a in answers}),
        answers=len(answers),
        split=SPLIT,
        agreements=tuple(
            _agreement(part, rows, model, reading)
            for rows, model, part in _slices(answers)
            for reading in REFUSED
        ),
    )


if __name__ == "__main__":
    print(measure(Path(sys.argv[1])).model_dump_json(indent=2))
