"""One training run: recipe and pairs to a folder that the adapters load, with its manifest."""

from __future__ import annotations

import gc
import json
import shutil
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import set_seed

from harness import __version__
from harness.errors import InputError
from harness.files import read_json, write_atomic
from harness.training.base import check_tokenizer, identity, model_folder, public_name
from harness.training.batches import Item, order
from harness.training.checkpoints import CHECKPOINTS, load_policy
from harness.training.contrast import Weights, token_weights
from harness.training.corpus import Corpus, load_corpus
from harness.training.heldout import HeldOutSet
from harness.training.logs import TrainLog
from harness.training.model import PreferenceModel, build_model, use_bfloat16
from harness.training.objectives import Statistic, build_objective
from harness.training.ranks import on_first, processes
from harness.training.recipe import Recipe
from harness.training.trainer import Material, PreferenceTrainer
from harness.training_logs import LOG, RECIPE

TRAINED = "trained.json"
"""What a finished run measured; the manifest adds the search and the float32 measures."""
FINAL_STEPS = 10
"""Last steps whose losses the manifest averages."""


class Workshop:
    """What the runs of one recipe share: folders of the models, pairs, token weights."""

    def __init__(self, recipe: Recipe) -> None:
        self.base = model_folder(recipe.base)
        self.reference = model_folder(recipe.reference) if recipe.reference else None
        if self.reference:
            check_tokenizer(self.base, self.reference)
        self.corpus: Corpus = load_corpus(recipe, self.base)
        self._weights: dict[int, Weights] = {}
        self._held: dict[bool, HeldOutSet] = {}
        self.facts = {"base": identity(self.base, recipe.base), **self.corpus.facts}
        if self.reference and recipe.reference:
            self.facts["reference"] = identity(self.reference, recipe.reference)

    def items(self, recipe: Recipe, requires: frozenset[Statistic]) -> list[Item]:
        """Return the training pairs in the order of the whole run."""
        rng = np.random.default_rng(recipe.seed)
        numbers = order(self.corpus.training, recipe, rng)
        wanted = sorted(set(numbers) - set(self._weights))
        if Statistic.TOKEN_WEIGHTS in requires and wanted:
            self._weights |= token_weights(recipe, self.base, self.corpus, wanted)
        return [
            Item(pair=self.corpus.training[i], index=i, weights=self._weights.get(i))
            for i in numbers
        ]

    def model(self, recipe: Recipe, requires: frozenset[Statistic]) -> PreferenceModel:
        """Return policy and reference of a recipe, untrained."""
        reference = None if self.reference is None else str(self.reference)
        return build_model(recipe, str(self.base), reference, requires)

    def held(self, recipe: Recipe) -> HeldOutSet:
        """Return the held-out pairs; the reference reads them once in each arithmetic."""
        low = use_bfloat16(recipe)
        if low not in self._held:
            size = recipe.micro_batch or recipe.batch
            self._held[low] = HeldOutSet(self.corpus.held, size, self.corpus.pad)
        return self._held[low]


