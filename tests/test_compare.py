"""The comparison: alignment, missing records, mirrored pairs, independence of order."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

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
from harness.comparing.samples import prompt_text
from harness.errors import InputError, RunFolderError
from harness.types import (
    REFERENCE,
    Comparison,
    Example,
    Generation,
    Judgment,
    Message,
    MetricDifference,
    MetricResult,
    Outcome,
    Role,
    RunManifest,
    Score,
    Status,
    WinRate,
)

WIN, TIE, LOSS, INVALID = Outcome.WIN, Outcome.TIE, Outcome.LOSS, Outcome.INVALID
NAMES = ("sft", "dpo", "tbpo-q")


@dataclass(frozen=True)
class Records:
    """A complete run of three checkpoints on one suite, to be damaged by the tests."""

    manifest: RunManifest
    examples: Sequence[Example]
    scores: Sequence[Score]
    generations: Sequence[Generation]
    judgments: Sequence[Judgment] = field(default_factory=list)

    def compared(self, **options: int) -> Comparison:
        return compare(
            self.manifest,
            self.scores,
            self.judgments,
            self.generations,
            {"s": self.examples},
            **{"resamples": 100} | options,
        )


def records(n: int = 6, judged: bool = False, checkpoints: Sequence[str] = NAMES) -> Records:
    examples = make_examples(n, reference="r" if judged else None)
    ids = [e.id for e in examples]
    generator = np.random.default_rng(0)
    card = suite_card(examples=n, judges=["j"] if judged else [], has_reference=judged)
    sides = [REFERENCE, *checkpoints]
    outcomes = generator.choice([WIN, TIE, LOSS], size=(len(sides), len(sides), n))
    lengths = generator.integers(-50, 50, size=n)
    return Records(
        manifest=run_manifest(card, checkpoints=checkpoints),
        examples=examples,
        scores=[make_score(c, e, float(generator.random())) for c in checkpoints for e in ids],
        generations=[make_generation(c, e) for c in checkpoints for e in ids],
        judgments=[
            make_judgment(sides[j], sides[i], e, outcomes[i, j, k], int(lengths[k]))
            for i, j in combinations(range(len(sides)), 2)
            for k, e in enumerate(ids)
            if judged
        ],
    )


def of_unit(run: Records, unit: str) -> Records:
    """Return the same run with its metric in another unit than a share."""
    (card,) = run.manifest.suites
    metrics = tuple(info.model_copy(update={"unit": unit}) for info in card.metrics)
    changed = card.model_copy(update={"metrics": metrics})
    return replace(run, manifest=run.manifest.model_copy(update={"suites": (changed,)}))


def result(found: Comparison, checkpoint: str, metric: str = "acc") -> MetricResult:
    return next(r for r in found.metrics if (r.checkpoint, r.metric.key) == (checkpoint, metric))


def difference(
    found: Comparison, candidate: str, baseline: str, metric: str = "acc"
) -> MetricDifference:
    wanted = (candidate, baseline, metric)
    return next(d for d in found.differences if (d.candidate, d.baseline, d.metric.key) == wanted)


def win(found: Comparison, candidate: str, baseline: str) -> WinRate:
    return next(w for w in found.win_rates if (w.candidate, w.baseline) == (candidate, baseline))


# What a complete run gives.


def test_every_checkpoint_and_every_pair_has_its_estimate() -> None:
    found = records(judged=True).compared()
    assert found.complete
    assert [r.checkpoint for r in found.metrics] == list(NAMES)
    pairs = [(d.candidate, d.baseline) for d in found.differences]
    assert pairs == [("dpo", "sft"), ("tbpo-q", "sft"), ("tbpo-q", "dpo")]
    judged = {(w.candidate, w.baseline) for w in found.win_rates}
    assert judged == {(a, b) for a in (*NAMES, REFERENCE) for b in (*NAMES, REFERENCE) if a != b}
    assert len(found.win_rates) == len(judged)


def test_values_are_means_of_the_scores() -> None:
    run = records()
    found = run.compared()
    means = {n: np.mean([s.value for s in run.scores if s.checkpoint == n]) for n in NAMES}
    assert result(found, "dpo").estimate.value == pytest.approx(means["dpo"])
    assert result(found, "dpo").primary
    expected = means["tbpo-q"] - means["sft"]
    assert difference(found, "tbpo-q", "sft").estimate.value == pytest.approx(expected)


def test_weights_of_scores_count() -> None:
    run = records(2, checkpoints=["sft"])
    scores = [make_score("sft", "e00", 1.0, weight=3.0), make_score("sft", "e01", 0.0)]
    found = replace(run, scores=scores).compared()
    assert result(found, "sft").estimate.value == 0.75


def test_samples_of_one_prompt_are_one_cluster() -> None:
    examples = make_examples(3)
    keys = [(e.id, s) for e in examples for s in range(4)]
    run = Records(
        manifest=run_manifest(suite_card(examples=3, samples=4), checkpoints=["sft"]),
        examples=examples,
        scores=[make_score("sft", e, 0.1 * s, sample=s) for e, s in keys],
        generations=[make_generation("sft", e, s) for e, s in keys],
    )
    estimate = result(run.compared(), "sft").estimate
    assert (estimate.n, estimate.clusters) == (12, 3)


# Determinism.


def test_order_of_records_changes_nothing() -> None:
    run = records(judged=True)
    backwards = replace(
        run,
        scores=run.scores[::-1],
        generations=run.generations[::-1],
        judgments=run.judgments[::-1],
    )
    assert backwards.compared() == run.compared()


def test_order_of_samples_changes_no_rounding() -> None:
    examples, names = make_examples(3), ("sft", "dpo")
    keys = [(name, e.id, sample) for name in names for e in examples for sample in range(9)]
    values = np.random.default_rng(0).random(len(keys))
    run = Records(
        manifest=run_manifest(suite_card(examples=3, samples=9), checkpoints=names),
        examples=examples,
        scores=[make_score(n, e, v, sample=s) for (n, e, s), v in zip(keys, values, strict=True)],
        generations=[make_generation(*key) for key in keys],
    )
    assert replace(run, scores=run.scores[::-1]).compared() == run.compared()


def test_records_may_be_iterators() -> None:
    run = records(judged=True)
    once = replace(
        run,
        scores=iter(run.scores),
        judgments=iter(run.judgments),
        generations=iter(run.generations),
    )
    assert once.compared() == run.compared()


def test_another_checkpoint_changes_no_other_number() -> None:
    run = records(judged=True)
    fewer = Records(
        manifest=run_manifest(run.manifest.suites[0], checkpoints=["dpo", "tbpo-q"]),
        examples=run.examples,
        scores=[s for s in run.scores if s.checkpoint != "sft"],
        generations=[g for g in run.generations if g.checkpoint != "sft"],
        judgments=[j for j in run.judgments if "sft" not in (j.candidate, j.baseline)],
    )
    one, two = run.compared(), fewer.compared()
    assert set(two.metrics) < set(one.metrics)
    assert set(two.differences) < set(one.differences)
    assert set(two.win_rates) < set(one.win_rates)


def test_seed_moves_bootstraps_but_not_values() -> None:
    run = of_unit(records(30), "words")
    one, two = (result(run.compared(seed=seed), "dpo").estimate for seed in (0, 1))
    assert one.value == two.value
    assert one.low != two.low
    one, two = (difference(run.compared(seed=seed), "dpo", "sft").estimate for seed in (0, 1))
    assert one.value == two.value
    assert one.low != two.low


def test_shares_have_wilsons_interval_whatever_the_seed() -> None:
    run = records(30)
    one, two = (result(run.compared(seed=seed), "dpo").estimate for seed in (0, 1))
    assert one == two
    assert one.method.startswith("wilson")


def test_estimates_do_not_share_their_random_numbers() -> None:
    # The same scores for all: with a common generator all intervals would be equal.
    run = of_unit(records(30), "words")
    same = [s.model_copy(update={"value": int(s.example_id[1:]) / 30}) for s in run.scores]
    estimates = [r.estimate for r in replace(run, scores=same).compared(resamples=400).metrics]
    assert len({e.value for e in estimates}) == 1
    assert len({e.low for e in estimates}) == 3


@pytest.mark.parametrize("unit", ["share", "words"])
def test_no_prompt_that_tells_two_apart_is_no_certainty(unit: str) -> None:
    """0 of n prompts tell: a share differs by at most 1 - 0.025^(1/n); nothing bounds a length."""
    run = of_unit(records(20), unit)
    same = [s.model_copy(update={"value": float(s.example_id < "e07")}) for s in run.scores]
    found = difference(replace(run, scores=same).compared(), "dpo", "sft")
    bound = 1 - 0.025 ** (1 / 20) if unit == "share" else 0.0
    assert found.estimate.value == 0.0
    assert found.estimate.low == pytest.approx(-bound)
    assert found.estimate.high == pytest.approx(bound)
    assert ("exact bound" in found.estimate.method) == (unit == "share")
    assert found.test is not None
    assert found.test.p_value == 1.0


# What is missing.


def test_missing_scores_are_counted_with_their_reasons() -> None:
    run = records()
    scores = [s for s in run.scores if (s.checkpoint, s.example_id) != ("dpo", "e00")]
    spoiled = [
        s.model_copy(update={"value": None, "reason": "no sentence"})
        if (s.checkpoint, s.example_id) == ("dpo", "e01")
        else s
        for s in scores
    ]
    found = replace(run, scores=spoiled).compared()
    assert (result(found, "dpo").estimate.n, result(found, "dpo").estimate.missing) == (4, 2)
    assert difference(found, "dpo", "sft").estimate.missing == 2
    assert difference(found, "dpo", "sft").estimate.clusters == 4
    assert difference(found, "tbpo-q", "sft").estimate.missing == 0
    text = "s, acc, dpo: 2 of 6 values missing (1 x no score recorded; 1 x no sentence)"
    assert found.gaps == (text,)


def test_what_a_metric_has_no_value_for_is_counted_and_no_gap() -> None:
    run = records()
    spoiled = [
        s.model_copy(update={"value": None, "reason": "too short", "undefined": True})
        if (s.checkpoint, s.example_id) == ("dpo", "e01")
        else s
        for s in run.scores
    ]
    found = replace(run, scores=spoiled).compared()
    assert found.gaps == ()
    assert found.unknown == ("s, acc, dpo: 1 of 6 values missing (1 x too short)",)
    assert (result(found, "dpo").estimate.n, result(found, "dpo").estimate.missing) == (5, 1)
    gone = [s for s in spoiled if (s.checkpoint, s.example_id) != ("dpo", "e02")]
    both = replace(run, scores=gone).compared()
    assert both.gaps == ("s, acc, dpo: 1 of 6 values missing (1 x no score recorded)",)
    assert both.unknown == found.unknown


def test_observation_missing_on_both_sides_is_counted_once() -> None:
    run = records()
    spoiled = [
        s.model_copy(update={"value": None}) if s.example_id == "e03" else s for s in run.scores
    ]
    found = replace(run, scores=spoiled).compared()
    assert difference(found, "dpo", "sft").estimate.missing == 1


def test_metric_of_a_part_of_the_examples_lacks_nothing() -> None:
    run = records()
    some = [s for s in run.scores if s.example_id in ("e00", "e01", "e02")]
    found = replace(run, scores=some).compared()
    assert found.gaps == ()
    assert (result(found, "sft").estimate.n, result(found, "sft").estimate.missing) == (3, 0)


def test_metric_without_any_score_is_a_gap() -> None:
    found = replace(records(), scores=[]).compared()
    assert found.gaps == ("s, acc: no score for any checkpoint",)
    assert result(found, "sft").estimate.value is None


def test_answer_that_is_missing_is_a_gap_of_suite_and_metric() -> None:
    run = records()
    gone = ("dpo", "e02")
    found = replace(
        run,
        scores=[s for s in run.scores if (s.checkpoint, s.example_id) != gone],
        generations=[g for g in run.generations if (g.checkpoint, g.example_id) != gone],
    ).compared()
    assert "s, dpo: 1 of 6 answers not generated" in found.gaps
    assert result(found, "dpo").estimate.missing == 1
    assert result(found, "sft").estimate.missing == 0


def test_answer_that_nobody_gave_is_missing_although_no_score_expects_it() -> None:
    run = records()
    found = replace(
        run,
        scores=[s for s in run.scores if s.example_id != "e02"],
        generations=[g for g in run.generations if g.example_id != "e02"],
    ).compared()
    assert [r.estimate.missing for r in found.metrics] == [1, 1, 1]
    assert [d.estimate.missing for d in found.differences] == [1, 1, 1]


def test_number_about_a_prompt_is_incomplete_without_one_of_its_answers() -> None:
    examples = make_examples(2)
    keys = [(e.id, s) for e in examples for s in range(3)]
    run = Records(
        manifest=run_manifest(suite_card(examples=2, samples=3), checkpoints=["sft"]),
        examples=examples,
        scores=[make_score("sft", e.id, 0.5) for e in examples],
        generations=[make_generation("sft", e, s) for e, s in keys[:-1]],
    )
    estimate = result(run.compared(), "sft").estimate
    assert (estimate.n, estimate.missing) == (2, 1)


def test_answer_outside_the_suite_does_not_hide_a_missing_one() -> None:
    run = records(checkpoints=["sft"])
    moved = [*run.generations[1:], make_generation("sft", "e01", sample=5)]
    found = replace(run, generations=moved).compared()
    assert "s, sft: 1 of 6 answers not generated" in found.gaps


def test_running_run_is_a_gap_and_lists_no_scores() -> None:
    run = records()
    manifest = run.manifest.model_copy(update={"status": Status.RUNNING})
    found = replace(run, manifest=manifest, scores=[]).compared()
    assert found.gaps == ("the run is 'running', not complete",)


def test_missing_verdicts_are_counted_with_their_reasons() -> None:
    run = records(judged=True)
    kept = [
        j.model_copy(update={"outcome": INVALID, "preference": None, "reason": "no letter"})
        if (j.candidate, j.baseline, j.example_id) == ("dpo", "sft", "e01")
        else j
        for j in run.judgments
        if (j.candidate, j.baseline, j.example_id) != ("dpo", "sft", "e00")
    ]
    found = replace(run, judgments=kept).compared()
    assert found.gaps == (
        "s, judge j, dpo against sft: 2 of 6 verdicts missing (1 x invalid: no letter; "
        "1 x not judged)",
    )
    for pair in (("dpo", "sft"), ("sft", "dpo")):
        rate = win(found, *pair)
        assert rate.invalid == rate.estimate.missing == 2
        assert rate.wins + rate.ties + rate.losses == rate.estimate.n == 4
        assert rate.length_controlled is not None
        assert rate.length_controlled.missing == 2


def test_pair_without_a_verdict_is_a_gap() -> None:
    run = records(judged=True)
    kept = [j for j in run.judgments if {j.candidate, j.baseline} != {"dpo", "sft"}]
    found = replace(run, judgments=kept).compared()
    assert found.gaps == ("s, judge j, dpo against sft: 6 of 6 verdicts missing (6 x not judged)",)
    assert not [w for w in found.win_rates if {w.candidate, w.baseline} == {"dpo", "sft"}]


def test_judge_that_cannot_judge_references_owes_no_such_verdict() -> None:
    run = records(judged=True)
    blind = run_manifest(run.manifest.suites[0], checkpoints=NAMES, blind_judges=["j"])
    kept = [j for j in run.judgments if j.baseline != REFERENCE]
    assert replace(run, judgments=kept, manifest=blind).compared().complete
    assert not replace(run, judgments=kept).compared().complete


def test_examples_without_a_reference_owe_no_verdict_against_it() -> None:
    run = records(judged=True)
    bare = [run.examples[0].model_copy(update={"reference": None}), *run.examples[1:]]
    kept = [j for j in run.judgments if (j.baseline, j.example_id) != (REFERENCE, "e00")]
    found = replace(run, examples=bare, judgments=kept).compared()
    assert found.complete
    assert win(found, "dpo", REFERENCE).estimate.n == 5
    assert win(found, "dpo", REFERENCE).invalid == 0


# Win rates.


def test_mirrored_pair_is_exact() -> None:
    found = records(30, judged=True).compared()
    there, back = win(found, "dpo", "sft"), win(found, "sft", "dpo")
    assert (back.wins, back.ties, back.losses) == (there.losses, there.ties, there.wins)
    assert there.wins != there.losses
    assert there.mean_length_difference is not None
    assert back.mean_length_difference == -there.mean_length_difference
    for one, other in (
        (there.estimate, back.estimate),
        (there.length_controlled, back.length_controlled),
    ):
        assert one is not None
        assert other is not None
        assert None not in (one.value, one.low, one.high)
        assert (other.value, other.low, other.high) == (
            1 - one.value,  # type: ignore[operator]
            1 - one.high,  # type: ignore[operator]
            1 - one.low,  # type: ignore[operator]
        )


def test_primary_differences_are_tested_and_corrected_by_baseline() -> None:
    found = records(20).compared()
    assert all(d.test is not None and d.test.p_value is not None for d in found.differences)
    families = [(t.baseline, t.candidate, t.family) for t in found.corrected_differences]
    # Those against the first checkpoint are one family, all others another.
    assert families == [("sft", "dpo", 2), ("sft", "tbpo-q", 2), ("dpo", "tbpo-q", 1)]
    raw = [difference(found, t.candidate, t.baseline).test for t in found.corrected_differences]
    assert [t.p_value for t in found.corrected_differences] == [r.p_value for r in raw if r]
    one, two = sorted(t.p_value for t in found.corrected_differences[:2] if t.p_value is not None)
    adjusted = sorted(t.adjusted for t in found.corrected_differences[:2] if t.adjusted is not None)
    assert adjusted == [min(1.0, 2 * one), max(min(1.0, 2 * one), two)]


def test_other_metrics_are_not_tested() -> None:
    run = records(6)
    (card,) = run.manifest.suites
    manifest = run.manifest.model_copy(
        update={"suites": (card.model_copy(update={"primary": ()}),)}
    )
    found = replace(run, manifest=manifest).compared()
    assert [d.test for d in found.differences] == [None] * 3
    assert found.corrected_differences == ()


def test_win_rates_are_tested_and_corrected_alike_from_both_sides() -> None:
    found = records(20, judged=True).compared()
    tests = {(t.candidate, t.baseline): t for t in found.corrected_win_rates}
    assert set(tests) == {(w.candidate, w.baseline) for w in found.win_rates}
    for (candidate, baseline), test in tests.items():
        back = tests[baseline, candidate]
        assert (back.p_value, back.adjusted, back.family) == (test.p_value, test.adjusted, 3)
    with_reference = [t.p_value for (_, b), t in tests.items() if b == REFERENCE]
    smallest = min(p for p in with_reference if p is not None)
    (least,) = [t for (_, b), t in tests.items() if b == REFERENCE and t.p_value == smallest]
    assert least.adjusted == min(1.0, 3 * smallest)
    for rate in found.win_rates:
        assert rate.test is not None
        assert rate.test.p_value is not None
        assert rate.estimate.low is not None
        assert rate.estimate.high is not None
        outside = not rate.estimate.low <= 0.5 <= rate.estimate.high
        assert outside == (rate.test.p_value < 0.05)


def test_without_reference_answers_the_first_checkpoint_is_what_win_rates_are_read_against() -> (
    None
):
    run = records(20, judged=True, checkpoints=["sft", "dpo", "tbpo-q", "tbpo-a"])
    kept = [j for j in run.judgments if REFERENCE not in (j.candidate, j.baseline)]
    (card,) = run.manifest.suites
    blind = run_manifest(card, checkpoints=["sft", "dpo", "tbpo-q", "tbpo-a"], blind_judges=["j"])
    found = replace(run, judgments=kept, manifest=blind).compared()
    sizes = {frozenset((t.candidate, t.baseline)): t.family for t in found.corrected_win_rates}
    assert {"sft" in pair for pair in sizes} == {True, False}
    assert all(size == 3 for size in sizes.values())


def test_turns_of_one_dialogue_are_one_prompt() -> None:
    """A second turn that repeats the first adds observations and no independent ones."""
    run = records(20, judged=True)
    (card,) = run.manifest.suites

    def again(record: Any) -> Any:
        return record.model_copy(update={"example_id": f"{record.example_id}/2"})

    second = [e.model_copy(update={"id": f"{e.id}/2", "unit": e.id}) for e in run.examples]
    twice = replace(
        run,
        manifest=run.manifest.model_copy(
            update={"suites": (card.model_copy(update={"examples": 40}),)}
        ),
        examples=[*run.examples, *second],
        scores=[*run.scores, *map(again, run.scores)],
        generations=[*run.generations, *map(again, run.generations)],
        judgments=[*run.judgments, *map(again, run.judgments)],
    )
    once, found = run.compared(), twice.compared()
    for one, other in zip(once.metrics, found.metrics, strict=True):
        assert (other.estimate.n, other.estimate.clusters) == (40, 20)
        assert (other.estimate.low, other.estimate.high) == pytest.approx(
            (one.estimate.low, one.estimate.high)
        )
    for a, b in zip(once.differences, found.differences, strict=True):
        assert (b.estimate.low, b.estimate.high) == (a.estimate.low, a.estimate.high)
        assert a.test is not None
        assert b.test is not None
        assert b.test.p_value == a.test.p_value
    for v, w in zip(once.win_rates, found.win_rates, strict=True):
        assert (w.estimate.clusters, w.wins) == (20, 2 * v.wins)
        assert (w.estimate.low, w.estimate.high) == pytest.approx((v.estimate.low, v.estimate.high))


def test_degrees_stand_beside_the_win_rate() -> None:
    run = records(20, judged=True)
    lean = {WIN: 0.8, TIE: 0.5, LOSS: 0.4}
    degrees = [j.model_copy(update={"preference": lean[j.outcome]}) for j in run.judgments]
    found = win(replace(run, judgments=degrees).compared(), "dpo", "sft")
    assert found.mean_preference is not None
    expected = (0.8 * found.wins + 0.5 * found.ties + 0.4 * found.losses) / 20
    assert found.mean_preference.value == pytest.approx(expected)
    assert win(run.compared(), "dpo", "sft").mean_preference is None
    assert found.estimate == win(run.compared(), "dpo", "sft").estimate


def test_strengths_of_all_sides_as_judged_and_at_equal_style() -> None:
    """Every answer is the better one where it is longer: at equal style all are alike."""
    run = records(40, judged=True)
    generator = np.random.default_rng(5)
    sizes = {
        (name, e.id): int(generator.integers(1, 80)) + 30 * place
        for place, name in enumerate((REFERENCE, *NAMES))
        for e in run.examples
    }

    def longer(j: Judgment) -> Judgment:
        margin = sizes[j.candidate, j.example_id] - sizes[j.baseline, j.example_id]
        won = generator.random() < 1 / (1 + np.exp(-margin / 20))
        return make_judgment(j.candidate, j.baseline, j.example_id, WIN if won else LOSS, margin)

    def written(text: str, name: str, example: str) -> dict[str, str]:
        return {text: "x" * sizes[name, example]}

    by_opinion = [j.model_copy(update={"by_rule": False}) for j in run.manifest.judges]
    changed = replace(
        run,
        manifest=run.manifest.model_copy(update={"judges": tuple(by_opinion)}),
        examples=[e.model_copy(update=written("reference", REFERENCE, e.id)) for e in run.examples],
        generations=[
            g.model_copy(update=written("text", g.checkpoint, g.example_id))
            for g in run.generations
        ],
        judgments=[longer(j) for j in run.judgments],
    )
    (found,) = changed.compared().strengths
    assert (found.suite, found.judge, found.raw.baseline) == ("s", "j", "sft")
    raw, styled = ({m.model: m.win_rate for m in one.models} for one in (found.raw, found.styled))
    assert set(raw) == {REFERENCE, *NAMES}
    assert raw["sft"].value == styled["sft"].value == 0.5
    assert raw["tbpo-q"].low is not None
    assert raw["tbpo-q"].low > 0.6
    assert styled["tbpo-q"].low is not None
    assert styled["tbpo-q"].high is not None
    assert styled["tbpo-q"].low < 0.5 < styled["tbpo-q"].high
    effects = {e.name: e.effect for e in found.styled.style}
    assert effects["length"].low is not None
    assert effects["length"].low > 0
    assert effects["bold"].value is None


@pytest.mark.parametrize(("checkpoints", "by_rule"), [(["sft"], False), (NAMES, True)])
def test_two_sides_and_rules_have_no_strengths(checkpoints: Sequence[str], by_rule: bool) -> None:
    run = records(10, judged=True, checkpoints=checkpoints)
    judges = tuple(j.model_copy(update={"by_rule": by_rule}) for j in run.manifest.judges)
    manifest = run.manifest.model_copy(update={"judges": judges})
    found = replace(run, manifest=manifest).compared()
    assert found.win_rates
    assert found.strengths == ()


def test_side_on_which_a_verdict_was_given_does_not_matter() -> None:
    swapped = {WIN: LOSS, LOSS: WIN, TIE: TIE}
    run = records(judged=True)
    turned = [
        make_judgment(
            j.baseline, j.candidate, j.example_id, swapped[j.outcome], -j.length_difference
        )
        if j.example_id in ("e00", "e03")
        else j
        for j in run.judgments
    ]
    assert replace(run, judgments=turned).compared() == run.compared()


def test_lengths_of_invalid_verdicts_do_not_count() -> None:
    run = records(3, judged=True, checkpoints=["sft"])
    given = [("e00", WIN, 10), ("e01", LOSS, 20), ("e02", INVALID, 900)]
    judgments = [make_judgment("sft", REFERENCE, e, o, d) for e, o, d in given]
    found = win(replace(run, judgments=judgments).compared(), "sft", REFERENCE)
    assert found.mean_length_difference == 15.0


# Records of another run.


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"suite": "other"}, "suite 'other'"),
        ({"checkpoint": "orpo"}, "checkpoint 'orpo'"),
        ({"example_id": "e99"}, "example of suite 's' 'e99'"),
        ({"metric": "bleu"}, "metric of suite 's' 'bleu'"),
    ],
)
def test_score_of_another_run_is_refused(changed: dict[str, str], named: str) -> None:
    run = records()
    stray = run.scores[0].model_copy(update=changed)
    with pytest.raises(RunFolderError, match=named):
        replace(run, scores=[*run.scores, stray]).compared()


def test_answers_of_other_weights_are_refused() -> None:
    run = records()
    stray = run.generations[0].model_copy(update={"weights_sha256": "other"})
    with pytest.raises(RunFolderError, match="weights of 'sft' 'other'"):
        replace(run, generations=[stray, *run.generations[1:]]).compared()


def test_judgment_of_another_run_is_refused() -> None:
    run = records(judged=True)
    for changed, named in (
        ({"judge": "other"}, "judge of suite 's' 'other'"),
        ({"candidate": "orpo"}, "checkpoint 'orpo'"),
        ({"candidate": "sft", "baseline": "sft"}, "'sft' with itself"),
        ({"candidate": REFERENCE, "baseline": REFERENCE}, "'reference' with itself"),
    ):
        stray = run.judgments[0].model_copy(update=changed)
        with pytest.raises(RunFolderError, match=named):
            replace(run, judgments=[*run.judgments, stray]).compared()


@pytest.mark.parametrize("kind", ["scores", "generations", "judgments"])
def test_record_that_occurs_twice_is_refused(kind: str) -> None:
    run = records(judged=True)
    rows = getattr(run, kind)
    with pytest.raises(RunFolderError, match="recorded twice"):
        replace(run, **{kind: [*rows, rows[0]]}).compared()


def test_verdicts_on_both_orders_of_a_pair_are_one_place() -> None:
    run = records(judged=True)
    again = make_judgment("sft", "dpo", "e00", LOSS)
    with pytest.raises(RunFolderError, match="s / j / dpo / sft for e00 is recorded twice"):
        replace(run, judgments=[*run.judgments, again]).compared()


def test_examples_must_be_those_of_the_run() -> None:
    run = records()
    with pytest.raises(InputError, match="had 6 examples in the run, but 5 are given"):
        replace(run, examples=run.examples[:5]).compared()
    with pytest.raises(InputError, match="'s' was run, but its examples are not given"):
        compare(run.manifest, [], [], [], {})


# Answers side by side.


def test_first_examples_of_each_subset_are_shown() -> None:
    run = records()
    subsets = ["a", "a", "a", "b", "b", "b"]
    examples = [
        e.model_copy(update={"subset": s}) for e, s in zip(run.examples, subsets, strict=True)
    ]
    shown = replace(run, examples=examples).compared(samples_shown=2).samples
    assert [s.example_id for s in shown] == ["e00", "e01", "e03", "e04"]
    assert shown[0].answers == {name: f"{name} on e00, 0" for name in NAMES}
    assert shown[0].prompt == "question 0"


def test_checkpoint_without_an_answer_is_left_out_of_the_sample() -> None:
    run = records()
    kept = [g for g in run.generations if (g.checkpoint, g.example_id) != ("dpo", "e00")]
    first = replace(run, generations=kept).compared().samples[0]
    assert list(first.answers) == ["sft", "tbpo-q"]


def test_prompt_of_a_dialogue_shows_all_turns() -> None:
    def example(*turns: tuple[Role, str]) -> Example:
        return Example(id="x", messages=tuple(Message(role=r, content=c) for r, c in turns))

    single = example((Role.SYSTEM, "be brief"), (Role.USER, "hello"))
    assert prompt_text(single) == "hello"
    turns = example((Role.USER, "hello"), (Role.ASSISTANT, "hi"), (Role.USER, "bye"))
    assert prompt_text(turns) == "User: hello\nAssistant: hi\nUser: bye"


def test_metrics_of_a_suite_are_kept_apart() -> None:
    run = records(checkpoints=["sft"])
    card = suite_card(examples=6, metrics=[metric_info("acc"), metric_info("other")])
    second = [make_score("sft", e.id, 0.25, metric="other") for e in run.examples]
    found = replace(
        run, manifest=run_manifest(card, checkpoints=["sft"]), scores=[*run.scores, *second]
    ).compared()
    assert result(found, "sft", "other").estimate.value == 0.25
    assert not result(found, "sft", "other").primary
    assert result(found, "sft").estimate.value != 0.25


def test_reading_half_imports_no_engine() -> None:
    heavy = ("torch", "transformers", "vllm", "lm_eval", "pandas", "matplotlib")
    code = (
        "import sys, harness.compare, harness.gate;"
        f"print([m for m in sys.modules if m.split('.')[0] in {heavy!r}])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
