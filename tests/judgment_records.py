"""Builders of judgment files for tests: one row of each form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recorded_files import write_jsonl

from harness.judgments import Judgments, open_judgments, read_judgments

Row = dict[str, Any]


def annotation(i: int = 0, preference: float | None = 1.5, **changes: Any) -> Row:
    row = {
        "instruction": f"Question {i}?",
        "output_1": "b" * (10 + i),
        "output_2": "c" * (20 + i * i),
        "generator_1": "base",
        "generator_2": "dpo",
        "annotator": "j",
        "preference": preference,
    }
    return row | changes


def alpaca_row(i: int = 0, preference: float | None = 1.5, **changes: Any) -> Row:
    row = {
        "index": i,
        "row": i,
        "instruction": f"Question {i}?",
        "output": "c" * (20 + i * i),
        "preference": preference,
        "generator": "dpo",
        "reference_generator": "base",
        "annotator": "j",
        "len_output": 20 + i * i,
        "len_reference": 10 + i,
    }
    return row | changes


def pair(i: int = 0, first: str = "model_1", second: str = "model_1", **changes: Any) -> Row:
    row = {
        "question_id": 81 + i,
        "model_1": "dpo",
        "model_2": "base",
        "g1_winner": first,
        "g2_winner": second,
        "judge": ["gpt-4", "pair-v2"],
        "g1_user_prompt": shown("ccc", "bb"),
        "g2_user_prompt": shown("bb", "ccc"),
        "turn": 1,
    }
    return row | changes


def shown(first: str, second: str) -> str:
    return (
        "[User Question]\nQ\n\n"
        f"[The Start of Assistant A's Answer]\n{first}\n[The End of Assistant A's Answer]\n\n"
        f"[The Start of Assistant B's Answer]\n{second}\n[The End of Assistant B's Answer]"
    )


def arena(i: int = 0, first: str | None = "B>A", second: str | None = "A>B", **changes: Any) -> Row:
    games = [{"user_prompt": "q", "judgment": "r", "score": score} for score in (first, second)]
    row = {"question_id": f"u{i}", "model": "dpo", "judge": "gpt-4", "games": games}
    return row | changes


def summary(i: int = 0, preferred: str | None = "ours", **changes: Any) -> Row:
    row = {
        "row": i,
        "prompt": f"POST {i}",
        "reference_summary": "r" * 5,
        "model_summary": "m" * 8,
        "preferred": preferred,
        "shuffled_index": 1,
    }
    return row | changes


def own(i: int = 0, outcome: str = "win", **changes: Any) -> Row:
    preference = {"win": 1.0, "tie": 0.5, "loss": 0.0}.get(outcome)
    row = {
        "suite": "s",
        "judge": "reward",
        "candidate": "dpo",
        "baseline": "base",
        "example_id": f"e{i}",
        "outcome": outcome,
        "preference": preference,
        "length_difference": 7,
    }
    return row | changes


def single(i: int = 0, score: float = 8, turn: int = 1, **changes: Any) -> Row:
    row = {
        "question_id": 81 + i,
        "model": "dpo",
        "judge": ["gpt-4", "single-v1"],
        "score": score,
        "turn": turn,
    }
    return row | changes


def judgments(folder: Path, *rows: Row, name: str | None = None) -> Judgments:
    return read_judgments([open_judgments(write_jsonl(folder / "j.jsonl", rows), name)])
