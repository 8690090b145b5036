from __future__ import annotations

import pytest
from metric_records import answer, example

from harness.metrics.likelihood import (
    KL_INFO,
    PREFERENCE_INFO,
    PreferenceAccuracy,
    ReferenceKl,
    preference_scores,
)

BASE = {"gain": (-10.0, -8.0), "loss": (-10.0, -8.0), "same": (-5.0, -5.0)}
ROWS = {"gain": (-9.0, -8.5), "loss": (-9.0, -5.0), "same": (-5.0, -5.0)}


def values(scores: list, metric: str) -> dict[str, float | None]:  # type: ignore[type-arg]
    return {s.example_id: s.value for s in scores if s.metric == metric}


def test_scores_follow_the_gain_over_the_base_and_ties_are_half() -> None:
    scores = preference_scores("dpo", "hh", ROWS, BASE)

    assert values(scores, "preference_margin") == pytest.approx(
        {"gain": 1.5, "loss": -2.0, "same": 0.0}
    )
    assert values(scores, "preference_accuracy") == {"gain": 1, "loss": 0, "same": 0.5}
    assert values(scores, "likelihood_accuracy") == {"gain": 0, "loss": 0, "same": 0.5}
    assert [s.metric for s in scores[:3]] == [info.key for info in PREFERENCE_INFO[:3]]
    assert {(s.checkpoint, s.suite, s.sample) for s in scores} == {("dpo", "hh", None)}


def test_exchanging_better_and_worse_reverses_every_score() -> None:
    swap = {key: (b, a) for key, (a, b) in ROWS.items()}
    swapped_base = {key: (b, a) for key, (a, b) in BASE.items()}
    forward = preference_scores("dpo", "hh", ROWS, BASE)
    back = preference_scores("dpo", "hh", swap, swapped_base)

    for one, other in zip(forward, back, strict=True):
        assert one.value is not None
        total = 0 if one.metric == "preference_margin" else 1
        assert other.value == pytest.approx(total - one.value)


def test_the_base_has_its_likelihood_only() -> None:
    scores = preference_scores("sft", "hh", BASE, None)
    assert {s.metric for s in scores} == {"likelihood_accuracy"}


def test_a_pair_that_the_base_lacks_is_missing_with_a_reason() -> None:
    scores = preference_scores("dpo", "hh", {"new": (-1.0, -2.0)}, BASE)

    assert [s.value for s in scores] == [None, None, 1]
    assert scores[0].reason == "the base checkpoint has no log-probabilities here"


def test_rows_that_cannot_be_held_against_the_base_s_say_why() -> None:
    scores = preference_scores("dpo", "hh", {"gain": (-1.0, -2.0)}, BASE, unlike="other tokens")

    assert [(s.value, s.reason) for s in scores] == [
        (None, "other tokens"),
        (None, "other tokens"),
        (1, None),
    ]


def test_the_divergence_is_named_here_and_filled_elsewhere() -> None:
    assert ReferenceKl.info is KL_INFO
    assert ReferenceKl().score([example()], [answer("x")]) == []


def test_generations_say_nothing_about_it() -> None:
    assert PreferenceAccuracy().score([example()], [answer("x")]) == []
    assert PreferenceAccuracy.info is PREFERENCE_INFO
