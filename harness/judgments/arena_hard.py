"""Arena-Hard's judgments (v0.1 and v2.0): two games a question, the baseline's answer first in one.

Arena-Hard counts a verdict of ``>>`` three times; how often is up to who takes the mean. A game
whose verdict could not be read is left out alone, as v0.1 does; v2.0 drops the other one as well.

Source: Li et al. (2024), "From Crowdsourced Data to High-Quality Benchmarks: Arena-Hard and
BenchBuilder Pipeline", arXiv 2406.11939.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from harness.adapters.recorded.chats import identifier
from harness.judgments.forms import JudgmentForm, RowReader, named, shown_lengths
from harness.judgments.mt_bench import judge_name
from harness.judgments.verdicts import Verdict
from harness.stats.judged import BASELINE_FIRST, CANDIDATE_FIRST
from harness.tables import Row, Table

BASELINE = "baseline"
"""Name of the other side where rows do not say it; v0.1's never do."""

GAMES = (BASELINE_FIRST, CANDIDATE_FIRST)
"""Order of the answers in each game; the one shown first is A."""

LABELS = {
    "A>>B": 1.0,
    "A>B": 1.0,
    "A=B": 0.5,
    "A<B": 0.0,
    "A<<B": 0.0,
    "B>>A": 0.0,
    "B>A": 0.0,
    "B=A": 0.5,
    "B<A": 1.0,
    "B<<A": 1.0,
}
"""By verdict, the degree to which A is better. Any other is a reply that cannot be read."""


def _label(game: Any) -> str | None:
    if game is None:
        return None
    if not isinstance(game, dict):
        raise ValueError(f"a game must be an object with a score, found {type(game).__name__}")
    score = game["score"]
    if score is not None and not isinstance(score, str):
        raise ValueError(f"a game's score must be text such as 'A>B', found {score!r}")
    return score if score in LABELS else None


def _preference(label: str | None, order: int) -> float | None:
    if label is None:
        return None
    return LABELS[label] if order == CANDIDATE_FIRST else 1 - LABELS[label]


def _lengths(game: Any, order: int) -> tuple[int, int] | None:
    shown = shown_lengths(game.get("user_prompt")) if isinstance(game, dict) else None
    return shown if shown is None or order == CANDIDATE_FIRST else (shown[1], shown[0])


def _games(row: Row) -> list[Any]:
    games = row["games"]
    if not isinstance(games, list) or len(games) not in (1, 2):
        raise ValueError("'games' must be a list of two games, or of the first alone")
    return games


def _baseline(row: Row) -> str:
    """Return the baseline's name; v2.0 has another one for each category."""
    category = row.get("category")
    unnamed = f"{BASELINE} of {category}" if category else BASELINE
    return named(row.get("baseline") or unnamed, "baseline")


def _reader(table: Table) -> RowReader:
    def read(row: Row) -> Iterator[Verdict]:
        prompt = identifier(row["uid"] if "uid" in row else row["question_id"])
        if prompt is None:
            raise ValueError("the question's id is null")
        for game, order in zip(_games(row), GAMES, strict=False):
            label = _label(game)
            yield Verdict(
                candidate=named(row["model"], "model"),
                baseline=_baseline(row),
                judge=judge_name(row["judge"]),
                prompt=prompt,
                asked=prompt,
                preference=_preference(label, order),
                order=order,
                lengths=_lengths(game, order),
                strong=label is not None and len(label) == len("A>>B"),
            )

    return read


ARENA_HARD = JudgmentForm(
    name="Arena-Hard judgments",
    columns="question_id or uid, model, judge, games",
    fits=lambda row: {"model", "games"} <= row.keys() and bool({"uid", "question_id"} & row.keys()),
    reader=_reader,
)
