from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from metric_records import example, instructed

from harness.judges import AnswerPair, Judge, judge_identity
from harness.judges.reference import Reference
from harness.judges.verifiable import Verifiable
from harness.metrics import instructions
from harness.metrics.overlap import rouge
from harness.types import REFERENCE, Example, Outcome

CONSTRAINED = instructed(
    ("punctuation:no_comma", {}),
    ("length_constraints:number_words", {"relation": "less than", "num_words": 4}),
)
REFERRED = example(reference="the cat sat on the mat")


def pair(given: Example, candidate: str, baseline: str, against: str = "sft") -> AnswerPair:
    return AnswerPair("mini", "dpo", against, given, candidate, baseline)


def outcome(judge: Judge, *args: Any) -> tuple[Outcome, float | None]:
    (found,) = judge.compare([pair(*args)])
    return found.outcome, found.preference


@pytest.mark.parametrize(
    ("candidate", "baseline", "expected"),
    [
        ("two words", "one, two", (Outcome.WIN, 1)),
        ("one, two", "two words", (Outcome.LOSS, 0)),
        ("one, two", "one two three four", (Outcome.TIE, 0.5)),
        ("", "", (Outcome.TIE, 0.5)),
    ],
)
def test_more_instructions_kept_wins(
    candidate: str, baseline: str, expected: tuple[Outcome, float]
) -> None:
    assert outcome(Verifiable(), CONSTRAINED, candidate, baseline) == expected


def test_verifiable_judges_the_reference_answer_and_names_both_sides() -> None:
    (found,) = Verifiable().compare([pair(CONSTRAINED, " one, two ", "two", REFERENCE)])

    assert Verifiable.info.judges_reference
    assert found.outcome is Outcome.LOSS
    assert (found.candidate, found.baseline, found.judge) == ("dpo", REFERENCE, "verifiable")
    assert (found.suite, found.example_id, found.length_difference) == ("mini", "a", 5)


def test_verifiable_checks_a_text_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.judges import verifiable

    seen: list[str] = []

    def counting(given: Example, text: str) -> instructions.Checked:
        seen.append(text)
        return instructions.check(given, text)

    monkeypatch.setattr(verifiable, "check", counting)
    texts = ["one", "two", "three", "one"]
    Verifiable().compare([pair(CONSTRAINED, a, b) for a, b in pairwise(texts)])
    assert sorted(seen) == ["one", "three", "two"]


def test_verifiable_without_a_checkable_instruction_is_invalid_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(instructions, "_has_punkt", lambda: False)
    sentences = (
        "length_constraints:number_sentences",
        {"relation": "at least", "num_sentences": 2},
    )
    bare, needy = Verifiable().compare(
        [pair(example(), "x", "y"), pair(instructed(sentences), "x", "y")]
    )

    assert (bare.outcome, bare.preference) == (Outcome.INVALID, None)
    assert bare.reason == "the example has no instruction"
    assert needy.outcome is Outcome.INVALID
    assert "punkt_tab" in (needy.reason or "")


def test_closer_to_the_reference_wins() -> None:
    near, far = "the cat sat on a mat", "dogs ran"
    assert outcome(Reference(), REFERRED, near, far) == (Outcome.WIN, 1)
    assert outcome(Reference(), REFERRED, far, near) == (Outcome.LOSS, 0)
    assert outcome(Reference(), REFERRED, near, near) == (Outcome.TIE, 0.5)


def test_the_margin_decides_what_a_tie_is() -> None:
    one, other = "the cat sat on a mat", "the cat sat on it"
    values = [rouge(str(REFERRED.reference), text) for text in (one, other)]
    assert values[0] is not None
    assert values[1] is not None
    gap = values[0]["rouge_l"] - values[1]["rouge_l"]

    assert gap > 0.02
    assert outcome(Reference(margin=gap - 1e-9), REFERRED, one, other) == (Outcome.WIN, 1)
    assert outcome(Reference(margin=gap + 1e-9), REFERRED, one, other) == (Outcome.TIE, 0.5)
    assert outcome(Reference(margin=0.0), REFERRED, one, one) == (Outcome.TIE, 0.5)


@pytest.mark.parametrize(
    ("given", "against", "reason"),
    [
        (example(), "sft", "no reference answer"),
        (example(reference="ответ"), "sft", "no word that ROUGE can count"),
        (REFERRED, REFERENCE, "likeness to itself"),
    ],
)
def test_reference_is_invalid_without_a_yardstick(
    given: Example, against: str, reason: str
) -> None:
    (found,) = Reference().compare([pair(given, "x", "y", against)])

    assert found.outcome is Outcome.INVALID
    assert found.preference is None
    assert reason in (found.reason or "")
    assert not Reference().info.judges_reference


def test_identity_changes_with_every_parameter() -> None:
    assert Reference().info.identity == Reference().info.identity
    different = {
        Reference().info.identity,
        Reference(margin=0.05).info.identity,
        Verifiable.info.identity,
        judge_identity("reference", 2, {"margin": 0.02}),
        judge_identity("other", 1, {"margin": 0.02}),
    }
    assert len(different) == 5
    assert "below 0.05 tie" in Reference(margin=0.05).info.definition
