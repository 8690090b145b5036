"""The gate: verdicts on intervals, missing data, directions, rules files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from run_records import (
    make_examples,
    make_generation,
    make_judgment,
    make_score,
    metric_info,
    run_manifest,
    suite_card,
)

from harness.compare import compare
from harness.errors import InputError
from harness.gate import ExitCode, GateRule, Verdict, decide, load_rules
from harness.suites import load_suites
from harness.types import (
    Comparison,
    Direction,
    Estimate,
    MetricDifference,
    Outcome,
    Status,
    WinRate,
)

LOWER = metric_info("loss", Direction.LOWER)
SIZE = metric_info("size", Direction.NEITHER)
CARD = suite_card(examples=9, metrics=[metric_info("acc"), LOWER, SIZE], judges=["j"])


def estimate(low: float | None, high: float | None, missing: int = 0) -> Estimate:
    value = None if low is None or high is None else (low + high) / 2
    return Estimate(
        value=value, low=low, high=high, n=9, clusters=9, missing=missing, method="given"
    )


def comparison(
    acc: Estimate | None = None,
    loss: Estimate | None = None,
    rate: Estimate | None = None,
    controlled: Estimate | None = None,
    status: Status = Status.COMPLETE,
) -> Comparison:
    """Return a comparison of ``dpo`` with ``sft`` that holds the given estimates only."""
    infos = {info.key: info for info in CARD.metrics}
    return Comparison(
        manifest=run_manifest(CARD, status=status),
        gaps=(),
        metrics=(),
        differences=tuple(
            MetricDifference(
                suite="s",
                metric=infos[key],
                primary=True,
                candidate="dpo",
                baseline="sft",
                estimate=found,
            )
            for key, found in (("acc", acc), ("loss", loss))
            if found is not None
        ),
        win_rates=tuple(
            WinRate(
                suite="s",
                judge="j",
                candidate="dpo",
                baseline="sft",
                wins=0,
                ties=0,
                losses=0,
                invalid=0,
                estimate=found,
                length_controlled=controlled,
                mean_length_difference=None,
            )
            for found in (rate,)
            if found is not None
        ),
        samples=(),
        resamples=1,
        seed=0,
    )


def rule(metric: str | None = "acc", margin: float = 0.05, **options: object) -> GateRule:
    return GateRule.model_validate({"suite": "s", "metric": metric, "margin": margin} | options)


# Verdicts.


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (1, 8, Verdict.PASS),
        (-3, 8, Verdict.PASS),
        (-3, -1, Verdict.PASS),
        (-5, 8, Verdict.INCONCLUSIVE),
        (-5, -3, Verdict.INCONCLUSIVE),
        (-4, 8, Verdict.INCONCLUSIVE),
        (-8, -4, Verdict.INCONCLUSIVE),
        (-8, -5, Verdict.REGRESSION),
    ],
)
def test_interval_against_the_margin(low: int, high: int, verdict: Verdict) -> None:
    # In 64ths, which are exact in binary, so that a bound can lie on the margin of 4/64.
    low_share, high_share, margin = low / 64, high / 64, 4 / 64
    cases = [
        (comparison(acc=estimate(low_share, high_share)), rule("acc", margin)),
        (comparison(loss=estimate(-high_share, -low_share)), rule("loss", margin)),
        (
            comparison(rate=estimate(0.5 + low_share, 0.5 + high_share)),
            rule(None, margin, win_rate="j"),
        ),
    ]
    for found, asked in cases:
        outcome = decide(found, "dpo", "sft", [asked])
        assert outcome.verdict == outcome.rows[0].verdict == verdict


def test_roles_may_be_exchanged() -> None:
    found = comparison(acc=estimate(0.1, 0.2))
    there = decide(found, "dpo", "sft", [rule()])
    back = decide(found, "sft", "dpo", [rule()])
    assert (there.verdict, back.verdict) == (Verdict.PASS, Verdict.REGRESSION)
    turned = back.rows[0].estimate
    assert turned is not None
    assert (turned.low, turned.high) == (-0.2, -0.1)


def test_length_controlled_rule_reads_the_other_estimate() -> None:
    found = comparison(rate=estimate(0.6, 0.8), controlled=estimate(0.2, 0.3))
    raw, controlled = (
        decide(found, "dpo", "sft", [rule(None, win_rate="j", length_controlled=flag)])
        for flag in (False, True)
    )
    assert (raw.verdict, controlled.verdict) == (Verdict.PASS, Verdict.REGRESSION)


@pytest.mark.parametrize(
    ("acc", "loss", "verdict", "code"),
    [
        ((0.0, 0.1), (-0.1, 0.0), Verdict.PASS, 0),
        ((0.0, 0.1), (-0.1, 0.1), Verdict.INCONCLUSIVE, 3),
        ((-0.3, -0.1), (-0.1, 0.1), Verdict.REGRESSION, 1),
        ((0.0, 0.1), (0.1, 0.3), Verdict.REGRESSION, 1),
    ],
)
def test_worst_rule_decides(
    acc: tuple[float, float], loss: tuple[float, float], verdict: Verdict, code: int
) -> None:
    found = comparison(acc=estimate(*acc), loss=estimate(*loss))
    outcome = decide(found, "dpo", "sft", [rule(), rule("loss")])
    assert (outcome.verdict, outcome.exit_code) == (verdict, code)
    assert [row.rule.metric for row in outcome.rows] == ["acc", "loss"]


def test_every_verdict_has_an_exit_code_and_none_is_that_of_an_error() -> None:
    assert {v.name for v in Verdict} == {c.name for c in ExitCode}
    assert InputError.exit_code not in set(ExitCode)


def test_reason_says_where_the_interval_lies() -> None:
    row = decide(comparison(acc=estimate(-0.2, -0.06)), "dpo", "sft", [rule()]).rows[0]
    assert row.reason == "the advantage lies between -0.2 and -0.06, below -0.05"


def test_an_interval_without_width_decides_nothing() -> None:
    row = decide(comparison(acc=estimate(0.0, 0.0)), "dpo", "sft", [rule()]).rows[0]
    assert row.verdict == Verdict.INCONCLUSIVE
    assert row.reason == "the interval has no width: no prompt tells the two apart"


# Missing data never pass.


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (comparison(), "no value that the two checkpoints share"),
        (comparison(acc=estimate(None, None)), "no value that the two checkpoints share"),
        (comparison(acc=estimate(0.1, 0.2, missing=1)), "1 of the values behind it are missing"),
        (comparison(acc=estimate(-0.9, -0.8, missing=1)), "missing"),
        (comparison(acc=estimate(0.1, 0.2), status=Status.RUNNING), "'running', not complete"),
        (
            comparison(acc=estimate(0.1, 0.2).model_copy(update={"low": None, "high": None})),
            "one prompt gives no interval",
        ),
    ],
)
def test_gap_is_inconclusive(found: Comparison, reason: str) -> None:
    outcome = decide(found, "dpo", "sft", [rule()])
    assert outcome.verdict == Verdict.INCONCLUSIVE
    assert reason in outcome.rows[0].reason


def test_win_rate_that_could_not_be_fitted_is_inconclusive() -> None:
    wins = rule(None, win_rate="j", length_controlled=True)
    outcome = decide(comparison(rate=estimate(0.6, 0.8)), "dpo", "sft", [wins])
    assert outcome.verdict == Verdict.INCONCLUSIVE


def test_packaged_suite_that_was_not_run_is_inconclusive() -> None:
    rules = [rule(), rule("anything", suite="hh")]
    outcome = decide(comparison(acc=estimate(0.1, 0.2)), "dpo", "sft", rules)
    assert [row.verdict for row in outcome.rows] == [Verdict.PASS, Verdict.INCONCLUSIVE]
    assert outcome.rows[1].reason == "suite 'hh' is not part of this run"


def test_gap_elsewhere_does_not_block_a_rule() -> None:
    found = comparison(acc=estimate(0.1, 0.2), loss=estimate(0.0, 0.1, missing=4))
    found = found.model_copy(update={"gaps": ("s, loss, dpo: 4 of 9 values missing",)})
    assert decide(found, "dpo", "sft", [rule()]).verdict == Verdict.PASS


# From records to a verdict.


def gated(values: dict[str, Sequence[float]], metric: str = "acc") -> Verdict:
    n = len(values["sft"])
    examples = make_examples(n)
    card = suite_card(examples=n, metrics=[metric_info("acc"), LOWER])
    found = compare(
        run_manifest(card),
        [
            make_score(name, e.id, float(v), metric=metric)
            for name, column in values.items()
            for e, v in zip(examples, column, strict=True)
        ],
        [],
        [make_generation(name, e.id) for name in values for e in examples],
        {"s": examples},
        resamples=500,
    )
    return decide(found, "dpo", "sft", [rule(metric)]).verdict


def test_verdicts_follow_from_scores() -> None:
    base = np.random.default_rng(0).random(200)
    shift = np.random.default_rng(1).normal(0, 0.05, size=200)
    assert gated({"sft": base, "dpo": base + shift}) == Verdict.PASS
    assert gated({"sft": base, "dpo": base + shift - 0.2}) == Verdict.REGRESSION
    assert gated({"sft": base, "dpo": base + shift - 0.05}) == Verdict.INCONCLUSIVE
    assert gated({"sft": base, "dpo": base + shift - 0.2}, "loss") == Verdict.PASS
    assert gated({"sft": base, "dpo": base}) == Verdict.PASS


def test_true_loss_of_the_margin_seldom_passes() -> None:
    generator = np.random.default_rng(5)
    passed = 0
    for _ in range(150):
        base = generator.random(60)
        passed += (
            gated({"sft": base, "dpo": base + generator.normal(-0.05, 0.2, 60)}) == Verdict.PASS
        )
    assert passed <= 10  # 2.5 % of 150 are 4; more than 10 happen once in 500 times


def test_win_rates_from_records() -> None:
    examples = make_examples(30)
    found = compare(
        run_manifest(suite_card(examples=30, judges=["j"])),
        [],
        [make_judgment("dpo", "sft", e.id, Outcome.WIN, k) for k, e in enumerate(examples)],
        [make_generation(name, e.id) for name in ("sft", "dpo") for e in examples],
        {"s": examples},
        resamples=200,
    )
    for flag in (False, True):
        wins = rule(None, win_rate="j", length_controlled=flag)
        assert decide(found, "dpo", "sft", [wins]).verdict == Verdict.PASS
        assert decide(found, "sft", "dpo", [wins]).verdict == Verdict.REGRESSION


# What cannot be gated.


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        (rule(suite="sumarization"), "unknown suite 'sumarization'. Did you mean 'summarization'"),
        (rule("ac"), "unknown metric of suite 's' 'ac'. Did you mean 'acc'"),
        (rule(None, win_rate="k"), "unknown judge of suite 's' 'k'"),
        (rule("size"), "metric 'size' has no better direction"),
    ],
)
def test_rule_that_cannot_be_applied_is_an_error(wrong: GateRule, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        decide(comparison(acc=estimate(0.1, 0.2)), "dpo", "sft", [rule(), wrong])


@pytest.mark.parametrize(
    ("candidate", "baseline", "problem"),
    [
        ("orpo", "sft", "unknown checkpoint 'orpo'"),
        ("dpo", "stf", "Did you mean 'sft'"),
        ("dpo", "dpo", "both 'dpo'"),
    ],
)
def test_checkpoints_must_be_two_of_the_run(candidate: str, baseline: str, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        decide(comparison(), candidate, baseline, [rule()])


def test_no_rule_is_an_error() -> None:
    with pytest.raises(InputError, match="no rules"):
        decide(comparison(), "dpo", "sft", [])


# Rules files.


def test_packaged_rules_cover_the_mini_suites() -> None:
    rules = load_rules()
    assert {r.suite for r in rules} == {s.spec.name for s in load_suites(["mini"])}
    assert all(r.margin > 0 for r in rules)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("rules: []", "rules"),
        ("rules: [{suite: s, metric: acc}]", "'rules.0.margin' is missing"),
        ("rules: [{suite: s, metric: acc, margin: -0.1}]", "margin"),
        ("rules: [{suite: s, metric: acc, margin: .nan}]", "margin"),
        (
            "rules: [{suite: s, metric: acc, margin: 0.1, maximum: 3}]",
            "unknown key 'rules.0.maximum'",
        ),
        ("rules: [{suite: s, margin: 0.1}]", "either 'metric' or 'win_rate'"),
        (
            "rules: [{suite: s, metric: a, win_rate: j, margin: 0.1}]",
            "either 'metric' or 'win_rate'",
        ),
        ("rules: [{suite: s, metric: a, length_controlled: true, margin: 0.1}]", "'win_rate' only"),
        ("- suite: s", "mapping"),
        ("rules: [", "not valid YAML"),
    ],
)
def test_wrong_rules_are_refused_with_the_file(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=problem) as caught:
        load_rules(path)
    assert str(path) in str(caught.value)


def test_rules_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(
        "rules:\n"
        "  - {suite: s, metric: acc, margin: 0}\n"
        "  - {suite: s, win_rate: j, length_controlled: true, margin: 0.1}\n"
    )
    assert load_rules(path) == (
        rule(margin=0.0),
        rule(None, 0.1, win_rate="j", length_controlled=True),
    )
