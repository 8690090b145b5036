"""The models of a leaderboard against each other, on the prompts that both have."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from judgment_records import Row, annotation, arena, judgments, pair
from scipy import stats

from harness.errors import InputError
from harness.judgments import Judgments
from harness.leaderboard import LengthControl, Settings, leaderboard
from harness.pairwise import Difference, differences

RAW = Settings(length_control=LengthControl.NONE)


def compared(found: Judgments, settings: Settings = RAW) -> tuple[Difference, ...]:
    return differences(found, leaderboard(found, settings), settings)


def rows(model: str, preferences: list[float | None], **changes: str) -> list[Row]:
    """Return annotations of one model, one a prompt; preferences in [0, 1]."""
    return [
        annotation(i, None if p is None else 1 + p, generator_2=model, **changes)
        for i, p in enumerate(preferences)
    ]


def drawn(share: float, seed: int, count: int = 40) -> list[float | None]:
    return list(np.random.default_rng(seed).binomial(4, share, count) / 4)


def test_one_verdict_a_prompt_is_the_paired_t_test(tmp_path: Path) -> None:
    given = {name: drawn(share, k) for k, (name, share) in enumerate({"a": 0.7, "b": 0.4}.items())}
    (row,) = compared(judgments(tmp_path, *rows("b", given["b"]), *rows("a", given["a"])))
    first, second = (np.array(given[name], dtype=np.float64) for name in "ab")
    expected = stats.ttest_rel(first, second)
    interval = expected.confidence_interval(0.95)
    columns = row.columns()
    # The better model stands first, whatever the order of the files.
    assert (columns["first"], columns["second"]) == ("a", "b")
    assert (columns["baseline"], columns["judge"]) == ("base", "j")
    assert columns["difference"] == pytest.approx(100 * (first - second).mean())
    assert columns["low"] == pytest.approx(100 * interval.low)
    assert columns["high"] == pytest.approx(100 * interval.high)
    assert columns["standard_error"] == pytest.approx(100 * stats.sem(first - second))
    assert columns["p_value"] == pytest.approx(expected.pvalue)
    assert columns["holm"] == columns["p_value"]
    above, below = int((first > second).sum()), int((first < second).sum())
    sign = stats.binomtest(above, above + below).pvalue
    assert columns["sign_p_value"] == pytest.approx(sign)
    assert (columns["n_prompts"], columns["n_missing"], columns["level"]) == (40, 0, 0.95)
    assert columns["method"] == "paired, cluster-robust (CR3, delete-one-cluster jackknife), t"


def test_holm_is_over_all_pairs_of_a_judge_and_a_baseline(tmp_path: Path) -> None:
    given = {"a": drawn(0.7, 0), "b": drawn(0.55, 1), "c": drawn(0.4, 2)}
    found = [row for name, values in given.items() for row in rows(name, values)]
    other = [r for name in "ab" for r in rows(name, given[name], annotator="k")]
    by_j = [row for row in compared(judgments(tmp_path, *found, *other)) if row.judge == "j"]
    by_k = [row for row in compared(judgments(tmp_path, *found, *other)) if row.judge == "k"]
    assert [(r.contrast.first, r.contrast.second) for r in by_j] == [
        ("a", "b"),
        ("a", "c"),
        ("b", "c"),
    ]
    raw = [
        float(stats.ttest_rel(given[one], given[two]).pvalue)
        for one, two in (("a", "b"), ("a", "c"), ("b", "c"))
    ]
    least, middle, most = sorted(raw)
    step = max(3 * least, 2 * middle)
    adjusted = {least: 3 * least, middle: step, most: max(step, most)}
    assert most < 1
    assert [row.holm for row in by_j] == pytest.approx([min(1, adjusted[p]) for p in raw])
    assert [row.columns()["p_value"] for row in by_j] == pytest.approx(raw)
    assert [row.holm for row in by_k] == pytest.approx(raw[:1])


def test_both_orders_of_a_prompt_are_one_observation(tmp_path: Path) -> None:
    winners = {
        "dpo": [("model_1", "model_1"), ("model_1", "tie"), ("tie", "tie"), ("model_1", "model_1")],
        "sft": [("model_2", "tie"), ("tie", "tie"), ("tie", "tie"), ("model_1", "model_2")],
    }
    given = [pair(i, *w, model_1=m) for m, all_ in winners.items() for i, w in enumerate(all_)]
    (row,) = compared(judgments(tmp_path, *given))
    value = {"model_1": 1.0, "tie": 0.5, "model_2": 0.0}
    means = {m: [(value[one] + value[two]) / 2 for one, two in w] for m, w in winners.items()}
    expected = stats.ttest_rel(means["dpo"], means["sft"])
    columns = row.columns()
    assert columns["difference"] == pytest.approx(100 * (0.75 + 0.25 + 0 + 0.5) / 4)
    assert columns["p_value"] == pytest.approx(expected.pvalue)
    assert columns["n_prompts"] == 4
    # Three prompts for dpo, none for sft, one tie: 2 / 2^3.
    assert (columns["sign_p_value"], row.sign.ties) == (0.25, 1)


def test_means_that_differ_by_rounding_alone_are_ties(tmp_path: Path) -> None:
    # In floating point the sums of 0.7 and 0.1 and of 0.4 and 0.4 differ.
    given = [
        annotation(0, 1 + p, generator_2=model, shown_first=first)
        for model, pair_of in {"a": (0.7, 0.1), "b": (0.4, 0.4)}.items()
        for p, first in zip(pair_of, ("model", "reference"), strict=True)
    ]
    found = judgments(tmp_path, *given)
    sums = [found.judged.preference[place : place + 2].sum() for place in (0, 2)]
    assert sums[0] != sums[1]
    (row,) = compared(found)
    assert (row.sign.ties, row.sign.p_value) == (1, 1.0)
    # A single prompt gives a difference and no test.
    columns = row.columns()
    assert columns["difference"] == pytest.approx(0, abs=1e-12)
    assert (columns["low"], columns["standard_error"], columns["p_value"]) == (None, None, None)
    assert columns["holm"] is None


@pytest.mark.parametrize(("weight", "expected"), [(3, (4 / 6, 1 / 2)), (1, (2 / 4, 1 / 2))])
def test_strong_verdicts_count_as_in_the_leaderboard(
    tmp_path: Path, weight: int, expected: tuple[float, float]
) -> None:
    first = [arena(0, "B>>A", "B>A"), arena(1, "A=B", "A=B")]
    second = [arena(i, "A=B", "A=B", model="sft") for i in range(2)]
    settings = replace(RAW, strong_weight=weight)
    found = judgments(tmp_path, *first, *second)
    rates = {s.model: s.rate.value for s in leaderboard(found, settings)}
    (row,) = compared(found, settings)
    names = row.contrast.first, row.contrast.second
    assert rates["dpo"] == pytest.approx(expected[0])
    assert rates["sft"] == pytest.approx(expected[1])
    difference = rates[names[0]] - rates[names[1]]  # type: ignore[operator]
    assert row.columns()["difference"] == pytest.approx(100 * difference)
    assert ("strong verdicts count 3 times" in row.columns()["method"]) == (weight == 3)


def test_prompts_of_one_side_are_missing_and_not_zero(tmp_path: Path) -> None:
    first: list[float | None] = [1.0, 0.5, None, 1.0, 0.75]
    found = judgments(tmp_path, *rows("a", first), *rows("b", [0.0, 0.5, 1.0, 0.25]))
    columns = compared(found)[0].columns()
    assert (columns["first"], columns["n_prompts"], columns["n_missing"]) == ("a", 3, 2)
    assert columns["difference"] == pytest.approx(100 * (1 + 0 + 0.75) / 3)


def test_models_without_a_common_prompt_have_no_difference(tmp_path: Path) -> None:
    apart = [annotation(i, 2.0, generator_2="b") for i in range(10, 13)]
    found = judgments(tmp_path, *rows("a", [1.0, 0.5]), *apart)
    columns = compared(found)[0].columns()
    for name in ("difference", "low", "high", "standard_error", "p_value", "holm", "sign_p_value"):
        assert columns[name] is None
    assert (columns["n_prompts"], columns["n_missing"]) == (0, 5)


def test_nothing_to_compare_is_refused(tmp_path: Path) -> None:
    alone = rows("a", [1.0, 0.5])
    for more in (
        [],
        rows("b", [1.0], annotator="k"),
        rows("b", [1.0], generator_1="c"),
        rows("base", [0.5, 0.5]),
    ):
        with pytest.raises(InputError, match="no two models were judged by the same judge"):
            compared(judgments(tmp_path, *alone, *more))
