"""Suites: the packaged ones are what they say, and wrong ones are refused with file and line."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.errors import DataError, InputError
from harness.files import packaged
from harness.metrics.instructions import check, unavailable
from harness.suites import (
    Suite,
    known_groups,
    known_suites,
    limited,
    load_suite,
    load_suites,
    load_training_suite,
    read_yaml,
)
from harness.types import Example, Role

COUNTS = {"instruction_following": 60, "hh": 60, "summarization": 40, "diversity": 30}

PUBLISHED = {
    ("diversity", 2): "4989b423d061e6ac",
    ("hh", 1): "1dc45ecdb70deffb",
    ("instruction_following", 1): "87a0cc0c8590334b",
    ("summarization", 1): "54e8ae90a3360c11",
}
"""Content of every published version: a changed suite needs a new version."""

ROW: dict[str, Any] = {"id": "a", "messages": [{"role": "user", "content": "Hello"}]}
DECLARATION: dict[str, Any] = {
    "name": "own",
    "version": 1,
    "title": "Own",
    "description": "d",
    "data": {"path": "own.jsonl", "licence": "CC0-1.0"},
    "sampling": {"temperature": 0.0, "max_tokens": 4},
    "metrics": ["length"],
    "primary": ["tokens"],
}


@pytest.fixture(scope="module")
def suites() -> dict[str, Suite]:
    return {suite.spec.name: suite for suite in load_suites(["mini"])}


def write(folder: Path, rows: list[Any], **changes: Any) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    return write_bytes(folder, "".join(f"{line}\n" for line in lines).encode(), **changes)


def write_bytes(folder: Path, content: bytes, **changes: Any) -> Path:
    (folder / "own.jsonl").write_bytes(content)
    declared = {k: v for k, v in (DECLARATION | changes).items() if v is not None}
    (folder / "own.yaml").write_text(yaml.safe_dump(declared))
    return folder / "own.yaml"


def asking(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


def prompt(example: Example) -> str:
    return "\n".join(m.content for m in example.messages)


def shingles(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return set(zip(words, words[1:], words[2:], strict=False))


# The packaged suites.


def test_mini_is_what_is_embedded(suites: dict[str, Suite]) -> None:
    assert {name: len(suite.examples) for name, suite in suites.items()} == COUNTS
    assert set(known_groups()["mini"].suites) == {*COUNTS, "training_stability"}


def test_published_versions_are_unchanged(suites: dict[str, Suite]) -> None:
    found = {(s.spec.name, s.spec.version): s.content_sha256[:16] for s in suites.values()}
    assert found == PUBLISHED, "raise the suite's version and add it here with its hash"


def test_declarations_are_short() -> None:
    for path in packaged().glob("*.yaml"):
        assert len(path.read_text().splitlines()) <= 40, path.name


def test_files_are_named_after_their_suites() -> None:
    training = load_training_suite(["mini"])
    assert training is not None
    assert training.spec.name in known_suites()
    for name, path in known_suites().items():
        assert read_yaml(path)["name"] == name == path.stem


def test_ids_are_unique_over_all_suites(suites: dict[str, Suite]) -> None:
    ids = Counter(e.id for suite in suites.values() for e in suite.examples)
    assert ids.most_common(1)[0][1] == 1


def test_no_two_prompts_are_nearly_the_same(suites: dict[str, Suite]) -> None:
    sets = {e.id: shingles(prompt(e)) for s in suites.values() for e in s.examples}
    frame = set.intersection(*(sets[e.id] for e in suites["summarization"].examples))
    for (a, first), (b, second) in combinations(sets.items(), 2):
        common, either = len((first & second) - frame), len((first | second) - frame)
        assert common <= 0.3 * either, (a, b)


def test_hh_is_half_helpful_half_harmless(suites: dict[str, Suite]) -> None:
    examples = suites["hh"].examples
    assert Counter(e.subset for e in examples) == {"helpful": 30, "harmless": 30}
    assert {e.expected for e in examples if e.subset == "helpful"} == {"answer"}
    harmless = Counter(e.expected for e in examples if e.subset == "harmless")
    assert harmless["refuse"] == 20
    assert harmless["answer"] == 10
    assert all(e.reference and e.rejected and e.reference != e.rejected for e in examples)
    turns = Counter(sum(m.role == Role.USER for m in e.messages) for e in examples)
    assert turns[1] >= 10
    assert sum(n for users, n in turns.items() if users > 1) >= 10


def test_posts_and_summaries_have_their_lengths(suites: dict[str, Suite]) -> None:
    rows = (packaged("data/summarization.jsonl")).read_text(encoding="utf-8").splitlines()
    for row in map(json.loads, rows):
        assert 150 <= len(row["post"].split()) <= 400, row["id"]
    for example in suites["summarization"].examples:
        assert example.reference
        assert 1 <= len(re.findall(r"[.!?](?=\s|$)", example.reference)) <= 3, example.id
        assert example.messages[0].content.startswith("Summarize the following post")


def test_reference_answers_keep_every_instruction(suites: dict[str, Suite]) -> None:
    for example in suites["instruction_following"].examples:
        assert unavailable(example) is None
        assert 1 <= len(example.instructions) <= 3, example.id
        assert example.reference
        assert all(check(example, example.reference).strict), example.id


def test_diversity_has_five_samples(suites: dict[str, Suite]) -> None:
    sampling = suites["diversity"].spec.sampling
    assert (sampling.samples, sampling.temperature, sampling.top_p) == (5, 1.0, 0.95)
    assert sampling.max_tokens == 128


# Suites of a user.


def test_own_suite_is_read(tmp_path: Path) -> None:
    rows = [ROW | asking(f"Question {i}") | {"id": f"e{i}", "good": f"g{i}"} for i in range(3)]
    suite = load_suite(write(tmp_path, rows, fields={"reference": "good"}))
    assert [e.id for e in suite.examples] == ["e0", "e1", "e2"]
    assert [e.reference for e in suite.examples] == ["g0", "g1", "g2"]
    assert load_suites([str(tmp_path / "own.yaml")]) == [suite]


def test_template_is_filled_from_the_row(tmp_path: Path) -> None:
    row = {"id": "a", "title": "T {x}", "post": "P"}
    suite = load_suite(write(tmp_path, [row], fields={"user": "{title}: {post} {{}}"}))
    assert suite.examples[0].messages[0].content == "T {x}: P {}"


def test_unknown_suite_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"unknown suite 'summarisation'\. Did you mean") as caught:
        load_suites(["hh", "summarisation"])
    for name in [*COUNTS, "mini"]:
        assert name in str(caught.value)


def test_no_suite_and_a_doubled_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no suite given"):
        load_suites([])
    assert len(load_suites(["hh", "hh", "mini"])) == 4
    own = write(tmp_path, [ROW], name="hh")
    with pytest.raises(InputError, match="two suites have one name"):
        load_suites(["hh", str(own)])


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"sampeling": {}}, "unknown key 'sampeling'"),
        ({"sampling": {"temperature": 0.0, "max_token": 4}}, "unknown key 'sampling.max_token'"),
        ({"metrics": None}, "'metrics' is missing"),
        ({"version": "x"}, "version: .*'x'"),
        ({"name": "Own suite"}, "name: .*'Own suite'"),
        ({"sampling": {"temperature": -1.0, "max_tokens": 4}}, "sampling.temperature: "),
        ({"primary": []}, "primary: "),
    ],
)
def test_wrong_key_is_named_with_its_file(
    tmp_path: Path, changes: dict[str, Any], problem: str
) -> None:
    path = write(tmp_path, [ROW], **changes)
    with pytest.raises(InputError, match=rf"own\.yaml: .*{problem}"):
        load_suite(path)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"name: [", r"own\.yaml is not valid YAML: .*line 1"),
        (b"- a\n- b\n", "must hold a mapping of keys, not list"),
        (b"", "must hold a mapping of keys, not NoneType"),
        (b"name: \xff", "cannot be read"),
        (b"name: \x00", "not valid YAML"),
    ],
)
def test_broken_yaml_is_named(tmp_path: Path, text: bytes, problem: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_bytes(text)
    with pytest.raises(InputError, match=problem):
        read_yaml(path)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ('{"id": "b", "messages": [', "not valid JSON: .* at column"),
        ('["b"]', "expected an object, found list"),
        ({"id": "b"}, "field 'messages' is missing"),
        ({"messages": ROW["messages"]}, "'id' is missing"),
        (ROW | {"id": 5}, "id: .*string"),
        (ROW | {"id": "b\nc"}, "id: "),
        (ROW, "example id 'a' occurs twice"),
        (ROW | {"id": "b", "messages": []}, "messages: "),
        (ROW | {"id": "b", "messages": "Hello"}, "messages: "),
        (ROW | {"id": "b", "messages": [{"role": "robot", "content": "x"}]}, "messages.0.role: "),
        (
            ROW | {"id": "b", "messages": [{"role": "assistant", "content": "x"}]},
            "turn 1 is by 'assistant', expected 'user'",
        ),
        (
            ROW | {"id": "b", "messages": [{"role": r, "content": "x"} for r in ("user", "user")]},
            "turn 2 is by 'user', expected 'assistant'",
        ),
        (
            ROW
            | {"id": "b", "messages": [{"role": r, "content": "x"} for r in ("user", "assistant")]},
            "the last turn must be the user's",
        ),
        (ROW | {"id": "b", "messages": [{"role": "system", "content": "x"}]}, "the last turn"),
        (ROW | {"id": "b", "messages": [{"role": "user", "content": "  "}]}, "a turn is empty"),
        (ROW | {"id": "b", "expected": "maybe"}, "expected: "),
    ],
)
def test_wrong_row_is_named_by_file_and_line(tmp_path: Path, row: Any, problem: str) -> None:
    path = write(tmp_path, [ROW, "", row])
    with pytest.raises(DataError, match=rf"own\.jsonl:3: {problem}"):
        load_suite(path)


def test_missing_field_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, [ROW | {"good": "g"}, ROW | {"id": "b"}], fields={"reference": "good"})
    with pytest.raises(DataError, match=r"own\.jsonl:2: field 'good' is missing"):
        load_suite(path)
    path = write(tmp_path, [ROW], fields={"user": "{title}"})
    with pytest.raises(DataError, match=r"own\.jsonl:1: field 'title' is missing"):
        load_suite(path)


def test_invalid_utf8_is_named_by_file_and_line(tmp_path: Path) -> None:
    path = write_bytes(tmp_path, json.dumps(ROW).encode() + b'\n{"id": "\xff"}\n')
    with pytest.raises(DataError, match=r"own\.jsonl:2: not valid UTF-8 at byte 8"):
        load_suite(path)


@pytest.mark.parametrize("content", [b"", b"\n  \n"])
def test_empty_suite_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(DataError, match=r"own\.jsonl: the suite is empty"):
        load_suite(write_bytes(tmp_path, content))


def test_missing_data_file_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, [ROW], data={"path": "gone.jsonl", "licence": "CC0-1.0"})
    with pytest.raises(InputError, match=r"gone\.jsonl cannot be read: No such file"):
        load_suite(path)


def test_hash_follows_content_and_declaration(tmp_path: Path) -> None:
    first = load_suite(write(tmp_path, [ROW])).content_sha256
    assert load_suite(write(tmp_path, [ROW])).content_sha256 == first
    changed = ROW | {"messages": [{"role": "user", "content": "Hello!"}]}
    assert load_suite(write(tmp_path, [changed])).content_sha256 != first
    warmer = {"temperature": 0.1, "max_tokens": 4}
    assert load_suite(write(tmp_path, [ROW], sampling=warmer)).content_sha256 != first


def test_limited_suite_keeps_every_subset(suites: dict[str, Suite]) -> None:
    small = limited(suites["hh"], 4)
    assert Counter(e.subset for e in small.examples) == {"helpful": 2, "harmless": 2}
    assert small.content_sha256 != suites["hh"].content_sha256
    assert small.content_sha256 != limited(suites["hh"], 6).content_sha256
    assert len(limited(suites["hh"], 1).examples) == 2
    assert limited(suites["diversity"], 99).examples == suites["diversity"].examples
    assert [len(s.examples) for s in load_suites(["diversity"], 7)] == [7]
