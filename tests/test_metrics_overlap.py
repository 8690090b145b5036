from __future__ import annotations

import pytest
from metric_records import answer, example

from harness.metrics.overlap import NO_REFERENCE, UNSEEN_REFERENCE, Rouge, rouge, sentences


def test_values_worked_out_by_hand() -> None:
    found = rouge("the cat sat on the mat", "the cat lay on a mat")

    assert found is not None
    # shared words: the, cat, on, mat of 6 and 6; shared pairs: "the cat" of 5 and 5
    assert found["rouge1"] == pytest.approx(4 / 6)
    assert found["rouge2"] == pytest.approx(1 / 5)
    assert found["rouge_l"] == pytest.approx(4 / 6)
    assert found["rouge_lsum"] == pytest.approx(4 / 6)


def test_words_are_stemmed() -> None:
    assert rouge("she walks", "she walked") == rouge("she walks", "she walks")


def test_lsum_forgives_the_order_of_sentences_and_l_does_not() -> None:
    found = rouge("The tap drips. Call a plumber.", "Call a plumber. The tap drips.")

    assert found is not None
    assert found["rouge_lsum"] == pytest.approx(1.0)
    assert found["rouge_l"] == pytest.approx(0.5)


def test_sentences_end_at_marks_before_space_and_at_line_breaks() -> None:
    text = "It costs 3.50 now! Really?  Yes.\n\n- no mark here\nlast"
    assert sentences(text) == ["It costs 3.50 now!", "Really?", "Yes.", "- no mark here", "last"]


def test_an_empty_answer_is_zero_and_a_missing_reference_is_missing() -> None:
    examples = [
        example("a", reference="a plain answer"),
        example("b"),
        example("c", reference="ответ"),
    ]
    scores = Rouge().score(examples, [answer("", i) for i in "abc"])
    by_example = {i: [s for s in scores if s.example_id == i] for i in "abc"}

    assert [s.metric for s in by_example["a"]] == [info.key for info in Rouge.info]
    assert [s.value for s in by_example["a"]] == [0.0] * 4
    assert {(s.value, s.reason) for s in by_example["b"]} == {(None, NO_REFERENCE)}
    assert {(s.value, s.reason) for s in by_example["c"]} == {(None, UNSEEN_REFERENCE)}