def recorded(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe as JSON values, its pair files by name: their hashes stand beside it."""
    names = [Path(p).name if Path(p).exists() else p for p in recipe.pairs]
    return recipe.model_dump(mode="json") | {"pairs": names}


def claim(recipe: Recipe, facts: dict[str, Any], output: Path) -> None:
    """Make ``output`` the folder of this run, or check that it is.

    Raises:
        InputError: the folder belongs to a run with another recipe or other data.
    """
    wanted = json.loads(json.dumps({"recipe": recorded(recipe), **facts}))
    path = output / RECIPE
    if not path.exists():
        if (output / "adapter_config.json").exists() or (output / "config.json").exists():
            raise InputError(f"{output} already holds a model; give another --output")
        write_atomic(path, json.dumps(wanted, indent=2) + "\n")
        return
    found = read_json(path)
    if found != wanted:
        raise InputError(
            f"{output} belongs to another run: {', '.join(_differences(found, wanted))} differ. "
            "Give another --output, or the recipe it was started with."
        )


def _differences(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Return the keys that differ, of the facts and of the recipe; some have one name in both."""
    sides = ((found, wanted), (found.get("recipe", {}), wanted["recipe"]))
    names = {k for one, other in sides for k in one | other if one.get(k) != other.get(k)}
    return sorted(names - {"recipe"})


def train_once(recipe: Recipe, output: Path, shop: Workshop) -> dict[str, Any]:
    """Train one policy to ``output``; a finished run is not repeated, a killed one goes on.

    Returns:
        what goes into the manifest.

    Raises:
        InputError: ``output`` belongs to another run.
        TrainingError: loss, gradient or weights are not finite.
    """
    if done := on_first(lambda: begin(recipe, shop.facts, output, TRAINED)):
        return done
    objective = build_objective(recipe.objective, recipe.options)
    items = shop.items(recipe, objective.requires)
    set_seed(recipe.seed)
    model = shop.model(recipe, objective.requires)
    held = shop.held(recipe)
    started = time.monotonic()
    material = Material(
        items=items,
        held=held,
        pad=shop.corpus.pad,
        tokenizer=shop.corpus.tokenizer,
        base=public_name(shop.base, recipe.base),
    )
    trainer = PreferenceTrainer(recipe, model, objective, material, output)
    final = trainer.run()
    before = held.measure(trainer.model_wrapped, trainer.args.device, trained=False)
    trainer.save_final()
    facts = {
        "objective": recipe.objective,
        "objective_fields": vars(objective),
        "recipe": recorded(recipe),
        **shop.facts,
        "steps": len(items) // recipe.batch,
        "held_out": {
            "arithmetic": "bfloat16 autocast" if use_bfloat16(recipe) else "float32",
            "before": before.as_dict(),
            "after": final.as_dict(),
        },
        "seconds_of_the_last_start": round(time.monotonic() - started, 1),
        "device": trainer.args.device.type,
        "devices": trainer.args.world_size,
        "versions": _versions(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return on_first(lambda: _end(facts, output))


def begin(
    recipe: Recipe, facts: dict[str, Any], output: Path, result: str
) -> dict[str, Any] | None:
    """Claim ``output`` for a run; return what its ``result`` file holds if it has ended.

    Raises:
        InputError: the folder belongs to another run.
    """
    claim(recipe, facts, output)
    if not (output / result).exists():
        return None
    shutil.rmtree(output / CHECKPOINTS, ignore_errors=True)
    ended: dict[str, Any] = read_json(output / result)
    return ended


def _end(facts: dict[str, Any], output: Path) -> dict[str, Any]:
    """Write what a run found; its checkpoints are no longer needed."""
    facts = facts | _losses(TrainLog(output / LOG).rows())
    write_atomic(output / TRAINED, json.dumps(facts, indent=2) + "\n")
    shutil.rmtree(output / CHECKPOINTS, ignore_errors=True)
    return facts


def _losses(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    last = rows[-FINAL_STEPS:]
    return {
        "first_loss": rows[0]["loss"],
        "final_loss": float(np.mean([row["loss"] for row in last])),
        "final_loss_is": f"mean of the last {len(last)} steps",
    }


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    names = ("torch", "transformers", "peft", "accelerate")
    return {"tbpo-harness": __version__} | {name: version(name) for name in names}


def measure_float32(recipe: Recipe, folder: Path, shop: Workshop) -> dict[str, Any]:
    """Return the held-out measures of a saved policy in float32, before and after training.

    In bfloat16 rounding alone moves the log-probability of an answer by as much as a short
    training does.
    """
    gc.collect()
    torch.cuda.empty_cache()
    exact = recipe.model_copy(update={"bf16": "no"})
    model = shop.model(exact, frozenset())
    device = processes().device
    load_policy(model, folder)
    held, model = shop.held(exact), model.to(device)
    before = held.measure(model, device, trained=False)
    after = held.measure(model, device)
    return {
        "held_out": {
            "arithmetic": "float32",
            "before": before.as_dict(),
            "after": after.as_dict(),
        },
        "differs_from_base": (
            f"on held-out answers the log-probability of a token moved by {after.token_shift:.4f} "
            "nats on average (reference: 0), in float32"
        ),
    }
