"""Bradley-Terry strengths against scikit-learn, dense algebra and known cases."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from harness.stats import strengths
from harness.stats.bradley_terry import BradleyTerry, ModelStrength, bradley_terry
from harness.stats.judged import Judged
from harness.stats.strengths import Pairs, aggregated, clustered_errors, fit_strengths

Verdict = tuple[str, str, float]


def judged(verdicts: list[Verdict], prompts: list[int] | None = None) -> Judged:
    n = len(verdicts)
    names = sorted({name for row in verdicts for name in row[:2]})
    units = np.arange(n) if prompts is None else np.array(prompts)
    return Judged(
        models=tuple(names),
        judges=("judge",),
        prompts=tuple(str(p) for p in range(int(units.max(initial=-1)) + 1)),
        candidate=np.array([names.index(row[0]) for row in verdicts], np.int32),
        baseline=np.array([names.index(row[1]) for row in verdicts], np.int32),
        judge=np.zeros(n, np.int32),
        prompt=units.astype(np.int32),
        preference=np.array([row[2] for row in verdicts], np.float64),
        order=np.zeros(n, np.int8),
        candidate_length=np.full(n, np.nan),
        baseline_length=np.full(n, np.nan),
        item=np.full(n, -1, np.int32),
        row=np.arange(n, dtype=np.int32),
    )


def tournament(
    seed: int, n: int = 400, models: int = 5, effect: float = 0.0
) -> tuple[Judged, Pairs]:
    """Random judgments with ties, four to a prompt, and the same as rows for the fit."""
    rng = np.random.default_rng(seed)
    theta = rng.normal(size=models)
    first = rng.integers(0, models, n)
    second = (first + rng.integers(1, models, n)) % models
    z = rng.normal(size=(n, 2))
    y = (rng.random(n) < expit(theta[first] - theta[second] + effect * z[:, 0])) * 1.0
    y[::7] = 0.5
    rows = [(f"m{a}", f"m{b}", float(v)) for a, b, v in zip(first, second, y, strict=True)]
    units = (np.arange(n) // 4).tolist()
    return judged(rows, units), Pairs(models, first, second, y, np.ones(n), z, np.array(units))


def dense(pairs: Pairs) -> np.ndarray:
    n = len(pairs.label)
    design = np.zeros((n, pairs.models))
    design[np.arange(n), pairs.first] += 1
    design[np.arange(n), pairs.second] -= 1
    return np.column_stack([design[:, 1:], pairs.style])


def by_name(found: BradleyTerry) -> dict[str, ModelStrength]:
    return {one.model: one for one in found.models}


def strength(found: BradleyTerry, name: str) -> float:
    value = by_name(found)[name].strength.value
    assert value is not None
    return value


# Known cases.


@pytest.mark.parametrize("wins", [1, 13, 39])
def test_two_models_give_the_raw_win_rate(wins: int) -> None:
    rows = [("a", "base", 1.0)] * wins + [("a", "base", 0.0)] * (40 - wins)
    found = by_name(bradley_terry(judged(rows), baseline="base"))["a"]
    assert found.win_rate.value == pytest.approx(wins / 40, abs=1e-12)
    assert found.strength.value == pytest.approx(logit(wins / 40), abs=1e-10)
    low, high = found.win_rate.low, found.win_rate.high
    assert low is not None
    assert high is not None
    assert low < wins / 40 < high


def test_interval_of_two_models_is_the_delta_methods() -> None:
    rows = [("a", "base", 1.0)] * 300 + [("a", "base", 0.0)] * 500
    found = by_name(bradley_terry(judged(rows), baseline="base"))["a"].strength
    assert found.low is not None
    assert found.high is not None
    assert (found.high - found.low) / 2 == pytest.approx(
        1.963 * np.sqrt(1 / 300 + 1 / 500), rel=2e-3
    )


def test_ties_count_half() -> None:
    rows = [("a", "b", 0.5)] * 8 + [("a", "b", 1.0)] * 2
    assert by_name(bradley_terry(judged(rows), baseline="b"))["a"].win_rate.value == pytest.approx(
        0.6
    )


def test_a_chain_links_models_that_never_met() -> None:
    rows = [("a", "b", v) for v in (1.0, 1.0, 0.0)] + [("b", "c", v) for v in (1.0, 1.0, 0.0)]
    assert strength(bradley_terry(judged(rows), baseline="c"), "a") == pytest.approx(2 * np.log(2))


def test_the_baseline_is_at_zero_by_definition() -> None:
    found = by_name(bradley_terry(judged([("a", "b", 1.0), ("a", "b", 0.0)]), baseline="b"))["b"]
    assert (found.strength.value, found.win_rate.value, found.strength.low) == (0.0, 0.5, None)
    assert "by definition" in found.strength.method


def test_without_a_name_the_most_common_baseline_is_taken() -> None:
    rows = [("a", "z", 1.0), ("b", "z", 0.0), ("a", "b", 1.0)]
    assert bradley_terry(judged(rows)).baseline == "z"


# Against other implementations.


@pytest.mark.parametrize("styled", [False, True])
def test_fit_equals_scikit_learn(styled: bool) -> None:
    _, pairs = tournament(1, effect=0.8)
    if not styled:
        pairs = replace(pairs, style=np.zeros((len(pairs.label), 0)))
    design = np.tile(dense(pairs), (2, 1))
    y = np.repeat([1, 0], len(pairs.label))
    model = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10, max_iter=1000)
    model.fit(design, y, np.concatenate([pairs.label, 1 - pairs.label]))
    for given in (pairs, aggregated(pairs)):
        found = fit_strengths(given).coefficients
        assert found == pytest.approx(model.coef_[0], abs=1e-5)


@pytest.mark.parametrize("cells", [10**6, 40])
def test_errors_equal_the_dense_formula(cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strengths, "BLOCK_CELLS", cells)
    _, pairs = tournament(2, n=60, models=4, effect=0.5)
    found = fit_strengths(pairs).coefficients
    assert found is not None
    design = dense(pairs)
    p = expit(design @ found)
    information = (design * (p * (1 - p))[:, None]).T @ design
    inverse = np.linalg.inv(information)
    total = np.zeros_like(information)
    for unit in np.unique(pairs.cluster):
        own = pairs.cluster == unit
        score = design[own].T @ (pairs.label - p)[own]
        effect = inverse @ score
        total += np.outer(effect, effect)
    order = np.random.default_rng(0).permutation(len(p))
    shuffled = replace(
        pairs,
        first=pairs.first[order],
        second=pairs.second[order],
        label=pairs.label[order],
        style=pairs.style[order],
        cluster=pairs.cluster[order],
    )
    for given in (pairs, shuffled):
        assert clustered_errors(given, found) == pytest.approx(np.sqrt(np.diag(total)), rel=1e-9)


def test_swapping_the_sides_changes_nothing() -> None:
    data, pairs = tournament(3, effect=0.6)
    flipped = replace(
        data, candidate=data.baseline, baseline=data.candidate, preference=1 - data.preference
    )
    names = ("length", "lists")
    there = bradley_terry(data, style=pairs.style, style_names=names, baseline="m0")
    back = bradley_terry(flipped, style=-pairs.style, style_names=names, baseline="m0")
    for one, other in zip(there.models, back.models, strict=True):
        assert one.strength.value == pytest.approx(other.strength.value, abs=1e-9)
        assert one.strength.low == pytest.approx(other.strength.low, abs=1e-9)
    assert there.style[0].effect.value == pytest.approx(back.style[0].effect.value, abs=1e-9)


def test_another_baseline_shifts_all_strengths() -> None:
    data, _ = tournament(4)
    one, other = bradley_terry(data, baseline="m0"), bradley_terry(data, baseline="m3")
    shift = strength(one, "m3")
    for name in data.models:
        assert strength(other, name) == pytest.approx(strength(one, name) - shift, abs=1e-9)


def test_verdicts_on_one_prompt_stand_together() -> None:
    data, _ = tournament(5, n=80, models=3)
    often = judged(
        [
            (data.models[a], data.models[b], float(y))
            for a, b, y in zip(data.candidate, data.baseline, data.preference, strict=True)
            for _ in range(3)
        ],
        np.repeat(data.prompt, 3).tolist(),
    )
    once, thrice = (by_name(bradley_terry(d, baseline="m0"))["m1"].strength for d in (data, often))
    assert thrice.value == pytest.approx(once.value)
    assert (thrice.low, thrice.high) == pytest.approx((once.low, once.high))
    assert (thrice.n, thrice.clusters) == (3 * once.n, once.clusters)


def test_style_takes_over_what_only_style_decides() -> None:
    rng = np.random.default_rng(6)
    z = rng.normal(0.7, 1.0, size=(2000, 1))
    y = rng.random(2000) < expit(1.5 * z[:, 0])
    data = judged([("longer", "base", float(v)) for v in y])
    raw = by_name(bradley_terry(data))["longer"].win_rate
    found = bradley_terry(data, style=z, style_names=("length",))
    equal = by_name(found)["longer"].win_rate
    assert raw.low is not None
    assert raw.low > 0.65
    assert equal.low is not None
    assert equal.high is not None
    assert equal.low < 0.5 < equal.high
    unit = np.sqrt((z**2).mean())
    assert found.style[0].effect.value == pytest.approx(1.5 * unit, rel=0.1)


# What cannot be estimated.


def test_a_model_that_wins_everything_has_no_strength() -> None:
    data, _ = tournament(7, models=3)
    rows = [
        (data.models[a], data.models[b], float(y))
        for a, b, y in zip(data.candidate, data.baseline, data.preference, strict=True)
    ]
    more = [("best", name, 1.0) for name in data.models] + [("m0", "worst", 1.0)]
    alone, found = (
        bradley_terry(data, baseline="m0"),
        bradley_terry(judged(rows + more), baseline="m0"),
    )
    best, worst = by_name(found)["best"], by_name(found)["worst"]
    assert (best.strength.value, best.win_rate.value, best.strength.low) == (None, None, None)
    assert "wins everything" in best.strength.method
    assert "loses everything" in worst.strength.method
    for name in data.models:
        assert strength(found, name) == pytest.approx(strength(alone, name), abs=1e-9)
        assert by_name(found)[name].strength.n == by_name(alone)[name].strength.n


def test_models_without_a_chain_to_the_baseline_have_no_strength() -> None:
    rows = [("a", "base", 1.0), ("a", "base", 0.0), ("x", "y", 1.0), ("x", "y", 0.0)]
    found = by_name(bradley_terry(judged(rows), baseline="base"))
    assert found["a"].strength.value == pytest.approx(0.0, abs=1e-12)
    assert found["x"].strength.value is None
    assert "no chain of judgments" in found["x"].strength.method


def test_invalid_verdicts_and_unknown_styles_are_counted_not_used() -> None:
    rows = [("a", "b", 1.0), ("a", "b", 0.0), ("a", "b", np.nan), ("a", "b", 1.0), ("a", "a", 1.0)]
    style = np.array([[0.1], [-0.1], [0.2], [np.nan], [0.3]])
    found = by_name(bradley_terry(judged(rows), style=style, style_names=("z",), baseline="b"))["a"]
    assert (found.strength.n, found.strength.clusters, found.strength.missing) == (2, 2, 3)


def test_style_that_never_differs_is_left_out() -> None:
    data, pairs = tournament(8, effect=0.5)
    style = np.column_stack([np.zeros(len(data)), pairs.style[:, 0]])
    found = bradley_terry(data, style=style, style_names=("none", "some"), baseline="m0")
    alone = bradley_terry(data, style=style[:, 1:], style_names=("some",), baseline="m0")
    assert found.style[0].effect.value is None
    assert "0 throughout" in found.style[0].effect.method
    assert found.style[1].effect.value == pytest.approx(alone.style[0].effect.value)
    assert found.style[1].effect.high == pytest.approx(alone.style[0].effect.high)


@pytest.mark.parametrize("case", ["constant", "separating"])
def test_style_that_hides_the_models_gives_no_estimate(case: str) -> None:
    rng = np.random.default_rng(9)
    y = rng.random(60) < 0.5
    style = np.ones((60, 1)) if case == "constant" else np.where(y, 1.0, -1.0)[:, None]
    data = judged([("a", "b", float(v)) for v in y])
    found = bradley_terry(data, style=style, style_names=("z",), baseline="b")
    assert by_name(found)["a"].strength.value is None
    assert "cannot be told apart" in by_name(found)["a"].strength.method
    assert found.style[0].effect.value is None


def test_one_prompt_gives_no_interval() -> None:
    rows = [("a", "b", 1.0), ("a", "b", 0.0), ("c", "b", 1.0), ("c", "b", 0.0), ("c", "b", 1.0)]
    found = by_name(bradley_terry(judged(rows, [0, 0, 1, 2, 3]), baseline="b"))
    assert found["a"].strength.value == pytest.approx(0.0, abs=1e-12)
    assert (found["a"].strength.low, found["a"].strength.high) == (None, None)
    assert "single prompt" in found["a"].strength.method
    assert found["c"].strength.low is not None


def test_wrong_input_is_refused() -> None:
    data = judged([("a", "b", 1.0)])
    with pytest.raises(ValueError, match=r"no judgment of the baseline 'q'; models: \('a', 'b'\)"):
        bradley_terry(data, baseline="q")
    with pytest.raises(ValueError, match=r"style has shape \(1, 2\), expected \(1, 1\)"):
        bradley_terry(data, style=np.zeros((1, 2)), style_names=("z",))
    with pytest.raises(ValueError, match="judgments are empty"):
        bradley_terry(judged([]))
    with pytest.raises(ValueError, match="level"):
        bradley_terry(data, level=1.0)


# Coverage: 250 repetitions estimate 95 % with a standard error of 1.4 points.


def test_coverage_of_a_strength() -> None:
    rng, theta, hits = np.random.default_rng(10), np.array([0.0, 0.5, -0.4]), 0
    for _ in range(250):
        first = rng.integers(0, 3, 120)
        second = (first + rng.integers(1, 3, 120)) % 3
        common = rng.random(24).repeat(5)
        uniform = np.where(rng.random(24).repeat(5) < 0.4, common, rng.random(120))
        y = uniform < expit(theta[first] - theta[second])
        rows = [(f"m{a}", f"m{b}", float(v)) for a, b, v in zip(first, second, y, strict=True)]
        found = by_name(bradley_terry(judged(rows, (np.arange(120) // 5).tolist()), baseline="m0"))
        low, high = found["m1"].strength.low, found["m1"].strength.high
        assert low is not None
        assert high is not None
        hits += low <= 0.5 <= high
    assert 0.91 <= hits / 250 <= 0.99
