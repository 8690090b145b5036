"""What the numbers say, in sentences: the verdict, its caveats and the run's limits."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from harness.report.lookup import Lookup
from harness.report.significance import ALPHA, significant
from harness.report.tables import Change, change_of, resolved
from harness.report.text import NBSP, clean, counted, joined, number, shown
from harness.types import (
    PROMPTS_CUT,
    SHARE,
    Comparison,
    DifferenceTest,
    Estimate,
    Form,
    JudgeInfo,
    MetricDifference,
    SuiteCard,
)

SMALL = 200
"""Prompts of the paper's win-rate suites; a suite below that is called small."""

NAMED = 3
"""Checkpoints, and metrics of one, that the verdict names; the table below marks them all."""

BRIEF = 100
"""Characters of names that a sentence can carry; longer lists are counted instead."""

TRUNCATED = "truncated"
TRUNCATED_SHARE = 0.05


@dataclass(frozen=True)
class Finding:
    """A primary metric on which a checkpoint differs from the first one."""

    change: Change
    difference: MetricDifference


def primary_differences(lookup: Lookup) -> list[MetricDifference]:
    """Return the paired differences of primary metrics to the first checkpoint."""
    first = lookup.names[0]
    return [d for d in lookup.comparison.differences if d.primary and d.baseline == first]


def findings(lookup: Lookup) -> dict[str, list[Finding]]:
    """Return, for each checkpoint, the primary metrics on which it differs from the first one.

    Where differences were tested, they count if they stand after the correction for all of them.
    """
    found: dict[str, list[Finding]] = {}
    for difference in primary_differences(lookup):
        about = difference.suite, difference.candidate, difference.baseline
        change = resolved(lookup, difference.metric, about)
        test = lookup.difference_tests.get(
            (difference.suite, difference.metric.key, difference.candidate, difference.baseline)
        )
        if change != Change.UNRESOLVED and (test is None or significant(test)):
            found.setdefault(difference.candidate, []).append(Finding(change, difference))
    return {name: found[name] for name in lookup.names if name in found}


def verdict(lookup: Lookup) -> str:
    """Return the one-sentence verdict."""
    sentence = _verdict(lookup)
    if lookup.comparison.complete:
        return sentence
    return f"Provisional, from the part of the run that is present: {sentence}"


def _verdict(lookup: Lookup) -> str:
    first, *others = lookup.names
    if not others:
        return f"Only one checkpoint, {first}, was run, so nothing is compared."
    if not lookup.comparison.manifest.suites:
        return "No prompts were asked, so no answers are compared."
    measured = [d for d in primary_differences(lookup) if d.estimate.value is not None]
    if not measured:
        return f"No paired difference to {first} could be computed on a primary metric."
    found = findings(lookup)
    size = prompts(d.estimate for d in measured)
    quiet = [name for name in others if name not in found]
    if not found:
        return f"No difference between {first} and {_or(quiet)} is resolved by {size}."
    clauses = _clauses(found, len(others))
    if quiet:
        who = joined(quiet) if _brief(quiet) else f"the other {len(quiet)}"
        clauses.append(f"for {who}, no difference is resolved by {size}")
    return f"Against {first}, {'; '.join(clauses)}."


def _clauses(found: dict[str, list[Finding]], others: int) -> list[str]:
    names = list(found)
    if len(names) <= NAMED:
        return [f"{name} is {_changes(found[name])}" for name in names]
    listed = f" ({joined(names)})" if len(names) < others and _brief(names) else ""
    differ = f"{len(found)} of {others} checkpoints differ"
    return [f"{differ} on at least one primary metric, as marked below{listed}"]


def _brief(names: list[str]) -> bool:
    return sum(map(len, names)) <= BRIEF


def _or(names: list[str]) -> str:
    return joined(names).replace(" and ", " or ")


def _changes(found: list[Finding]) -> str:
    clauses = []
    for change in Change:
        titles = [f.difference.metric.title for f in found if f.change == change]
        if titles:
            clauses.append(f"{change.value} on {_named(titles)}")
    return ", ".join(clauses)


def _named(titles: list[str]) -> str:
    """Return the titles, each once with how often it occurs; only their number where many."""
    if len(titles) > NAMED:
        return f"{len(titles)} primary metrics"
    times = Counter(titles)
    return joined([t if n == 1 else f"{t} (in {n} suites)" for t, n in times.items()])


