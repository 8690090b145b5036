"""All win-rate statistics of a million judgments over fifty checkpoints: seconds and memory.

    python benchmarks/statistics.py [--checkpoints 50] [--prompts 409] [--resamples 1000]

Every pair of checkpoints is judged on every prompt in both orders. The judgments are simulated;
the functions are those that ``tbpo winrate`` and the reports call. Where alpaca-eval is installed,
its length-controlled fit runs on the same data, and the ratio of the two times is printed. Exit
code 1 where a target is missed: 60 s and 2 GB for all statistics, a fit at least as fast.
"""

from __future__ import annotations

import argparse
import importlib.util
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import combinations
from typing import Any

import numpy as np

from harness.stats.bradley_terry import bradley_terry
from harness.stats.clustered import clustered_share
from harness.stats.contrasts import contrasts, prompt_table, rates
from harness.stats.hypothesis import holm, permutation_test, sign_test
from harness.stats.judge_agreement import judge_agreement
from harness.stats.judge_quality import judge_quality
from harness.stats.judged import Judged
from harness.stats.length_control import (
    Regulariser,
    alpaca_eval_win_rate,
    paper_win_rate,
)
from harness.stats.power import WinRateDesign, minimum_detectable_win_rate

SECONDS, GIGABYTES = 60.0, 2.0
JUDGES = ("judge-1", "judge-2")
STYLE = ("length", "headings", "lists", "bold")
ITEMS = 805
"""Prompts of AlpacaEval, whose data the two fits are compared on the shape of."""


def simulated(checkpoints: int, prompts: int, rng: np.random.Generator) -> Judged:
    """Return judgments of all pairs on all prompts in both orders, by two judges in turn."""
    pairs = np.array(list(combinations(range(checkpoints), 2)), dtype=np.int32)
    baseline, candidate = np.repeat(pairs, 2 * prompts, axis=0).T
    prompt = np.tile(np.repeat(np.arange(prompts, dtype=np.int32), 2), len(pairs))
    order = np.tile(np.array([1, -1], dtype=np.int8), len(pairs) * prompts)
    lengths = rng.lognormal(7, 0.5, (checkpoints, prompts)).round()
    strength = rng.normal(0, 0.5, checkpoints)[:, None] + rng.normal(0, 0.7, (checkpoints, prompts))
    doublings = np.log2(lengths[candidate, prompt] / lengths[baseline, prompt])
    odds = strength[candidate, prompt] - strength[baseline, prompt]
    odds = odds + 0.3 * doublings + 0.2 * order + rng.logistic(size=len(order))
    preference = np.where(np.abs(odds) < 0.1, 0.5, (odds > 0).astype(np.float64))
    preference[rng.random(len(order)) < 0.01] = np.nan
    return Judged(
        models=tuple(f"checkpoint-{i:02d}" for i in range(checkpoints)),
        judges=JUDGES,
        prompts=tuple(f"prompt-{i}" for i in range(prompts)),
        candidate=candidate.copy(),
        baseline=baseline.copy(),
        judge=(prompt % 2).astype(np.int32),
        prompt=prompt,
        preference=preference,
        order=order,
        candidate_length=lengths[candidate, prompt],
        baseline_length=lengths[baseline, prompt],
        item=prompt,
        row=np.arange(len(order), dtype=np.int32),
    )


class Stages:
    """Times each stage and prints it when it ends."""

    def __init__(self) -> None:
        self.total = 0.0

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        took = time.perf_counter() - started
        self.total += took
        print(f"  {name:58} {took:7.2f} s", flush=True)


def against_first(judged: Judged) -> Iterator[dict[str, Any]]:
    """Yield the columns of each checkpoint against the first one, as length control takes them."""
    for candidate in range(1, len(judged.models)):
        rows = (judged.candidate == candidate) & (judged.baseline == 0)
        yield {
            "labels": judged.preference[rows],
            "length_differences": (judged.baseline_length - judged.candidate_length)[rows],
            "clusters": judged.prompt[rows],
        }


