"""Builders of recorded outputs for tests: one file of each form, about the same two prompts."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.adapters.recorded import Recorded
from harness.types import CheckpointSpec, Loadable, Message, Role

Rows = Sequence[Mapping[str, Any]]

QUESTIONS = ("Name a colour.", "Name a metal, {please}.")
ANSWERS = ("Blue.", "Iron,\n\nof course.")


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def chat(*contents: str) -> tuple[Message, ...]:
    return tuple(Message(role=Role.USER, content=content) for content in contents)


def both(make: Callable[[int, str, str], dict[str, Any]]) -> list[dict[str, Any]]:
    return [make(i, q, a) for i, (q, a) in enumerate(zip(QUESTIONS, ANSWERS, strict=True))]


def write_jsonl(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_gzip(path: Path, rows: Rows) -> Path:
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    return path


def write_json(path: Path, rows: Rows) -> Path:
    path.write_text(json.dumps(rows, indent=2))
    return path


def write_csv(path: Path, rows: Rows) -> Path:
    with path.open("w", newline="", encoding="utf-8-sig") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_parquet(path: Path, rows: Rows) -> Path:
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
    return path


def plain(i: int, question: str, answer: str) -> dict[str, Any]:
    return {"id": i, "prompt": question, "output": answer}


def alpaca_eval(i: int, question: str, answer: str) -> dict[str, Any]:
    return {"dataset": "d", "instruction": question, "output": answer, "generator": "m"}


def ifeval(i: int, question: str, answer: str) -> dict[str, Any]:
    return {"prompt": question, "response": answer}


def lm_eval(i: int, question: str, answer: str) -> dict[str, Any]:
    return {
        "doc_id": i,
        "doc": {"question": question},
        "target": "a target",
        "arguments": {"gen_args_0": {"arg_0": f"Q: 1+1?\nA: 2\n\nQ: {question}\nA:", "arg_1": {}}},
        "resps": [[answer]],
        "filtered_resps": ["cut"],
        "filter": "strict",
    }


def mt_bench(i: int, question: str, answer: str) -> dict[str, Any]:
    choice = {"index": 0, "turns": [answer, f"{answer} Again."]}
    return {"question_id": 81 + i, "answer_id": "x", "model_id": "m", "choices": [choice]}


def mt_bench_question(i: int, question: str, answer: str) -> dict[str, Any]:
    return {"question_id": 81 + i, "category": "c", "turns": [question, "Say it again."]}


def arena_hard(i: int, question: str, answer: str) -> dict[str, Any]:
    reply = {"role": "assistant", "content": {"answer": answer}}
    return {"uid": f"u{i}", "ans_id": "x", "model": "m", "messages": [user(question), reply]}


def old_arena_hard(i: int, question: str, answer: str) -> dict[str, Any]:
    turns = [{"content": answer, "token_len": 5}]
    return {
        "question_id": f"u{i}",
        "model_id": "m",
        "choices": [{"index": 0, "turns": turns}],
    }


def generation(i: int, question: str, answer: str) -> dict[str, Any]:
    return {
        "checkpoint": "m",
        "weights_sha256": "0" * 64,
        "suite": "own",
        "example_id": f"e{i}",
        "sample": 0,
        "text": answer,
        "finish_reason": "length",
        "prompt_tokens": 5,
        "tokens": 7,
        "entropy": 1.5,
    }


def run_example(i: int, question: str, answer: str) -> dict[str, Any]:
    return {"suite": "own", "example": {"id": f"e{i}", "messages": [user(question)]}}


def recorded(path: Path, name: str = "a", model: str | None = None) -> Loadable:
    return Recorded().prepare(CheckpointSpec(name=name, source=str(path), model=model))
