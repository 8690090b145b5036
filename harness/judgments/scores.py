"""MT-Bench's scores of single answers, 1 to 10, and their means by turn.

Source: Zheng et al. (2023), arXiv 2306.05685, section 3.1: single-answer grading.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from harness.adapters.recorded.chats import whole
from harness.adapters.recorded.forms import row_of
from harness.errors import DataError, InputError
from harness.judgments.forms import has, named, number
from harness.judgments.mt_bench import judge_name, question
from harness.judgments.reading import JudgmentFile
from harness.stats.bootstrap import cluster_mean
from harness.tables import Row
from harness.types import Estimate, Record

UNPARSED = -1.0
"""Score of a reply that had no rating."""

HIGHEST = 10.0

_fits = has("question_id", "model", "score", "turn", "judge")


class Scored(NamedTuple):
    """One score of a file; None where the judge's reply had no rating."""

    model: str
    judge: str
    question: str
    turn: int
    score: float | None


class ModelScores(Record):
    """Mean scores of one model by one judge, clustered by question.

    Attributes:
        turns: by turn, from 1.
        average: over all turns together.
        judgments: how many there are; ``unparsed`` of them have no rating and are in no mean.
    """

    model: str
    judge: str
    turns: dict[int, Estimate]
    average: Estimate
    judgments: int
    unparsed: int


def holds_scores(file: JudgmentFile) -> bool:
    """Whether a file holds scores of single answers, and no verdicts on pairs."""
    return _fits(file.table.first)


def mean_scores(
    files: Sequence[JudgmentFile], *, rng: np.random.Generator, resamples: int = 2000
) -> tuple[ModelScores, ...]:
    """Return the mean scores of every model, best first.

    Raises:
        InputError: a file with a name of its own holds several models.
        DataError: a row is broken, or one answer is scored twice.
    """
    by_model: dict[tuple[str, str], list[Scored]] = defaultdict(list)
    for row in _rows(files):
        by_model[row.model, row.judge].append(row)
    found = [_means(rows, rng, resamples) for rows in by_model.values()]
    return tuple(sorted(found, key=lambda m: -(m.average.value or 0.0)))


def _rows(files: Sequence[JudgmentFile]) -> Iterator[Scored]:
    seen: set[tuple[str | int, ...]] = set()
    for file in files:
        _check_name(file)
        for line, row in file.table.rows:
            found = _renamed(_read(file.table.path, line, row), file.name)
            key = (found.model, found.judge, found.question, found.turn)
            if key in seen:
                problem = f"turn {found.turn} of '{found.question}' is scored twice"
                raise DataError(file.table.path, line, problem)
            seen.add(key)
            yield found


def _check_name(file: JudgmentFile) -> None:
    models = {str(row.get("model")) for _, row in file.table.rows}
    if file.name is not None and len(models) > 1:
        raise InputError(
            f"{file.table.path} scores {len(models)} models ({', '.join(sorted(models))}); they "
            f"cannot all be called '{file.name}'. Give the file without a name."
        )


def _renamed(found: Scored, name: str | None) -> Scored:
    return found if name is None else found._replace(model=name)


def _read(path: Path, line: int, row: Row) -> Scored:
    with row_of(path, line):
        return Scored(
            model=named(row["model"], "model"),
            judge=judge_name(row["judge"]),
            question=question(row)[0],
            turn=whole(row["turn"], "turn") or 1,
            score=_score(row),
        )


def _score(row: Row) -> float | None:
    found = number(row["score"], "score")
    if found is None or found == UNPARSED:
        return None
    if not 0 <= found <= HIGHEST:
        raise ValueError(f"'score' must lie in [0, 10], or be -1; found {row['score']!r}")
    return found


def _means(rows: Sequence[Scored], rng: np.random.Generator, resamples: int) -> ModelScores:
    turns = sorted({row.turn for row in rows})
    return ModelScores(
        model=rows[0].model,
        judge=rows[0].judge,
        turns={turn: _mean([r for r in rows if r.turn == turn], rng, resamples) for turn in turns},
        average=_mean(rows, rng, resamples),
        judgments=len(rows),
        unparsed=sum(row.score is None for row in rows),
    )


def _mean(rows: Sequence[Scored], rng: np.random.Generator, resamples: int) -> Estimate:
    rated = [(row.score, row.question) for row in rows if row.score is not None]
    return cluster_mean(
        [score for score, _ in rated],
        [question for _, question in rated],
        rng=rng,
        resamples=resamples,
        missing=len(rows) - len(rated),
    )
