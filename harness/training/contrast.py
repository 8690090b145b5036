"""Token weights of TIS-DPO: two contrastive readings of every answer, taken before training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from harness.errors import InputError
from harness.progress import over
from harness.training.base import check_tokenizer, model_folder
from harness.training.batches import Item, collate, length
from harness.training.corpus import Corpus
from harness.training.data import Pair, Skips, TokenPair, tokenize_pair
from harness.training.model import PreferenceModel, load_base, use_bfloat16
from harness.training.objectives.tis_dpo import contrastive_weight
from harness.training.ranks import processes
from harness.training.recipe import Recipe
from harness.types import Message, Role

Weights = tuple[list[float], list[float]]
"""Token weights of a pair's chosen and rejected answer."""

Logprobs = tuple[torch.Tensor, torch.Tensor]


def token_weights(
    recipe: Recipe, base: Path, corpus: Corpus, wanted: Sequence[int]
) -> dict[int, Weights]:
    """Return the weights of the ``wanted`` training pairs, by number.

    w = k exp(mu clamp(log p+ - log p-, L, U)), mu > 0 for chosen tokens and < 0 for rejected ones
    (TIS-DPO, arXiv 2410.04350). p+ and p- are two given models; where there are none, the
    untrained base under two system texts (the paper's TIS-DPO(P)).

    Raises:
        InputError: the recipe has neither models nor texts.
        CheckpointError: a contrastive model cannot be loaded, or has another vocabulary.
    """
    if not recipe.contrastive_models and not recipe.contrastive_prompts:
        raise InputError(
            f"{recipe.objective} weights tokens by two contrastive readings, and the recipe names "
            "none; give two contrastive_prompts (better, worse) or two contrastive_models"
        )
    better, worse = _readings(recipe, base, corpus, wanted)
    return {number: _pair_weights(recipe, better[number], worse[number]) for number in wanted}


def _pair_weights(recipe: Recipe, better: Logprobs, worse: Logprobs) -> Weights:
    made = [
        contrastive_weight(
            plus,
            minus,
            k=recipe.weight_k,
            mu=mu,
            low=recipe.weight_low,
            high=recipe.weight_high,
        ).tolist()
        for plus, minus, mu in zip(
            better, worse, (recipe.weight_mu, -recipe.weight_mu), strict=True
        )
    ]
    return made[0], made[1]


def _readings(
    recipe: Recipe, base: Path, corpus: Corpus, wanted: Sequence[int]
) -> list[dict[int, Logprobs]]:
    if recipe.contrastive_models:
        folders = [model_folder(source) for source in recipe.contrastive_models]
        for folder in folders:
            check_tokenizer(base, folder)
        plain = [corpus.training[i] for i in wanted]
        return [_read(recipe, f, dict(zip(wanted, plain, strict=True)), corpus) for f in folders]
    found = []
    for text in recipe.contrastive_prompts:
        told = {i: _under(corpus.tokenizer, corpus, i, text, recipe) for i in wanted}
        found.append(_read(recipe, base, told, corpus))
    return found


def _with_system(pair: Pair, text: str) -> Pair:
    first, rest = pair.messages[0], pair.messages[1:]
    if first.role is Role.SYSTEM:
        told = (Message(role=Role.SYSTEM, content=f"{text}\n\n{first.content}"), *rest)
    else:
        told = (Message(role=Role.SYSTEM, content=text), *pair.messages)
    return Pair(told, pair.chosen, pair.rejected, pair.origin)


def _under(tokenizer: Any, corpus: Corpus, number: int, text: str, recipe: Recipe) -> TokenPair:
    """Return a pair's answers after its prompt under a system text."""
    own = corpus.training[number]
    room = len(own.prompt) + len(tokenizer(text)["input_ids"]) + 64
    told = tokenize_pair(
        tokenizer, _with_system(corpus.sources[number], text), max_prompt=room, skips=Skips()
    )
    return own if told is None else TokenPair(told.prompt, own.chosen, own.rejected, own.origin)


@torch.no_grad()
def _read(
    recipe: Recipe, folder: Path, pairs: dict[int, TokenPair], corpus: Corpus
) -> dict[int, Logprobs]:
    """Return log-probabilities of both answers of each pair under one model."""
    low = use_bfloat16(recipe)
    device = processes().device
    model = load_base(str(folder), torch.bfloat16 if low else torch.float32).to(device).eval()
    reader = PreferenceModel(model, model, None, frozenset(), None)
    numbers = sorted(pairs, key=lambda i: length(pairs[i]))
    size = recipe.micro_batch or recipe.batch
    groups = [numbers[start : start + size] for start in range(0, len(numbers), size)]
    found: dict[int, Logprobs] = {}
    for group in over(groups, "contrastive readings", "batch"):
        batch = collate([Item(pair=pairs[i], index=i, weights=None) for i in group], corpus.pad)
        moved = {name: value.to(device) for name, value in batch.items()}  # type: ignore[attr-defined]
        with torch.autocast(device.type, torch.bfloat16, enabled=low):
            read = reader(**moved, part="reference")["reference"].cpu()
        for row, i in enumerate(group):
            rows = (read[row], read[row + len(group)])
            sizes = (len(pairs[i].chosen), len(pairs[i].rejected))
            found[i] = (rows[0][: sizes[0]], rows[1][: sizes[1]])
    return found
