"""Builders of suites and checkpoints for the tests of the producing half."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from harness.plan import RunConfig
from harness.suites import DataRef, Suite, SuiteSpec
from harness.types import CheckpointSpec, Dtype, Example, Loadable, Sampling

NAMES = ("base", "dpo", "tbpo")
EXAMPLES, SAMPLES, CHUNK = 7, 3, 8


def make_suite(
    name: str, examples: Iterable[Example], *, max_tokens: int = 8, samples: int = 1
) -> Suite:
    spec = SuiteSpec(
        name=name,
        version=1,
        title=name,
        description="d",
        data=DataRef(path="x", licence="CC0-1.0"),
        sampling=Sampling(temperature=1.0, max_tokens=max_tokens, samples=samples),
        metrics=("length",),
        primary=("tokens",),
    )
    return Suite(spec=spec, examples=tuple(examples), content_sha256="c")


def make_loadable(
    name: str, folder: Path | str = "x", *, template: str = "t", dtype: Dtype = Dtype.BFLOAT16
) -> Loadable:
    return Loadable(
        spec=CheckpointSpec(name=name, source="x", dtype=dtype),
        folder=str(folder),
        weights_sha256=f"weights of {name}",
        architecture="a",
        template_sha256=template,
    )


def write_suite(folder: Path, **changes: Any) -> Path:
    rows = [
        {
            "id": f"e{i}",
            "messages": [{"role": "user", "content": f"Question {i}"}],
            "good": f"the cat {i}",
            "bad": "no",
        }
        for i in range(EXAMPLES)
    ]
    (folder / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    declared = {
        "name": "own",
        "version": 1,
        "title": "Own",
        "description": "d",
        "data": {"path": "own.jsonl", "licence": "CC0-1.0"},
        "fields": {"reference": "good", "rejected": "bad"},
        "sampling": {"temperature": 1.0, "max_tokens": 16, "samples": SAMPLES},
        "metrics": ["preference_accuracy", "length", "entropy", "distinct"],
        "judges": ["reference"],
        "primary": ["preference_accuracy"],
    }
    (folder / "own.yaml").write_text(yaml.safe_dump(declared | changes))
    return folder / "own.yaml"


def run_config(given: Path, output: Path, **changes: Any) -> RunConfig:
    values: dict[str, Any] = {
        "checkpoints": [CheckpointSpec(name=n, source=str(given / n)) for n in NAMES],
        "suites": [str(given / "own.yaml")],
        "output": output,
        "engine": {"chunk": CHUNK},
    }
    return RunConfig.model_validate(values | changes)
