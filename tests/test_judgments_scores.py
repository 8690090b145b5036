"""MT-Bench's single scores: means by turn, unread replies counted and left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from judgment_records import Row, single
from recorded_files import write_jsonl

from harness.errors import DataError, InputError
from harness.judgments import ModelScores, mean_scores, open_judgments


def scores(folder: Path, *rows: Row, name: str | None = None) -> tuple[ModelScores, ...]:
    file = open_judgments(write_jsonl(folder / "s.jsonl", rows), name)
    return mean_scores([file], rng=np.random.default_rng(0), resamples=50)


def test_means_by_turn_and_over_both(tmp_path: Path) -> None:
    rows = [single(0, 8), single(1, 6), single(0, 5, turn=2), single(1, -1, turn=2)]
    (found,) = scores(tmp_path, *rows)
    assert {turn: e.value for turn, e in found.turns.items()} == {1: 7.0, 2: 5.0}
    assert found.average.value == pytest.approx(19 / 3)
    assert (found.judgments, found.unparsed) == (4, 1)
    assert (found.turns[2].n, found.turns[2].missing) == (1, 1)
    assert (found.average.n, found.average.clusters, found.average.missing) == (3, 2, 1)
    assert (found.model, found.judge) == ("dpo", "gpt-4")


def test_the_best_model_comes_first_and_one_without_rating_last(tmp_path: Path) -> None:
    rows = [single(0, -1, model="none"), single(0, 3, model="low"), single(0, 9, model="high")]
    found = scores(tmp_path, *rows)
    assert [m.model for m in found] == ["high", "low", "none"]
    assert found[-1].average.value is None


def test_a_name_stands_in_place_of_the_models(tmp_path: Path) -> None:
    assert scores(tmp_path, single(), name="mine")[0].model == "mine"
    with pytest.raises(InputError, match="scores 2 models"):
        scores(tmp_path, single(), single(1, model="sft"), name="mine")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"score": 11}, r"'score' must lie in \[0, 10\], or be -1; found 11"),
        ({"score": "good"}, "'score' must be a number"),
        ({"turn": "one"}, "'turn' must be a whole number"),
        ({"question_id": 81}, "turn 1 of '81' is scored twice"),
    ],
)
def test_a_broken_row_is_named(tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(DataError, match=f"s.jsonl:2: {problem}"):
        scores(tmp_path, single(0), single(1) | changes)
    with pytest.raises(DataError, match=r"s\.jsonl:2: field 'score' is missing"):
        scores(tmp_path, single(0), {k: v for k, v in single(1).items() if k != "score"})
