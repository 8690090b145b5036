"""lm-eval's tasks within a run: one engine, scores by document, and what is in the run's key."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from capability_records import FILES, ROWS, arc, declared, rows, write, write_data
from fake_engine import FakeEngine, FakeReference, Killed, logprobs
from recorded_files import ANSWERS, QUESTIONS, write_json
from suite_records import NAMES, run_config, write_suite

from harness import generation, pipeline
from harness.engines import TokenReading
from harness.errors import RunFolderError
from harness.groups import EngineGroup
from harness.pipeline import run
from harness.planning import forecast
from harness.reading import compare_run
from harness.report.lookup import Lookup
from harness.report.text import NBSP
from harness.report.verdict import limits
from harness.store import SCORES, read_run
from harness.types import PROMPTS_CUT, CheckpointSpec, Form, Status

TASKS = ("arc_challenge", "truthfulqa_mc2", "winogrande")
SOLVED = 3
"""Rows set aside of a file for two solved examples each."""


class ReadingEngine(FakeEngine):
    """Reads given tokens by hashing.

    Attributes:
        reads: calls over all engines; stop_at: the one that ends the run.
    """

    reads: ClassVar[int] = 0
    stop_at: ClassVar[int | None] = None

    def token_readings(
        self, sequences: Sequence[Sequence[int]], starts: Sequence[int]
    ) -> list[TokenReading]:
        type(self).reads += 1
        if self.reads == self.stop_at:
            raise Killed
        found = [
            logprobs(self.weights, list(s), start)
            for s, start in zip(sequences, starts, strict=True)
        ]
        return [TokenReading(logprobs=f, likeliest=[x > -1 for x in f]) for f in found]


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeEngine.forget()
    ReadingEngine.reads, ReadingEngine.stop_at = 0, None
    made = EngineGroup.make

    def make(group: EngineGroup, seed: int) -> Any:
        if group.form is not Form.WEIGHTS:
            return made(group, seed)
        return ReadingEngine(group.settings, seed)

    monkeypatch.setattr(EngineGroup, "make", make)
    monkeypatch.setattr(pipeline, "ReferenceModel", FakeReference)
    monkeypatch.setattr(generation, "FLUSH", 3)
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def asked(tmp_path: Path) -> dict[str, Any]:
    """Two suites, one of prompts and one of lm-eval's tasks, and the local data of the latter."""
    own = write_suite(tmp_path)
    general = tmp_path / "general.yaml"
    general.write_text(yaml.safe_dump(declared(TASKS)))
    data = write_data(tmp_path / "data", TASKS)
    return {"suites": [str(own), str(general)], "data": {"general": data}}


def test_tasks_run_on_the_engine_that_samples(
    given: Path, tmp_path: Path, asked: dict[str, Any]
) -> None:
    output = run(run_config(given, tmp_path / "run", **asked))
    folder = read_run(output)
    assert folder.manifest.status is Status.COMPLETE
    assert ReadingEngine.started == 1
    assert [c.name for c in folder.manifest.suites] == ["own", "general"]
    card = folder.manifest.suites[1]
    evaluated = 2 * (ROWS - SOLVED) + ROWS
    assert (card.examples, card.runner, card.primary) == (
        evaluated,
        "lm-eval",
        ("leaderboard_average",),
    )
    scores = [s for s in folder.records(SCORES) if s.suite == "general"]
    assert len(scores) == 2 * evaluated * len(NAMES)
    comparison = compare_run(output)
    assert comparison.gaps == ()
    for name in NAMES:
        estimates = {
            r.metric.key: r.estimate.value
            for r in comparison.metrics
            if r.suite == "general" and r.checkpoint == name
        }
        average = estimates.pop("leaderboard_average")
        assert average == pytest.approx(sum(v or 0 for v in estimates.values()) / len(TASKS))
        kept = output / "lm_eval" / "general" / name
        assert json.loads((kept / "results.json").read_text("utf-8"))["results"]
        assert (kept / "samples_winogrande.jsonl").is_file()
    assert run(run_config(given, output, **asked)) == output
    assert ReadingEngine.started == 1


