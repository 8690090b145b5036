"""Data behind a suite: read in any form, cut to size, refused by file and line."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from data_records import Row, asked, declare, digest, jsonl, local, rows

from harness.errors import DataError, InputError
from harness.suites import load_suite, load_suites, read_spec

URL = "https://data.example/folder/rows.jsonl"


# Which rows are taken.


def as_csv(given: list[Row]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(given[0]))
    writer.writeheader()
    writer.writerows(given)
    return text.getvalue().encode()


def as_parquet(given: list[Row]) -> bytes:
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(given), sink)
    return bytes(sink.getvalue().to_pybytes())


FORMS: dict[str, Callable[[list[Row]], bytes]] = {
    "jsonl": jsonl,
    "jsonl.gz": lambda given: gzip.compress(jsonl(given)),
    "json": lambda given: json.dumps(given, indent=2).encode(),
    "csv": as_csv,
    "csv.gz": lambda given: gzip.compress(as_csv(given)),
    "parquet": as_parquet,
}


@pytest.mark.parametrize("form", FORMS)
def test_same_rows_are_taken_of_any_form_in_any_order(tmp_path: Path, form: str) -> None:
    given = rows(50)
    path = local(tmp_path, given, {"rows": 12, "seed": 3})
    first = load_suite(path)
    random.Random(1).shuffle(given)
    copy = tmp_path / f"copy.{form}"
    copy.write_bytes(FORMS[form](given))
    second = load_suite(path, copy)
    assert second.examples == first.examples
    assert second.content_sha256 == first.content_sha256
    assert len(first.examples) == 12
    assert second.used is not None
    assert (second.used.rows, second.used.sha256) == (50, digest(copy.read_bytes()))


def test_fewer_rows_are_among_more_and_another_seed_takes_others(tmp_path: Path) -> None:
    def taken(**data: int) -> list[str]:
        return asked(load_suite(local(tmp_path, rows(60), dict(data))))

    assert taken(rows=10, seed=1) == taken(rows=30, seed=1)[:10]
    assert set(taken(rows=10, seed=1)) != set(taken(rows=10, seed=2))
    assert taken(rows=10) == taken(rows=10, seed=0)
    assert len(load_suite(local(tmp_path, rows(60))).examples) == 60


def test_rows_that_are_taken_are_spread_over_the_file(tmp_path: Path) -> None:
    suite = load_suite(local(tmp_path, rows(400), {"rows": 100}))
    places = [int(text.removeprefix("Question ").removesuffix("?")) for text in asked(suite)]
    quarters = [sum(place // 100 == quarter for place in places) for quarter in range(4)]
    assert min(quarters) >= 12  # 25 expected each, 4.3 is a standard deviation


def test_answers_do_not_decide_which_rows_are_taken(tmp_path: Path) -> None:
    before = load_suite(local(tmp_path, rows(40), {"rows": 10}))
    other = [row | {"good": f" other {row['good']}"} for row in rows(40)]
    assert asked(load_suite(local(tmp_path, other, {"rows": 10}))) == asked(before)


def test_repeated_prompts_are_told_apart_by_their_answers(tmp_path: Path) -> None:
    given = [{"key": i, "text": "Same?", "good": f"Answer {i}"} for i in range(9)]
    fields = {"user": "{text}", "reference": "good", "id": "key"}
    data = {"rows": 3, "duplicates": "keep"}
    first = load_suite(local(tmp_path, given, data, fields=fields))
    again = load_suite(local(tmp_path, given[::-1], data, fields=fields))
    assert first.examples == again.examples


def test_too_few_declared_rows_are_refused(tmp_path: Path) -> None:
    path = local(tmp_path, rows(5), {"rows": 6})
    with pytest.raises(InputError, match=r"'own', .*rows\.jsonl: .*5 usable rows.* takes 6"):
        load_suite(path)


def test_all_of_a_shorter_own_file_are_taken(tmp_path: Path) -> None:
    path = local(tmp_path, rows(9), {"rows": 8, "duplicates": "drop"})
    copy = tmp_path / "mine.jsonl"
    copy.write_bytes(jsonl([*rows(5), rows(1)[0]]))
    suite = load_suites([str(path)], data={"own": copy})[0]
    assert len(suite.examples) == 5
    assert suite.used is not None
    assert (suite.used.rows, suite.used.source) == (6, "mine.jsonl")
    assert suite.used.left_out == {"the same prompt as an earlier row": 1}


def test_questions_of_one_dialogue_stay_together(tmp_path: Path) -> None:
    given = [{"key": i, "turns": [f"First {i}", f"Then {i}"]} for i in range(30)]
    fields = {"turns": "turns", "id": "key"}
    suite = load_suite(local(tmp_path, given, {"rows": 7}, fields=fields))
    assert len(suite.examples) == 14
    assert len({e.unit for e in suite.examples}) == 7
    assert [e.id for e in suite.examples[1::2]] == [f"{e.id}/2" for e in suite.examples[::2]]


# Broken files.


PAIR = {"chosen": "\n\nHuman: A?\n\nAssistant: Yes.", "rejected": "\n\nHuman: A?\n\nAssistant: No."}


@pytest.mark.parametrize(
    ("row", "fields", "problem"),
    [
        ({"key": 1}, {}, "field 'text' is missing"),
        ({"text": "B?"}, {"reference": "good"}, "field 'good' is missing"),
        ({"text": "B?"}, {"reference": ["good", "best"]}, "'good or best' is missing"),
        ({"text": "B?", "key": 1.5}, {"id": "key"}, "an id is text or a whole number, found float"),
        ({"text": "B?", "key": True}, {"id": "key"}, "an id is .*, found bool"),
        ({"text": "B?", "key": "x\ny"}, {"id": "key"}, "id: "),
        ({"text": ""}, {}, "a turn is empty"),
        ({"text": None}, {}, "field 'text' is missing"),
        ({"text": "B?", "kind": None}, {"subset": "kind"}, "field 'kind' is missing"),
        ({"text": ["B?"]}, {"user": "{text:>9}"}, "the declared fields do not fit"),
        ({"text": " \n"}, {}, "a turn is empty"),
        ({"text": "x" * 100_000}, {}, r"100,000 characters, .* raise data\.longest_prompt"),
        ({"q": []}, {"user": "{q[0]}"}, "the declared fields do not fit"),
        ({"text": "B?", "key": ["x"]}, {"id": "key"}, "an id is .*, found list"),
        ({"q": []}, {"user": None, "turns": "q"}, "turns must be a list of texts, found list"),
        ({"q": 7}, {"user": None, "turns": "q"}, "turns must be a list of texts, found int"),
        ({"q": ["a", 7]}, {"user": None, "turns": "q"}, "a turn must be a text, found int"),
        ({"q": ["a", " "]}, {"user": None, "turns": "q"}, "a turn is empty"),
        (PAIR | {"chosen": 5}, {"user": None, "pair": True}, "'chosen' must be a text"),
        (PAIR | {"chosen": []}, {"user": None, "pair": True}, "'chosen' is a list and .* a text"),
        ({"chosen": "a"}, {"user": None, "pair": True}, "'rejected' is missing or null"),
        (
            {"text": "B?", "kind": "maybe"},
            {"expected": {"field": "kind", "answer": ["safe"], "refuse": ["unsafe"]}},
            "'kind' must be one of safe, unsafe; found 'maybe'",
        ),
    ],
)
def test_wrong_row_is_named_by_file_and_line(
    tmp_path: Path, row: Row, fields: dict[str, Any], problem: str
) -> None:
    given: dict[str, Any] = {"user": "{text}", "id_from_prompt": True} | fields
    good = {"text": "A?", "good": "g", "best": "b", "key": 0, "q": ["A?"], "kind": "safe"} | PAIR
    if "id" in fields:
        given["id_from_prompt"] = False
    given = {key: value for key, value in given.items() if value is not None}
    path = local(tmp_path, [good, row], fields=given)
    with pytest.raises(DataError, match=rf"rows\.jsonl:2: .*{problem}"):
        load_suite(path)


@pytest.mark.parametrize(
    ("roles", "problem"),
    [
        (["user", "assistant", "assistant", "user"], "turn 3 is by 'assistant', expected 'user'"),
        (["user", "user"], "turn 2 is by 'user', expected 'assistant'"),
        (["assistant", "user"], "turn 1 is by 'assistant'"),
        (["user", "assistant"], "the last turn must be the user's"),
        (["system"], "the last turn must be the user's"),
        (["user", "tool"], r"messages\.1\.role"),
    ],
)
def test_mixed_roles_are_refused(tmp_path: Path, roles: list[str], problem: str) -> None:
    chat = [{"role": role, "content": f"text {i}"} for i, role in enumerate(roles)]
    path = local(tmp_path, [{"id": "a", "messages": chat}], fields=None)
    with pytest.raises(DataError, match=rf"rows\.jsonl:1: .*{problem}"):
        load_suite(path)


def test_long_prompt_is_taken_where_the_suite_says_so(tmp_path: Path) -> None:
    row = {"text": "x" * 100_000, "good": "g"}
    suite = load_suite(local(tmp_path, [row], {"longest_prompt": 100_000}))
    assert len(asked(suite)[0]) == 100_000


def test_invalid_utf8_is_named(tmp_path: Path) -> None:
    path = declare(tmp_path)
    (tmp_path / "rows.jsonl").write_bytes(jsonl(rows(2)) + b'{"text": "\xff"}\n')
    with pytest.raises(DataError, match=r"rows\.jsonl:3: not valid UTF-8 at byte 10"):
        load_suite(path)
    (tmp_path / "rows.jsonl").write_bytes(b"text,good\nA\xff?,g\n")
    with pytest.raises(DataError, match=r"rows\.jsonl.* not "):
        load_suite(path)


def test_damaged_gzip_is_named(tmp_path: Path) -> None:
    path = declare(tmp_path)
    (tmp_path / "rows.jsonl").write_bytes(gzip.compress(jsonl(rows(50)))[:-20])
    with pytest.raises(InputError, match=r"rows\.jsonl cannot be read"):
        load_suite(path)


def test_duplicates_are_refused_dropped_or_kept(tmp_path: Path) -> None:
    given = [*rows(3), rows(2)[1] | {"key": 9}]
    fields = {"user": "{text}", "reference": "good", "id": "key"}
    with pytest.raises(DataError, match=r"rows\.jsonl:4: the prompt of '9' is that of line 2\. "):
        load_suite(local(tmp_path, given, fields=fields))
    dropped = load_suite(local(tmp_path, given, {"duplicates": "drop"}, fields=fields))
    assert [e.id for e in dropped.examples] == ["0", "1", "2"]
    kept = load_suite(local(tmp_path, given, {"duplicates": "keep"}, fields=fields))
    assert [e.id for e in kept.examples] == ["0", "1", "2", "9"]


def test_empty_prompts_are_dropped_and_counted_where_the_suite_says_so(tmp_path: Path) -> None:
    given = [*rows(3), rows(1)[0] | {"text": " \n"}]
    copy = tmp_path / "mine.jsonl"
    copy.write_bytes(jsonl(given))
    suite = load_suite(local(tmp_path, rows(1), {"empty": "drop"}), copy)
    assert len(suite.examples) == 3
    assert suite.used is not None
    assert suite.used.left_out == {"an empty turn": 1}


def test_a_temperature_of_no_subset_is_refused(tmp_path: Path) -> None:
    given = [row | {"kind": "math"} for row in rows(3)]
    sampling = {"temperature": 0.7, "max_tokens": 4}
    fields = {"user": "{text}", "id_from_prompt": True, "subset": "kind"}
    named = {"sampling": sampling, "fields": fields}
    assert load_suite(local(tmp_path, given, temperatures={"math": 0.0}, **named)).examples
    with pytest.raises(InputError, match=r"temperatures: unknown subset 'maths'.*mean 'math'"):
        load_suite(local(tmp_path, given, temperatures={"maths": 0.0}, **named))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"fields": {"turns": "q", "reference": "good"}}, "a row with turns asks several"),
        (
            {
                "fields": {"user": "{text}", "id_from_prompt": True},
                "data": {"path": "rows.jsonl", "licence": "x", "duplicates": "keep"},
            },
            "equal prompts have equal ids",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, changes: Row, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        load_suite(local(tmp_path, rows(2), **changes))


def test_doubled_id_is_refused(tmp_path: Path) -> None:
    given = [{"text": "A?", "key": 1}, {"text": "B?", "key": "1"}]
    path = local(tmp_path, given, fields={"user": "{text}", "id": "key"})
    with pytest.raises(DataError, match=r"rows\.jsonl:2: example id '1' occurs twice"):
        load_suite(path)


def test_pairs_that_make_none_are_counted(tmp_path: Path) -> None:
    empty = PAIR | {"rejected": "\n\nHuman: A?\n\nAssistant:"}
    equal = PAIR | {"rejected": PAIR["chosen"]}
    fields = {"pair": True, "id_from_prompt": True}
    path = local(tmp_path, [empty, PAIR, equal], fields=fields)
    copy = tmp_path / "rows.jsonl"
    suite = load_suite(path, copy)
    assert [(e.reference, e.rejected) for e in suite.examples] == [("Yes.", "No.")]
    assert suite.used is not None
    assert suite.used.left_out == {"empty answer": 1, "equal answers": 1}
    copy.write_bytes(jsonl([empty, equal]))
    with pytest.raises(DataError, match=r"no row makes an example \(1 x empty answer; 1 x equal"):
        load_suite(path)


def test_own_file_must_be_there_and_its_suite_named(tmp_path: Path) -> None:
    path = local(tmp_path, rows(1))
    with pytest.raises(InputError, match=r"--data own=.*gone: the file does not exist\. Wanted: "):
        load_suite(path, tmp_path / "gone")
    with pytest.raises(InputError, match="the file is a folder"):
        load_suite(path, tmp_path)
    with pytest.raises(InputError, match=r"unknown suite of --data 'owm'\. Did you mean 'own'"):
        load_suites([str(path)], data={"owm": tmp_path / "rows.jsonl"})


# Declarations.


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"data": {"licence": "x"}}, "name one of path, hub and url"),
        ({"data": {"licence": "x", "path": "a", "url": URL}}, "name one of path, hub and url"),
        ({"data": {"licence": "x", "url": "http://a/b"}}, r"data\.url: .*'http://a/b'"),
        ({"data": {"licence": "x", "path": "a", "sha256": "abc"}}, r"data\.sha256: "),
        ({"data": {"licence": "x", "path": "a", "rows": 0}}, r"data\.rows: "),
        ({"data": {"licence": "x", "path": "a", "duplicates": "no"}}, r"data\.duplicates: "),
        ({"data": {"licence": "x", "hub": {"dataset": "a", "file": "b"}}}, r"data\.hub\.dataset"),
        ({"data": {"path": "a"}}, r"'data\.licence' is missing"),
        ({"fields": {"user": "{a}", "turns": "b"}}, "name one of user, turns and pair"),
        ({"fields": {"pear": True}}, r"unknown key 'fields\.pear'"),
        ({"sampling": None, "judges": ["reference"]}, "nothing is asked without"),
        ({"temperatures": {"a": 3.0}}, r"a temperature lies in \[0, 2\]"),
    ],
)
def test_wrong_declaration_is_named(tmp_path: Path, changes: Row, problem: str) -> None:
    path = declare(tmp_path, **changes)
    with pytest.raises(InputError, match=rf"own\.yaml: .*{problem}"):
        read_spec(path)
