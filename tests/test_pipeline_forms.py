"""Whole runs over recorded outputs: no engine, no model, every gap named, nothing invented."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import yaml
from command_records import Tbpo, refused
from fake_engine import FakeEngine
from form_runs import fake_weights, forbid_models, run_words, write_ifeval_suite
from recorded_files import (
    ANSWERS,
    QUESTIONS,
    alpaca_eval,
    arena_hard,
    both,
    ifeval,
    mt_bench,
    mt_bench_question,
    old_arena_hard,
    write_json,
    write_jsonl,
)
from stability_records import log_rows, write_log
from suite_records import EXAMPLES, make_loadable

from harness.plan import _training_logs
from harness.reading import compare_run
from harness.report.origin import dtype_text, licence_text, sampling_text, weights_text
from harness.store import GENERATIONS, RunFolder, read_run
from harness.training_logs import NO_LOG
from harness.types import (
    CheckpointSpec,
    Comparison,
    Counts,
    Estimate,
    Form,
    Loadable,
    Sampling,
    Status,
    SuiteCard,
)

Row = Callable[[int, str, str], dict[str, Any]]
Rows = Sequence[dict[str, Any]]


@pytest.fixture
def no_models(monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_models(monkeypatch)


def answers_of(name: str) -> list[str]:
    return [f"{answer} So says {name}." for answer in ANSWERS]


def rows_of(make: Row, name: str) -> list[dict[str, Any]]:
    texts = zip(QUESTIONS, answers_of(name), strict=True)
    return [make(i, question, answer) for i, (question, answer) in enumerate(texts)]


def write_models(folder: Path, make: Row, questions: Rows = ()) -> dict[str, Path]:
    if questions:
        write_jsonl(folder / "question.jsonl", questions)
    return {name: write_jsonl(folder / f"{name}.json", rows_of(make, name)) for name in ("a", "b")}


def texts(folder: RunFolder, name: str) -> dict[str, str]:
    found = [g for g in folder.records(GENERATIONS) if g.checkpoint == name]
    return {g.example_id: g.text for g in found}


def reports(output: Path) -> list[str]:
    return [(output / name).read_text("utf-8") for name in ("report.html", "report.md")]


def arena_question(i: int, question: str, answer: str) -> dict[str, Any]:
    return {"uid": f"u{i}", "category": "c", "prompt": question}


ONE_TURN = {"u0": 0, "u1": 1}
TWO_TURNS = {"81": 0, "82": 1, "81/2": 0, "82/2": 1}
"""By example id, the place of its answer."""


@pytest.mark.usefixtures("no_models")
@pytest.mark.parametrize(
    ("make", "questions", "places"),
    [
        pytest.param(alpaca_eval, [], None, id="alpaca_eval"),
        pytest.param(mt_bench, both(mt_bench_question), TWO_TURNS, id="mt_bench"),
        pytest.param(arena_hard, [], ONE_TURN, id="arena_hard"),
        pytest.param(old_arena_hard, both(arena_question), ONE_TURN, id="arena_hard-older"),
    ],
)
def test_recorded_outputs_are_compared(
    tmp_path: Path, tbpo: Tbpo, make: Row, questions: Rows, places: dict[str, int] | None
) -> None:
    files, output = write_models(tmp_path, make, questions), tmp_path / "run"
    code, out, _ = tbpo(*run_words(files, output))
    assert (code, out) == (0, f"report: {output / 'report.html'}\n")

    folder, asked = read_run(output), len(places or QUESTIONS)
    manifest, comparison = folder.manifest, compare_run(output)
    assert manifest.status == Status.COMPLETE
    assert manifest.counts["generations"] == Counts(expected=2 * asked, present=2 * asked)
    assert [c.form for c in manifest.checkpoints] == [Form.RECORDED] * 2
    assert [card.identity["name"] for card in manifest.engines] == ["replay"]
    for name in files:
        found, given = texts(folder, name), answers_of(name)
        if places is None:
            assert sorted(found.values()) == sorted(given)
        else:
            again = {i: " Again." if i.endswith("/2") else "" for i in places}
            assert found == {i: given[place] + again[i] for i, place in places.items()}
        length = metric(comparison, "characters", name)
        assert (length.n, length.missing) == (asked, 0)
        assert length.value == pytest.approx(fmean(map(len, found.values())))
    assert comparison.gaps == ()


def metric(comparison: Comparison, key: str, checkpoint: str) -> Estimate:
    (found,) = [
        r.estimate for r in comparison.metrics if (r.metric.key, r.checkpoint) == (key, checkpoint)
    ]
    return found


@pytest.mark.usefixtures("no_models")
def test_run_of_recorded_outputs_is_not_computed_again(tmp_path: Path, tbpo: Tbpo) -> None:
    files, output = write_models(tmp_path, alpaca_eval), tmp_path / "run"
    assert tbpo(*run_words(files, output))[0] == 0
    before = {path: path.read_bytes() for path in output.glob("*.json*")}
    assert tbpo(*run_words(files, output))[0] == 0
    assert {path: path.read_bytes() for path in output.glob("*.json*")} == before
    write_json(files["a"], rows_of(alpaca_eval, "c"))
    refused(tbpo(*run_words(files, output)), "They differ in: checkpoints")


def test_recorded_outputs_import_no_engine(tmp_path: Path) -> None:
    words = run_words(write_models(tmp_path, alpaca_eval), tmp_path / "run")
    code = (
        "import sys\n"
        "from harness.cli import main\n"
        f"sys.argv = ['tbpo', *{words}]\n"
        "main()\n"
        "print([m for m in ('vllm', 'transformers') if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


# What the report says of them.


@pytest.mark.usefixtures("no_models")
def test_report_invents_nothing_about_recorded_answers(tmp_path: Path, tbpo: Tbpo) -> None:
    rows = [row | {"finish_reason": "length"} for row in rows_of(alpaca_eval, "a")]
    files = write_models(tmp_path, alpaca_eval) | {"c": write_json(tmp_path / "c.json", rows)}
    tbpo(*run_words(files, tmp_path / "run"))
    for text in reports(tmp_path / "run"):
        assert "as recorded, 1 answer a prompt" in text
        assert "answers cut at a token limit" in text
        assert "a, b and c: answers recorded earlier." in text
        assert re.search(r"Cannot be known: outputs, tokens, a: 2 of 2 values missing", text)
        assert not re.search("greedy|temperature 0|1,?024|bfloat16|INCOMPLETE", text)
        assert text.count("not seen (file ") == len(files)


def card(sampling: Sampling | None, **changes: Any) -> SuiteCard:
    values: dict[str, Any] = {
        "name": "own",
        "version": 1,
        "title": "Own",
        "content_sha256": "c",
        "examples": 1,
        "sampling": sampling,
        "metrics": [],
        "judges": [],
        "primary": [],
        "has_reference": False,
        "licence": "CC0-1.0",
    }
    return SuiteCard.model_validate(values | changes)


def test_sampling_tells_what_differs_and_where_nothing_is_asked() -> None:
    warm = card(Sampling(temperature=0.7, max_tokens=9), temperatures={"math": 0.0})
    told = sampling_text(warm, [in_form(Form.WEIGHTS, "a")])
    assert told == "temperature 0.7 (math 0), top-p 1, at most 9 tokens, 1 answer a prompt"
    assert sampling_text(card(None), []) == "nothing is asked: given answers are read"
    assert sampling_text(card(None, runner="lm-eval"), []) == "by lm-eval, as it asks"


def test_a_suites_data_are_told_where_they_are_not_its_own() -> None:
    assert licence_text(card(None)) == "CC0-1.0"
    used = {"source": "mine.jsonl", "sha256": "0123456789abcdef", "rows": 9}
    told = licence_text(card(None, used=used | {"left_out": {"an empty turn": 2}}))
    assert told == (
        "CC0-1.0; read from mine.jsonl, SHA-256 0123456789ab; left out: 2 x an empty turn"
    )


@pytest.mark.parametrize(
    ("forms", "told"),
    [
        ([Form.WEIGHTS], "greedy, top-p 1, at most 9 tokens, 2 answers a prompt"),
        ([Form.ENDPOINT], "greedy, top-p 1, at most 9 tokens, 2 answers a prompt"),
        ([Form.RECORDED], "as recorded, 2 answers a prompt"),
        (
            [Form.WEIGHTS, Form.RECORDED],
            "greedy, top-p 1, at most 9 tokens, 2 answers a prompt; b as recorded",
        ),
    ],
)
def test_sampling_is_told_of_what_was_sampled(forms: list[Form], told: str) -> None:
    checkpoints = [in_form(form, name) for name, form in zip("ab", forms, strict=False)]
    sampling = Sampling(temperature=0.0, max_tokens=9, samples=2)
    found = sampling_text(card(sampling), checkpoints)
    assert found == told


def in_form(form: Form, name: str = "a") -> Loadable:
    update = {"form": form, "weights_sha256": "0123456789abcdef"}
    return make_loadable(name).model_copy(update=update)


def test_weights_that_are_not_here_have_no_hash_and_no_arithmetic() -> None:
    found = {form: (weights_text(in_form(form)), dtype_text(in_form(form))) for form in Form}
    assert found == {
        Form.WEIGHTS: ("0123456789ab", "bfloat16"),
        Form.ENDPOINT: ("not seen", "not known"),
        Form.RECORDED: ("not seen (file 0123456789ab)", "not known"),
    }


# Suites over the benchmarks' own data.


def ifeval_data(folder: Path) -> Path:
    rows = [
        {
            "key": 1000 + i,
            "prompt": question,
            "instruction_id_list": ["punctuation:no_comma"],
            "kwargs": [{"num_words": None}],
        }
        for i, question in enumerate(QUESTIONS)
    ]
    return write_jsonl(folder / "input_data.jsonl", rows)


@pytest.mark.usefixtures("no_models")
def test_ifeval_responses_are_scored_again(tmp_path: Path, tbpo: Tbpo) -> None:
    suite = write_ifeval_suite(tmp_path, ifeval_data(tmp_path))
    plain = [{"prompt": q, "response": f"No comma to {q.split()[0]}"} for q in QUESTIONS]
    files = {"good": write_jsonl(tmp_path / "good.jsonl", plain)}
    files["mixed"] = write_jsonl(tmp_path / "mixed.jsonl", rows_of(ifeval, "mixed"))
    assert tbpo(*run_words(files, tmp_path / "run", suite))[0] == 0

    comparison = compare_run(tmp_path / "run")
    found = {n: metric(comparison, "ifeval_prompt_strict", n).value for n in files}
    assert found == {"good": 1.0, "mixed": 0.5}
    (rate,) = [w for w in comparison.win_rates if w.candidate == "mixed"]
    assert (rate.wins, rate.ties, rate.losses) == (0, 1, 1)
    assert comparison.gaps == ()


@pytest.mark.usefixtures("no_models")
def test_file_that_answers_nothing_of_a_suite_stops_the_run(tmp_path: Path, tbpo: Tbpo) -> None:
    suite = write_ifeval_suite(tmp_path, ifeval_data(tmp_path))
    files = {"a": write_jsonl(tmp_path / "a.jsonl", rows_of(ifeval, "a"))}
    strange = [{"prompt": "Else?", "response": "x"}]
    files["b"] = write_jsonl(tmp_path / "b.jsonl", strange)
    words = run_words(files, tmp_path / "run", suite)
    refused(tbpo(*words), f"'b': {files['b']} answers no prompt of suite ifeval_full (first: ")
    assert "by the example's id, or by the prompt's text" in tbpo(*words)[2]
    assert not (tmp_path / "run").exists()


def test_file_that_answers_nothing_stops_the_run_before_others_are_asked(
    given: Path, tmp_path: Path, tbpo: Tbpo, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_weights(monkeypatch)
    null = [{"id": f"e{i}", "output": None} for i in range(EXAMPLES)]
    files: dict[str, Path | str] = {"base": given / "base"}
    files["silent"] = write_jsonl(tmp_path / "silent.jsonl", null)
    words = run_words(files, tmp_path / "run", given / "own.yaml")
    refused(tbpo(*words), "own/e0/0: the recorded answer is null")
    assert FakeEngine.loads == []
    assert not (tmp_path / "run").exists()
    write_jsonl(Path(files["silent"]), [*null[1:], {"id": "e0", "output": "x"}])
    assert tbpo(*words)[0] == 0


# Files with holes.

PROMPTS = [f"Question {i}?" for i in range(8)]


def with_hole(hole: str) -> Rows:
    rows = [
        {"instruction": p, "output": f"It is {i} and {i * i}.", "generator": "b"}
        for i, p in enumerate(PROMPTS)
    ]
    if hole == "null":
        rows[3]["output"] = None  # type: ignore[assignment]
    return rows[:3] + rows[4:] if hole == "absent" else rows


WHY = {"absent": "the file has no answer to", "null": "the recorded answer is null"}


@pytest.mark.usefixtures("no_models")
@pytest.mark.parametrize("hole", ["none", *WHY])
def test_a_hole_in_a_file_shows_wherever_the_run_is_read(
    tmp_path: Path, tbpo: Tbpo, hole: str
) -> None:
    whole = [{"instruction": p, "output": f"Of {p} much.", "generator": "a"} for p in PROMPTS]
    files = {"a": write_json(tmp_path / "a.json", whole)}
    files["b"] = write_json(tmp_path / "b.json", with_hole(hole))
    output, missing = tmp_path / "run", int(hole != "none")
    assert tbpo(*run_words(files, output))[0] == 0

    manifest = read_run(output).manifest
    assert manifest.status == Status.COMPLETE
    assert manifest.counts["generations"] == Counts(expected=16, present=16 - missing)
    noted = [e for e in manifest.events if e["event"] == "not answered"]
    assert [(e["checkpoint"], e["count"]) for e in noted] == [("b", 1)] * missing
    assert all(WHY[hole] in e["first"] for e in noted)
    length = metric(compare_run(output), "characters", "b")
    assert (length.n, length.missing) == (8 - missing, missing)
    assert length.value is not None
    assert length.value > 10  # the missing answer is no answer of length 0

    gap = "outputs, b: 1 of 8 answers not generated"
    _, printed, _ = tbpo("compare", output)
    assert (f"INCOMPLETE: {gap}" in printed) == bool(missing)
    for text in reports(output):
        assert (gap in text) == ("INCOMPLETE" in text) == bool(missing)
    rules = tmp_path / "rules.yaml"
    rule = {"suite": "outputs", "metric": "distinct_1", "margin": 5.0}
    rules.write_text(yaml.safe_dump({"rules": [rule]}))
    code, printed, _ = tbpo("gate", "b", "--baseline", "a", "--run", output, "--rules", rules)
    assert code == (3 if missing else 0)
    assert ("1 of the values behind it are missing" in printed) == bool(missing)


# Beside checkpoints that are asked, and beside training logs.


def test_recorded_prompts_are_asked_of_weights(
    given: Path, tmp_path: Path, tbpo: Tbpo, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_weights(monkeypatch)
    files: dict[str, Path | str] = {"base": given / "base", **write_models(tmp_path, alpaca_eval)}
    words = run_words(files, tmp_path / "run")
    refused(tbpo(*words, "--max-model-len", "1024"), "2 prompts are longer than 0 tokens")
    # Where nobody names a context, it is what the prompts need.
    assert tbpo(*words)[0] == 0
    assert 1024 < FakeEngine.settings_seen[0].max_model_len < 2048
    comparison = compare_run(tmp_path / "run")
    assert metric(comparison, "tokens", "base").n == len(QUESTIONS)
    assert metric(comparison, "tokens", "a").n == 0
    assert comparison.gaps == ()
    assert len(comparison.unknown) == 4
    for text in reports(tmp_path / "run"):
        assert "1 answer a prompt; a and b as recorded" in text


def test_second_turns_are_asked_of_weights_behind_their_own_answers(
    given: Path, tmp_path: Path, tbpo: Tbpo, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_weights(monkeypatch)
    files: dict[str, Path | str] = dict(write_models(tmp_path, mt_bench, both(mt_bench_question)))
    words = run_words(files | {"base": given / "base"}, tmp_path / "run")
    assert tbpo(*words, "--max-model-len", "2048", "--max-tokens", "16")[0] == 0
    comparison = compare_run(tmp_path / "run")
    assert metric(comparison, "tokens", "base").n == 2 * len(QUESTIONS)
    assert comparison.gaps == ()


@pytest.mark.usefixtures("no_models")
def test_recorded_answers_are_not_read_as_training_logs(tmp_path: Path, tbpo: Tbpo) -> None:
    files, output = write_models(tmp_path, alpaca_eval), tmp_path / "run"
    write_log(tmp_path / "train_log.jsonl", log_rows("dpo", 0))
    assert tbpo(*run_words(files, output, "outputs", "training_stability"))[0] == 0
    training = read_run(output).manifest.training
    assert training is not None
    assert [source.reason for source in training.sources] == [NO_LOG] * 2


def test_logs_beside_an_archive_are_its_own(tmp_path: Path) -> None:
    (tmp_path / "policy.pt").write_bytes(b"weights")
    write_log(tmp_path / "train_log.jsonl", log_rows("dpo", 0))
    spec = CheckpointSpec(name="a", source=str(tmp_path / "policy.pt"))
    found = _training_logs(make_loadable("a").model_copy(update={"spec": spec}))
    assert len(found.rows) == 64
