"""Whole runs over an endpoint that fails as servers do, beside a checkpoint with weights."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from command_records import Tbpo
from fake_engine import FakeEngine, FakeReference, Killed
from form_runs import fake_weights, run_words
from openai_stand_in import Fault, Plan, StandIn, answer_text, seeded, stand_in
from suite_records import EXAMPLES, SAMPLES, run_config

from harness.errors import EngineError, RunFolderError
from harness.pipeline import run
from harness.plan import RunConfig
from harness.reading import compare_run
from harness.store import GENERATIONS, SCORES, RunFolder, read_run
from harness.types import CheckpointSpec, Comparison, Generation, Status

ASKED = EXAMPLES * SAMPLES
KEY = "sk-never-to-be-written"
PATIENT = {"attempts": 14, "timeout_s": 0.3, "backoff_s": 0.002, "concurrency": 4}
HASTY = PATIENT | {"attempts": 2}


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_weights(monkeypatch)
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def server() -> Iterator[StandIn]:
    with stand_in() as state:
        state.plan = seeded(1, 0.3)
        yield state


def config_of(given: Path, output: Path, server: StandIn, **endpoint: Any) -> RunConfig:
    specs = [
        CheckpointSpec(name="base", source=str(given / "base")),
        CheckpointSpec(name="served", source=server.url),
    ]
    return run_config(given, output, checkpoints=specs, endpoint=endpoint or PATIENT)


def served(output: Path) -> list[Generation]:
    return [g for g in read_run(output).records(GENERATIONS) if g.checkpoint == "served"]


def missing_values(comparison: Comparison, key: str) -> tuple[float | None, int, int]:
    (found,) = [
        r.estimate for r in comparison.metrics if (r.metric.key, r.checkpoint) == (key, "served")
    ]
    return found.value, found.n, found.missing


def down_after(answers: int) -> Plan:
    """Return a plan of a server that goes down when it has answered so often."""
    left = iter(range(answers))
    return lambda: None if next(left, None) is not None else Fault.ERROR


def test_run_is_whole_in_spite_of_faults(given: Path, tmp_path: Path, server: StandIn) -> None:
    output = run(config_of(given, tmp_path / "run", server))
    manifest, found = read_run(output).manifest, served(output)
    assert manifest.status == Status.COMPLETE
    assert Counter(g.example_id for g in found) == {f"e{i}": SAMPLES for i in range(EXAMPLES)}
    assert {g.text for g in found} == {answer_text(f"Question {i}") for i in range(EXAMPLES)}
    assert {g.weights_sha256 for g in found} == {manifest.checkpoints[1].weights_sha256}
    assert sum(server.faults.values()) > 3
    assert server.asked.total() - server.faults.total() == ASKED
    assert len({body["seed"] for body in server.bodies}) == ASKED
    assert FakeEngine.loads == FakeReference.loads == ["base"]
    engines = {card.checkpoints: card.identity["name"] for card in manifest.engines}
    assert engines == {("base",): "fake", ("served",): "openai"}


def test_what_an_endpoint_cannot_tell_is_missing_and_not_zero(
    given: Path, tmp_path: Path, server: StandIn
) -> None:
    output = run(config_of(given, tmp_path / "run", server))
    comparison = compare_run(output)
    assert missing_values(comparison, "preference_accuracy") == (None, 0, EXAMPLES)
    assert missing_values(comparison, "entropy") == (None, 0, ASKED)
    assert missing_values(comparison, "entropy_top20")[1:] == (ASKED, 0)
    assert missing_values(comparison, "tokens") == (3.0, ASKED, 0)
    reason = "'served' is an endpoint: its weights are not here"
    scores = [s for s in read_run(output).records(SCORES) if s.checkpoint == "served"]
    unread = [s for s in scores if s.metric.startswith(("preference", "likelihood", "logprob"))]
    assert {(s.value, s.reason) for s in unread} == {(None, reason)}
    # What the suite is about stays a gap; what else cannot be known is told apart from gaps.
    assert comparison.gaps == (
        f"own, preference_accuracy, served: 7 of 7 values missing (7 x {reason})",
    )
    assert len(comparison.unknown) == 5
    assert any("entropy, served: 21 of 21" in text for text in comparison.unknown)


def test_report_of_an_endpoint(given: Path, tmp_path: Path, server: StandIn, tbpo: Tbpo) -> None:
    words = run_words(
        {"base": given / "base", "served": server.url}, tmp_path / "run", given / "own.yaml"
    )
    settings = [w for k, v in PATIENT.items() for w in ("--endpoint-set", f"{k}={v}")]
    assert tbpo(*words, *settings)[0] == 0
    for name in ("report.md", "report.html"):
        text = (tmp_path / "run" / name).read_text("utf-8")
        assert "INCOMPLETE" in text
        assert "its weights are not here" in text.replace("&#39;", "'")
        assert "served: asked through a server." in text
        assert "not seen" in text
        assert "temperature 1, top-p 1" in text
    rows = (tmp_path / "run" / "report.md").read_text("utf-8").splitlines()
    (row,) = [r for r in rows if "| endpoint |" in r]
    assert row.split(" | ")[2:6] == ["endpoint", server.url, "not seen", "not known"]


def test_server_that_went_down_is_asked_only_for_the_rest(
    given: Path, tmp_path: Path, server: StandIn
) -> None:
    output, half = tmp_path / "run", ASKED // 2
    server.plan = down_after(half)
    with pytest.raises(EngineError, match=rf"{ASKED - half} of {2 * ASKED} answers are missing"):
        run(config_of(given, output, server, **HASTY))
    kept = served(output)
    assert len(kept) == half
    assert len(compare_run(output).gaps) > 1

    server.plan = seeded(2, 0.3)
    server.asked.clear()
    server.faults.clear()
    server.bodies.clear()
    FakeEngine.forget()
    run(config_of(given, output, server))
    assert server.asked.total() - server.faults.total() == ASKED - half
    assert len({body["seed"] for body in server.bodies}) == ASKED - half
    assert FakeEngine.loads == []
    assert len(served(output)) == ASKED
    assert [g for g in served(output) if g in kept] == sorted(kept, key=GENERATIONS.identity)
    assert read_run(output).manifest.status == Status.COMPLETE


def test_server_that_answers_nothing_stops_the_run(
    given: Path, tmp_path: Path, server: StandIn
) -> None:
    server.plan = down_after(0)
    with pytest.raises(EngineError, match=r"'served' answered nothing: own/e\d/\d: no usable"):
        run(config_of(given, tmp_path / "run", server, **HASTY))


def test_answers_that_came_before_the_key_was_refused_are_kept(
    given: Path, tmp_path: Path, server: StandIn
) -> None:
    output, came = tmp_path / "run", 5
    server.plan = lambda: None
    chat = "/v1/chat/completions"

    def refuse_the_next(_: object) -> None:
        if server.asked.total() == came:
            server.status[chat] = 401

    server.change = refuse_the_next
    with pytest.raises(EngineError, match="HTTP 401"):
        run(config_of(given, output, server, **PATIENT | {"concurrency": 1}))
    assert len(served(output)) == came
    del server.status[chat]
    server.bodies.clear()
    server.change = lambda _: None
    run(config_of(given, output, server))
    assert len({body["seed"] for body in server.bodies}) == ASKED - came


def test_server_that_was_upgraded_makes_another_run(
    given: Path, tmp_path: Path, server: StandIn
) -> None:
    output = tmp_path / "run"
    server.models[0]["owned_by"] = "vllm"
    server.plan = down_after(5)
    with pytest.raises(EngineError, match="answers are missing"):
        run(config_of(given, output, server, **HASTY))
    server.plan, server.version = seeded(2, 0.3), "10.0"
    with pytest.raises(RunFolderError, match="They differ in: checkpoints"):
        run(config_of(given, output, server))
    assert len(served(output)) == 5
    server.version = "9.9"
    run(config_of(given, output, server))
    assert len(served(output)) == ASKED


def test_run_killed_while_the_server_answers_asks_for_the_rest(
    given: Path, tmp_path: Path, server: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.generation.FLUSH", 4)
    real, left = RunFolder.append, iter([True] * 3)

    def append(folder: RunFolder, kind: Any, records: Sequence[Any]) -> int:
        ours = kind is GENERATIONS and records and records[0].checkpoint == "served"
        if ours and next(left, None) is None:
            raise Killed
        return real(folder, kind, records)

    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "append", append)
        with pytest.raises(Killed):
            run(config_of(given, tmp_path / "run", server))
    assert len(served(tmp_path / "run")) == 12
    server.bodies.clear()
    run(config_of(given, tmp_path / "run", server))
    assert len({body["seed"] for body in server.bodies}) == ASKED - 12
    assert len(served(tmp_path / "run")) == ASKED


def test_answer_of_an_endpoint_to_another_request_is_refused_before_anything_is_sampled(
    given: Path, tmp_path: Path, server: StandIn
) -> None:
    output = tmp_path / "run"
    server.plan = down_after(5)
    with pytest.raises(EngineError):
        run(config_of(given, output, server, **HASTY))
    file = output / GENERATIONS.file
    first, *rest = served(output)
    lost = first.model_copy(update={"request_sha256": "0" * 64})
    file.write_text("".join(g.model_dump_json() + "\n" for g in (lost, *rest)))
    FakeEngine.forget()
    with pytest.raises(RunFolderError, match=r"answer of 'served' to own/e\d was given to another"):
        run(config_of(given, output, server))
    assert FakeEngine.loads == []


def test_key_is_in_no_file_and_in_no_message(
    given: Path,
    tmp_path: Path,
    server: StandIn,
    tbpo: Tbpo,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    server.key, server.plan = KEY, down_after(ASKED // 2)
    files = {"base": given / "base", "served": f"{server.url},api_key_env=MY_KEY"}
    output = tmp_path / "run"
    words = run_words(files, output, given / "own.yaml")
    settings = [w for k, v in HASTY.items() for w in ("--endpoint-set", f"{k}={v}")]
    assert tbpo(*words, *settings)[0] == 4

    # Now the server refuses, and repeats the key that it was given.
    server.status["/v1/chat/completions"] = 400
    code, out, err = tbpo(*words, *settings)
    assert code == 0
    assert KEY not in out + err + caplog.text
    written = {p.name: p.read_bytes() for p in output.rglob("*") if p.is_file()}
    assert {"manifest.json", "report.html", "generations.jsonl"} <= set(written)
    assert [name for name, content in written.items() if KEY.encode() in content] == []
    assert b"told to say 400 to 'Bearer (key)'" in written["manifest.json"]
    assert b"MY_KEY" in written["manifest.json"]
