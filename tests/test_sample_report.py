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
from scipy.special import logit
from scipy.stats import binomtest, norm, t

pytestmark = pytest.mark.slow

SAMPLE = Path(__file__).parents[1] / "reports" / "sample"
RESAMPLES = 2000


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


def check_interval(estimate: dict[str, Any], draws: np.ndarray, slack: float = 0.03) -> None:
    """Bounds must be the 2.5 % and 97.5 % points of another bootstrap, ties allowed for.

    The share of 2,000 draws beyond a bound has a standard error of 0.005 between two bootstraps;
    among some 3,000 bounds a few are four of them apart.
    """
    for bound, level in ((estimate["low"], 0.025), (estimate["high"], 0.975)):
        assert (draws < bound - 1e-9).mean() <= level + slack, (estimate, level)
        assert (draws <= bound + 1e-9).mean() >= level - slack, (estimate, level)


def jackknife_error(product: np.ndarray, weight: np.ndarray) -> float:
    """Standard error of a ratio of sums over clusters, from leaving each one out."""
    count = len(product)
    others = [
        (product.sum() - p) / (weight.sum() - w) for p, w in zip(product, weight, strict=True)
    ]
    whole = product.sum() / weight.sum()
    return float(np.sqrt((count - 1) / count * ((np.array(others) - whole) ** 2).sum()))


def check_share(estimate: dict[str, Any], product: np.ndarray, weight: np.ndarray) -> None:
    """Wilson's bounds lie t standard errors from the share, each error that of the bound.

    Where all prompts have one share between 0 and 1, Clopper and Pearson's bound on the prompts
    that have another moves it towards 0 and 1.
    """
    share, error = product.sum() / weight.sum(), jackknife_error(product, weight)
    if error < 1e-12 and 0 < share < 1:
        others = binomtest(0, len(product)).proportion_ci(method="exact").high
        expected = share * (1 - others), share + (1 - share) * others
        assert (estimate["low"], estimate["high"]) == pytest.approx(expected)
        return
    size = share * (1 - share) / error**2 if error > 1e-12 else len(product)
    reach = t.ppf(0.975, len(product) - 1)
    assert estimate["low"] <= share <= estimate["high"]
    for bound in (estimate["low"], estimate["high"]):
        distance = reach * np.sqrt(bound * (1 - bound) / size)
        assert abs(share - bound) == pytest.approx(distance, abs=1e-9), estimate


def check_logit_interval(estimate: dict[str, Any], draws: np.ndarray) -> None:
    """Bounds lie t errors from the logit of the rate, an error from the quartiles of the refits.

    Such an error varies by 4.5 % between bootstraps of 1,000 and of 2,000 resamples.
    """
    value, low, high = (logit(estimate[key]) for key in ("value", "low", "high"))
    assert high - value == pytest.approx(value - low)
    lower, upper = np.quantile(logit(draws), [0.25, 0.75])
    error = (upper - lower) / (2 * norm.ppf(0.75))
    assert (high - value) / t.ppf(0.975, estimate["clusters"] - 1) == pytest.approx(error, rel=0.18)


def check_p(test: dict[str, Any], differences: np.ndarray) -> None:
    """Both p values of paired differences, one a prompt: all signs at random, and the sign test."""
    signs = np.random.default_rng(11).choice([-1.0, 1.0], size=(4000, len(differences)))
    beyond = np.abs(signs @ differences) >= abs(differences.sum()) - 1e-9
    assert test["p_value"] == pytest.approx(beyond.mean(), abs=0.035)
    above, below = (differences > 1e-12).sum(), (differences < -1e-12).sum()
    expected = binomtest(int(above), int(above + below)).pvalue if above + below else 1.0
    assert test["sign_p_value"] == pytest.approx(expected)


def bootstrap(count: int, statistic: Callable[[np.ndarray], Any], times: int) -> np.ndarray:
    """Return ``times`` values of a statistic that takes (B, count) indices and returns (B,)."""
    return np.asarray(statistic(np.random.default_rng(7).integers(0, count, (times, count))))


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
    assert len(set(weights.values())) == len(weights) == 8
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
        if result["metric"]["unit"] == "share":
            check_share(estimate, product, weight)
            continue
        draws = bootstrap(
            len(sums), lambda i, p=product, w=weight: p[i].sum(-1) / w[i].sum(-1), RESAMPLES
        )
        check_interval(estimate, draws)


