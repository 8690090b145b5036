"""Suites whose later questions go on from a checkpoint's own answers, on a fake engine."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from fake_engine import FakeEngine, FakeReference, Killed, fraction
from suite_records import NAMES, run_config, write_suite

from harness import generation, pipeline
from harness.engines import Completion, Failure, Request
from harness.errors import EngineError, InputError
from harness.groups import EngineGroup
from harness.judges.llm import MultiTurnPair
from harness.pipeline import run
from harness.reading import compare_run
from harness.requests import make_pairs
from harness.store import GENERATIONS, read_run
from harness.suites import load_suite
from harness.types import Generation, JudgeInfo, Loadable, Message

DIALOGUES = 5
ROWS = [
    {
        "question_id": 81 + i,
        "category": "writing" if i % 2 else "math",
        "turns": [f"First {i}?", f"And then {i}?", f"At last {i}?"][: 3 if i == 0 else 2],
    }
    for i in range(DIALOGUES)
]
QUESTIONS = 2 * DIALOGUES + 1
SAMPLES = 2


class Noting(FakeEngine):
    """Keeps what it was asked, and can leave an answer out."""

    asked: ClassVar[dict[str, list[Request]]] = {}
    silent: ClassVar[str | None] = None

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion | Failure]:  # type: ignore[override]
        assert self.held is not None
        self.asked[self.held.spec.name].extend(requests)
        for request in requests:
            if self.made == self.fail_after:
                raise Killed
            if request.key == self.silent:
                yield Failure(key=request.key, reason="nobody knows", final=True)
                continue
            type(self).made += 1
            yield self.answer(request)


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeEngine.forget()
    Noting.asked, Noting.silent, Noting.fail_after, Noting.made = defaultdict(list), None, None, 0
    monkeypatch.setattr(EngineGroup, "make", lambda group, seed: Noting(group.settings, seed))
    monkeypatch.setattr(pipeline, "ReferenceModel", FakeReference)
    monkeypatch.setattr(generation, "FLUSH", 3)
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    changes: dict[str, Any] = {
        "fields": {"turns": "turns", "id": "question_id", "subset": "category"},
        "sampling": {"temperature": 0.0, "max_tokens": 16, "samples": SAMPLES},
        "temperatures": {"writing": 0.7},
        "metrics": ["length"],
        "judges": [],
        "primary": ["tokens"],
    }
    path = write_suite(tmp_path, **changes)
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def config(given: Path, suite: Path, output: Path, **changes: Any) -> Any:
    return run_config(given, output, suites=[str(suite)], **changes)


def answers(folder: Path) -> dict[tuple[str, str, int], Generation]:
    return {
        (g.checkpoint, g.example_id, g.sample): g for g in read_run(folder).records(GENERATIONS)
    }


def texts(messages: Sequence[Message]) -> list[tuple[str, str]]:
    return [(m.role.value, m.content) for m in messages]


def test_every_turn_of_a_row_is_a_question_of_one_dialogue(suite: Path) -> None:
    examples = load_suite(suite).examples
    assert len(examples) == QUESTIONS
    assert [(e.id, e.unit) for e in examples[:4]] == [
        ("81", "81"),
        ("81/2", "81"),
        ("81/3", "81"),
        ("82", "82"),
    ]
    assert texts(examples[2].messages) == [
        ("user", "First 0?"),
        ("user", "And then 0?"),
        ("user", "At last 0?"),
    ]


def test_later_questions_go_on_from_own_answers(given: Path, suite: Path, tmp_path: Path) -> None:
    folder = run(config(given, suite, tmp_path / "run"))
    found = answers(folder)
    assert len(found) == len(NAMES) * QUESTIONS * SAMPLES
    for name in NAMES:
        asked = {request.key: request for request in Noting.asked[name]}
        for sample in range(SAMPLES):
            one = found[name, "81", sample].text
            two = found[name, "81/2", sample].text
            third = asked[f"own\n81/3\n{sample}"]
            assert texts(third.messages) == [
                ("user", "First 0?"),
                ("assistant", one),
                ("user", "And then 0?"),
                ("assistant", two),
                ("user", "At last 0?"),
            ]
            assert len(third.prompt) > len(asked[f"own\n81/2\n{sample}"].prompt)
    assert compare_run(folder).gaps == ()


def test_temperature_is_that_of_the_subset(given: Path, suite: Path, tmp_path: Path) -> None:
    run(config(given, suite, tmp_path / "run"))
    for request in Noting.asked["base"]:
        number = int(request.key.split("\n")[1].split("/")[0]) - 81
        assert request.sampling.temperature == (0.7 if number % 2 else 0.0)
    report = (tmp_path / "run" / "manifest.json").read_text("utf-8")
    assert '"writing": 0.7' in report


@pytest.mark.parametrize("stop", [1, 12, 23, 40])
def test_a_run_that_was_stopped_ends_the_same(
    given: Path, suite: Path, tmp_path: Path, stop: int
) -> None:
    whole = answers(run(config(given, suite, tmp_path / "whole")))
    Noting.made, Noting.fail_after = 0, stop
    with pytest.raises(Killed):
        run(config(given, suite, tmp_path / "run"))
    Noting.fail_after = None
    assert answers(run(config(given, suite, tmp_path / "run"))) == whole


def test_what_follows_a_missing_answer_is_a_gap(given: Path, suite: Path, tmp_path: Path) -> None:
    Noting.silent = "own\n81\n1"
    folder = run(config(given, suite, tmp_path / "run"))
    found = answers(folder)
    for name in NAMES:
        assert (name, "81/2", 0) in found
        assert not {(name, "81", 1), (name, "81/2", 1), (name, "81/3", 1)} & found.keys()
    gaps = " ".join(compare_run(folder).gaps)
    assert "3 of 22 answers not generated" in gaps


def test_dialogues_that_may_become_too_long_are_refused_before_anything_starts(
    given: Path, suite: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"1 prompts are longer than .*first: 81/3.*Raise"):
        run(config(given, suite, tmp_path / "run", max_model_len=80))
    assert not Noting.asked


def test_metrics_that_read_prompts_as_given_are_refused(
    given: Path, suite: Path, tmp_path: Path
) -> None:
    import yaml

    declared = yaml.safe_load(suite.read_text())
    suite.write_text(yaml.safe_dump(declared | {"metrics": ["length", "reference_kl"]}))
    with pytest.raises(InputError, match="metric 'reference_kl' reads prompts as they are given"):
        run(config(given, suite, tmp_path / "run"))
    assert not Noting.asked


def test_a_lower_limit_on_answers_is_part_of_the_run(
    given: Path, suite: Path, tmp_path: Path
) -> None:
    run(config(given, suite, tmp_path / "run", max_tokens=4))
    assert {r.sampling.max_tokens for r in Noting.asked["base"]} == {4}
    cards = [read_run(tmp_path / "run").manifest.suites[0], load_suite(suite)]
    assert cards[0].content_sha256 != cards[1].content_sha256


class Asked:
    """A judge that is only asked what it wants to see."""

    info = JudgeInfo(name="j", title="j", definition="d", identity="i")

    def compare(self, pairs: Sequence[Any]) -> list[Any]:
        raise EngineError(f"{len(pairs)} pairs")


def test_a_judge_sees_the_answers_before_the_last(
    given: Path, suite: Path, checkpoints: list[Loadable]
) -> None:
    loaded = load_suite(suite)
    given_texts = {
        ("own", c.spec.name, e.id): f"{c.spec.name} {e.id} {fraction(e.id):.2f}"
        for c in checkpoints
        for e in loaded.examples
    }
    pairs = make_pairs(loaded, checkpoints, given_texts, Asked())
    assert len(pairs) == QUESTIONS
    by_id = {pair.example.id: pair for pair in pairs}
    third = by_id["81/3"]
    assert isinstance(third, MultiTurnPair)
    assert third.candidate_before == tuple(given_texts["own", "b", i] for i in ("81", "81/2"))
    assert third.baseline_text == given_texts["own", "a", "81/3"]
    assert not isinstance(by_id["81"], MultiTurnPair)
    del given_texts["own", "a", "81/2"]
    left = {pair.example.id for pair in make_pairs(loaded, checkpoints, given_texts, Asked())}
    assert {e.id for e in loaded.examples} - left == {"81/2", "81/3"}


@pytest.fixture
def checkpoints() -> list[Loadable]:
    from suite_records import make_loadable

    return [make_loadable("a"), make_loadable("b")]