def prompts(estimates: Iterable[Estimate]) -> str:
    """Return ``60 prompts``, or ``30 to 60 prompts a suite`` where the suites differ."""
    sizes = sorted({e.clusters for e in estimates})
    if len(sizes) == 1:
        return counted(sizes[0], "prompt")
    return f"{sizes[0]} to {sizes[-1]}{NBSP}prompts a suite"


def chance(lookup: Lookup) -> str | None:
    """Return how many primary differences would exclude zero by chance; None without any."""
    usable = [d for d in primary_differences(lookup) if d.estimate.low is not None]
    if not usable:
        return None
    total = len(usable)
    outside = sum(change_of(d.estimate, d.metric.direction) != Change.UNRESOLVED for d in usable)
    expected = number(total * (1 - usable[0].estimate.level), 1)
    return (
        f"{outside} of {counted(total, 'primary difference')} exclude zero; if no checkpoint "
        f"differed from any other, about {expected} would by chance alone.{_corrected(lookup)}"
    )


def _corrected(lookup: Lookup) -> str:
    """Return how many primary differences to the first checkpoint stand after Holm's correction."""
    tests = lookup.comparison.corrected_differences
    family = [t for t in tests if t.baseline == lookup.names[0] and t.p_value is not None]
    if not family:
        return ""
    return (
        f" After Holm's correction over the {counted(len(family), 'permutation test')}, "
        f"{sum(map(significant, family))} remain significant at {100 * ALPHA:g}{NBSP}%."
    )


def intervals(comparison: Comparison) -> str:
    """Return how the intervals were made, in one line."""
    levels = sorted({e.level for e in estimates(comparison)})
    if not levels:
        return "There are no intervals."
    percent = joined([f"{100 * level:g}{NBSP}%" for level in levels])
    return (
        f"Intervals in brackets: {percent}, over prompts; shares by Wilson's method with t, the "
        f"rest by a bootstrap of {counted(comparison.resamples, 'resample')}, "
        f"seed {comparison.seed}."
    )


def estimates(comparison: Comparison) -> Iterator[Estimate]:
    """Yield every estimate of a comparison."""
    yield from (r.estimate for r in comparison.metrics)
    yield from (d.estimate for d in comparison.differences)
    for rate in comparison.win_rates:
        yield rate.estimate
        if rate.length_controlled is not None:
            yield rate.length_controlled


def interval_methods(comparison: Comparison) -> list[str]:
    """Return the distinct methods named by the estimates and by the figures over seeds."""
    found = comparison.training.checkpoints if comparison.training else ()
    seeds = {summary.method for checkpoint in found for summary in checkpoint.summaries}
    tests = {f"p values: {t.method}" for t in _tests(comparison)}
    fitted = {e.method for e in _strengths(comparison)}
    return sorted({e.method for e in estimates(comparison)} | seeds | tests | fitted)


def _tests(comparison: Comparison) -> Iterator[DifferenceTest]:
    yield from (d.test for d in comparison.differences if d.test is not None)
    yield from (w.test for w in comparison.win_rates if w.test is not None)


def _strengths(comparison: Comparison) -> Iterator[Estimate]:
    for found in comparison.strengths:
        yield from (m.strength for model in (found.raw, found.styled) for m in model.models)


def agreement_text(judge: JudgeInfo) -> str:
    """Return how far a judge agrees with people, or why that is not a question."""
    if judge.agreement is None and judge.by_rule:
        return "Agreement with people: not applicable, the verdict follows from a rule."
    if judge.agreement is None:
        return "Agreement with people: not measured; 'tbpo judge check' measures it."
    words = shown(judge.agreement, SHARE).line
    pairs = counted(judge.agreement.n, "human-labelled pair")
    source = f" ({judge.measured_on})" if judge.measured_on else ""
    return f"Agreement with people: {words} on {pairs}{source}."


def limits(lookup: Lookup) -> list[str]:
    """Return what this run cannot show, in sentences."""
    return [
        *_small_suites(lookup.comparison),
        "Intervals cover the choice of prompts. They do not cover another training run, another "
        "data order or another sampling seed.",
        *_embedded(lookup.comparison),
        *_forms(lookup.comparison),
        *_weak_judges(lookup.comparison),
        *_missing(lookup.comparison),
        *(f"Cannot be known: {clean(text)}." for text in lookup.comparison.unknown),
        *_truncated(lookup),
        *_prompts_cut(lookup.comparison),
        *_seeds(lookup.comparison),
    ]


def _seeds(comparison: Comparison) -> Iterator[str]:
    if comparison.training is not None:
        yield (
            "Training stability describes the runs whose logs were found, under their recipes and "
            "budgets. Its spreads over a few seeds are no intervals. Without a log, nothing is "
            "known about a checkpoint's training, which is not the same as stable."
        )


