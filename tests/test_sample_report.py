"""Every number of the committed report, recomputed from its JSONL by another path (pandas)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize
from scipy.stats import binomtest

SAMPLE = Path(__file__).parents[1] / "reports" / "sample"
SIGMA = 2 * 1.959964
RESAMPLES = 1000


def table(name: str) -> pd.DataFrame:
    lines = (SAMPLE / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return pd.DataFrame([json.loads(line) for line in lines])


@pytest.fixture(scope="module")
def comparison() -> dict[str, Any]:
    return json.loads((SAMPLE / "comparison.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def generations() -> pd.DataFrame:
    return table("generations")


@pytest.fixture(scope="module")
def scores() -> pd.DataFrame:
    return table("scores").dropna(subset=["value"])


@pytest.fixture(scope="module")
def judgments() -> pd.DataFrame:
    return table("judgments")


def close_interval(estimate: dict[str, Any], low: float, high: float, tolerance: float) -> None:
    """Another generator's bootstrap must give nearly the same bounds."""
    spread = max((estimate["high"] - estimate["low"]) / SIGMA, 1e-12)
    assert abs(estimate["low"] - low) <= tolerance * spread + 1e-9, estimate
    assert abs(estimate["high"] - high) <= tolerance * spread + 1e-9, estimate


def bootstrap(
    count: int, statistic: Callable[[np.ndarray], float], times: int
) -> tuple[float, ...]:
    rng = np.random.default_rng(7)
    draws = [statistic(rng.integers(0, count, count)) for _ in range(times)]
    return tuple(np.quantile(draws, [0.025, 0.975]))


def weighted_sums(frame: pd.DataFrame) -> pd.DataFrame:
    frame = frame.assign(product=frame.value * frame.weight)
    return frame.groupby("example_id")[["product", "weight"]].sum().sort_index()


def tokens(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text.lower())


def distinct(texts: pd.Series, n: int) -> float:
    grams = [tuple(t[i : i + n]) for t in map(tokens, texts) for i in range(len(t) - n + 1)]
    return len(set(grams)) / len(grams)


def self_bleu(texts: pd.Series) -> float:
    from sacrebleu import sentence_bleu

    scores = [sentence_bleu(a, [b]).score for a, b in permutations(texts, 2)]
    return sum(scores) / len(scores)


FROM_TEXT: dict[str, Callable[[pd.DataFrame], float]] = {
    "tokens": lambda g: g.tokens.mean(),
    "characters": lambda g: g.text.str.strip().str.len().mean(),
    "truncated": lambda g: (g.finish_reason == "length").mean(),
    "entropy": lambda g: g.entropy.mean(),
    "distinct_1": lambda g: distinct(g[g["sample"] == 0].text, 1),
    "distinct_2": lambda g: distinct(g[g["sample"] == 0].text, 2),
    "self_bleu": lambda g: g.groupby("example_id").text.apply(self_bleu).mean(),
}
"""Metrics recomputed from the answers themselves, not from their scores."""


def test_sample_is_complete(comparison: dict[str, Any], generations: pd.DataFrame) -> None:
    assert comparison["gaps"] == []
    assert comparison["manifest"]["status"] == "complete"
    weights = {
        c["spec"]["name"]: c["weights_sha256"] for c in comparison["manifest"]["checkpoints"]
    }
    assert len(set(weights.values())) == len(weights) == 4
    assert (generations.checkpoint.map(weights) == generations.weights_sha256).all()


def test_metrics(
    comparison: dict[str, Any], scores: pd.DataFrame, generations: pd.DataFrame
) -> None:
    assert len(comparison["metrics"]) > 60
    for result in comparison["metrics"]:
        key = result["metric"]["key"]
        where = (scores.suite == result["suite"]) & (scores.checkpoint == result["checkpoint"])
        sums = weighted_sums(scores[where & (scores.metric == key)])
        estimate = result["estimate"]
        assert estimate["value"] == pytest.approx(
            sums["product"].sum() / sums.weight.sum(), abs=1e-9
        )
        assert estimate["clusters"] == len(sums)
        if key in FROM_TEXT:
            own = generations[
                (generations.suite == result["suite"])
                & (generations.checkpoint == result["checkpoint"])
            ]
            assert estimate["value"] == pytest.approx(FROM_TEXT[key](own), abs=1e-9), result
        product, weight = sums["product"].to_numpy(), sums.weight.to_numpy()
        if result["metric"]["unit"] == "share" and estimate["value"] in (0.0, 1.0):
            wilson = binomtest(int(estimate["value"]) * len(sums), len(sums)).proportion_ci(
                method="wilson"
            )
            close_interval(estimate, wilson.low, wilson.high, tolerance=1e-6)
            continue
        bounds = bootstrap(
            len(sums), lambda i, p=product, w=weight: p[i].sum() / w[i].sum(), RESAMPLES
        )
        close_interval(estimate, *bounds, tolerance=0.45)


