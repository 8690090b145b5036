"""One run on the real vLLM engine: base model and real adapter, every suite, then the report."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None, reason="vLLM is not installed (extra cpu or gpu)"
    ),
]

FILES = ("generations.jsonl", "scores.jsonl", "judgments.jsonl")
COMMAND = [
    sys.executable,
    "-m",
    "harness",
    "run",
    "--checkpoint",
    "base=embedded:smollm2-135m-instruct,method=instruct",
    "--checkpoint",
    "tbpo-q=embedded:tbpo-q,method=tbpo-q",
    "--suite",
    "mini",
    "--limit",
    "2",
    "--max-tokens",
    "48",
    "--output",
]


def start(output: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, str(output)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0, err[-4000:]
    return out + err


def rows(folder: Path, name: str) -> list[dict[str, object]]:
    text = (folder / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "undisturbed"
    finish(start(folder))
    return folder


def test_run_is_whole_and_rendered(undisturbed: Path) -> None:
    manifest = json.loads((undisturbed / "manifest.json").read_text())
    generations = pd.DataFrame(rows(undisturbed, "generations.jsonl"))
    assert manifest["status"] == "complete"
    expected = sum(s["examples"] * s["sampling"]["samples"] for s in manifest["suites"]) * 2
    assert len(generations) == expected
    assert not generations.duplicated(["checkpoint", "suite", "example_id", "sample"]).any()
    assert generations.entropy.notna().all()
    assert (generations.entropy > 0).all()
    assert (undisturbed / "report.html").stat().st_size > 10_000
    assert (undisturbed / "report.md").is_file()


def test_one_engine_start_and_both_checkpoints_proved(undisturbed: Path) -> None:
    manifest = json.loads((undisturbed / "manifest.json").read_text())
    loads = [e for e in manifest["events"] if e["event"] == "loaded"]
    assert [e["checkpoint"] for e in loads] == ["base", "tbpo-q"]
    assert all(e["own"] < e["nearest_other"] for e in loads)
    assert sum(e["event"] == "engine started" for e in manifest["events"]) == 1


def test_checkpoints_answer_differently(undisturbed: Path) -> None:
    frame = pd.DataFrame(rows(undisturbed, "generations.jsonl"))
    wide = frame.pivot(index=["suite", "example_id", "sample"], columns="checkpoint", values="text")
    assert (wide["base"] != wide["tbpo-q"]).mean() > 0.3


def test_second_run_starts_no_engine(undisturbed: Path) -> None:
    before = {name: (undisturbed / name).read_bytes() for name in FILES}
    started = time.monotonic()
    said = finish(start(undisturbed))
    assert "nothing to compute" in said
    assert time.monotonic() - started < 60
    assert {name: (undisturbed / name).read_bytes() for name in FILES} == before


def test_killed_run_goes_on_to_the_same_files(undisturbed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    process = start(folder)
    target = folder / "generations.jsonl"
    deadline = time.monotonic() + 300
    while not (target.exists() and target.stat().st_size > 2000):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    partial = len(rows(folder, "generations.jsonl"))
    assert 0 < partial < len(rows(undisturbed, "generations.jsonl"))
    finish(start(folder))
    for name in FILES:
        assert (folder / name).read_bytes() == (undisturbed / name).read_bytes(), name
