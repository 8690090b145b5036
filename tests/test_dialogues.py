"""Dialogues of several questions: what comes before what, and answers in between."""

from __future__ import annotations

import pytest

from harness.dialogues import (
    answers_needed,
    depth,
    earlier_questions,
    is_later_question,
    with_answers,
)
from harness.types import Example, Message, Role


def user(*texts: str) -> tuple[Message, ...]:
    return tuple(Message(role=Role.USER, content=text) for text in texts)


def assistant(text: str) -> Message:
    return Message(role=Role.ASSISTANT, content=text)


FIRST = Example(id="81", unit="81", messages=user("one"))
SECOND = Example(id="81/2", unit="81", messages=user("one", "two"))
THIRD = Example(id="81/3", unit="81", messages=user("one", "two", "three"))
OTHER = Example(id="82", unit="82", messages=user("one"))
ALONE = Example(id="x", messages=(*user("a"), assistant("b"), *user("c")))


def test_a_question_behind_a_question_is_a_later_one() -> None:
    assert [is_later_question(e.messages) for e in (FIRST, SECOND, THIRD, ALONE)] == [
        False,
        True,
        True,
        False,
    ]
    assert [answers_needed(e.messages) for e in (FIRST, SECOND, THIRD, ALONE)] == [0, 1, 2, 0]


def test_what_comes_before_is_of_the_same_dialogue_and_in_order() -> None:
    found = earlier_questions([THIRD, OTHER, SECOND, FIRST, ALONE])
    assert found == {"81/3": ("81", "81/2"), "81/2": ("81",)}
    assert [depth(e, found) for e in (FIRST, SECOND, THIRD, ALONE)] == [0, 1, 2, 0]


def test_a_dialogue_without_its_beginning_has_fewer_answers_than_it_needs() -> None:
    assert earlier_questions([SECOND, OTHER]) == {"81/2": ()}


def test_answers_stand_between_the_questions() -> None:
    system = Message(role=Role.SYSTEM, content="s")
    chat = with_answers((system, *THIRD.messages), ["A", "B"])
    assert [(m.role, m.content) for m in chat] == [
        ("system", "s"),
        ("user", "one"),
        ("assistant", "A"),
        ("user", "two"),
        ("assistant", "B"),
        ("user", "three"),
    ]
    assert with_answers(ALONE.messages, []) == ALONE.messages
    for answers in ([], ["A"], ["A", "B", "C"]):
        with pytest.raises(ValueError, match="2 answers are needed"):
            with_answers(THIRD.messages, answers)
