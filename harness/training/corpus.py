"""Preference pairs of a run: read, tokenised, split, and accounted for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.errors import InputError
from harness.training.data import (
    Pair,
    Skips,
    TokenPair,
    read_pairs,
    source_identity,
    split_holdout,
    tokenize_pair,
)
from harness.training.recipe import Recipe


@dataclass(frozen=True)
class Corpus:
    """Training and held-out pairs of one recipe's data; every seed and rate shares them.

    Attributes:
        training, held: tokenised pairs. sources: the pairs that ``training`` came from.
        tokenizer: the base's; ``pad`` is the id it pads with.
        facts: data identity, counts and skips, for the manifest.
    """

    training: tuple[TokenPair, ...]
    sources: tuple[Pair, ...]
    held: tuple[TokenPair, ...]
    tokenizer: Any
    pad: int
    facts: dict[str, Any]


def load_corpus(recipe: Recipe, folder: Path) -> Corpus:
    """Return the pairs of a recipe, tokenised with the tokenizer in ``folder``.

    Raises:
        DataError: a record is malformed (file and line are named).
        InputError: a source cannot be read, or too few pairs can be used.
    """
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    read, training, held = Skips(), Skips(), Skips()
    pairs = read_pairs(recipe.pairs, read)
    rng = np.random.default_rng(recipe.data_seed)
    taken, kept = split_holdout(pairs, recipe.holdout, rng)
    made = _tokenized(tokenizer, taken, recipe, training)
    measured = [tokens for _, tokens in _tokenized(tokenizer, kept, recipe, held)]
    _check_sizes(recipe, len(made), len(measured), training)
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return Corpus(
        training=tuple(tokens for _, tokens in made),
        sources=tuple(pair for pair, _ in made),
        held=tuple(measured),
        tokenizer=tokenizer,
        pad=int(pad),
        facts={
            "data": [source_identity(source) for source in recipe.pairs],
            "pairs": {
                "training": len(made),
                "held_out": len(measured),
                "skips": {
                    "reading": read.as_dict(),
                    "training": training.as_dict(),
                    "held_out": held.as_dict(),
                },
            },
        },
    )


def _tokenized(
    tokenizer: Any, pairs: Sequence[Pair], recipe: Recipe, skips: Skips
) -> list[tuple[Pair, TokenPair]]:
    found = []
    for pair in pairs:
        tokens = tokenize_pair(
            tokenizer,
            pair,
            max_length=recipe.max_length,
            max_prompt=recipe.max_prompt,
            max_response=recipe.max_response,
            long_responses=recipe.long_responses,
            skips=skips,
        )
        if tokens is not None:
            found.append((pair, tokens))
    return found


def _check_sizes(recipe: Recipe, training: int, held: int, skips: Skips) -> None:
    if training < recipe.batch or not held:
        raise InputError(
            f"{training} usable training pairs and {held} held-out ones; expected at least one "
            f"batch of {recipe.batch}, and one. Left out: {str(skips) or 'none'}. Give more "
            "pairs, or raise max_prompt, max_response or max_length."
        )
