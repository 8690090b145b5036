"""Every form of recorded outputs is read, by its content; broken ones are named by line."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from recorded_files import (
    ANSWERS,
    QUESTIONS,
    alpaca_eval,
    arena_hard,
    both,
    chat,
    generation,
    ifeval,
    lm_eval,
    mt_bench,
    mt_bench_question,
    old_arena_hard,
    plain,
    recorded,
    run_example,
    user,
    write_csv,
    write_gzip,
    write_json,
    write_jsonl,
    write_parquet,
)

from harness.adapters.recorded import read_recorded
from harness.adapters.recorded.reading import FORMS, read_recording
from harness.errors import CheckpointError, DataError, InputError
from harness.types import FinishReason, Form, Role

Maker = Callable[[int, str, str], dict[str, Any]]


@pytest.mark.parametrize("write", [write_jsonl, write_json, write_gzip, write_csv, write_parquet])
def test_the_container_is_told_by_its_content(tmp_path: Path, write: Any) -> None:
    found = read_recorded(write(tmp_path / "odd.name", both(plain)))

    assert [a.text for a in found] == list(ANSWERS)
    assert [a.id for a in found] == ["0", "1"]
    assert [a.messages for a in found] == [chat(q) for q in QUESTIONS]


@pytest.mark.parametrize(
    ("make", "form", "ids", "model"),
    [
        (plain, "plain rows", ["0", "1"], None),
        (alpaca_eval, "AlpacaEval outputs", [None, None], "m"),
        (ifeval, "IFEval responses", [None, None], None),
        (lm_eval, "lm-eval samples", ["0", "1"], None),
        (arena_hard, "Arena-Hard answers", ["u0", "u1"], "m"),
        (old_arena_hard, "MT-Bench answers", ["u0", "u1"], "m"),
        (generation, "generations of a run", ["e0", "e1"], "m"),
    ],
)
def test_each_form_is_recognised(
    tmp_path: Path, make: Maker, form: str, ids: list[str | None], model: str | None
) -> None:
    found = read_recording(write_jsonl(tmp_path / "a", both(make)))

    assert found.form.name == form
    assert [a.id for a in found.answers] == ids
    assert [a.text for a in found.answers] == list(ANSWERS)
    assert {a.model for a in found.answers} == {model}


@pytest.mark.parametrize("make", [alpaca_eval, ifeval, arena_hard])
def test_prompts_in_the_file_are_read(tmp_path: Path, make: Maker) -> None:
    found = read_recorded(write_json(tmp_path / "a", both(make)))
    assert [a.messages for a in found] == [chat(q) for q in QUESTIONS]


@pytest.mark.parametrize("prompt", ["messages", "prompt", "instruction", "question"])
@pytest.mark.parametrize(
    "answer", ["output", "response", "answer", "completion", "text", "generation"]
)
def test_usual_names_of_columns_are_known(tmp_path: Path, prompt: str, answer: str) -> None:
    asked = [user("Hi")] if prompt == "messages" else "Hi"
    (found,) = read_recorded(write_jsonl(tmp_path / "a", [{prompt: asked, answer: "Ho"}]))
    assert (found.messages, found.text) == (chat("Hi"), "Ho")


def test_a_response_goes_before_a_gold_answer(tmp_path: Path) -> None:
    row = {"question": "1+1?", "answer": "2", "response": "It is two."}
    (found,) = read_recorded(write_jsonl(tmp_path / "a", [row]))
    assert found.text == "It is two."


def test_what_a_row_says_about_its_answer_is_kept(tmp_path: Path) -> None:
    row = {"id": "x", "answer": "a", "finish_reason": "max_tokens", "tokens": 9, "reference": "r"}
    (found,) = read_recorded(write_jsonl(tmp_path / "a", [row]))
    assert (found.finish_reason, found.tokens, found.reference) == (FinishReason.LENGTH, 9, "r")
    (found,) = read_recorded(write_jsonl(tmp_path / "a", [{"id": "x", "answer": "a"}]))
    assert (found.finish_reason, found.tokens, found.reference) == (None, None, None)
    assert found.messages == ()


def test_a_null_answer_is_missing_and_an_empty_one_is_an_answer(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"id": "x", "answer": None}, {"id": "y", "answer": ""}]
    path = write_jsonl(tmp_path / "a", rows)
    assert [a.text for a in read_recorded(path)] == [None, ""]
    assert "1 answers are null in the file" in recorded(path).notes


def test_chats_stand_as_lists_or_as_json_in_a_cell(tmp_path: Path) -> None:
    dialogue = [user("Hi"), {"role": "assistant", "content": "Ho"}, user("He")]
    rows = [{"messages": json.dumps(dialogue), "answer": "Ha"}]
    (found,) = read_recorded(write_csv(tmp_path / "a", rows))
    assert [m.role for m in found.messages] == [Role.USER, Role.ASSISTANT, Role.USER]


def test_a_prompt_that_only_looks_like_json_stays_a_prompt(tmp_path: Path) -> None:
    for prompt in ('[{"a": 1}]', "[{", "[1, 2]"):
        (found,) = read_recorded(write_jsonl(tmp_path / "a", [{"prompt": prompt, "answer": "x"}]))
        assert found.messages == chat(prompt)


# Samples.


def test_repeated_prompts_are_samples_in_the_order_of_the_file(tmp_path: Path) -> None:
    rows = [{"id": name, "answer": text} for name, text in ("a1", "b1", "a2", "a3")]
    found = read_recorded(write_jsonl(tmp_path / "a", rows))
    assert [(a.id, a.sample, a.text) for a in found] == [
        ("a", 0, "1"),
        ("b", 0, "1"),
        ("a", 1, "2"),
        ("a", 2, "3"),
    ]


def test_one_id_with_two_prompts_makes_no_samples(tmp_path: Path) -> None:
    rows = [{"id": "a", "prompt": prompt, "answer": "x"} for prompt in ("one", "two")]
    assert [a.sample for a in read_recorded(write_jsonl(tmp_path / "a", rows))] == [0, 0]


def test_other_system_messages_make_no_samples(tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "system", "content": s}, {"role": "user", "content": "Hi"}]}
        for s in ("Be kind.", "Be rude.")
    ]
    path = write_jsonl(tmp_path / "a", [row | {"output": "x"} for row in rows])
    assert [a.sample for a in read_recorded(path)] == [0, 0]


def test_sample_numbers_of_the_file_are_kept_and_may_not_repeat(tmp_path: Path) -> None:
    rows = [{"id": "a", "answer": "x", "sample": n} for n in (3, 1)]
    assert [a.sample for a in read_recorded(write_csv(tmp_path / "a", rows))] == [3, 1]
    path = write_jsonl(tmp_path / "a", [*rows, rows[0]])
    with pytest.raises(DataError, match=r"a:3: sample 3 of 'a' occurs twice"):
        read_recorded(path)


def test_a_list_of_answers_is_a_list_of_samples(tmp_path: Path) -> None:
    path = write_parquet(
        tmp_path / "a", [{"prompt": "Hi", "responses": ["x"], "output": ["x", "y"]}]
    )
    assert [(a.sample, a.text) for a in read_recorded(path)] == [(0, "x"), (1, "y")]


# Models.


def test_a_file_of_several_models_needs_a_choice(tmp_path: Path) -> None:
    rows = [{"id": "a", "output": f"by {m}", "model": m} for m in ("m1", "m2")]
    path = write_jsonl(tmp_path / "a", rows)
    with pytest.raises(InputError, match=r"2 models; choose one with model=NAME.* m1, m2"):
        read_recorded(path)
    with pytest.raises(InputError, match=r"unknown model 'm3'.*Known: m1, m2"):
        read_recorded(path, "m3")

    assert [a.text for a in read_recorded(path, "m2")] == ["by m2"]
    assert recorded(path, model="m1").weights_sha256 != recorded(path, model="m2").weights_sha256


def test_a_model_cannot_be_chosen_where_none_is_named(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a", both(plain))
    with pytest.raises(InputError, match="names no model; leave model=m out"):
        read_recorded(path, "m")
    rows: list[dict[str, Any]]
    rows = [{"id": "a", "output": "x", "model": "m"}, {"id": "b", "output": "x", "model": None}]
    with pytest.raises(DataError, match="a:2: the row does not say which model"):
        read_recorded(write_jsonl(tmp_path / "a", rows))


# What is particular to a form.


def test_both_turns_of_mt_bench_are_answers_to_their_questions(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "question.jsonl", both(mt_bench_question))
    (tmp_path / "model_answer").mkdir()
    found = read_recorded(write_jsonl(tmp_path / "model_answer" / "m.jsonl", both(mt_bench)))

    assert [a.id for a in found] == ["81", "81/2", "82", "82/2"]
    assert found[2].messages == chat(QUESTIONS[1])
    assert found[3].messages == chat(QUESTIONS[1], "Say it again.")
    assert found[3].text == f"{ANSWERS[1]} Again."


def test_without_the_questions_mt_bench_is_known_by_id_alone(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "m.jsonl", both(mt_bench))
    assert {a.messages for a in read_recorded(path)} == {()}
    assert any("4 answers are recorded without their prompt" in n for n in recorded(path).notes)


def test_older_arena_hard_answers_find_their_questions(tmp_path: Path) -> None:
    questions = both(lambda i, question, _: {"uid": f"u{i}", "prompt": question})
    write_jsonl(tmp_path / "question.jsonl", questions)
    found = read_recorded(write_jsonl(tmp_path / "m.jsonl", both(old_arena_hard)))
    assert [a.messages for a in found] == [chat(q) for q in QUESTIONS]


def test_choices_are_samples(tmp_path: Path) -> None:
    row = {"question_id": 1, "choices": [{"turns": ["x"]}, {"turns": ["y"]}]}
    found = read_recorded(write_jsonl(tmp_path / "a", [row]))
    assert [(a.id, a.sample, a.text) for a in found] == [("1", 0, "x"), ("1", 1, "y")]


def test_a_broken_question_file_is_named(tmp_path: Path) -> None:
    questions = write_jsonl(tmp_path / "question.jsonl", [{"question_id": 81, "turns": []}])
    path = write_jsonl(tmp_path / "m.jsonl", both(mt_bench))
    with pytest.raises(DataError, match=f"{questions}:1: not a question: turns"):
        read_recorded(path)


def test_lm_eval_replies_are_read_once_and_unfiltered(tmp_path: Path) -> None:
    rows = [row | {"filter": f} for f in ("strict", "flexible") for row in both(lm_eval)]
    found = read_recorded(write_jsonl(tmp_path / "a", rows))
    assert [(a.id, a.sample, a.text) for a in found] == [("0", 0, ANSWERS[0]), ("1", 0, ANSWERS[1])]
    assert {a.reference for a in found} == {"a target"}
    assert found[0].prompt == f"Q: 1+1?\nA: 2\n\nQ: {QUESTIONS[0]}\nA:"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"resps": [["x", "y"]]}, [("0", "x"), ("0", "y")]),
        ({"doc": {"key": 1001}}, [("1001", ANSWERS[0])]),
        ({"arguments": [["Hi", {"until": []}]]}, [("0", ANSWERS[0])]),
        ({"arguments": [[[json.dumps([user("Hi")])], {}]]}, [("0", ANSWERS[0])]),
    ],
)
def test_variants_of_lm_eval_samples(
    tmp_path: Path, changes: dict[str, Any], expected: list[tuple[str, str]]
) -> None:
    row = lm_eval(0, QUESTIONS[0], ANSWERS[0]) | changes
    found = read_recorded(write_jsonl(tmp_path / "a", [row]))
    assert [(a.id, a.text) for a in found] == expected
    if "arguments" in changes:
        assert found[0].chat == chat("Hi")


@pytest.mark.parametrize("target", ["0", "None", 3, None, ["a"]])
def test_lm_eval_targets_that_are_no_text_are_no_references(tmp_path: Path, target: Any) -> None:
    row = lm_eval(0, "q", "a") | {"target": target}
    (found,) = read_recorded(write_jsonl(tmp_path / "a", [row]))
    assert found.reference is None


def test_generations_find_their_prompts_in_the_run(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "examples.jsonl", both(run_example))
    found = read_recorded(write_jsonl(tmp_path / "generations.jsonl", both(generation)))
    assert [a.messages for a in found] == [chat(q) for q in QUESTIONS]
    assert {(a.finish_reason, a.tokens) for a in found} == {(FinishReason.LENGTH, 7)}


# The adapter.


def test_the_adapter_says_what_it_found(tmp_path: Path) -> None:
    path = write_json(tmp_path / "with space é.json", both(alpaca_eval))
    found = recorded(path)
    assert (found.form, found.folder) == (Form.RECORDED, str(path))
    assert (found.template_sha256, found.tokenizer_sha256) == (None, None)
    assert found.notes == ("2 recorded answers (AlpacaEval outputs) of m",)
    assert recorded(Path(f"recorded:{path}")).weights_sha256 == found.weights_sha256

    write_json(path, both(alpaca_eval)[:1])
    assert recorded(path).weights_sha256 != found.weights_sha256


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent.json"):
        with pytest.raises(CheckpointError, match=f"'a': {path} is not a file of recorded outputs"):
            recorded(path)


# Broken files.


def test_an_unknown_form_lists_columns_and_forms(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a", [{"judgment": "x", "score": 4}])
    with pytest.raises(InputError, match=r"columns judgment, score\. Known:") as error:
        read_recorded(path)
    assert all(form.name in str(error.value) for form in FORMS)


GOOD = json.dumps({"id": "a", "prompt": "Hi", "output": "x"}) + "\n"
LM_EVAL_ROW = lm_eval(0, "q", "a")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "a: the file holds no row"),
        (b"[]", "a: the file holds no row"),
        (b"id,output\n", "a:1: the file holds no row .no JSON, and as CSV only .*id,output"),
        (GOOD + '{"id": "b"', "a:2: not valid JSON"),
        (GOOD + "\n[1]", "a:3: expected an object, found list"),
        (GOOD + '{"id": "b", "prompt": "Hi"}', "a:2: field 'output' is missing"),
        (GOOD + '{"id": "b", "output": "x"}', "a:2: field 'prompt' is missing"),
        (
            GOOD + '{"id": "b", "prompt": "Hi", "output": 3}',
            "a:2: 'output' must be text, found int",
        ),
        (GOOD + '{"id": 1.5, "prompt": "Hi", "output": "x"}', "a:2: an id is text or a whole"),
        (GOOD + '{"id": "a\\nb", "prompt": "Hi", "output": "x"}', "a:2: an id is one line"),
        (GOOD + '{"id": "b", "prompt": [], "output": "x"}', "a:2: the last turn of the prompt"),
        (GOOD + '{"id": "b", "prompt": ["x"], "output": "x"}', "a:2: a turn must be an object"),
        (GOOD + '{"id": "b", "prompt": "\\ud800", "output": "x"}', "a:2: .*surrogate"),
        (GOOD + '{"id": "b", "prompt": 1' + "0" * 5000 + "}", "a:2: not usable JSON"),
        (GOOD + '{"a":' + "[" * 100_000, "a:2: not usable JSON"),
        ("[" * 100_000, "a: not usable JSON"),
        ('[\n{"id": "a", "output": "x"},\n {"id": "b"},\n3]', "a:4: expected an object"),
        ('[\n{"id": "a", "output": "x"},\n\n {"id": "b"}]', "a:4: field 'output' is missing"),
        ('[\n{"id": "a", "output": "x"},\n', "a:3: not valid JSON"),
        ('id,output\na,"x\ny"\nb', "a:4: 1 cells for 2 columns"),
        ('id,output\na,"x', "a:2: not valid CSV"),
        ("id,id\na,b\n", "a:1: a column is named twice: id, id"),
        ("id,output,sample\na,x,0\nb,x,one\n", "a:3: 'sample' must be a whole number"),
        (b"\xff\xfe{", "a: not valid UTF-8 at byte 0"),
        (GOOD.encode() + b'{"id": "\xff"}', "a:2: not valid UTF-8"),
        (gzip.compress(GOOD.encode(), mtime=0)[:-9], "a cannot be read"),
        (gzip.compress(GOOD.encode(), mtime=0)[:12] + b"\xff" * 40, "a cannot be read"),
        (b"PAR1 and no more", "a is not a readable Parquet file"),
        (json.dumps({"question_id": 1, "choices": []}), "a:1: choices"),
        (json.dumps({"question_id": 1, "choices": [{"turns": [3]}]}), "a:1: choices.0.turns.0"),
        (json.dumps(LM_EVAL_ROW | {"resps": [[["-1.5", "False"]]]}), "a:1: .*log-likelihoods"),
        (json.dumps(LM_EVAL_ROW | {"arguments": {}}), "a:1: 'arguments' holds no prompt"),
        (json.dumps(generation(0, "q", "a") | {"text": 1}), "a:1: text"),
        (json.dumps(generation(0, "q", "a") | {"finish_reason": "odd"}), "a:1: finish_reason"),
        (json.dumps(arena_hard(0, "q", "a")) + '\n{"messages": []}', "a:2: 'messages' must be"),
    ],
)
def test_a_broken_file_is_named_by_line(tmp_path: Path, content: str | bytes, problem: str) -> None:
    path = tmp_path / "a"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(InputError, match=problem):
        read_recorded(path)


@pytest.mark.parametrize("name", ["a.json", "a.jsonl.gz", "A.JSON"])
def test_what_is_named_json_and_is_none_is_not_read_as_csv(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("<html>\n<p>not found\n")
    with pytest.raises(DataError, match=rf"{name}:1: not JSON: it starts with '<html>"):
        read_recorded(path)


@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        (user("x"), "the last turn must be the assistant's"),
        ({"role": "assistant", "content": {"reply": "x"}}, r"no 'answer', only \['reply'\]"),
        ({"role": "assistant", "content": ["x"]}, "the answer must be text, found list"),
    ],
)
def test_a_dialogue_without_its_answer_is_refused(
    tmp_path: Path, reply: dict[str, Any], problem: str
) -> None:
    rows = [arena_hard(0, "q", "a"), {"messages": [user("q"), reply], "model": "m"}]
    with pytest.raises(DataError, match=f"a:2: .*{problem}"):
        read_recorded(write_jsonl(tmp_path / "a", rows))


def test_long_cells_are_read_and_the_csv_module_is_left_as_it_was(tmp_path: Path) -> None:
    import csv

    before = csv.field_size_limit()
    rows = [{"id": "a", "output": "x" * 200_000}]
    (found,) = read_recorded(write_csv(tmp_path / "a", rows))
    assert len(found.text or "") == 200_000
    assert csv.field_size_limit() == before