def test_differences(comparison: dict[str, Any], scores: pd.DataFrame) -> None:
    assert len(comparison["differences"]) > 80
    for found in comparison["differences"]:
        rows = scores[(scores.suite == found["suite"]) & (scores.metric == found["metric"]["key"])]
        sides = [
            weighted_sums(rows[rows.checkpoint == found[side]])
            for side in ("candidate", "baseline")
        ]
        both = sides[0].join(sides[1], lsuffix="_a", rsuffix="_b", how="inner")
        a, wa, b, wb = (
            both[c].to_numpy() for c in ("product_a", "weight_a", "product_b", "weight_b")
        )

        def statistic(i: np.ndarray, a=a, wa=wa, b=b, wb=wb) -> float:  # type: ignore[no-untyped-def]
            return a[i].sum() / wa[i].sum() - b[i].sum() / wb[i].sum()

        estimate = found["estimate"]
        assert estimate["value"] == pytest.approx(statistic(np.arange(len(both))), abs=1e-9)
        close_interval(estimate, *bootstrap(len(both), statistic, RESAMPLES), tolerance=0.45)


LABEL = {"win": 1.0, "tie": 0.5, "loss": 0.0}


def length_controlled(labels: np.ndarray, covariate: np.ndarray) -> float:
    """Penalised logistic regression by a general optimiser; probability at equal length."""

    def loss(theta: np.ndarray) -> float:
        z = theta[0] + theta[1] * covariate
        return float((np.logaddexp(0, z) - labels * z).sum() + 0.005 * (theta**2).sum())

    return float(1 / (1 + np.exp(-minimize(loss, np.zeros(2), tol=1e-10).x[0])))


def test_win_rates(comparison: dict[str, Any], judgments: pd.DataFrame) -> None:
    assert len(comparison["win_rates"]) > 30
    for rate in comparison["win_rates"]:
        same = (judgments.suite == rate["suite"]) & (judgments.judge == rate["judge"])
        straight = judgments[
            same
            & (judgments.candidate == rate["candidate"])
            & (judgments.baseline == rate["baseline"])
        ]
        mirrored = straight.empty
        if mirrored:
            straight = judgments[
                same
                & (judgments.candidate == rate["baseline"])
                & (judgments.baseline == rate["candidate"])
            ]
        labels = straight.outcome.map(LABEL).to_numpy()
        lengths = straight.length_difference.to_numpy(dtype=float)
        if mirrored:
            labels, lengths = 1 - labels, -lengths
        counts = [int((labels == v).sum()) for v in (1.0, 0.5, 0.0)]
        assert counts == [rate["wins"], rate["ties"], rate["losses"]]
        assert rate["estimate"]["value"] == pytest.approx(labels.mean(), abs=1e-9)
        assert rate["mean_length_difference"] == pytest.approx(lengths.mean(), abs=1e-9)
        if len(set(labels)) > 1:
            bounds = bootstrap(len(labels), lambda i, v=labels: v[i].mean(), RESAMPLES)
            close_interval(rate["estimate"], *bounds, tolerance=0.45)
        else:
            wilson = binomtest(int(labels.sum()), len(labels)).proportion_ci(method="wilson")
            close_interval(rate["estimate"], wilson.low, wilson.high, tolerance=1e-6)
        scale = lengths.std()
        if scale > 0:
            expected = length_controlled(labels, np.tanh(lengths / scale))
            assert rate["length_controlled"]["value"] == pytest.approx(expected, abs=1e-4)


class Cells(HTMLParser):
    """Collects the report's cells that carry a number."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[dict[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {k.removeprefix("data-"): v or "" for k, v in attrs if k.startswith("data-")}
        if "value" in values:
            self.found.append(values)


def test_html_shows_the_same_numbers(comparison: dict[str, Any]) -> None:
    cells = Cells()
    cells.feed((SAMPLE / "report.html").read_text(encoding="utf-8"))
    metrics = {
        (r["suite"], r["metric"]["key"], r["checkpoint"]): r["estimate"]
        for r in comparison["metrics"]
    }
    shown = set()
    for cell in cells.found:
        key = (cell.get("suite", ""), cell.get("metric", ""), cell.get("checkpoint", ""))
        if key in metrics and "baseline" not in cell:
            shown.add(key)
            assert float(cell["value"]) == metrics[key]["value"]
            assert float(cell["low"]) == metrics[key]["low"]
            assert float(cell["high"]) == metrics[key]["high"]
    assert shown == set(metrics)


def test_rendering_again_gives_the_same_files(tmp_path: Path) -> None:
    from harness.report import render
    from harness.types import Comparison

    found = Comparison.model_validate_json((SAMPLE / "comparison.json").read_text(encoding="utf-8"))
    files = render(found, tmp_path)
    assert files.html.read_bytes() == (SAMPLE / "report.html").read_bytes()
    assert files.markdown.read_bytes() == (SAMPLE / "report.md").read_bytes()
