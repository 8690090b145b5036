"""Pairs to padded batches, and the order in which a run takes them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor

from harness.training.data import TokenPair
from harness.training.recipe import Recipe

WINDOW = 8
"""Batches whose pairs are sorted by length together, so that a batch has little padding."""


class Batch(TypedDict):
    """2B sequences (B chosen, then B rejected), right-padded to L tokens and T answer tokens.

    tokens (2B, L) ids; attention (2B, L) 1 where a token stands; positions (2B, T) index of the
    state that predicts each answer token; targets (2B, T) answer ids; mask (2B, T) bool, True
    where an answer has a token; weights (2B, T) token weights, ones where the objective has none;
    index (B,) numbers of the pairs in the training set.
    """

    tokens: Tensor
    attention: Tensor
    positions: Tensor
    targets: Tensor
    mask: Tensor
    weights: Tensor
    index: Tensor


class Item(TypedDict):
    """A training pair with its number and the token weights of both answers, if it has any."""

    pair: TokenPair
    index: int
    weights: tuple[Sequence[float], Sequence[float]] | None


def collate(items: Sequence[Item], pad: int) -> Batch:
    """Return the padded batch of ``items``, chosen answers first."""
    chosen = [(i["pair"].prompt, i["pair"].chosen) for i in items]
    rows = chosen + [(i["pair"].prompt, i["pair"].rejected) for i in items]
    sides = [i["weights"] for i in items]
    weights = [w and w[0] for w in sides] + [w and w[1] for w in sides]
    length = max(len(prompt) + len(answer) for prompt, answer in rows)
    width = max(len(answer) for _, answer in rows)
    batch = Batch(
        tokens=torch.full((len(rows), length), pad),
        attention=torch.zeros((len(rows), length), dtype=torch.long),
        positions=torch.zeros((len(rows), width), dtype=torch.long),
        targets=torch.full((len(rows), width), pad),
        mask=torch.zeros((len(rows), width), dtype=torch.bool),
        weights=torch.ones((len(rows), width)),
        index=torch.tensor([item["index"] for item in items]),
    )
    for row, ((prompt, answer), weight) in enumerate(zip(rows, weights, strict=True)):
        end, size = len(prompt) + len(answer), len(answer)
        batch["tokens"][row, :end] = torch.tensor([*prompt, *answer])
        batch["attention"][row, :end] = 1
        batch["positions"][row, :size] = torch.arange(len(prompt) - 1, end - 1)
        batch["targets"][row, :size] = torch.tensor(answer)
        batch["mask"][row, :size] = True
        if weight is not None:
            batch["weights"][row, :size] = torch.tensor(weight)
    return batch


def length(pair: TokenPair) -> int:
    """Return the tokens of the longer of a pair's two sequences."""
    return len(pair.prompt) + max(len(pair.chosen), len(pair.rejected))


def step_count(recipe: Recipe, pairs: int) -> int:
    """Return the optimiser steps of a run; a last part of a batch is left out of each epoch."""
    return recipe.steps or max(1, math.floor(recipe.epochs * (pairs // recipe.batch)))


def epoch(
    pairs: Sequence[TokenPair], batch: int, window: int, rng: np.random.Generator
) -> list[list[int]]:
    """Return one pass over ``pairs`` as shuffled full batches.

    Pairs are sorted by length within ``window`` batches; one batch is no window at all. A last
    part of a batch is left out before that: any pair may be in it, not the longest ones alone.
    """
    order = [int(i) for i in rng.permutation(len(pairs))][: len(pairs) // batch * batch]
    groups: list[list[int]] = []
    for start in range(0, len(order), window * batch):
        near = sorted(order[start : start + window * batch], key=lambda i: length(pairs[i]))
        full = [near[i : i + batch] for i in range(0, len(near) - batch + 1, batch)]
        groups += [full[int(i)] for i in rng.permutation(len(full))]
    return groups


def order(pairs: Sequence[TokenPair], recipe: Recipe, rng: np.random.Generator) -> list[int]:
    """Return the numbers of the pairs in the order of a whole run: ``batch`` of them a step.

    The order depends on the seed, the pairs, the batch and its grouping alone, so that every
    objective of a comparison sees the same pairs at the same step. Needs ``batch`` pairs or more.
    """
    groups: list[list[int]] = []
    steps = step_count(recipe, len(pairs))
    window = WINDOW if recipe.group_by_length else 1
    while len(groups) < steps:
        groups += epoch(pairs, recipe.batch, window, rng)
    return [i for group in groups[:steps] for i in group]
