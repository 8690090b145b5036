"""Records of the training tests: a tiny base, preference pairs, recipes of a few steps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tiny_checkpoints import save_llama

if TYPE_CHECKING:
    from torch import Tensor

    from harness.training.objectives import Objective
    from harness.training.recipe import Recipe
    from harness.training.trainer import PreferenceTrainer

OBJECTIVES = ("sft", "dpo", "bpo", "tdpo1", "tdpo2", "tis-dpo", "tbpo-q", "tbpo-a")

KEYS: dict[str, Any] = {
    "objective": "dpo",
    "steps": 3,
    "batch": 4,
    "holdout": 6,
    "optimizer": "adamw",
    "learning_rate": 5e-3,
    "warmup": 0.0,
    "lora_rank": 4,
    "lora_alpha": 8,
    "lora_dropout": 0.0,
    "lora_targets": ["q_proj", "v_proj"],
    "head_width": 16,
    "bf16": "no",
}
"""Keys of a recipe for a run of seconds, as YAML or flags have them."""

CLOCK = ("seconds", "tokens_per_second", "peak_memory_bytes")
"""Fields of a logged step that differ between equal runs."""


def save_base(folder: Path, tokenizer: Path, **changes: Any) -> Path:
    """Save a random Llama whose distributions are far from uniform."""
    return save_llama(folder, tokenizer, **({"initializer_range": 0.2} | changes))


def pair_row(number: int) -> dict[str, Any]:
    """A row of preference data whose lengths vary with its number."""
    prompt = {"role": "user", "content": f"What is {number} plus one?" + " Please." * (number % 3)}
    chosen = f"It is {number + 1}." + "!" * (number % 4)
    rejected = f"{number}" + "?" * (number % 5)
    sides = {"chosen": chosen, "rejected": rejected}
    return {n: [prompt, {"role": "assistant", "content": t}] for n, t in sides.items()}


def write_rows(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make_recipe(base: Path, pairs: Path, /, **changes: Any) -> Recipe:
    from harness.training.recipe import load_recipe

    return load_recipe(None, {**KEYS, "base": str(base), "pairs": [str(pairs)], **changes})


def make_trainer(
    recipe: Recipe, output: Path, objective: Objective | None = None
) -> PreferenceTrainer:
    """The trainer of one run, as ``train_once`` makes it, before its first step."""
    from transformers import set_seed

    from harness.training.objectives import build_objective
    from harness.training.run import Workshop
    from harness.training.trainer import Material, PreferenceTrainer

    shop = Workshop(recipe)
    objective = objective or build_objective(recipe.objective, recipe.options)
    items = shop.items(recipe, objective.requires)
    set_seed(recipe.seed)
    model = shop.model(recipe, objective.requires)
    material = Material(
        items=items,
        held=shop.held(recipe),
        pad=shop.corpus.pad,
        tokenizer=shop.corpus.tokenizer,
        base=str(shop.base),
    )
    return PreferenceTrainer(recipe, model, objective, material, output)


def read_log(folder: Path, *, clock: bool = False) -> list[dict[str, Any]]:
    """The logged steps of a run, by default without what its clock decides."""
    lines = (folder / "train_log.jsonl").read_text().splitlines()
    rows = [json.loads(line, parse_constant=lambda text: 1 / 0) for line in lines]
    return [{k: v for k, v in row.items() if clock or k not in CLOCK} for row in rows]


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a folder's safetensors files, by name."""
    from safetensors.torch import load_file

    files = sorted(folder.glob("*.safetensors"))
    return {name: value for path in files for name, value in load_file(path).items()}


def equal_weights(one: Path, other: Path) -> bool:
    """Whether two folders hold the same tensors, bit by bit."""
    import torch

    left, right = read_weights(one), read_weights(other)
    same = left.keys() == right.keys()
    return bool(left) and same and all(torch.equal(left[name], right[name]) for name in left)


def flags(**changes: Any) -> list[str]:
    """The words of ``tbpo train`` for a recipe of seconds; a list repeats its flag."""
    words = []
    for key, value in (KEYS | changes).items():
        for one in value if isinstance(value, list) else [value]:
            words += [f"--{key.replace('_', '-')}", str(one)]
    return words
