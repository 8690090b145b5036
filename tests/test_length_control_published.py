"""AlpacaEval 2's published length-controlled win rates come out again, from the judgments alone."""

from __future__ import annotations

import csv
import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from metric_records import SHARED

from harness.stats.length_control import (
    UPSTREAM_PENALTIES,
    LengthControlled,
    Regulariser,
    alpaca_eval_win_rate,
    rate_from_coefficients,
)

FOLDER = SHARED / "alpaca_eval"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="needs ../shared/data/alpaca_eval")

OTHERWISE = {
    "NullModel",
    "alpaca-7b_concise",
    "alpaca-7b_verbose",
    "dbrx-instruct",
    "gpt35_turbo_instruct",
    "llama-2-70b-chat-hf",
    "minotaur-13b",
    "platolm-7b",
    "text_davinci_001",
}
"""Models whose published rate is not that of their published coefficients on all 805 items.

Most were judged on fewer; the coefficients of NullModel and dbrx-instruct belong to another fit.
"""


@cache
def table(name: str) -> list[dict[str, str]]:
    path = FOLDER / name
    if not path.is_file():
        return []
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    return list(csv.DictReader(text.splitlines()))


@cache
def difficulties() -> np.ndarray:
    return np.array(
        [float(row["instruction_difficulty"]) for row in table("instruction_difficulty.csv")]
    )


@cache
def regulariser() -> Regulariser:
    rows = table("regulariser_rows.csv.gz")
    covariates = [[float(r["std_delta_len"]), float(r["instruction_difficulty"])] for r in rows]
    return Regulariser(np.array(covariates), np.array([float(r["preference_01"]) for r in rows]))


@cache
def judgments(model: str) -> list[dict[str, Any]]:
    with gzip.open(FOLDER / "ae2" / f"{model}.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def fitted(model: str, lookup: str = "row", **settings: Any) -> LengthControlled:
    rows = judgments(model)
    degrees = [None if r["preference"] is None else (r["preference"] or 1.5) - 1 for r in rows]
    found = alpaca_eval_win_rate(
        np.array(degrees, dtype=np.float64),
        [r["len_reference"] - r["len_output"] for r in rows],
        np.array([r["index"] for r in rows]),
        rng=np.random.default_rng(0),
        difficulty=difficulties()[[r[lookup] for r in rows]],
        regulariser=regulariser(),
        **({"resamples": 20} | settings),
    )
    assert found is not None
    return found


def rate(found: LengthControlled) -> float:
    assert found.estimate.value is not None
    return 100 * found.estimate.value


def published(name: str) -> list[Any]:
    rows = table(name)
    return [pytest.param(row, id=row["model"]) for row in rows] or [pytest.param({}, id="absent")]


@pytest.mark.parametrize("row", published("expected.csv"))
def test_rate_and_its_error_are_the_published_ones(row: dict[str, str]) -> None:
    found = fitted(row["model"])
    # The project asks for 0.1; the choice of C is reproduced too, and 0.002 are left.
    assert rate(found) == pytest.approx(float(row["length_controlled_winrate"]), abs=0.003)
    assert found.estimate.n == int(row["n"])
    if row["lc_standard_error"]:
        assert found.standard_error is not None
        error = float(row["lc_standard_error"])
        assert 100 * found.standard_error == pytest.approx(error, abs=0.001)


@pytest.mark.parametrize("row", published("expected.csv"))
def test_coefficients_are_near_the_published_ones(row: dict[str, str]) -> None:
    weights = {one["model"]: one for one in table("glm_weights.csv")}
    if row["model"] not in weights or row["model"] == "NullModel":
        pytest.skip("no published coefficients, or those of another fit")
    found, there = fitted(row["model"]), weights[row["model"]]
    columns = ("w_tanh_len", "w_difficulty", "w_intercept")
    assert [found.length, found.difficulty, found.constant] == pytest.approx(
        [float(there[name]) for name in columns], abs=0.01
    )


def test_alpaca_evals_own_choice_of_penalties_chooses_the_same() -> None:
    for row in table("expected.csv"):
        own = fitted(row["model"], penalties=UPSTREAM_PENALTIES)
        assert own.penalty == fitted(row["model"]).penalty


def test_the_right_difficulty_moves_the_model_with_a_missing_row() -> None:
    wrong, right = (fitted("gpt35_turbo_instruct", lookup) for lookup in ("row", "index"))
    assert rate(right) - rate(wrong) == pytest.approx(-2.77, abs=0.01)


def test_interval_reflects_the_judgments_not_the_items() -> None:
    found = fitted("claude-2", resamples=400)
    assert found.standard_error is not None
    low, high = found.estimate.low, found.estimate.high
    assert low is not None
    assert high is not None
    assert low < rate(found) / 100 < high
    assert (high - low) / (2 * 1.96) > 1.5 * found.standard_error


@pytest.mark.parametrize("row", published("glm_weights.csv"))
def test_rate_from_published_coefficients(row: dict[str, str]) -> None:
    coefficients = float(row["w_difficulty"]), float(row["w_intercept"])
    found = 100 * rate_from_coefficients(*coefficients, difficulties())
    apart = abs(found - float(row["length_controlled_winrate"]))
    assert 1e-6 < apart < 0.2 if row["model"] in OTHERWISE else apart < 1e-6


@pytest.mark.parametrize("row", published("expected_outputs_only.csv"))
def test_rate_of_models_whose_judgments_are_gone(row: dict[str, str]) -> None:
    weights = {one["model"]: one for one in table("glm_weights.csv")}[row["model"]]
    coefficients = float(weights["w_difficulty"]), float(weights["w_intercept"])
    found = 100 * rate_from_coefficients(*coefficients, difficulties())
    assert found == pytest.approx(float(row["length_controlled_winrate"]), abs=1e-6)


def test_data_is_complete() -> None:
    assert len(table("expected.csv")) == len(list(Path(FOLDER / "ae2").glob("*.jsonl.gz"))) == 9
