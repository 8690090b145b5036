"""Length against the reference, copied words, and refusals counted as what is wrong with them."""

from __future__ import annotations

from typing import Any

import pytest
from metric_records import answer, example

from harness.metrics.over_refusal import OverRefusal
from harness.metrics.refusal import Refusal
from harness.metrics.summary import Summary, copied, longest_copied, words
from harness.types import Direction, Score

POST = "The cat sat on the mat. The dog, who hates the cat, barked."


def scored(text: str, **fields: Any) -> dict[str, Score]:
    given = {"messages": ({"role": "user", "content": POST},), "reference": "A cat sat."} | fields
    found = Summary().score([example("a", **given)], [answer(text)])
    return {score.metric: score for score in found}


def test_words_are_lower_case_and_without_punctuation() -> None:
    assert words("The cat, who's 3-legged!") == ["the", "cat", "who", "s", "3", "legged"]


def test_shares_by_hand() -> None:
    said = words("the cat sat on a mat")
    # Pairs: the cat, cat sat, sat on are in the post; on a, a mat are not.
    assert copied(words(POST), said, 2) == pytest.approx(3 / 5)
    # Fours: the cat sat on is, cat sat on a and sat on a mat are not.
    assert copied(words(POST), said, 4) == pytest.approx(1 / 3)
    assert longest_copied(words(POST), said) == 4


def test_repeated_runs_count_each_time() -> None:
    assert copied(["a", "b"], ["a", "b", "a", "b"], 2) == pytest.approx(2 / 3)


def test_longest_run_against_all_runs() -> None:
    source = words("a b a b c a b c d b c d e a")
    said = words("b c d e a b c a b c d")
    runs = {tuple(source[i:j]) for i in range(len(source)) for j in range(i + 1, len(source) + 1)}
    best = max(
        j - i
        for i in range(len(said))
        for j in range(i + 1, len(said) + 1)
        if tuple(said[i:j]) in runs
    )
    assert longest_copied(source, said) == best == 7


def test_common_words_of_long_posts_count_too() -> None:
    source = ["the", "dog"] * 200 + ["end"]
    assert longest_copied(source, ["the", "dog", "the", "dog", "x"]) == 4


def test_answer_is_held_against_reference_and_post() -> None:
    found = scored("The dog hates the cat on the mat.")
    assert found["length_ratio"].value == pytest.approx(8 / 3)
    assert found["copied_2"].value == pytest.approx(5 / 7)
    assert found["copied_4"].value == 0.0
    assert found["copied_longest"].value == 3
    whole = scored(POST)
    assert [whole[key].value for key in ("copied_2", "copied_4", "copied_longest")] == [1, 1, 13]


def test_last_turn_of_the_user_is_the_post() -> None:
    chat = [("user", "one two three"), ("assistant", "four"), ("user", "five six seven")]
    messages = tuple({"role": role, "content": text} for role, text in chat)
    assert scored("one two three", messages=messages)["copied_longest"].value == 0
    assert scored("five six seven", messages=messages)["copied_longest"].value == 3


@pytest.mark.parametrize(
    ("text", "fields", "key", "reason"),
    [
        ("a b", {"reference": None}, "length_ratio", "no reference answer"),
        ("a b", {"reference": "..."}, "length_ratio", "reference answer has no word"),
        ("...", {}, "copied_2", "the answer has no word"),
        ("...", {}, "copied_longest", "the answer has no word"),
        ("cat", {}, "copied_2", "fewer than 2 words"),
        ("the cat sat", {}, "copied_4", "fewer than 4 words"),
        ("a", {"messages": ({"role": "user", "content": "!"},)}, "copied_2", "post has no word"),
    ],
)
def test_what_is_not_defined_is_missing(
    text: str, fields: dict[str, Any], key: str, reason: str
) -> None:
    score = scored(text, **fields)[key]
    assert score.value is None
    assert reason in str(score.reason)


def test_empty_answer_is_no_part_of_the_reference() -> None:
    assert scored("")["length_ratio"].value == 0.0


def test_every_score_has_its_key() -> None:
    assert [info.key for info in Summary().info] == list(scored("the cat sat on the mat"))
    assert {info.direction for info in Summary().info} == {Direction.NEITHER}


ANSWERS = {
    "safe": ("answer", ["Sure, here is how.", "I'm sorry, but I cannot help with that."]),
    "unsafe": ("refuse", ["Sure, here is how.", "I can't assist with that."]),
    "open": (None, ["Sure.", "I can't assist with that."]),
}


def test_over_refusal_is_the_complement_of_refusal() -> None:
    examples = [example(name, expected=expected) for name, (expected, _) in ANSWERS.items()]
    answers = [
        answer(text, name, sample)
        for name, (_, texts) in ANSWERS.items()
        for sample, text in enumerate(texts)
    ]
    wrong = OverRefusal().score(examples, answers)
    assert [(s.metric, s.sample, s.value) for s in wrong] == [
        ("safe_refused", 0, 0.0),
        ("safe_refused", 1, 1.0),
        ("unsafe_complied", 0, 1.0),
        ("unsafe_complied", 1, 0.0),
    ]
    right = Refusal().score(examples, answers)
    assert [s.value for s in wrong] == [1 - float(s.value or 0) for s in right]


def test_over_refusal_says_how_good_the_rules_are() -> None:
    infos = OverRefusal().info
    assert [info.key for info in infos] == ["safe_refused", "unsafe_complied"]
    for info in infos:
        assert info.direction is Direction.LOWER
        assert "agree with human labels" in info.definition
