"""Fit and measure the reward judge: a gated Bradley-Terry head on pooled hidden states.

``python -m harness.training.reward --pairs FILE... --test FILE... --output FOLDER --seed N``

The head minimises, over the training pairs and per subset of the data weighted by the gate,
mean -log sigmoid(r_chosen - r_rejected) + ridge/2 |w|^2 (Bradley and Terry, 1952; Ouyang et al.,
2022, arXiv 2203.02155, equation 1). The ridge strength is chosen by cross-validation over the
training pairs; the test pairs are scored once, after everything is fixed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from harness.engines.batching import batches
from harness.errors import InputError, TbpoError, TrainingError
from harness.files import atomic_folder, sha256_file, sha256_json
from harness.judges.reward import (
    MANIFEST,
    WEIGHTS,
    Agreement,
    Base,
    DataFile,
    Head,
    Recipe,
    RewardManifest,
    Variant,
    encode,
    load_backbone,
    pooled_features,
)
from harness.progress import bar
from harness.training.data import Pair, Skips, read_pairs
from harness.types import Role

if TYPE_CHECKING:
    from harness.adapters.embedded import EmbeddedModel

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

RECIPE = Recipe(
    layers=(18,),
    pools=("last", "mean"),
    gate_layer=15,
    max_prompt=256,
    max_answer=192,
    batch_tokens=4096,
)
RISKY = "harmless"
RIDGES = (1.0, 0.5, 0.2, 0.1, 0.05)
GATE_RIDGE = 0.03
FOLDS = 5
DTYPE = "bfloat16"
WHAT = (
    "Bradley-Terry reward: a linear head on hidden states of SmolLM2-135M-Instruct, gated by how "
    "risky the request looks, fitted on Anthropic HH-RLHF preferences"
)
NOTES = (
    "Validation figures are out of fold, but the recipe and the ridge were chosen on them, so they "
    "are slightly optimistic; the test pairs were never used for fitting or choosing.",
    "The harmless training rows come from the official harmless-base test split, and so do, with "
    "other prompts, the harmless rows measured on: never report a score on all of that split.",
    "In HH only risky dialogues have several turns; the gate is fitted on single-turn dialogues.",
    "Rewards of different dialogues cannot be compared.",
)


@dataclass(frozen=True)
class Rows:
    """Preference pairs and the subset (a file's stem) that each comes from."""

    pairs: tuple[Pair, ...]
    subsets: tuple[str, ...]
    files: tuple[DataFile, ...]


@dataclass(frozen=True)
class Features:
    """What the head sees of N pairs.

    Attributes:
        chosen, rejected: (N, F) phi. prompt: (N, D) psi.
        risky: (N,) whether the pair is of the risky subset.
        single: (N,) whether the dialogue has one turn.
    """

    chosen: Array
    rejected: Array
    prompt: Array
    risky: Mask
    single: Mask

    def __getitem__(self, keep: Mask) -> Features:
        return Features(
            self.chosen[keep],
            self.rejected[keep],
            self.prompt[keep],
            self.risky[keep],
            self.single[keep],
        )

    def __len__(self) -> int:
        return len(self.risky)


@dataclass(frozen=True)
class Gate:
    """p_ordinary(psi) = sigmoid(psi . weight + bias)."""

    weight: Array
    bias: float

    def ordinary(self, prompt: Array) -> Array:
        """(N,) probabilities that the requests are ordinary ones."""
        return _sigmoid(prompt @ self.weight + self.bias)


@dataclass(frozen=True)
class FittedHead:
    """A gate and a head in the units of the raw features; see ``harness.judges.reward.Head``."""

    gate: Gate
    weight: Array
    offset: Array

    def differences(self, rows: Features) -> Array:
        """(N,) r_chosen - r_rejected."""
        each = (rows.chosen - rows.rejected) @ self.weight.T
        ordinary = self.gate.ordinary(rows.prompt)
        return np.asarray(ordinary * each[:, 0] + (1 - ordinary) * each[:, 1])


def _sigmoid(x: Array) -> Array:
    return 0.5 * (1.0 + np.tanh(0.5 * x))


def log_loss(differences: Array, scale: float = 1.0) -> float:
    """Mean -log sigmoid(scale * difference), nats."""
    return float(np.logaddexp(0.0, -scale * differences).mean())


def load_rows(paths: Sequence[Path]) -> Rows:
    """Read HH pairs; each file's stem (``harmless``, ``helpful``) names its subset."""
    pairs: list[Pair] = []
    subsets: list[str] = []
    files: list[DataFile] = []
    for path in paths:
        skips = Skips()
        found = read_pairs([path], skips)
        pairs += found
        subsets += [path.name.split(".")[0]] * len(found)
        files.append(_data_file(path, len(found), skips))
    return Rows(tuple(pairs), tuple(subsets), tuple(files))


def _data_file(path: Path, used: int, skips: Skips) -> DataFile:
    return DataFile(
        file=f"{path.resolve().parent.name}/{path.name}",
        sha256=sha256_file(path),
        rows=used + sum(skips.counts.values()),
        used=used,
    )


def _hidden_features(model: Any, tokenizer: Any, pairs: Sequence[Pair]) -> dict[str, Any]:
    """Return float32 arrays ``phi`` (2N, F), chosen before rejected, and ``psi`` (2N, D)."""
    import torch

    dialogues = [pair.messages for pair in pairs] * 2
    answers = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    items = encode(tokenizer, RECIPE, dialogues, answers)
    found: list[Any] = [None] * len(items)
    with torch.inference_mode(), bar(len(items), "hidden states", "answer") as shown:
        for group in batches([len(i) for i in items], RECIPE.batch_tokens):
            phi, psi = pooled_features(model, RECIPE, [items[i] for i in group])
            for row, index in enumerate(group):
                found[index] = (phi[row].numpy(), psi[row].numpy())
            shown.update(len(group))
    return {"phi": np.stack([f[0] for f in found]), "psi": np.stack([f[1] for f in found])}


def extract(base: Path, rows: Rows, cache: Path | None = None) -> Features:
    """Return the features of ``rows`` under the base model in ``base``.

    ``cache`` (a folder) remembers them by base weights, recipe and data files.
    """
    from safetensors.numpy import load_file, save_file

    from harness.adapters.identity import weights_sha256
    from harness.prompts import load_tokenizer

    facts = [weights_sha256(base), DTYPE, RECIPE.model_dump(mode="json")]
    key = sha256_json([*facts, [f.sha256 for f in rows.files]])[:16]
    memo = None if cache is None else cache / f"features-{key}.safetensors"
    if memo is not None and memo.is_file():
        return _features(load_file(memo), rows)
    model = load_backbone(base, RECIPE, DTYPE)
    arrays = _hidden_features(model, load_tokenizer(str(base)), rows.pairs)
    if memo is not None:
        memo.parent.mkdir(parents=True, exist_ok=True)
        save_file(arrays, memo)
    return _features(arrays, rows)


def _features(arrays: dict[str, Any], rows: Rows) -> Features:
    n = len(rows.pairs)
    phi, psi = (arrays[key].astype(np.float64) for key in ("phi", "psi"))
    single = [sum(m.role == Role.USER for m in pair.messages) == 1 for pair in rows.pairs]
    risky = np.array([subset == RISKY for subset in rows.subsets])
    return Features(phi[:n], phi[n:], psi[:n], risky, np.array(single))


def fit_logistic(rows: Array, weights: Array, ridge: Array) -> Array:
    """Return the (F,) w that minimises a weighted logistic loss with a ridge, no intercept.

    mean_i weights_i softplus(-rows_i . w) / mean(weights) + 1/2 sum_j ridge_j w_j^2, by L-BFGS.

    Args:
        rows: (N, F) differences of the features of the better and the worse side.
        weights: (N,) positive.
        ridge: (F,) non-negative.

    Raises:
        TrainingError: the optimiser did not converge.
    """
    from scipy.optimize import minimize  # type: ignore[import-untyped]

    share = weights / weights.sum()

    def loss(w: Array) -> tuple[float, Array]:
        z = rows @ w
        value = share @ np.logaddexp(0.0, -z) + 0.5 * (ridge * w) @ w
        return float(value), ridge * w - rows.T @ (share * _sigmoid(-z))

    options = {"maxiter": 500, "ftol": 1e-10, "gtol": 1e-6}
    done = minimize(loss, np.zeros(rows.shape[1]), jac=True, method="L-BFGS-B", options=options)
    if not done.success:
        raise TrainingError(f"the reward head's fit did not converge: {done.message}")
    return np.asarray(done.x)


def fit_gate(rows: Features, ridge: float = GATE_RIDGE) -> Gate:
    """Fit the gate: ordinary or risky request, both classes weighted equally.

    Only single-turn dialogues are used: in HH all long dialogues are of the risky subset, and a
    gate that saw them would count turns instead of reading the request.

    Raises:
        TrainingError: one of the classes has no single-turn dialogue.
    """
    seen = rows[rows.single]
    if seen.risky.all() or not seen.risky.any():
        raise TrainingError(
            f"the gate needs single-turn dialogues of subset '{RISKY}' and of another one; of "
            f"{len(seen)} there are {int(seen.risky.sum())} in '{RISKY}'. Give files of both."
        )
    mean, spread = seen.prompt.mean(0), seen.prompt.std(0) + 1e-6
    sign = np.where(seen.risky, -1.0, 1.0)
    design = np.column_stack([(seen.prompt - mean) / spread, np.ones(len(seen))])
    balance = np.where(seen.risky, 0.5 / seen.risky.mean(), 0.5 / (1 - seen.risky.mean()))
    penalty = np.r_[np.full(len(mean), ridge), 0.0]
    w = fit_logistic(design * sign[:, None], balance, penalty)
    return Gate(w[:-1] / spread, float(w[-1] - mean @ (w[:-1] / spread)))


def _design(rows: Features, gate: Gate, spread: Array) -> Array:
    """(N, 2F) standardised differences, the ordinary half and the risky half."""
    difference = (rows.chosen - rows.rejected) / spread
    ordinary = gate.ordinary(rows.prompt)[:, None]
    return np.hstack([difference * ordinary, difference * (1 - ordinary)])


def _spread(rows: Features) -> Array:
    blocks = len(RECIPE.layers) * len(RECIPE.pools)
    both = np.vstack([rows.chosen, rows.rejected])
    return np.asarray((both.std(0) + 1e-6) * np.sqrt(blocks))


def fit_head(rows: Features, gate: Gate, ridge: float) -> FittedHead:
    """Fit the gated head on standardised differences; return it in the raw features' units."""
    spread = _spread(rows)
    design = _design(rows, gate, spread)
    w = fit_logistic(design, np.ones(len(rows)), np.full(design.shape[1], ridge))
    weight = w.reshape(2, -1) / spread
    centre = 0.5 * (rows.chosen.mean(0) + rows.rejected.mean(0))
    return FittedHead(gate, weight, weight @ centre)


def _folds(n: int, seed: int) -> Iterator[Mask]:
    """Yield FOLDS masks over n rows, one for each held-out fold."""
    fold = np.random.default_rng(seed).permutation(n) % FOLDS
    yield from (fold == k for k in range(FOLDS))


def cross_validate(rows: Features, ridge: float, seed: int) -> Array:
    """(N,) r_chosen - r_rejected, each pair scored by gate and head fitted without its fold."""
    differences = np.zeros(len(rows))
    for held in _folds(len(rows), seed):
        fitted = fit_head(rows[~held], fit_gate(rows[~held]), ridge)
        differences[held] = fitted.differences(rows[held])
    return differences


def calibrate(differences: Array) -> float:
    """Return the scale s > 0 that minimises mean -log sigmoid(s * difference)."""
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(
        lambda log_s: log_loss(differences, float(np.exp(log_s))), bounds=(-5, 5), method="bounded"
    )
    return float(np.exp(found.x))


def agreement(differences: Array) -> Agreement:
    """Return how many differences (better minus worse) are positive, with Wilson's interval."""
    from scipy.stats import binomtest  # type: ignore[import-untyped]

    correct, n = int((differences > 0).sum()), len(differences)
    interval = binomtest(correct, n).proportion_ci(0.95, method="wilson")
    low, high = float(interval.low), float(interval.high)
    return Agreement(
        correct=correct,
        ties=int((differences == 0).sum()),
        n=n,
        share=correct / n,
        low=low,
        high=high,
        contains_half=low <= 0.5 <= high,
    )


def agreements(differences: Array, subsets: Sequence[str]) -> dict[str, Agreement]:
    """Return the agreement overall and for each subset."""
    of = np.array(subsets)
    parts = {name: agreement(differences[of == name]) for name in sorted(set(subsets))}
    return {"overall": agreement(differences), **parts}


def length_differences(pairs: Sequence[Pair]) -> Array:
    """(N,) characters of the better answer minus those of the worse one."""
    return np.array([float(len(pair.chosen) - len(pair.rejected)) for pair in pairs])


def _choose_ridge(rows: Features, seed: int) -> tuple[float, Array]:
    tried = {ridge: cross_validate(rows, ridge, seed) for ridge in RIDGES}
    best = min(tried, key=lambda ridge: log_loss(tried[ridge]))
    return best, tried[best]


def _save(folder: Path, fitted: FittedHead) -> dict[str, str]:
    """Write the weights as float32; return the SHA-256 of the file, by name."""
    import torch
    from safetensors.torch import save_file

    def tensor(values: Any) -> torch.Tensor:
        return torch.tensor(np.atleast_1d(values), dtype=torch.float32)

    head = Head(
        weight=tensor(fitted.weight),
        offset=tensor(fitted.offset),
        gate=tensor(fitted.gate.weight),
        gate_bias=tensor(fitted.gate.bias),
    )
    save_file(vars(head), folder / WEIGHTS)
    (folder / WEIGHTS).chmod(0o644)
    return {WEIGHTS: sha256_file(folder / WEIGHTS)}


def _kept_variant(differences: Array) -> Variant:
    return Variant(
        name="gated head, chosen recipe",
        protocol=f"{FOLDS}-fold cross-validation of the training pairs",
        accuracy=agreement(differences).share,
        log_loss=log_loss(differences),
        n=len(differences),
        kept=True,
    )


def _read_variants(path: Path | None) -> tuple[Variant, ...]:
    if path is None:
        return ()
    listed = json.loads(path.read_text(encoding="utf-8"))
    return tuple(Variant.model_validate(entry) for entry in listed)


@dataclass(frozen=True)
class Job:
    """What to fit on, what to measure on and where to put the result."""

    pairs: tuple[Path, ...]
    test: tuple[Path, ...]
    output: Path
    seed: int
    cache: Path | None = None
    variants: Path | None = None


def run(job: Job) -> RewardManifest:
    """Fit, calibrate, measure and write the reward model; return its manifest.

    Raises:
        InputError: the output folder exists (nothing is overwritten), or a file cannot be read.
        TrainingError: the fit did not converge, or the pairs lack a subset.
    """
    from harness.adapters.embedded import SMOLLM2, embedded_folder

    if job.output.exists():
        raise InputError(f"{job.output} exists. Give --output a folder that does not exist yet.")
    base = embedded_folder(SMOLLM2.name)
    train, test = load_rows(job.pairs), load_rows(job.test)
    rows = extract(base, train, job.cache)
    ridge, held_out = _choose_ridge(rows, job.seed)
    fitted = fit_head(rows, fit_gate(rows), ridge)
    measured = fitted.differences(extract(base, test, job.cache))
    with atomic_folder(job.output) as folder:
        manifest = RewardManifest(
            what=WHAT,
            base=_base(base, SMOLLM2),
            recipe=RECIPE,
            training=_training_facts(ridge),
            scale=calibrate(held_out),
            seed=job.seed,
            fitted_on=train.files,
            measured_on=test.files,
            measured=datetime.now(UTC).date().isoformat(),
            variants=(_kept_variant(held_out), *_read_variants(job.variants)),
            validation=agreements(held_out, train.subsets),
            test=agreements(measured, test.subsets),
            longer_answer_wins=agreements(length_differences(test.pairs), test.subsets),
            notes=NOTES,
            files=_save(folder, fitted),
        )
        text = json.dumps(manifest.model_dump(mode="json"), indent=2, ensure_ascii=False)
        (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
    return manifest


def _base(folder: Path, model: EmbeddedModel) -> Base:
    from harness.adapters.identity import weights_sha256

    return Base(
        name=model.name,
        hub_id=model.hub_id,
        weights_sha256=weights_sha256(folder),
        dtype=DTYPE,
    )


def _training_facts(ridge: float) -> dict[str, Any]:
    return {
        "loss": "-log sigmoid(r_chosen - r_rejected) + ridge/2 |w|^2 on standardised features",
        "ridge": ridge,
        "ridges_tried": list(RIDGES),
        "gate": f"logistic, subset '{RISKY}' or not, single-turn dialogues, classes balanced",
        "gate_ridge": GATE_RIDGE,
        "folds": FOLDS,
        "optimiser": "L-BFGS, float64",
    }


def _summary(manifest: RewardManifest) -> str:
    lines = [f"ridge {manifest.training['ridge']}, scale {manifest.scale:.3f}"]
    for title in ("validation", "test", "longer_answer_wins"):
        for name, found in getattr(manifest, title).items():
            share = f"{found.correct}/{found.n} = {found.share:.3f}"
            lines.append(f"{title} {name}: {share} [{found.low:.3f}, {found.high:.3f}]")
    return "\n".join(lines)


def _parse(arguments: Sequence[str] | None) -> Job:
    parser = argparse.ArgumentParser(
        prog="python -m harness.training.reward",
        description="Fit the reward judge on HH preference pairs and measure it on others.",
    )
    add = parser.add_argument
    add("--pairs", nargs="+", type=Path, required=True, help="pairs to fit on (JSONL, .gz)")
    add("--test", nargs="+", type=Path, required=True, help="pairs to measure on, once")
    add("--output", type=Path, required=True, help="folder to create")
    add("--seed", type=int, required=True, help="seed of the cross-validation folds")
    add("--cache", type=Path, help="folder that keeps the hidden states for another fit")
    add("--variants", type=Path, help="JSON list of other variants tried, for the manifest")
    given = parser.parse_args(arguments)
    files = {"pairs": tuple(given.pairs), "test": tuple(given.test)}
    return Job(
        **files, output=given.output, seed=given.seed, cache=given.cache, variants=given.variants
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    try:
        print(_summary(run(_parse(arguments))))
    except TbpoError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
