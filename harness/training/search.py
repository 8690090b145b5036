"""Equal search effort: a grid of learning rates, then the chosen rate with every seed."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.errors import TrainingError
from harness.files import read_json, write_atomic
from harness.training.checkpoints import CHECKPOINTS
from harness.training.logs import TrainLog
from harness.training.ranks import check_supported, on_first
from harness.training.recipe import Recipe
from harness.training.run import TRAINED, Workshop, begin, measure_float32, train_once
from harness.training_logs import LAST_GOOD, LOG, RECIPE, SEEDS

MANIFEST = "manifest.json"
RUNS = "runs"
CHOSEN_ON = (
    "held-out implicit-reward accuracy of the first seed, in the arithmetic of training; rates "
    "within each other's intervals are not told apart by it"
)
NOT_COPIED = {CHECKPOINTS, LAST_GOOD, RECIPE, TRAINED}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tried:
    """What one run of a search gave; accuracy is None, with the reason, where it diverged."""

    learning_rate: float
    seed: int
    held_out_accuracy: float | None
    margin_nats: float | None
    final_loss: float | None
    diverged: str | None = None


def train(recipe: Recipe, output: Path) -> dict[str, Any]:
    """Train by a recipe, with its grid and seeds where it has them.

    The grid is tried with the first seed. The rate of the highest held-out accuracy is chosen,
    the lower rate among equals; the held-out pairs have then been chosen on, which the manifest
    says. The chosen run becomes ``output``; the logs of all seeds lie in ``output/seeds``.

    Returns:
        the manifest.

    Raises:
        InputError: unusable data, or ``output`` belongs to another run.
        TrainingError: no run ended with finite weights.
    """
    check_supported()
    shop = Workshop(recipe)
    if done := on_first(lambda: begin(recipe, shop.facts, output, MANIFEST)):
        return done
    if not recipe.learning_rates and not recipe.seeds:
        manifest = train_once(recipe, output, shop)
    else:
        manifest = _search(recipe, output, shop)
    return on_first(lambda: _conclude(manifest, recipe, output, shop))


def _conclude(
    trained: dict[str, Any], recipe: Recipe, output: Path, shop: Workshop
) -> dict[str, Any]:
    """Measure the saved policy in float32 and write the manifest."""
    manifest = trained | measure_float32(recipe, output, shop)
    write_atomic(output / MANIFEST, json.dumps(manifest, indent=2) + "\n")
    return manifest


def _search(recipe: Recipe, output: Path, shop: Workshop) -> dict[str, Any]:
    seeds = recipe.seeds or (recipe.seed,)
    rates = recipe.learning_rates or (recipe.learning_rate,)
    grid = [_try(recipe, rate, seeds[0], output, shop) for rate in rates]
    chosen = choose(grid)
    repeats = [_try(recipe, chosen.learning_rate, seed, output, shop) for seed in seeds[1:]]
    manifest = on_first(lambda: _promote(chosen, repeats, output))
    return manifest | {
        "search": {
            "grid": list(rates),
            "chosen_on": CHOSEN_ON,
            "chosen_on_pairs": len(shop.corpus.held),
            "results": [asdict(t) for t in grid],
            "chosen": chosen.learning_rate,
            "seeds": [asdict(t) for t in (chosen, *repeats)],
        }
    }


def choose(tried: Sequence[Tried]) -> Tried:
    """Return the run of the highest held-out accuracy, the lowest rate among equals.

    Raises:
        TrainingError: every run diverged.
    """
    ended = [t for t in tried if t.held_out_accuracy is not None]
    if not ended:
        why = "; ".join(f"{t.learning_rate:g}: {t.diverged}" for t in tried)
        raise TrainingError(f"every learning rate of the grid diverged ({why}); give lower ones")
    return max(ended, key=lambda t: (t.held_out_accuracy or 0.0, -t.learning_rate))


def _folder(output: Path, tried: Tried) -> Path:
    return _run_folder(output, tried.learning_rate, tried.seed)


def _run_folder(output: Path, rate: float, seed: int) -> Path:
    return output / RUNS / f"lr-{rate:g}-seed-{seed}"


def _try(recipe: Recipe, rate: float, seed: int, output: Path, shop: Workshop) -> Tried:
    folder = _run_folder(output, rate, seed)
    update = {"learning_rate": rate, "seed": seed, "learning_rates": (), "seeds": ()}
    log.info("%s: learning rate %g, seed %d", recipe.objective, rate, seed)
    try:
        if ended := on_first(lambda: _diverged(folder)):
            raise TrainingError(ended)
        manifest = train_once(recipe.model_copy(update=update), folder, shop)
    except TrainingError as error:
        reason = on_first(lambda: _diverged(folder))
        if reason is None:
            raise
        log.warning("%s", error)
        return Tried(rate, seed, None, None, None, reason)
    after = manifest["held_out"]["after"]
    return Tried(
        rate,
        seed,
        after["implicit_reward_accuracy"]["value"],
        after["margin_nats"],
        manifest["final_loss"],
    )


def _diverged(folder: Path) -> str | None:
    rows = TrainLog(folder / LOG).rows()
    return rows[-1].get("diverged") if rows else None


def _promote(chosen: Tried, repeats: Sequence[Tried], output: Path) -> dict[str, Any]:
    """Copy the chosen run's policy and every seed's log to ``output``; return what it found."""
    run = _folder(output, chosen)
    for path in run.iterdir():
        if path.name not in NOT_COPIED:
            shutil.copyfile(path, output / path.name)
    for tried in (chosen, *repeats):
        _keep_log(_folder(output, tried), output / SEEDS / f"seed-{tried.seed}")
    found: dict[str, Any] = read_json(run / TRAINED)
    return found


def _keep_log(run: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(run / LOG, target / LOG)
