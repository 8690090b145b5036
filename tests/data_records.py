"""Suites over a data file of their own, for the tests of how data are read and fetched."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml

from harness.suites import Suite

Row = dict[str, Any]


def rows(count: int) -> list[Row]:
    return [{"key": i, "text": f"Question {i}?", "good": f"Answer {i}"} for i in range(count)]


def jsonl(given: list[Row]) -> bytes:
    return "".join(f"{json.dumps(row)}\n" for row in given).encode()


def digest(content: bytes) -> str:
    return sha256(content).hexdigest()


def declare(folder: Path, source: dict[str, Any] | None = None, **changes: Any) -> Path:
    declared: dict[str, Any] = {
        "name": "own",
        "version": 1,
        "title": "Own",
        "description": "d",
        "data": {"licence": "CC0-1.0"} | (source or {"path": "rows.jsonl"}),
        "fields": {"user": "{text}", "reference": "good", "id_from_prompt": True},
        "sampling": {"temperature": 0.0, "max_tokens": 4},
        "metrics": ["length"],
        "primary": ["tokens"],
    }
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in (declared | changes).items() if v}))
    return path


def local(
    folder: Path, given: list[Row], data: dict[str, Any] | None = None, **changes: Any
) -> Path:
    (folder / "rows.jsonl").write_bytes(jsonl(given))
    return declare(folder, {"path": "rows.jsonl"} | (data or {}), **changes)


def asked(suite: Suite) -> list[str]:
    return [e.messages[-1].content for e in suite.examples]
