"""Suites over recorded outputs: the pseudo-suite ``outputs``, and suites over published data."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from recorded_files import (
    ANSWERS,
    QUESTIONS,
    alpaca_eval,
    both,
    chat,
    generation,
    lm_eval,
    mt_bench,
    mt_bench_question,
    plain,
    recorded,
    user,
    write_jsonl,
)
from suite_records import make_loadable

from harness.adapters.recorded import outputs_suite, read_recorded, recorded_suite
from harness.engines import Completion, Request
from harness.engines.replay import ReplayEngine
from harness.errors import DataError, InputError
from harness.suites import OUTPUTS, Fields, Suite, load_suite, load_suites
from harness.types import Instruction, Loadable


def asked(suite: Suite) -> list[Request]:
    return [
        Request(
            key=f"outputs\n{e.id}\n{k}", messages=e.messages, sampling=suite.spec.sampling, seed=0
        )
        for e in suite.examples
        for k in range(suite.spec.sampling.samples)
    ]


def replayed(suite: Suite, checkpoint: Loadable) -> list[str | None]:
    engine = ReplayEngine()
    engine.load(checkpoint)
    replies = engine.generate(asked(suite))
    return [r.text if isinstance(r, Completion) else None for r in replies]


def test_the_prompts_of_all_files_in_first_seen_order(tmp_path: Path) -> None:
    extra = {"instruction": "More?", "output": "No.", "generator": "m"}
    first = recorded(write_jsonl(tmp_path / "a", both(plain)), "a")
    second = recorded(write_jsonl(tmp_path / "b", [extra, *both(alpaca_eval)[::-1]]), "b")
    suite = recorded_suite([first, make_loadable("weights"), second])

    assert [e.messages for e in suite.examples] == [chat(*[q]) for q in (*QUESTIONS, "More?")]
    assert [e.id for e in suite.examples][:2] == ["0", "1"]
    assert suite.examples[2].id.startswith("prompt-")
    assert (suite.spec.name, suite.spec.metrics) == ("outputs", ("length", "distinct"))
    assert (suite.spec.judges, suite.spec.primary) == ((), ("characters",))
    assert replayed(suite, second)[2] == "No."
    assert [text is None for text in replayed(suite, first)] == [False, False, True]


def test_the_content_names_the_prompts_and_nothing_else(tmp_path: Path) -> None:
    rows = both(plain)
    one = outputs_suite({"a": read_recorded(write_jsonl(tmp_path / "a", rows))})
    other = outputs_suite({"b": read_recorded(write_jsonl(tmp_path / "b", both(alpaca_eval)))})
    changed = [row | {"output": "other"} for row in rows]
    again = outputs_suite({"c": read_recorded(write_jsonl(tmp_path / "c", changed))})
    assert one.content_sha256 == again.content_sha256 != other.content_sha256


def test_one_id_for_two_prompts_does_not_mix_them(tmp_path: Path) -> None:
    swapped = [{"id": 1 - i, "prompt": q, "output": f"{i}"} for i, q in enumerate(QUESTIONS)]
    other = [{"id": 0, "prompt": "Else?", "output": "e"}]
    paths = [write_jsonl(tmp_path / n, r) for n, r in (("a", swapped), ("b", other))]
    checkpoints = [recorded(path, path.name) for path in paths]
    suite = recorded_suite([recorded(write_jsonl(tmp_path / "p", both(plain)), "p"), *checkpoints])

    assert len({e.id for e in suite.examples}) == 3
    assert replayed(suite, checkpoints[0]) == ["0", "1", None]
    assert replayed(suite, checkpoints[1]) == [None, None, "e"]


def under(system: str, question: str) -> list[dict[str, str]]:
    turns = [{"role": "system", "content": system}, user(question)]
    return turns if system else turns[1:]


def test_one_question_under_several_system_messages_is_several_examples(tmp_path: Path) -> None:
    systems = ("Be kind.", "Be rude.", "")
    rows = [
        {"id": i, "messages": under(s, q), "output": f"{s} {i}"}
        for s in systems
        for i, q in enumerate(QUESTIONS)
    ]
    checkpoint = recorded(write_jsonl(tmp_path / "a", rows))
    suite = recorded_suite([checkpoint])
    assert len({e.id for e in suite.examples}) == len(rows) == 6
    assert [e.id for e in suite.examples][:2] == ["0", "1"]
    assert suite.spec.sampling.samples == 1
    assert replayed(suite, checkpoint) == [row["output"] for row in rows]


@pytest.mark.parametrize("silent_first", [True, False])
def test_a_file_without_system_messages_joins_the_prompts_of_one_with(
    tmp_path: Path, silent_first: bool
) -> None:
    bare = [row | {"reference": "r"} for row in both(plain)]
    silent = recorded(write_jsonl(tmp_path / "a", bare), "a")
    said = [{"messages": under("Be kind.", q), "output": "dear"} for q in QUESTIONS]
    other = recorded(write_jsonl(tmp_path / "b", said), "b")
    suite = recorded_suite([silent, other] if silent_first else [other, silent])
    assert len(suite.examples) == len(QUESTIONS)
    assert {e.reference for e in suite.examples} == {"r"}
    assert replayed(suite, silent) == list(ANSWERS)
    assert replayed(suite, other) == ["dear"] * 2


def test_both_turns_of_mt_bench_are_examples(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "question.jsonl", both(mt_bench_question))
    checkpoint = recorded(write_jsonl(tmp_path / "m.jsonl", both(mt_bench)))
    suite = recorded_suite([checkpoint])
    assert [e.id for e in suite.examples] == ["81", "81/2", "82", "82/2"]
    assert suite.examples[1].messages == chat(QUESTIONS[0], "Say it again.")
    assert "Blue. Again." in replayed(suite, checkpoint)


def test_answers_without_a_prompt_join_the_prompt_of_their_id(tmp_path: Path) -> None:
    bare = read_recorded(write_jsonl(tmp_path / "m.jsonl", both(mt_bench)))
    with pytest.raises(InputError, match=r"'bare': 4 recorded answers have no prompt.*id: 81"):
        outputs_suite({"bare": bare})
    write_jsonl(tmp_path / "question.jsonl", both(mt_bench_question))
    full = read_recorded(tmp_path / "m.jsonl")
    assert len(outputs_suite({"bare": bare, "full": full}).examples) == 4


def test_references_bring_rouge_and_the_reference_judge(tmp_path: Path) -> None:
    samples = read_recorded(write_jsonl(tmp_path / "a", both(lm_eval)))
    spec = outputs_suite({"a": samples}).spec
    assert (spec.metrics[-1], spec.judges, spec.primary) == ("rouge", ("reference",), ("rouge_l",))
    some = (samples[0], samples[1].model_copy(update={"reference": None}))
    spec = outputs_suite({"a": some}).spec
    assert (spec.metrics[-1], spec.judges, spec.primary) == ("rouge", (), ("characters",))


def test_a_later_file_may_bring_the_reference(tmp_path: Path) -> None:
    rows = [row | {"reference": "r"} for row in both(plain)]
    files = [write_jsonl(tmp_path / n, r) for n, r in (("a", both(plain)), ("b", rows))]
    suite = outputs_suite({path.name: read_recorded(path) for path in files})
    assert {e.reference for e in suite.examples} == {"r"}


def test_as_many_samples_as_every_prompt_has(tmp_path: Path) -> None:
    rows = [row for row in both(plain) for _ in range(3)]
    three = read_recorded(write_jsonl(tmp_path / "a", rows))
    two = read_recorded(write_jsonl(tmp_path / "b", rows[:-1]))
    assert outputs_suite({"a": three}).spec.sampling.samples == 3
    assert outputs_suite({"a": three, "b": two}).spec.sampling.samples == 2


def test_outputs_without_recorded_outputs_is_refused() -> None:
    with pytest.raises(InputError, match="no checkpoint is a file of them"):
        recorded_suite([make_loadable("weights")])


def test_outputs_is_a_suite_name_without_a_file() -> None:
    assert load_suites([OUTPUTS]) == []
    assert [s.spec.name for s in load_suites([OUTPUTS, "diversity"])] == ["diversity"]
    with pytest.raises(InputError, match="Did you mean 'outputs'"):
        load_suites(["output"])


def test_a_run_of_ones_own_becomes_a_suite(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "generations.jsonl", both(generation))
    with pytest.raises(InputError, match=r"examples\.jsonl beside"):
        recorded_suite([recorded(path)])


# Suites whose data are laid out otherwise.

ROW: dict[str, Any] = {
    "key": 1000,
    "prompt": "Say {nothing}.",
    "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
    "kwargs": [{"relation": None}, {"relation": "at least", "num_words": 3, "letter": None}],
}
FIELDS = {
    "id": "key",
    "user": "{prompt}",
    "instructions": "instruction_id_list",
    "arguments": "kwargs",
}


def write_suite(folder: Path, row: dict[str, Any], fields: dict[str, str] = FIELDS) -> Path:
    (folder / "d.jsonl.gz").write_bytes(gzip.compress(json.dumps(row).encode()))
    declared = {
        "name": "own",
        "version": 1,
        "title": "t",
        "description": "d",
        "data": {"path": "d.jsonl.gz", "licence": "CC0-1.0"},
        "fields": fields,
        "sampling": {"temperature": 0.0, "max_tokens": 4},
        "metrics": ["ifeval"],
        "primary": ["ifeval_prompt_strict"],
    }
    (folder / "own.yaml").write_text(yaml.safe_dump(declared))
    return folder / "own.yaml"


def test_a_suite_over_ifeval_own_layout_in_gzip(tmp_path: Path) -> None:
    (example,) = load_suite(write_suite(tmp_path, ROW)).examples
    assert (example.id, example.messages) == ("1000", chat("Say {nothing}."))
    words = {"relation": "at least", "num_words": 3}
    assert example.instructions == (
        Instruction(id="punctuation:no_comma"),
        Instruction(id="length_constraints:number_words", kwargs=words),
    )


def test_instructions_may_have_another_name(tmp_path: Path) -> None:
    row = {"id": "a", "prompt": "x", "rules": [{"id": "punctuation:no_comma"}]}
    path = write_suite(tmp_path, row, {"user": "{prompt}", "instructions": "rules"})
    (example,) = load_suite(path).examples
    assert example.instructions == (Instruction(id="punctuation:no_comma"),)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"key": 1.5}, "an id is text or a whole number, found float"),
        ({"key": True}, "an id is text or a whole number, found bool"),
        ({"kwargs": [{}]}, "2 instructions have 1 sets of arguments"),
        ({"kwargs": [{}, None]}, "an instruction's arguments must be a mapping, found None"),
        ({"kwargs": {}}, "'instruction_id_list' and 'kwargs' must be lists"),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(DataError, match=f"d.jsonl.gz:1: {problem}"):
        load_suite(write_suite(tmp_path, ROW | changes))


@pytest.mark.parametrize("missing", ["key", "instruction_id_list", "kwargs"])
def test_a_missing_field_is_named(tmp_path: Path, missing: str) -> None:
    row = {key: value for key, value in ROW.items() if key != missing}
    with pytest.raises(DataError, match=f"field '{missing}' is missing"):
        load_suite(write_suite(tmp_path, row))


def test_a_damaged_archive_is_named(tmp_path: Path) -> None:
    path = write_suite(tmp_path, ROW)
    data = tmp_path / "d.jsonl.gz"
    data.write_bytes(data.read_bytes()[:-4])
    with pytest.raises(InputError, match=r"d\.jsonl\.gz cannot be read"):
        load_suite(path)


def test_unset_fields_stay_out_of_the_declared_hash() -> None:
    assert Fields().model_dump() == {"user": None, "reference": None, "rejected": None}
    assert Fields(id="key").model_dump()["id"] == "key"