def summarise(judged: Judged, resamples: int, rng: np.random.Generator) -> float:
    """Compute every statistic of issue and report once; return the seconds."""
    stage = Stages()
    models = len(judged.models)
    with stage(f"raw win rates of {models * (models - 1) // 2} pairs, clustered"):
        pair = judged.candidate.astype(np.int64) * models + judged.baseline
        cuts = np.flatnonzero(np.diff(pair)) + 1
        columns = zip(np.split(judged.preference, cuts), np.split(judged.prompt, cuts), strict=True)
        raw = [clustered_share(preference, prompt) for preference, prompt in columns]
        assert len(raw) == models * (models - 1) // 2
    for name, fit in (("AlpacaEval's", alpaca_eval_win_rate), ("the paper's", paper_win_rate)):
        with stage(f"length-controlled, {name}, {models - 1} models, {resamples} refits each"):
            for columns in against_first(judged):
                fit(
                    np.asarray(columns["labels"]),
                    np.asarray(columns["length_differences"]),
                    np.asarray(columns["clusters"]),
                    rng=rng,
                    resamples=resamples,
                )
    with stage("Bradley-Terry, with and without style"):
        style = rng.normal(size=(len(judged), len(STYLE)))
        style[:, 0] = judged.candidate_length - judged.baseline_length
        bradley_terry(judged)
        bradley_terry(judged, style=style, style_names=STYLE)
    with stage("paired differences of all pairs against the first, Holm"):
        table = prompt_table(judged, judged.models[0])
        rates(table)
        found = {f"{c.first}/{c.second}": c.tested.p_value for c in contrasts(table)}
        holm(found)
    with stage(f"sign and permutation tests of {models - 1} models"):
        for columns in against_first(judged):
            differences = np.asarray(columns["labels"]) - 0.5
            sign_test(differences, np.asarray(columns["clusters"]))
            permutation_test(differences, np.asarray(columns["clusters"]), rng=rng)
    with stage("judge quality, agreement of judges"):
        judge_quality(judged)
        judge_agreement(judged, rng=rng, resamples=resamples)
    with stage("minimum detectable win rate"):
        minimum_detectable_win_rate(WinRateDesign(prompts=len(judged.prompts)))
    return stage.total


def peak_gigabytes() -> float:
    """Return the most memory that this process held at once."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def fastest(repeats: int, work: Callable[[], object]) -> float:
    """Return the shortest of several times, s."""

    def once() -> float:
        started = time.perf_counter()
        work()
        return time.perf_counter() - started

    return min(once() for _ in range(repeats))


def one_fit(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray, Regulariser]:
    """Return labels, length differences, difficulty and regulariser in AlpacaEval's shape."""
    difficulty, shift = rng.normal(0, 1, ITEMS), rng.normal(0, 900, ITEMS)
    labels = 1 / (1 + np.exp(-(0.3 - 0.8 * np.tanh(shift / shift.std()) + difficulty)))
    labels = np.clip(labels + rng.normal(0, 0.2, ITEMS), 0.001, 0.999)
    covariates = np.column_stack([rng.normal(0, 2, 2 * ITEMS), np.tile(difficulty, 2)])
    regulariser = Regulariser(covariates=covariates, labels=rng.random(2 * ITEMS), weight=0.1)
    return labels, shift, difficulty, regulariser


def compare_fits(rng: np.random.Generator) -> float | None:
    """Return alpaca-eval's time for one fit over ours; None where it is not installed."""
    labels, shift, difficulty, regulariser = one_fit(rng)
    clusters = np.arange(ITEMS)
    ours = fastest(
        5,
        lambda: alpaca_eval_win_rate(
            labels,
            shift,
            clusters,
            rng=rng,
            difficulty=difficulty,
            regulariser=regulariser,
            resamples=2,
        ),
    )
    print(f"  one length-controlled fit, C cross-validated: ours {ours:.3f} s", flush=True)
    if importlib.util.find_spec("alpaca_eval") is None:
        print("  alpaca-eval is not installed: no comparison")
        return None
    import pandas as pd
    from alpaca_eval.metrics.glm_winrate import fit_LogisticRegressionCV

    own = np.column_stack([np.tanh(shift / shift.std(ddof=1)), difficulty, np.ones(ITEMS)])
    extra = np.column_stack(
        [np.tanh(regulariser.covariates[:, 0]), regulariser.covariates[:, 1], np.zeros(2 * ITEMS)]
    )
    frame = pd.DataFrame(np.vstack([extra, own]), columns=["length", "difficulty", "constant"])
    frame["preference"] = np.concatenate([regulariser.labels, labels])
    weight = np.concatenate([np.full(2 * ITEMS, 0.1), np.ones(ITEMS)])
    theirs = fastest(
        3, lambda: fit_LogisticRegressionCV(frame, "preference", n_splits=5, sample_weight=weight)
    )
    print(f"  the same by alpaca-eval {theirs:.3f} s: {theirs / ours:.1f} times as long")
    return theirs / ours


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoints", type=int, default=50)
    parser.add_argument("--prompts", type=int, default=409)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    words = parser.parse_args()
    rng = np.random.default_rng(words.seed)
    judged = simulated(words.checkpoints, words.prompts, rng)
    print(f"{len(judged):,} judgments of {words.checkpoints} checkpoints")
    seconds = summarise(judged, words.resamples, rng)
    memory = peak_gigabytes()
    print(
        f"all statistics: {seconds:.1f} s (wanted: {SECONDS:.0f}), peak {memory:.2f} GB "
        f"(wanted: {GIGABYTES:.0f})"
    )
    ratio = compare_fits(rng)
    met = seconds <= SECONDS and memory <= GIGABYTES and (ratio is None or ratio >= 1)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
