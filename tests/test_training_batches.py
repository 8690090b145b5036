"""Batches: padding and positions, and an order that the seed alone decides."""

from __future__ import annotations

from itertools import chain, pairwise
from typing import Any

import numpy as np
import pytest
import torch
from training_records import OBJECTIVES

from harness.training.batches import WINDOW, Item, collate, length, order, step_count
from harness.training.data import TokenPair
from harness.training.recipe import Recipe

PAIRS = (
    TokenPair((5, 9, 14), (20, 21, 22, 2), (30, 2)),
    TokenPair((7,), (40,), (41, 42, 43, 44, 2)),
    TokenPair((8, 3, 2, 6, 11, 12), (50, 51, 2), (60, 61, 62)),
)
ROWS = [(p.prompt, p.chosen) for p in PAIRS] + [(p.prompt, p.rejected) for p in PAIRS]
WEIGHTS = [[0.1 * (t + 1) + row for t in range(len(a))] for row, (_, a) in enumerate(ROWS)]
PAD = 99


def items(weighted: bool = False) -> list[Item]:
    sides = [(WEIGHTS[i], WEIGHTS[i + 3]) if weighted else None for i in range(3)]
    return [Item(pair=p, index=10 + i, weights=sides[i]) for i, p in enumerate(PAIRS)]


def padded(rows: list[list[Any]], width: int, fill: Any) -> list[list[Any]]:
    return [[*row, *[fill] * (width - len(row))] for row in rows]


def test_batch_holds_chosen_then_rejected_rows_padded_on_the_right() -> None:
    found = collate(items(weighted=True), PAD)
    whole = [[*prompt, *answer] for prompt, answer in ROWS]
    answers = [list(answer) for _, answer in ROWS]
    before = [[len(prompt) - 1 + t for t in range(len(answer))] for prompt, answer in ROWS]
    expected = {
        "tokens": padded(whole, 9, PAD),
        "attention": padded([[1] * len(row) for row in whole], 9, 0),
        "positions": padded(before, 5, 0),
        "targets": padded(answers, 5, PAD),
        "mask": padded([[True] * len(row) for row in answers], 5, False),
        "index": [10, 11, 12],
    }
    for name, values in expected.items():
        assert found[name].tolist() == values, name  # type: ignore[literal-required]
    assert torch.equal(found["weights"], torch.tensor(padded(WEIGHTS, 5, 1.0)))


def test_weights_are_one_where_the_objective_has_none() -> None:
    assert torch.equal(collate(items(), PAD)["weights"], torch.ones(6, 5))


def test_weights_keep_to_the_length_of_their_answer() -> None:
    wrong = Item(pair=PAIRS[0], index=0, weights=([1.0, 2.0, 3.0], [1.0, 2.0]))
    with pytest.raises(RuntimeError):
        collate([wrong], PAD)


# Order


def pairs_of_lengths(count: int) -> list[TokenPair]:
    """Pairs whose lengths are mixed, so that sorting by length moves them."""
    return [TokenPair((2,) * (1 + 7 * i % 13), (3,) * (1 + i % 5), (4, 0)) for i in range(count)]


def recipe(**changes: Any) -> Recipe:
    return Recipe(**{"objective": "dpo", "batch": 4, **changes})


def drawn(count: int, seed: int = 0, **changes: Any) -> list[tuple[int, ...]]:
    plan = recipe(**changes)
    numbers = order(pairs_of_lengths(count), plan, np.random.default_rng(seed))
    starts = range(0, len(numbers), plan.batch)
    return [tuple(numbers[start : start + plan.batch]) for start in starts]


@pytest.mark.parametrize("count", [4, 7, 31, 32, 33, 39, 70])
def test_an_epoch_repeats_no_pair_and_leaves_out_less_than_a_batch(count: int) -> None:
    in_epoch = count // 4
    groups = drawn(count, steps=2 * in_epoch)
    assert all(len(group) == 4 for group in groups)
    epochs = [groups[:in_epoch], groups[in_epoch:]]
    for epoch in epochs:
        numbers = list(chain.from_iterable(epoch))
        assert len(set(numbers)) == len(numbers) == 4 * in_epoch
        assert set(numbers) <= set(range(count))
    assert epochs[0] != epochs[1] or in_epoch == 1


def test_every_pair_is_taken_in_some_epoch() -> None:
    """What an epoch leaves out is drawn, not the longest pairs each time."""
    assert set(chain.from_iterable(drawn(7, steps=20))) == set(range(7))


def test_order_depends_on_the_seed() -> None:
    assert drawn(40) == drawn(40)
    assert drawn(40) != drawn(40, seed=1)


def test_order_is_the_same_for_all_objectives_and_settings() -> None:
    expected = drawn(40)
    for objective in OBJECTIVES:
        assert drawn(40, objective=objective) == expected
    changes = {"micro_batch": 2, "finetune": "full", "learning_rate": 1.0, "optimizer": "adamw"}
    assert drawn(40, **changes) == expected


def test_a_longer_run_begins_as_a_shorter_one() -> None:
    assert drawn(40, steps=15)[:6] == drawn(40, steps=6)


def test_batches_keep_like_lengths_together_and_are_shuffled() -> None:
    pairs = pairs_of_lengths(4 * WINDOW)
    groups = drawn(4 * WINDOW)
    sizes = [[length(pairs[i]) for i in group] for group in groups]
    spans = sorted((min(group), max(group)) for group in sizes)
    assert all(one[1] <= other[0] for one, other in pairwise(spans))
    assert sizes != sorted(sizes)


def test_grouping_by_length_can_be_switched_off() -> None:
    pairs = pairs_of_lengths(4 * WINDOW)
    groups = drawn(4 * WINDOW, group_by_length=False)
    assert sorted(chain.from_iterable(groups)) == list(range(4 * WINDOW))
    sizes = [[length(pairs[i]) for i in group] for group in groups]
    spans = sorted((min(group), max(group)) for group in sizes)
    assert any(one[1] > other[0] for one, other in pairwise(spans))


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({}, 10),
        ({"epochs": 0.5}, 5),
        ({"epochs": 3}, 30),
        ({"epochs": 0.01}, 1),
        ({"steps": 7}, 7),
        ({"steps": 7, "epochs": 2}, 7),
        ({"batch": 41}, 1),
        ({"batch": 16}, 2),
    ],
)
def test_number_of_steps(changes: dict[str, Any], steps: int) -> None:
    assert step_count(recipe(**changes), 41) == steps