def _small_suites(comparison: Comparison) -> Iterator[str]:
    small = [c for c in comparison.manifest.suites if c.examples < SMALL]
    if small:
        sizes = joined([f"{c.title} ({counted(c.examples, 'prompt')})" for c in small])
        behind = _prompts_behind_shares(comparison) or [c.examples for c in small]
        worst, best = half_width(min(behind)), half_width(max(behind))
        span = f"\u00b1{best}" if best == worst else f"\u00b1{best} to \u00b1{worst}"
        yield (
            f"Small suites: {sizes}. A share near one half is known to about "
            f"{span}{NBSP}percentage points, so smaller differences stay unresolved."
        )


def _prompts_behind_shares(comparison: Comparison) -> list[int]:
    """Return how many prompts each primary share rests on: a part of its suite's, for some."""
    return [
        result.estimate.clusters
        for result in comparison.metrics
        if result.primary and result.metric.unit == SHARE and result.estimate.clusters
    ]


def half_width(prompts: int) -> str:
    """Return, in percentage points, half of the 95 % interval of a share of one half."""
    return number(100 * 1.96 * 0.5 / math.sqrt(max(prompts, 1)), 0)


def _embedded(comparison: Comparison) -> Iterator[str]:
    checkpoints = comparison.manifest.checkpoints
    names = [c.spec.name for c in checkpoints if c.spec.source.startswith("embedded:")]
    if names:
        yield (
            f"{joined(names)}: embedded checkpoints, tiny models for demonstration. What differs "
            "between them says little about the same methods on larger models."
        )


FORM_LIMITS = {
    Form.ENDPOINT: "asked through a server. Its weights, chat template and sampling cannot be "
    "seen, so a difference may come from any of them.",
    Form.RECORDED: "answers recorded earlier. How they were sampled is not known, so a difference "
    "may come from the sampling as well as from the model.",
}


def _forms(comparison: Comparison) -> Iterator[str]:
    for form, limit in FORM_LIMITS.items():
        names = [c.spec.name for c in comparison.manifest.checkpoints if c.form is form]
        if names:
            yield f"{joined(names)}: {limit}"


def _weak_judges(comparison: Comparison) -> Iterator[str]:
    for judge in comparison.manifest.judges:
        if judge.no_better_than_chance:
            yield (
                f"The verdicts of {judge.title} are no better than chance: "
                "its win rates are no evidence of which answers people would prefer."
            )


def _missing(comparison: Comparison) -> Iterator[str]:
    metrics = sum(r.estimate.missing for r in comparison.metrics)
    verdicts = sum(w.invalid for w in comparison.win_rates)
    if metrics or verdicts:
        yield (
            f"Excluded and counted, never read as zero: {counted(metrics, 'missing score')} and "
            f"{counted(verdicts, 'judgment')} without a verdict."
        )


def _truncated(lookup: Lookup) -> Iterator[str]:
    for card in lookup.comparison.manifest.suites:
        found = [(n, lookup.estimate(card.name, TRUNCATED, n)) for n in lookup.names]
        cut = [
            f"{name} {shown(e, SHARE).value}"
            for name, e in found
            if e is not None and e.value is not None and e.value >= TRUNCATED_SHARE
        ]
        if cut:
            yield (
                f"{card.title}: answers cut at {_token_limit(lookup, card)} "
                f"({', '.join(cut)}), so their ends were not judged."
            )


def _prompts_cut(comparison: Comparison) -> Iterator[str]:
    titles = {card.name: card.title for card in comparison.manifest.suites}
    found: dict[tuple[str, str], dict[str, int]] = {}
    for event in comparison.manifest.events:
        if event.get("event") == PROMPTS_CUT and event["suite"] in titles:
            key = titles[event["suite"]], counted(event["max_model_len"], "token")
            found.setdefault(key, {})[event["checkpoint"]] = event["prompts"]
    for (title, most), cut in found.items():
        each = joined([f"{name} {counted(count, 'prompt')}" for name, count in cut.items()])
        yield (
            f"{title}: prompts that with their answers exceed {most} lost their beginnings, solved "
            f"examples first ({each}), so their values are not those of the full number of shots."
        )


def _token_limit(lookup: Lookup, card: SuiteCard) -> str:
    """Return the suite's token limit, which recorded answers did not keep to."""
    forms = {c.form for c in lookup.comparison.manifest.checkpoints}
    if Form.RECORDED in forms:
        return "a token limit"
    return counted(card.sampling.max_tokens, "token") if card.sampling else "a token limit"
