"""Recipe of a training run: every key that decides its outcome, read from YAML or flags."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from harness.errors import InputError
from harness.files import packaged
from harness.suites import read_yaml, validation_text
from harness.types import Record

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Option = float | int | bool | str | None


def _key(default: Any, text: str) -> Any:
    return Field(default=default, description=text)


def _number(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        return value


class Recipe(Record):
    """Everything that decides the outcome of a training run.

    The defaults are those of the TokenRatio paper (arXiv 2605.12288): LoRA rank 32, alpha 64,
    dropout 0.05, RMSprop at 5e-7 with a cosine and 5 % warm-up, one epoch, 32 pairs a step, 2048
    tokens. The descriptions below are the help texts of ``tbpo train``.
    """

    objective: str = Field(description="sft, dpo, bpo, tdpo1, tdpo2, tis-dpo, tbpo-q, tbpo-a, ...")
    options: dict[str, Option] = _key({}, "Fields of the objective that differ from its defaults.")
    base: str = _key(
        "embedded:smollm2-135m-instruct", "Model to train: folder, hub id or embedded:NAME."
    )
    reference: str | None = _key(None, "Reference policy; by default the base, untrained.")
    pairs: tuple[str, ...] = _key(
        (), "Preference pairs: JSONL, JSON, Parquet (HH text or chat lists), or hub-id:split."
    )

    finetune: Literal["lora", "full"] = _key("lora", "Train a LoRA, or all weights.")
    lora_rank: Count = _key(32, "Rank of the LoRA.")
    lora_alpha: Count = _key(64, "Numerator of the LoRA's scale, alpha / rank.")
    lora_dropout: Share = _key(0.05, "Dropout on the LoRA's input.")
    lora_targets: tuple[str, ...] = _key(
        ("all-linear",), "Modules that carry a LoRA; all-linear leaves out the output layer."
    )

    optimizer: Literal["rmsprop", "adamw"] = _key("rmsprop", "Optimiser of the policy.")
    learning_rate: Positive = _key(5e-7, "Peak learning rate.")
    schedule: Literal["cosine", "linear", "constant"] = _key("cosine", "Shape after warm-up.")
    warmup: Share = _key(0.05, "Share of the steps over which the rate rises.")
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = _key(0.0, "Weight decay.")
    max_grad_norm: Positive | None = _key(1.0, "Largest norm of the policy's gradient.")
    head_learning_rate: Positive = _key(1e-3, "AdamW rate of the baseline head (TBPO-Q).")
    head_width: Count = _key(1024, "Hidden width of the baseline head (TBPO-Q).")
    epochs: Positive = _key(1.0, "Passes over the pairs, where steps is not given.")
    steps: Count | None = _key(None, "Optimiser steps; overrides epochs.")
    batch: Count = _key(32, "Pairs a step, over all devices.")
    micro_batch: Count | None = _key(None, "Pairs at once on one device; by default all of them.")

    group_by_length: bool = _key(
        True, "Batches of similar lengths: faster, but gradient norms then follow the length."
    )
    max_length: Count | None = _key(2048, "Longest prompt plus answer, tokens.")
    max_prompt: Count | None = _key(None, "Longest prompt, tokens; oldest turns are dropped.")
    max_response: Count | None = _key(None, "Longest answer, tokens.")
    long_responses: Literal["cut", "skip"] = _key("cut", "What becomes of longer answers.")
    holdout: Count = _key(200, "Pairs kept for measurement, whole prompts.")

    contrastive_prompts: tuple[str, ...] = _key(
        (
            "You are a careful assistant: helpful, honest and harmless.",
            "You are a careless assistant: unhelpful, dishonest and harmful.",
        ),
        "System texts whose two log-probabilities weight the tokens (TIS-DPO): better, worse.",
    )
    contrastive_models: tuple[str, ...] = _key(
        (), "Two models that weight the tokens instead of the texts (TIS-DPO): better, worse."
    )
    weight_k: Positive = _key(1.0, "Factor k of TIS-DPO's token weight.")
    weight_mu: Positive = _key(1.0, "Exponent mu of TIS-DPO's token weight.")
    weight_low: float = _key(-0.5, "Lower clamp L of the contrastive log-ratio (TIS-DPO).")
    weight_high: float = _key(1.5, "Upper clamp U of the contrastive log-ratio (TIS-DPO).")

    seed: Annotated[int, Field(ge=0)] = _key(0, "Seed of initialisation, order and dropout.")
    data_seed: Annotated[int, Field(ge=0)] = _key(0, "Seed of the held-out split.")
    learning_rates: tuple[Positive, ...] = _key(
        (), "Grid to search, with the first seed; chosen on held-out accuracy."
    )
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = _key(
        (), "Seeds to repeat the run with, at the chosen rate; the first becomes the output."
    )

    bf16: Literal["auto", "yes", "no"] = _key("auto", "bfloat16 autocast; auto: on a GPU with it.")
    gradient_checkpointing: bool = _key(False, "Less memory for one more forward pass.")
    chunk: Count | None = _key(None, "Response positions whose logits are held at once.")
    save_dtype: Literal["float32", "bfloat16"] = _key("float32", "Type of the saved weights.")
    eval_every: Count | None = _key(None, "Steps between held-out measures; the last has one.")
    save_every: Count = _key(50, "Steps between checkpoints to go on from.")

    @field_validator("options", mode="before")
    @classmethod
    def _numbers(cls, options: Any) -> Any:
        """Read 1e-1 as a number, which YAML 1.1 takes for text."""
        if not isinstance(options, dict):
            return options
        return {key: _number(value) for key, value in options.items()}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        micro = self.micro_batch or self.batch
        if self.batch % micro:
            raise ValueError(f"batch {self.batch} is not a multiple of micro_batch {micro}")
        if self.weight_low >= self.weight_high:
            raise ValueError("weight_low must be below weight_high")
        for name in ("contrastive_prompts", "contrastive_models"):
            if len(getattr(self, name)) not in (0, 2):
                raise ValueError(f"{name} takes two values: better, worse")
        for name in ("learning_rates", "seeds"):
            if len(set(getattr(self, name))) != len(getattr(self, name)):
                raise ValueError(f"{name} repeats a value")
        return self


def known_recipes() -> dict[str, Path]:
    """Return the recipes that travel with the package, by name."""
    return {p.stem: p for p in sorted(packaged("recipes").glob("*.yaml"))}


def recipe_file(name: str) -> Path:
    """Return the file of a recipe given by path, or by the name of a packaged one.

    Raises:
        InputError: neither exists (the packaged names are listed).
    """
    path, known = Path(name), known_recipes()
    if path.is_file():
        return path
    if name in known:
        return known[name]
    raise InputError(f"no recipe file {name}, and no packaged one. Packaged: {', '.join(known)}.")


def load_recipe(name: str | None, given: Mapping[str, Any]) -> Recipe:
    """Return the recipe of a YAML file, overridden by the keys that are ``given``.

    ``options`` are merged key by key where the objective stays the same.

    Raises:
        InputError: unknown or unusable key; no objective; no pairs.
    """
    values = read_yaml(recipe_file(name)) if name is not None else {}
    same = given.get("objective") in (None, values.get("objective"))
    options = (values.get("options") or {} if same else {}) | dict(given.get("options") or {})
    try:
        recipe = Recipe.model_validate({**values, **given, "options": options})
    except ValidationError as error:
        raise InputError(f"{name or 'training options'}: {validation_text(error)}") from error
    if not recipe.pairs:
        raise InputError("no preference pairs; give --pairs FILE or a recipe with `pairs`")
    return recipe