def test_differences(comparison: dict[str, Any], scores: pd.DataFrame) -> None:
    assert len(comparison["differences"]) > 80
    for found in comparison["differences"]:
        rows = scores[(scores.suite == found["suite"]) & (scores.metric == found["metric"]["key"])]
        sides = [
            weighted_sums(rows[rows.checkpoint == found[side]])
            for side in ("candidate", "baseline")
        ]
        both = sides[0].add_suffix("_a").join(sides[1].add_suffix("_b"), how="inner")
        a, wa, b, wb = (
            both[c].to_numpy() for c in ("product_a", "weight_a", "product_b", "weight_b")
        )

        def statistic(i: np.ndarray, a=a, wa=wa, b=b, wb=wb) -> np.ndarray:  # type: ignore[no-untyped-def]
            return a[i].sum(-1) / wa[i].sum(-1) - b[i].sum(-1) / wb[i].sum(-1)

        estimate = found["estimate"]
        assert estimate["value"] == pytest.approx(float(statistic(np.arange(len(both)))), abs=1e-9)
        if (a == b).all() and found["metric"]["unit"] == "share":
            # No prompt tells the two apart: Clopper and Pearson's bound on the share that does.
            bound = binomtest(0, len(both)).proportion_ci(method="exact").high
            assert (estimate["low"], estimate["high"]) == pytest.approx((-bound, bound))
        else:
            check_interval(estimate, bootstrap(len(both), statistic, RESAMPLES))
        assert (found["test"] is not None) == found["primary"]
        if found["primary"]:
            check_p(found["test"], (a / wa - b / wb) / (1 / wa + 1 / wb))
            assert (wa == wb).all()
            error = jackknife_error(a - b, wa)
            assert found["test"]["standard_error"] == pytest.approx(error, abs=1e-9)


def test_corrected_p_values(comparison: dict[str, Any]) -> None:
    """Holm's adjusted values by their definition, in families to one baseline."""
    families: dict[tuple[str, bool], list[dict[str, Any]]] = {}
    with_reference = {w["judge"] for w in comparison["win_rates"] if w["baseline"] == "reference"}
    for found in comparison["corrected_differences"]:
        families.setdefault(("difference", found["baseline"] == "base"), []).append(found)
    for found in comparison["corrected_win_rates"][::2]:
        sides = found["candidate"], found["baseline"]
        focus = "reference" if found["about"] in with_reference else "base"
        families.setdefault((found["about"], focus in sides), []).append(found)
    assert len(families) == 2 + 2 * len(comparison["manifest"]["judges"])
    for family in families.values():
        p = np.array([found["p_value"] for found in family])
        assert {found["family"] for found in family} == {len(family)}
        for found in family:
            steps = [min(1.0, (p >= q).sum() * q) for q in p[p <= found["p_value"]]]
            assert found["adjusted"] == pytest.approx(max(steps))


LABEL = {"win": 1.0, "tie": 0.5, "loss": 0.0}


def length_controlled(labels: np.ndarray, covariate: np.ndarray) -> float:
    """Penalised logistic regression by a general optimiser; probability at equal length."""

    def loss(theta: np.ndarray) -> float:
        z = theta[0] + theta[1] * covariate
        return float((np.logaddexp(0, z) - labels * z).sum() + 0.005 * (theta**2).sum())

    return float(1 / (1 + np.exp(-minimize(loss, np.zeros(2), tol=1e-10).x[0])))


def length_controlled_all(labels: np.ndarray, covariate: np.ndarray) -> np.ndarray:
    """The same for (B, n) labels and covariates, by Newton's method: (B,) probabilities."""
    design = np.stack([np.ones_like(covariate), covariate], axis=-1)
    theta = np.zeros((len(labels), 2))
    for _ in range(30):
        p = 1 / (1 + np.exp(-np.einsum("bnk,bk->bn", design, theta)))
        gradient = np.einsum("bnk,bn->bk", design, p - labels) + 0.01 * theta
        hessian = np.einsum("bnk,bn,bnl->bkl", design, p * (1 - p), design) + 0.01 * np.eye(2)
        theta -= np.linalg.solve(hessian, gradient[..., None])[..., 0]
    assert np.abs(gradient).max() < 1e-6
    return 1 / (1 + np.exp(-theta[:, 0]))


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
        check_share(rate["estimate"], labels, np.ones(len(labels)))
        outside = not rate["estimate"]["low"] <= 0.5 <= rate["estimate"]["high"]
        assert outside == (rate["test"]["p_value"] < 0.05)
        above, below = counts[0], counts[2]
        expected = binomtest(above, above + below).pvalue if above + below else 1.0
        assert rate["test"]["sign_p_value"] == pytest.approx(expected)
        scale = lengths.std(ddof=1)
        if scale > 0:
            covariate = np.tanh(lengths / scale)
            found = rate["length_controlled"]
            expected = length_controlled(labels, covariate)
            assert found["value"] == pytest.approx(expected, abs=1e-4)
            if rate["baseline"] == "reference" and len(set(labels)) > 1:
                refits = bootstrap(
                    len(labels),
                    lambda i, v=labels, x=covariate: length_controlled_all(v[i], x[i]),
                    1000,
                )
                check_logit_interval(found, refits)


