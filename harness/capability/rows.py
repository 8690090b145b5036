"""Rows of the six tasks as lm-eval reads them: from the hub's own columns, or the sources'.

Each function takes a row of a file and returns the hub's columns. A KeyError names a column that
is missing, a ValueError says what else is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Row = Mapping[str, Any]
Converter = Callable[[Row], dict[str, Any]]

LETTERS = "ABCD"


def _text(row: Row, column: str) -> str:
    value = row[column]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"column '{column}' must be text, found {_shown(value)}")
    return value


def _texts(value: Any, column: str, least: int) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise ValueError(f"column '{column}' must be a list of texts, found {_shown(value)}")
    if len(value) < least:
        raise ValueError(f"column '{column}' has {len(value)} texts, expected {least} or more")
    return value


def _shown(value: Any) -> str:
    return repr(value)[:80]


def arc(row: Row) -> dict[str, Any]:
    """ARC: ``question`` and ``choices`` of the hub, or both nested as AI2 publishes them."""
    question, answer = row["question"], str(row["answerKey"])
    if isinstance(question, dict):
        stem, listed = _text(question, "stem"), question["choices"]
        if not isinstance(listed, list) or not all(isinstance(c, dict) for c in listed):
            raise ValueError("column 'question.choices' must be a list of label and text")
        choices = {key: [choice[key] for choice in listed] for key in ("text", "label")}
    else:
        stem, given = _text(row, "question"), row["choices"]
        if not isinstance(given, dict):
            raise ValueError(f"column 'choices' must hold text and label, found {_shown(given)}")
        choices = {key: given[key] for key in ("text", "label")}
    texts = _texts(choices["text"], "choices.text", 2)
    labels = [str(label) for label in choices["label"]]
    if len(labels) != len(texts) or answer not in labels:
        raise ValueError(f"column 'answerKey' ({answer}) is none of the choices {labels}")
    return {
        "id": str(row.get("id", "")),
        "question": stem,
        "choices": {"text": texts, "label": labels},
        "answerKey": answer,
    }


def hellaswag(row: Row) -> dict[str, Any]:
    """HellaSwag: both layouts have the same columns; ``label`` may be text or a number."""
    endings = _texts(row["endings"], "endings", 4)
    label = str(row["label"])
    if label not in [str(i) for i in range(len(endings))]:
        raise ValueError(f"column 'label' must be the place of an ending, found {_shown(label)}")
    columns = {name: str(row[name]) for name in ("activity_label", "ctx_a", "ctx_b")}
    return {**columns, "endings": endings, "label": label}


def mmlu(row: Row) -> dict[str, Any]:
    """MMLU: ``answer`` is a letter in the sources and a place in the hub's data."""
    choices = _texts(row["choices"], "choices", len(LETTERS))
    answer = row["answer"]
    place = LETTERS.find(answer) if isinstance(answer, str) and len(answer) == 1 else answer
    if isinstance(place, bool) or place not in range(len(LETTERS)):
        raise ValueError(f"column 'answer' must be A to D or 0 to 3, found {_shown(answer)}")
    return {
        "question": _text(row, "question"),
        "subject": _text(row, "subject"),
        "choices": choices,
        "answer": place,
    }


def truthfulqa(row: Row) -> dict[str, Any]:
    """TruthfulQA: targets as two lists (hub), or as a mapping of answer to 0 or 1 (sources)."""
    given = row["mc2_targets"]
    if not isinstance(given, dict):
        raise ValueError(f"column 'mc2_targets' must be a mapping, found {_shown(given)}")
    plain = set(given) != {"choices", "labels"}
    choices = list(given) if plain else given["choices"]
    labels = list(given.values()) if plain else given["labels"]
    _texts(choices, "mc2_targets.choices", 1)
    if len(labels) != len(choices) or any(label not in (0, 1) for label in labels):
        raise ValueError("column 'mc2_targets' must say 0 or 1 of every answer")
    targets = {"choices": choices, "labels": [int(label) for label in labels]}
    return {"question": _text(row, "question"), "mc2_targets": targets}


def winogrande(row: Row) -> dict[str, Any]:
    """WinoGrande: both layouts have the same columns; ``answer`` may be text or a number."""
    sentence, answer = _text(row, "sentence"), str(row["answer"])
    if "_" not in sentence:
        raise ValueError("column 'sentence' has no '_' to be filled")
    if answer not in ("1", "2"):
        raise ValueError(f"column 'answer' must be 1 or 2, found {_shown(row['answer'])}")
    options = {name: _text(row, name) for name in ("option1", "option2")}
    return {"sentence": sentence, **options, "answer": answer}


def gsm8k(row: Row) -> dict[str, Any]:
    """GSM8K: the same columns in both layouts."""
    answer = _text(row, "answer")
    if "#### " not in answer:
        raise ValueError("column 'answer' has no line '#### NUMBER'")
    return {"question": _text(row, "question"), "answer": answer}