def test_a_run_that_was_stopped_goes_on_with_what_is_missing(
    given: Path, tmp_path: Path, asked: dict[str, Any]
) -> None:
    whole = run(run_config(given, tmp_path / "whole", **asked))
    each = ReadingEngine.reads // len(NAMES)
    ReadingEngine.reads, ReadingEngine.stop_at = 0, each + 1
    with pytest.raises(Killed):
        run(run_config(given, tmp_path / "run", **asked))
    ReadingEngine.reads, ReadingEngine.stop_at = 0, None
    output = run(run_config(given, tmp_path / "run", **asked))
    assert ReadingEngine.reads == each * (len(NAMES) - 1)
    assert (output / "scores.jsonl").read_bytes() == (whole / "scores.jsonl").read_bytes()


def test_prompts_that_were_cut_are_said_so_in_the_report(
    given: Path, tmp_path: Path, asked: dict[str, Any]
) -> None:
    output = run(run_config(given, tmp_path / "run", max_model_len=300, **asked))
    events = [e for e in read_run(output).manifest.events if e["event"] == PROMPTS_CUT]
    assert [(e["suite"], e["checkpoint"]) for e in events] == [("general", n) for n in NAMES]
    (counted,) = {e["prompts"] for e in events}
    assert counted == ROWS  # TruthfulQA's, which come with a primer: its choices share a prompt
    for name in NAMES:
        kept = output / "lm_eval" / "general" / name / "results.json"
        assert json.loads(kept.read_text("utf-8"))["config"]["prompts_cut"] == counted > 0
    (said,) = [text for text in limits(Lookup(compare_run(output))) if "beginnings" in text]
    assert said.startswith(
        f"General: prompts that with their answers exceed 300{NBSP}tokens lost their beginnings"
    )
    for name in NAMES:
        assert f"{name} {counted}{NBSP}prompts" in said


def test_whole_prompts_are_not_called_cut(
    given: Path, tmp_path: Path, asked: dict[str, Any]
) -> None:
    output = run(run_config(given, tmp_path / "run", **asked))
    assert not [e for e in read_run(output).manifest.events if e["event"] == PROMPTS_CUT]
    assert not [text for text in limits(Lookup(compare_run(output))) if "beginnings" in text]


@pytest.mark.parametrize("changed", ["an answer", "a solved example"])
def test_other_data_are_another_run(
    given: Path, tmp_path: Path, asked: dict[str, Any], changed: str
) -> None:
    run(run_config(given, tmp_path / "run", **asked))
    made = rows("arc_challenge")
    place = 0 if changed == "an answer" else len(made) - 1
    made[place] = arc(place) | {"answerKey": "ABCD"[(place + 1) % 4]}
    write(asked["data"]["general"] / FILES["arc_challenge"], made)
    with pytest.raises(RunFolderError):
        run(run_config(given, tmp_path / "run", **asked))


def test_recorded_answers_have_no_value_there(tmp_path: Path, asked: dict[str, Any]) -> None:
    answers = [
        {"id": f"e{i}", "prompt": q, "output": a}
        for i, (q, a) in enumerate(zip(QUESTIONS, ANSWERS, strict=True))
    ]
    specs = [CheckpointSpec(name="old", source=str(write_json(tmp_path / "old.json", answers)))]
    changes = asked | {"suites": ["outputs", asked["suites"][1]], "checkpoints": specs}
    comparison = compare_run(run(run_config(tmp_path, tmp_path / "run", **changes)))
    found = [r.estimate for r in comparison.metrics if r.suite == "general"]
    assert {e.value for e in found} == {None}
    assert any("log-probabilities of given texts" in gap for gap in comparison.gaps)


def test_a_plan_names_them(given: Path, tmp_path: Path, asked: dict[str, Any]) -> None:
    found = forecast(run_config(given, tmp_path / "run", **asked))
    named = {suite.suite: suite for suite in found.suites}
    assert named["general"].prompts == 2 * (ROWS - SOLVED) + ROWS
    assert named["general"].difference is not None
    assert found.seconds is None