class Cells(HTMLParser):
    """Collects the report's cells that carry a number."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[dict[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {k.removeprefix("data-"): v or "" for k, v in attrs if k.startswith("data-")}
        if "value" in values:
            self.found.append(values)


def test_preference_accuracy_follows_from_the_log_probabilities(
    comparison: dict[str, Any], scores: pd.DataFrame
) -> None:
    sums = scores[scores.metric.isin(["logprob_chosen", "logprob_rejected"])].pivot(
        index=["checkpoint", "example_id"], columns="metric", values="value"
    )
    gap = (sums.logprob_chosen - sums.logprob_rejected).unstack("checkpoint")
    margins = gap.sub(gap["base"], axis=0)
    shares = (margins > 0).mean() + 0.5 * (margins == 0).mean()
    for result in comparison["metrics"]:
        if result["metric"]["key"] == "preference_accuracy":
            expected = shares[result["checkpoint"]]
            assert result["estimate"]["value"] == pytest.approx(expected, abs=1e-9)


def test_rouge_follows_from_the_texts(
    comparison: dict[str, Any], generations: pd.DataFrame
) -> None:
    from rouge_score.rouge_scorer import RougeScorer

    references = {
        row["example"]["id"]: row["example"]["reference"]
        for row in table("examples").to_dict("records")
        if row["suite"] == "summarization"
    }
    keys = {"rouge1": "rouge1", "rouge2": "rouge2", "rouge_l": "rougeL"}
    scorer = RougeScorer(list(keys.values()), use_stemmer=True)
    answers = generations[generations.suite == "summarization"]
    for result in comparison["metrics"]:
        key = keys.get(result["metric"]["key"])
        if key is not None:
            own = answers[answers.checkpoint == result["checkpoint"]]
            values = [
                scorer.score(references[i], text)[key].fmeasure
                for i, text in zip(own.example_id, own.text, strict=True)
            ]
            assert result["estimate"]["value"] == pytest.approx(np.mean(values), abs=1e-9)


def same_numbers(cell: dict[str, str], estimate: dict[str, Any]) -> bool:
    return all(
        (float(cell[k]) if cell[k] else None) == estimate[k] for k in ("value", "low", "high")
    )


def test_html_shows_the_same_numbers(comparison: dict[str, Any]) -> None:
    cells = Cells()
    cells.feed((SAMPLE / "report.html").read_text(encoding="utf-8"))
    metrics = {
        (r["suite"], r["metric"]["key"], r["checkpoint"]): r["estimate"]
        for r in comparison["metrics"]
    }
    differences = {
        (d["suite"], d["metric"]["key"], d["candidate"], d["baseline"]): d["estimate"]
        for d in comparison["differences"]
    }
    rates = {
        (w["suite"], w["judge"], w["candidate"], w["baseline"]): w for w in comparison["win_rates"]
    }
    shown: set[tuple[str, ...]] = set()
    for cell in cells.found:
        if "judge" in cell:
            key = (cell["suite"], cell["judge"], cell["checkpoint"], cell["baseline"])
            controlled = cell["metric"].startswith("length_controlled")
            estimate = rates[key]["length_controlled" if controlled else "estimate"]
        elif "baseline" in cell:
            key = (cell["suite"], cell["metric"], cell["checkpoint"], cell["baseline"])
            estimate = differences[key]
        else:
            key = (cell["suite"], cell["metric"], cell["checkpoint"])
            estimate = metrics[key]
        shown.add(key)
        assert same_numbers(cell, estimate), cell
    assert set(metrics) <= shown
    against_base = {k for k in differences if k[3] == "base"}
    assert against_base <= shown
    assert {k for k in rates if k[2] != "reference"} <= shown


def test_rendering_again_gives_the_same_files(tmp_path: Path) -> None:
    from harness.report import render
    from harness.types import Comparison

    found = Comparison.model_validate_json((SAMPLE / "comparison.json").read_text(encoding="utf-8"))
    files = render(found, tmp_path)
    assert files.html.read_bytes() == (SAMPLE / "report.html").read_bytes()
    assert files.markdown.read_bytes() == (SAMPLE / "report.md").read_bytes()
