"""MT-Bench's pairwise judgments: each pair of answers in both orders, on one line.

Source: Zheng et al. (2023), "Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena", arXiv
2306.05685, sections 3.4 and 4.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from harness.adapters.recorded.chats import identifier, whole
from harness.judgments.forms import JudgmentForm, RowReader, has, named, shown_lengths
from harness.judgments.verdicts import Verdict
from harness.stats.judged import BASELINE_FIRST, CANDIDATE_FIRST
from harness.tables import Row, Table

WINNERS = {"model_1": 1.0, "model_2": 0.0, "tie": 0.5, "error": None}

GAMES = {"g1": CANDIDATE_FIRST, "g2": BASELINE_FIRST}
"""Order of the answers in each game: the second shows model_2 first."""


def judge_name(value: Any) -> str:
    """Return the judge's name; a list has it before the name of the prompt that was used."""
    return named(value[0] if isinstance(value, list) and value else value, "judge")


def question(row: Row) -> tuple[str, str]:
    """Return the dialogue's id, and the id of the question in it that was judged."""
    name, turn = identifier(row["question_id"]), whole(row.get("turn"), "turn") or 1
    if name is None:
        raise ValueError("'question_id' is null")
    return name, name if turn == 1 else f"{name}/{turn}"


def _winner(row: Row, game: str) -> float | None:
    found = row[f"{game}_winner"]
    if found not in WINNERS:
        raise ValueError(f"'{game}_winner' must be {', '.join(WINNERS)}, found {found!r}")
    return WINNERS[found]


def _lengths(row: Row, game: str, order: int) -> tuple[int, int] | None:
    """Return the lengths of model_1's and model_2's answers, from what the judge was shown."""
    shown = shown_lengths(row.get(f"{game}_user_prompt"))
    return shown if shown is None or order == CANDIDATE_FIRST else (shown[1], shown[0])


def _reader(table: Table) -> RowReader:
    def read(row: Row) -> Iterator[Verdict]:
        prompt, asked = question(row)
        for game, order in GAMES.items():
            yield Verdict(
                candidate=named(row["model_1"], "model_1"),
                baseline=named(row["model_2"], "model_2"),
                judge=judge_name(row["judge"]),
                prompt=prompt,
                asked=asked,
                preference=_winner(row, game),
                order=order,
                lengths=_lengths(row, game, order),
            )

    return read


MT_BENCH = JudgmentForm(
    name="MT-Bench judgments of pairs",
    columns="question_id, model_1, model_2, g1_winner, g2_winner, judge",
    fits=has("question_id", "model_1", "model_2", "g1_winner", "g2_winner"),
    reader=_reader,
)
