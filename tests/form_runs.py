"""Whole runs over checkpoints of any form for tests: words of the command, and what stands in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_engine import FakeEngine, FakeReference

from harness import pipeline
from harness.engines import Engine
from harness.groups import EngineGroup
from harness.types import Form

IFEVAL_FIELDS = {
    "id": "key",
    "user": "{prompt}",
    "instructions": "instruction_id_list",
    "arguments": "kwargs",
}


def forbid_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every engine but the replaying one, and every model of torch's, fail the test."""
    real = EngineGroup.make

    def make(group: EngineGroup, seed: int) -> Engine:
        assert group.engine == "replay", f"{group.engine} would be started"
        return real(group, seed)

    def load(*_: object) -> None:
        raise AssertionError("a model would be loaded")

    monkeypatch.setattr(EngineGroup, "make", make)
    monkeypatch.setattr(pipeline, "ReferenceModel", load)


def fake_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let stand-ins answer for checkpoints with weights; other forms keep their own engines."""
    FakeEngine.forget()
    FakeReference.forget()
    real = EngineGroup.make

    def make(group: EngineGroup, seed: int) -> Engine:
        held = group.form is Form.WEIGHTS
        return FakeEngine(group.settings, seed) if held else real(group, seed)

    monkeypatch.setattr(EngineGroup, "make", make)
    monkeypatch.setattr(pipeline, "ReferenceModel", FakeReference)


def run_words(files: Mapping[str, Path | str], output: Path, *suites: Path | str) -> list[str]:
    """Return the words of ``tbpo run`` for checkpoints by name."""
    checkpoints = [w for name, f in files.items() for w in ("--checkpoint", f"{name}={f}")]
    chosen = [word for suite in suites or ("outputs",) for word in ("--suite", str(suite))]
    return ["run", *checkpoints, *chosen, "--output", str(output)]


def write_ifeval_suite(folder: Path, data: Path) -> Path:
    """Write a suite over a file in IFEval's own layout; return its YAML."""
    declared: dict[str, Any] = {
        "name": "ifeval_full",
        "version": 1,
        "title": "IFEval",
        "description": "d",
        "data": {"path": str(data), "licence": "Apache-2.0"},
        "fields": IFEVAL_FIELDS,
        "sampling": {"temperature": 0.0, "max_tokens": 1280},
        "metrics": ["ifeval", "length"],
        "judges": ["verifiable"],
        "primary": ["ifeval_prompt_strict"],
    }
    path = folder / "ifeval.yaml"
    path.write_text(yaml.safe_dump(declared))
    return path
