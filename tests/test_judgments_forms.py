"""Files of judgments: each form is told by its content, and a broken row by its line."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from judgment_records import (
    alpaca_row,
    annotation,
    arena,
    judgments,
    own,
    pair,
    shown,
    single,
    summary,
)
from recorded_files import write_csv, write_gzip, write_json, write_jsonl, write_parquet
from run_records import make_generation

from harness.errors import DataError, InputError
from harness.judgments import Judgments, against, holds_scores, open_judgments, read_judgments
from harness.judgments.forms import shown_lengths
from harness.judgments.reading import FORMS, recognise_form
from harness.judgments.verdicts import select

CANDIDATE, BASELINE, UNKNOWN = 1, -1, 0


def names(found: Judgments) -> list[tuple[str, str, str]]:
    judged = found.judged
    sides = zip(judged.candidate, judged.baseline, judged.judge, strict=True)
    return [(judged.models[c], judged.models[b], judged.judges[j]) for c, b, j in sides]


def lengths(found: Judgments) -> list[tuple[float, float]]:
    return list(zip(found.judged.candidate_length, found.judged.baseline_length, strict=True))


@pytest.mark.parametrize("make", [annotation, alpaca_row])
def test_alpaca_evals_preferences(tmp_path: Path, make: Callable[..., dict[str, Any]]) -> None:
    given = [2.0, 1.0, 1.5, 0, 1.25, None]
    found = judgments(tmp_path, *(make(i, p) for i, p in enumerate(given)))
    np.testing.assert_array_equal(
        found.judged.preference, [1.0, 0.0, 0.5, 0.5, 0.25, np.nan], strict=False
    )
    assert set(names(found)) == {("dpo", "base", "j")}
    assert lengths(found) == [(20 + i * i, 10 + i) for i in range(6)]
    assert found.length_difference.tolist() == [10 - i + i * i for i in range(6)]
    assert found.judged.prompts[1] == found.asked[1] == "Question 1?"
    assert found.judged.order.tolist() == [UNKNOWN] * 6
    assert not found.strong.any()


def test_item_and_row_are_the_files_own_where_it_has_them(tmp_path: Path) -> None:
    found = judgments(tmp_path, alpaca_row(0, index=4, row=2), alpaca_row(1, index=9, row=3))
    assert (found.judged.item.tolist(), found.judged.row.tolist()) == ([4, 9], [2, 3])
    found = judgments(tmp_path, annotation(0), annotation(1))
    assert (found.judged.item.tolist(), found.judged.row.tolist()) == ([-1, -1], [0, 1])
    assert judgments(tmp_path, annotation(0, index=7)).judged.item.tolist() == [7]


def test_alpaca_rows_say_whose_answer_was_shown_first(tmp_path: Path) -> None:
    sides = ("model", "reference", None)
    rows = [alpaca_row(i, shown_first=side) for i, side in enumerate(sides)]
    assert judgments(tmp_path, *rows).judged.order.tolist() == [CANDIDATE, BASELINE, UNKNOWN]


def test_mt_bench_has_both_orders_of_a_pair(tmp_path: Path) -> None:
    rows = [pair(0, "model_1", "tie"), pair(0, "error", "model_2", turn=2)]
    found = judgments(tmp_path, *rows)
    np.testing.assert_array_equal(found.judged.preference, [1.0, 0.5, np.nan, 0.0])
    assert found.judged.order.tolist() == [CANDIDATE, BASELINE] * 2
    assert set(names(found)) == {("dpo", "base", "gpt-4")}
    assert (found.judged.prompts, found.judged.prompt.tolist()) == (("81",), [0] * 4)
    assert found.asked.tolist() == ["81", "81", "81/2", "81/2"]
    assert lengths(found) == [(3, 2)] * 4


def test_arena_hard_shows_the_baseline_first_in_the_first_game(tmp_path: Path) -> None:
    labels = ["A>>B", "A>B", "A=B", "B>A", "B>>A", "A<<B", "A<B", "B<A", "B<<A", "B=A"]
    found = judgments(tmp_path, *(arena(i, label, label) for i, label in enumerate(labels)))
    for_a = np.array([1, 1, 0.5, 0, 0, 0, 0, 1, 1, 0.5])
    assert found.judged.preference[0::2].tolist() == (1 - for_a).tolist()
    assert found.judged.preference[1::2].tolist() == for_a.tolist()
    assert found.judged.order.tolist() == [BASELINE, CANDIDATE] * len(labels)
    assert found.strong[0::2].tolist() == [len(label) == 4 for label in labels]
    assert set(names(found)) == {("dpo", "baseline", "gpt-4")}


def test_arena_hards_newer_rows_name_their_baseline(tmp_path: Path) -> None:
    row = arena() | {"uid": "u9", "category": "hard_prompt"}
    del row["question_id"]
    assert names(judgments(tmp_path, row))[0][1] == "baseline of hard_prompt"
    assert names(judgments(tmp_path, row | {"baseline": "o3"}))[0][1] == "o3"


def test_arena_hards_unread_games_have_no_verdict(tmp_path: Path) -> None:
    rows = [arena(0, None, "A<>B"), arena(1) | {"games": [None, {"score": "A>B"}]}]
    found = judgments(tmp_path, *rows, arena(2) | {"games": [{"score": "B>A"}]})
    np.testing.assert_array_equal(found.judged.preference, [np.nan, np.nan, np.nan, 1, 1])


def test_lengths_are_read_off_what_the_judge_was_shown() -> None:
    arena_marks = shown("a\nb", "").replace("[The", "<|The").replace("Answer]", "Answer|>")
    assert shown_lengths(shown("abc", "de\nf")) == (3, 4)
    assert shown_lengths(arena_marks) == (3, 0)
    assert shown_lengths(shown(shown("a", "b"), "c")) is None
    assert shown_lengths("<|The Start of Assistant A's Conversation with User|>") is None
    assert shown_lengths(None) is None


def test_summaries_are_held_against_the_posts_own(tmp_path: Path) -> None:
    rows = [summary(0), summary(1, "reference", shuffled_index=0), summary(2, None)]
    found = judgments(tmp_path, *rows)
    np.testing.assert_array_equal(found.judged.preference, [1, 0, np.nan])
    assert set(names(found)) == {("ours", "reference", "unnamed judge")}
    assert found.judged.order.tolist() == [BASELINE, CANDIDATE, BASELINE]
    assert lengths(found) == [(8, 5)] * 3


def test_own_judgments_know_differences_alone(tmp_path: Path) -> None:
    rows = [own(0), own(1, "tie"), own(2, "invalid", reason="r"), own(0, suite="other")]
    found = judgments(tmp_path, *rows, own(3, "loss", preference=None))
    np.testing.assert_array_equal(found.judged.preference, [1, 0.5, np.nan, 1, 0])
    assert found.length_difference.tolist() == [7] * 5
    assert np.isnan(found.judged.candidate_length).all()
    assert found.judged.judges == ("s/reward", "other/reward")
    assert found.judged.prompts[3] == "other/e0"


def test_own_lengths_come_from_the_answers_beside(tmp_path: Path) -> None:
    answer = make_generation("dpo", "e0").model_copy(update={"text": " twelve chars\n"})
    (tmp_path / "generations.jsonl").write_text(answer.model_dump_json() + "\n")
    write_jsonl(tmp_path / "judgments.jsonl", [own(0), own(1)])
    found = read_judgments([open_judgments(tmp_path)])
    assert lengths(found)[0] == (12, 5)
    assert np.isnan(lengths(found)[1]).all()
    assert found.length_difference.tolist() == [7, 7]


ROWS = [
    pytest.param(make, id=make.__name__)
    for make in (annotation, alpaca_row, pair, arena, summary, own)
]


@pytest.mark.parametrize("make", ROWS)
def test_every_form_is_known_in_every_table(
    tmp_path: Path, make: Callable[..., dict[str, Any]]
) -> None:
    rows = [make(0), make(1)]
    expected = judgments(tmp_path, *rows)
    for write in (write_json, write_gzip, write_parquet):
        found = read_judgments([open_judgments(write(tmp_path / "other", rows))])
        assert found.forms == expected.forms
        np.testing.assert_array_equal(found.judged.preference, expected.judged.preference)
    fitting = [form for form in FORMS if form.fits(rows[0])]
    assert [form.name for form in fitting] == list(expected.forms)


@pytest.mark.parametrize("make", [annotation, alpaca_row, summary])
def test_flat_forms_are_read_from_csv(tmp_path: Path, make: Callable[..., dict[str, Any]]) -> None:
    rows = [make(0), make(1)]
    found = read_judgments([open_judgments(write_csv(tmp_path / "j.csv", rows))])
    expected = judgments(tmp_path, *rows)
    np.testing.assert_array_equal(found.judged.preference, expected.judged.preference)
    np.testing.assert_array_equal(found.length_difference, expected.length_difference)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (annotation(1, 3.0), r"'preference' must lie in \[1, 2\], or be 0 for a draw; found 3.0"),
        (annotation(1, "good"), "'preference' must be a number, found 'good'"),
        (annotation(1, True), "'preference' must be a number, found True"),
        (annotation(1, generator_2=None), "'generator_2' must be a name, found None"),
        (annotation(1, instruction=5), "'instruction' must be a name, found 5"),
        (annotation(1, output_1=5), "'output_1' must be text, found int"),
        (alpaca_row(1, index=0.5), "'index' must be a whole number"),
        (alpaca_row(1, shown_first="second"), "'shown_first' must be model, reference or null"),
        (pair(1, "model_3"), "'g1_winner' must be model_1, model_2, tie, error, found 'model_3'"),
        (pair(1, judge=[]), "'judge' must be a name"),
        (pair(1, question_id=None), "'question_id' is null"),
        (arena(1, games=[]), "'games' must be a list of two games"),
        (arena(1, games=["A>B"]), "a game must be an object with a score, found str"),
        (arena(1, games=[{}]), "field 'score' is missing"),
        (arena(1, 5), "a game's score must be text such as 'A>B', found 5"),
        (summary(1, "both"), "'preferred' must be ours, reference or null, found 'both'"),
        (summary(1, shuffled_index=2), "'shuffled_index' must be 0 or 1"),
        (own(1, "draw"), "outcome: Input should be"),
        (own(1, extra=1), "unknown key 'extra'"),
    ],
)
def test_a_broken_row_is_named(tmp_path: Path, row: dict[str, Any], problem: str) -> None:
    first = next(
        make(0)
        for make in (annotation, alpaca_row, pair, arena, summary, own)
        if set(make(0)) <= set(row)
    )
    with pytest.raises(DataError, match=f"j.jsonl:2: {problem}"):
        judgments(tmp_path, first, row)


@pytest.mark.parametrize("make", ROWS)
def test_a_missing_field_is_named(tmp_path: Path, make: Callable[..., dict[str, Any]]) -> None:
    needed = {"summary": "preferred", "arena": "judge", "pair": "judge", "own": "preference"}
    name = needed.get(make.__name__, "annotator")
    row = {key: value for key, value in make(1).items() if key != name}
    with pytest.raises(DataError, match=f"j.jsonl:2: .*'{name}' is missing"):
        judgments(tmp_path, make(0), row)


@pytest.mark.parametrize("make", ROWS)
def test_a_second_verdict_on_one_pair_is_refused(
    tmp_path: Path, make: Callable[..., dict[str, Any]]
) -> None:
    with pytest.raises(DataError, match=r"j.jsonl:2: a second verdict of .* in the same order"):
        judgments(tmp_path, make(0), make(0))
    files = [open_judgments(write_jsonl(tmp_path / n, [make(0)])) for n in ("a", "b")]
    with pytest.raises(DataError, match="b:1: a second verdict"):
        read_judgments(files)


def test_a_pair_seen_from_its_other_side_is_a_second_verdict(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a second verdict"):
        judgments(tmp_path, own(0), own(0, candidate="base", baseline="dpo"))
    both = [pair(0), pair(0, model_1="base", model_2="dpo")]
    with pytest.raises(DataError, match="a second verdict"):
        judgments(tmp_path, *both)


def test_a_name_stands_in_place_of_the_models(tmp_path: Path) -> None:
    assert names(judgments(tmp_path, annotation(), name="mine")) == [("mine", "base", "j")]
    two = [annotation(0), annotation(1, generator_2="sft")]
    with pytest.raises(InputError, match=r"judges 2 models \(dpo, sft\).*called 'mine'"):
        judgments(tmp_path, *two, name="mine")


def test_a_form_that_is_not_known_lists_those_that_are(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "j", [{"a": 1, "b": 2}])
    with pytest.raises(InputError, match=r"has the columns a, b\. Known: judgments of a run"):
        read_judgments([open_judgments(path)])
    with pytest.raises(InputError, match="cannot be read"):
        open_judgments(tmp_path / "gone")


def test_scores_are_told_from_verdicts(tmp_path: Path) -> None:
    assert holds_scores(open_judgments(write_jsonl(tmp_path / "s", [single()])))
    file = open_judgments(write_jsonl(tmp_path / "p", [pair()]))
    assert not holds_scores(file)
    assert recognise_form(file.table).name == "MT-Bench judgments of pairs"


def test_pairs_are_turned_towards_a_baseline(tmp_path: Path) -> None:
    rows = [pair(0, "model_1", "tie"), pair(1, model_1="base", model_2="sft")]
    found = judgments(tmp_path, *rows, pair(2, model_1="sft", model_2="dpo"))
    turned = against(found, "dpo")
    assert names(turned) == [("base", "dpo", "gpt-4")] * 2 + [("sft", "dpo", "gpt-4")] * 2
    assert turned.judged.preference.tolist() == [0.0, 0.5, 1.0, 1.0]
    assert turned.judged.order.tolist() == [BASELINE, CANDIDATE, CANDIDATE, BASELINE]
    assert lengths(turned) == [(2, 3)] * 2 + [(3, 2)] * 2
    assert turned.length_difference.tolist() == [-1, -1, 1, 1]
    with pytest.raises(InputError, match=r"unknown baseline 'ddpo'.*Did you mean 'dpo'"):
        against(found, "ddpo")


def test_rows_are_selected_from_every_column(tmp_path: Path) -> None:
    found = judgments(tmp_path, annotation(0, 2.0), annotation(1, 1.0))
    second = select(found, np.array([False, True]))
    assert len(second) == 1
    assert second.judged.prompts[second.judged.prompt[0]] == second.asked[0] == "Question 1?"
    assert len(select(found, np.array([1, 1, 0]))) == 3


def test_a_damaged_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / "j.gz").write_bytes(gzip.compress(json.dumps(annotation()).encode())[:-4])
    with pytest.raises(InputError, match=r"j\.gz cannot be read"):
        open_judgments(tmp_path / "j.gz")
