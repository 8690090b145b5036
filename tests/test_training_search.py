"""The search: a grid chosen on held-out accuracy, then seeds; it goes on where it was killed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from training_records import equal_weights, make_recipe, read_log

from harness.errors import InputError, TrainingError
from harness.training import search
from harness.training.recipe import Recipe
from harness.training.search import Tried, choose, train


def tried(rate: float, accuracy: float | None, seed: int = 0) -> Tried:
    diverged = "loss is nan" if accuracy is None else None
    return Tried(rate, seed, accuracy, None, None, diverged)


@pytest.mark.parametrize(
    ("runs", "rate"),
    [
        ([(1e-3, 0.5), (1e-2, 0.7), (1e-1, 0.6)], 1e-2),
        ([(1e-2, 0.7), (1e-3, 0.7), (1e-1, 0.7)], 1e-3),
        ([(1e-1, None), (1e-2, 0.1), (1e-3, None)], 1e-2),
        ([(1e-1, None), (1e-2, 0.0)], 1e-2),
    ],
)
def test_highest_accuracy_is_chosen_and_the_lower_rate_among_equals(
    runs: list[tuple[float, float | None]], rate: float
) -> None:
    assert choose([tried(*run) for run in runs]).learning_rate == rate


def test_a_grid_that_diverged_says_so() -> None:
    message = r"every learning rate of the grid diverged \(0\.1: loss is nan; 0\.01: loss is nan\)"
    with pytest.raises(TrainingError, match=message):
        choose([tried(1e-1, None), tried(1e-2, None)])


# Whole searches. The runs are faked where only their order and results matter.

RATES = (1e-3, 1e-2, 1e-1)
SEEDS = (3, 1)
Started = list[tuple[float, int]]


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Started]:
    """Replace the runs: they end with given accuracies, diverge, or are killed."""

    def install(
        accuracies: dict[float, float | None], killed_at: tuple[float, int] | None = None
    ) -> Started:
        started: Started = []

        def run(recipe: Recipe, output: Path, shop: Any) -> dict[str, Any]:
            if done := search.begin(recipe, shop.facts, output, search.TRAINED):
                return done
            started.append((recipe.learning_rate, recipe.seed))
            if started[-1] == killed_at:
                raise KeyboardInterrupt
            assert recipe.learning_rates == recipe.seeds == ()
            accuracy = accuracies[recipe.learning_rate]
            row = {"step": 1, "loss": recipe.learning_rate, "seed": recipe.seed}
            if accuracy is None:
                row |= {"diverged": "loss is nan"}
            (output / "train_log.jsonl").write_text(json.dumps(row) + "\n")
            if accuracy is None:
                raise TrainingError("loss is nan at step 1")
            (output / "adapter.txt").write_text(f"{recipe.learning_rate} {recipe.seed}")
            after = {"implicit_reward_accuracy": {"value": accuracy}, "margin_nats": 2.0}
            manifest = {"held_out": {"after": after}, "final_loss": recipe.learning_rate}
            (output / search.TRAINED).write_text(json.dumps(manifest))
            return manifest

        monkeypatch.setattr(search, "train_once", run)
        monkeypatch.setattr(search, "measure_float32", lambda *_: {"held_out": "in float32"})
        return started

    return install


@pytest.fixture
def recipe(base: Path, pairs: Path) -> Recipe:
    return make_recipe(base, pairs, learning_rates=RATES, seeds=SEEDS)


def result(rate: float, seed: int, accuracy: float | None) -> dict[str, Any]:
    ended = accuracy is not None
    return {
        "learning_rate": rate,
        "seed": seed,
        "held_out_accuracy": accuracy,
        "margin_nats": 2.0 if ended else None,
        "final_loss": rate if ended else None,
        "diverged": None if ended else "loss is nan",
    }


def test_grid_is_tried_with_the_first_seed_and_the_chosen_rate_with_all(
    recipe: Recipe, tmp_path: Path, fakes: Callable[..., Started]
) -> None:
    started = fakes({1e-3: 0.6, 1e-2: 0.8, 1e-1: None})
    manifest = train(recipe, tmp_path)
    assert started == [(1e-3, 3), (1e-2, 3), (1e-1, 3), (1e-2, 1)]
    assert manifest["search"] == {
        "grid": list(RATES),
        "chosen_on": search.CHOSEN_ON,
        "chosen_on_pairs": 6,
        "results": [result(1e-3, 3, 0.6), result(1e-2, 3, 0.8), result(1e-1, 3, None)],
        "chosen": 1e-2,
        "seeds": [result(1e-2, 3, 0.8), result(1e-2, 1, 0.8)],
    }
    assert manifest["held_out"] == "in float32"
    assert json.loads((tmp_path / "manifest.json").read_text()) == manifest
    assert (tmp_path / "adapter.txt").read_text() == "0.01 3"
    for seed in SEEDS:
        (row,) = read_log(tmp_path / "seeds" / f"seed-{seed}")
        assert (row["loss"], row["seed"]) == (1e-2, seed)
    assert read_log(tmp_path) == read_log(tmp_path / "seeds" / "seed-3")
    assert {f.name for f in (tmp_path / "seeds").iterdir()} == {"seed-3", "seed-1"}


def test_seeds_alone_keep_the_rate_and_a_grid_alone_the_seed(
    base: Path, pairs: Path, tmp_path: Path, fakes: Callable[..., Started]
) -> None:
    accuracies = {5e-3: 0.5, 1e-3: 0.5, 1e-2: 0.5}
    started = fakes(accuracies)
    manifest = train(make_recipe(base, pairs, seeds=[2, 4]), tmp_path / "seeds")
    assert started == [(5e-3, 2), (5e-3, 4)]
    assert manifest["search"]["grid"] == [5e-3]
    started = fakes(accuracies)
    manifest = train(make_recipe(base, pairs, learning_rates=[1e-2, 1e-3]), tmp_path / "grid")
    assert started == [(1e-2, 0), (1e-3, 0)]
    assert manifest["search"]["chosen"] == 1e-3
    assert [s["seed"] for s in manifest["search"]["seeds"]] == [0]


def test_all_diverged_leaves_no_manifest(
    recipe: Recipe, tmp_path: Path, fakes: Callable[..., Started]
) -> None:
    fakes(dict.fromkeys(RATES))
    for _ in range(2):
        with pytest.raises(TrainingError, match="every learning rate of the grid diverged"):
            train(recipe, tmp_path)
    assert not (tmp_path / "manifest.json").exists()


def test_a_seed_that_diverges_is_counted(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fakes: Callable[..., Started]
) -> None:
    fakes({1e-3: 0.6, 1e-2: 0.8, 1e-1: 0.1})
    whole = search.train_once

    def run(recipe: Recipe, output: Path, shop: Any) -> dict[str, Any]:
        if recipe.seed == 1:
            output.mkdir(parents=True)
            row = {"step": 1, "loss": None, "diverged": "gradient is inf"}
            (output / "train_log.jsonl").write_text(json.dumps(row) + "\n")
            raise TrainingError("gradient is inf")
        return whole(recipe, output, shop)

    monkeypatch.setattr(search, "train_once", run)
    manifest = train(recipe, tmp_path)
    assert [s["diverged"] for s in manifest["search"]["seeds"]] == [None, "gradient is inf"]
    assert read_log(tmp_path / "seeds" / "seed-1")[-1]["diverged"] == "gradient is inf"


def test_errors_that_are_no_divergence_end_the_search(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: Any) -> None:
        raise TrainingError("out of disk")

    monkeypatch.setattr(search, "train_once", run)
    with pytest.raises(TrainingError, match="out of disk"):
        train(recipe, tmp_path)


@pytest.mark.parametrize("at", [(1e-2, 3), (1e-1, 3), (1e-2, 1)])
def test_killed_search_goes_on_without_repeating_finished_runs(
    recipe: Recipe, tmp_path: Path, fakes: Callable[..., Started], at: tuple[float, int]
) -> None:
    accuracies = {1e-3: None, 1e-2: 0.8, 1e-1: 0.5}
    first = fakes(accuracies, killed_at=at)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "killed")
    second = fakes(accuracies)
    manifest = train(recipe, tmp_path / "killed")
    assert first[-1] == second[0] == at
    assert [*first[:-1], *second] == [(1e-3, 3), (1e-2, 3), (1e-1, 3), (1e-2, 1)]
    assert manifest == train(recipe, tmp_path / "whole")
    third = fakes(accuracies)
    assert train(recipe, tmp_path / "killed") == manifest
    assert third == []


@pytest.mark.parametrize(
    ("changes", "differing"),
    [
        ({"learning_rates": [1e-3]}, "learning_rates"),
        ({"seeds": [3], "steps": 5}, "seeds, steps"),
        ({"objective": "bpo"}, "objective"),
    ],
)
def test_another_search_in_the_folder_is_refused(
    recipe: Recipe,
    tmp_path: Path,
    fakes: Callable[..., Started],
    changes: dict[str, Any],
    differing: str,
) -> None:
    fakes(dict.fromkeys(RATES, 0.5))
    train(recipe, tmp_path)
    started = fakes(dict.fromkeys(RATES, 0.5))
    other = Recipe(**(recipe.model_dump() | changes))
    with pytest.raises(InputError, match=rf"belongs to another run: {differing} differ\."):
        train(other, tmp_path)
    assert started == []


def test_a_real_search_promotes_the_chosen_run(base: Path, pairs: Path, tmp_path: Path) -> None:
    keys: dict[str, Any] = {"objective": "tbpo-q", "schedule": "constant"}
    # The highest rate leaves nothing that can be measured, the lowest learns nothing.
    rates = [1e-9, 5e-3, 1e10]
    recipe = make_recipe(base, pairs, learning_rates=rates, seeds=[1, 0], **keys)
    manifest = train(recipe, tmp_path / "search")
    section = manifest["search"]
    assert [r["diverged"] is None for r in section["results"]] == [True, True, False]
    accuracies = [r["held_out_accuracy"] for r in section["results"][:2]]
    assert accuracies[1] > accuracies[0]
    assert section["chosen"] == 5e-3
    alone = make_recipe(base, pairs, learning_rate=5e-3, seed=1, **keys)
    same = train(alone, tmp_path / "alone")
    assert equal_weights(tmp_path / "search", tmp_path / "alone")
    assert manifest["held_out"] == same["held_out"]
    assert manifest["recipe"] == same["recipe"]
    logs = [read_log(tmp_path / "search" / "seeds" / f"seed-{seed}") for seed in (1, 0)]
    assert logs[0] == read_log(tmp_path / "search") == read_log(tmp_path / "alone")
    assert logs[1] != logs[0]
    assert len(logs[1]) == 3
