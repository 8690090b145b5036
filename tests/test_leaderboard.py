"""Leaderboards: AlpacaEval's columns with intervals, clustered by prompt, nothing guessed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import stdev

import numpy as np
import pytest
from judgment_records import alpaca_row, annotation, arena, judgments, own, pair
from recorded_files import write_csv, write_gzip, write_jsonl
from scipy import stats

from harness.errors import DataError, InputError
from harness.judgments import Judgments
from harness.judgments.covariates import Lookup, read_difficulty, read_regulariser
from harness.leaderboard import (
    NO_LENGTHS,
    NO_VERDICT,
    LengthControl,
    Settings,
    Standing,
    leaderboard,
)
from harness.stats.length_model import Regulariser

RAW = Settings(length_control=LengthControl.NONE, resamples=200)
PAPER = Settings(length_control=LengthControl.PAPER, resamples=50)
GIVEN = [2.0, 1.0, 1.5, 0, 1.25, 1.75, None]


def only(found: tuple[Standing, ...]) -> Standing:
    (standing,) = found
    return standing


def some(folder: Path) -> Judgments:
    return judgments(folder, *(annotation(i, p) for i, p in enumerate(GIVEN)))


def test_alpaca_evals_columns(tmp_path: Path) -> None:
    columns = only(leaderboard(some(tmp_path), RAW)).columns()
    values = [1.0, 0.0, 0.5, 0.5, 0.25, 0.75]
    assert columns["win_rate"] == pytest.approx(50.0)
    assert columns["standard_error"] == pytest.approx(100 * stdev(values) / 6**0.5)
    assert columns["discrete_win_rate"] == pytest.approx(100 * 3 / 6)
    counts = [columns[name] for name in ("n_wins", "n_wins_base", "n_draws", "n_total")]
    assert counts == [2, 2, 2, 6]
    assert (columns["n_missing"], columns["n_prompts"]) == (1, 6)
    assert columns["avg_length"] == int(20 + np.mean([i * i for i in range(7)]))
    assert (columns["model"], columns["baseline"], columns["judge"]) == ("dpo", "base", "j")
    assert 0 < columns["win_rate_low"] < 50 < columns["win_rate_high"] < 100
    assert columns["length_controlled_winrate"] is None
    assert columns["lc_method"] == "not asked for"


def test_a_row_does_not_depend_on_what_else_is_in_the_files(tmp_path: Path) -> None:
    alone = only(leaderboard(some(tmp_path), RAW))
    other = [annotation(i, 2.0, generator_2="sft") for i in range(3)]
    rows = [annotation(i, p) for i, p in enumerate(GIVEN)]
    both = leaderboard(judgments(tmp_path, *other, *rows), RAW)
    assert [s.model for s in both] == ["sft", "dpo"]
    assert both[1] == alone


def test_the_seed_moves_the_controlled_interval_alone(tmp_path: Path) -> None:
    found = judgments(tmp_path, *(annotation(i, 1 + 0.03 * (i % 31)) for i in range(40)))
    one, same, other = (only(leaderboard(found, replace(PAPER, seed=k))) for k in (1, 1, 2))
    assert one == same
    assert one.rate == other.rate
    assert one.length_controlled is not None
    assert other.length_controlled is not None
    assert one.length_controlled.value == other.length_controlled.value
    assert one.length_controlled.low != other.length_controlled.low


def test_order_of_the_rows_changes_nothing(tmp_path: Path) -> None:
    rows = [annotation(i, p) for i, p in enumerate(GIVEN)]
    found = leaderboard(judgments(tmp_path, *rows[::-1]), RAW)
    expected = only(leaderboard(some(tmp_path), RAW)).columns()
    assert only(found).columns() == pytest.approx(expected)


def test_both_orders_of_a_pair_are_one_prompt(tmp_path: Path) -> None:
    rows = [pair(0, "model_1", "model_2"), pair(1, "model_1", "model_1"), pair(2, "tie", "error")]
    found = only(leaderboard(judgments(tmp_path, *rows), RAW))
    assert found.rate.value == pytest.approx(3.5 / 5)
    assert (found.rate.n, found.rate.clusters, found.rate.missing) == (5, 3, 1)
    assert (found.wins, found.losses, found.draws) == (3, 1, 1)


def test_the_standard_error_is_clustered(tmp_path: Path) -> None:
    # Two prompts judged twice each, alike, know no more than two verdicts.
    rows = [pair(0, "model_1", "model_1"), pair(1, "model_2", "model_2")]
    found = only(leaderboard(judgments(tmp_path, *rows), RAW))
    assert found.standard_error == pytest.approx(stdev([1.0, 0.0]) / 2**0.5)
    alone = only(leaderboard(judgments(tmp_path, rows[0]), RAW))
    assert (alone.standard_error, alone.rate.low) == (None, None)


@pytest.mark.parametrize(("weight", "expected"), [(3, 3.5 / 5), (1, 1.5 / 3)])
def test_strong_wins_count_as_often_as_is_asked(
    tmp_path: Path, weight: int, expected: float
) -> None:
    rows = [arena(0, "B>>A", "B>A"), arena(1, "A=B", None)]
    found = only(leaderboard(judgments(tmp_path, *rows), replace(RAW, strong_weight=weight)))
    assert found.rate.value == pytest.approx(expected)
    assert ("strong verdicts count 3 times" in found.rate.method) == (weight == 3)
    assert (found.wins, found.losses, found.draws) == (1, 1, 1)
    assert found.discrete_rate == 0.5


def test_a_rate_of_one_is_not_certain(tmp_path: Path) -> None:
    found = only(leaderboard(judgments(tmp_path, *(own(i) for i in range(10))), RAW))
    assert (found.rate.value, found.rate.high) == (1.0, 1.0)
    # Wilson's bound at a share of 1: n / (n + t^2), t of 9 degrees.
    assert found.rate.low == pytest.approx(10 / (10 + stats.t.ppf(0.975, 9) ** 2))
    assert "wilson" in found.rate.method


def test_without_a_verdict_nothing_is_said(tmp_path: Path) -> None:
    found = only(leaderboard(judgments(tmp_path, annotation(0, None)), PAPER))
    columns = found.columns()
    assert (columns["n_total"], columns["n_missing"]) == (0, 1)
    for name in ("win_rate", "standard_error", "discrete_win_rate", "win_rate_low", "lc_low"):
        assert columns[name] is None
    assert found.lacking == NO_VERDICT


# At equal length.


def test_without_lengths_there_is_no_rate_at_equal_length(tmp_path: Path) -> None:
    found = only(leaderboard(judgments(tmp_path, arena(0), arena(1)), PAPER))
    assert (found.length_controlled, found.lacking) == (None, NO_LENGTHS)
    assert found.columns()["avg_length"] is None


def test_differences_alone_are_enough(tmp_path: Path) -> None:
    outcomes = ["win", "loss", "tie", "win", "loss", "win"]
    rows = [own(i, o, length_difference=i * i - 9) for i, o in enumerate(outcomes)]
    found = only(leaderboard(judgments(tmp_path, *rows), PAPER))
    assert found.length_controlled is not None
    assert found.length_controlled.n == 6
    assert found.mean_length is None


def test_verdicts_without_lengths_are_counted_missing(tmp_path: Path) -> None:
    rows = [pair(i, "model_1", "model_2") for i in range(4)]
    rows += [pair(i, "tie", "tie", turn=2, g1_user_prompt="", g2_user_prompt="") for i in range(2)]
    found = only(leaderboard(judgments(tmp_path, *rows), PAPER))
    assert found.length_controlled is not None
    assert (found.length_controlled.n, found.length_controlled.missing) == (8, 4)
    assert found.rate.n == 12


def biased(folder: Path, count: int = 300) -> Judgments:
    """Return verdicts of a judge that looks at nothing but which answer is longer."""
    rng = np.random.default_rng(7)
    rows = []
    for i, longer in enumerate(rng.normal(60, 100, count)):
        won = rng.random() < 1 / (1 + np.exp(-longer / 60))
        lengths = {"len_output": 400 + int(longer), "len_reference": 400}
        rows.append(alpaca_row(i, 2.0 if won else 1.0, **lengths))
    return judgments(folder, *rows)


@pytest.mark.parametrize("form", [LengthControl.PAPER, LengthControl.ALPACA_EVAL])
def test_a_judge_of_length_alone_has_no_preference_at_equal_length(
    tmp_path: Path, form: LengthControl
) -> None:
    found = only(leaderboard(biased(tmp_path), replace(PAPER, length_control=form, resamples=100)))
    controlled = found.length_controlled
    assert found.rate.value is not None
    assert found.rate.value > 0.6
    assert controlled is not None
    assert controlled.low is not None
    assert controlled.high is not None
    assert controlled.low < 0.5 < controlled.high
    assert controlled.value == pytest.approx(0.5, abs=0.08)


def test_a_fit_that_alpaca_eval_would_not_publish_says_so(tmp_path: Path) -> None:
    difficulty = np.tile([-2.0, -1.0, 0.0, 1.0, 2.0], 60)
    regulariser = Regulariser(
        covariates=np.array([[1.0, 0.0], [-1.0, 0.5]]), labels=np.array([0.5, 0.5])
    )
    form = replace(PAPER, length_control=LengthControl.ALPACA_EVAL, resamples=2)
    item, extra = "; without item difficulty", "; without regulariser"
    found = biased(tmp_path)
    for settings, said in (
        (form, [item, extra]),
        (replace(form, difficulty=difficulty), [extra]),
        (replace(form, regulariser=regulariser), [item]),
        (replace(form, difficulty=difficulty, regulariser=regulariser), []),
        (PAPER, []),
    ):
        method = only(leaderboard(found, settings)).columns()["lc_method"]
        assert method.count("; without") == len(said)
        assert method.endswith("".join(said))


def test_a_difficulty_is_looked_up_by_index_or_by_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.stats import length_control

    seen: list[np.ndarray] = []

    def watch(*columns: np.ndarray, **named: np.ndarray) -> None:
        seen.extend([*columns, named["difficulty"]])

    monkeypatch.setattr(length_control, "alpaca_eval_win_rate", watch)
    found = judgments(tmp_path, alpaca_row(2, 2.0, row=0), alpaca_row(0, 1.0, row=1))
    difficulty = np.array([5.0, 6.0, 7.0])
    settings = replace(RAW, length_control=LengthControl.ALPACA_EVAL, difficulty=difficulty)
    leaderboard(found, settings)
    leaderboard(found, replace(settings, lookup=Lookup.ROW))
    labels, longer, prompts, by_index, *_, by_row = seen
    assert labels.tolist() == [1.0, 0.0]
    assert longer.tolist() == [12 - 24, 10 - 20]
    assert len(set(prompts.tolist())) == 2
    assert (by_index.tolist(), by_row.tolist()) == ([7.0, 5.0], [5.0, 6.0])


@pytest.mark.parametrize(
    ("row", "lookup", "problem"),
    [
        (annotation(), Lookup.INDEX, "looked up by its index, and the judgments have none"),
        (alpaca_row(3), Lookup.INDEX, "has none for index 3"),
        (alpaca_row(1), Lookup.INDEX, "has none for index 1"),
        (alpaca_row(0, row=5), Lookup.ROW, "has none for row 5"),
    ],
)
def test_a_difficulty_that_is_not_there_is_not_guessed(
    tmp_path: Path, row: dict[str, object], lookup: Lookup, problem: str
) -> None:
    settings = replace(PAPER, difficulty=np.array([5.0, np.nan, 7.0]), lookup=lookup)
    with pytest.raises(InputError, match=f"'dpo': .*{problem}"):
        leaderboard(judgments(tmp_path, row), settings)


def test_covariates_are_read_by_name(tmp_path: Path) -> None:
    rows = [{"index": 2, "instruction_difficulty": 1.5}, {"index": 0, "instruction_difficulty": 0}]
    found = read_difficulty(write_csv(tmp_path / "d.csv", rows))
    np.testing.assert_array_equal(found, [0.0, np.nan, 1.5])

    row = {"std_delta_len": 2.0, "instruction_difficulty": 0.5, "preference_01": 0.25}
    regulariser = read_regulariser(write_gzip(tmp_path / "r.gz", [row]))
    np.testing.assert_allclose(regulariser.covariates, [[2.0, 0.5]])
    assert regulariser.labels.tolist() == [0.25]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"index": 0, "instruction_difficulty": 1.0}, "index 0 occurs twice"),
        ({"index": 0.5, "instruction_difficulty": 1.0}, "must be a whole number from 0, found 0.5"),
        ({"index": -1, "instruction_difficulty": 1.0}, "must be a whole number from 0, found -1"),
        ({"index": 1, "instruction_difficulty": "x"}, "must be a number, found 'x'"),
        ({"index": 1, "instruction_difficulty": None}, "must be a finite number"),
        ({"index": 1}, "field 'instruction_difficulty' is missing"),
    ],
)
def test_a_broken_difficulty_is_named(tmp_path: Path, row: dict[str, object], problem: str) -> None:
    first = {"index": 0, "instruction_difficulty": 1.0}
    with pytest.raises(DataError, match=f"d:2: .*{problem}"):
        read_difficulty(write_jsonl(tmp_path / "d", [first, row]))
