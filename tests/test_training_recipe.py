"""Recipes: the paper's defaults, the packaged files, flags over YAML, what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from click.testing import CliRunner
from training_records import OBJECTIVES

from harness.cli import cli
from harness.cli_train import given_keys, objective_options, train
from harness.errors import InputError
from harness.training.objectives import build_objective
from harness.training.recipe import Recipe, known_recipes, load_recipe

PAIRS = {"pairs": ["pairs.jsonl"]}

PAPER = {
    "lora_rank": 32,
    "lora_alpha": 64,
    "lora_dropout": 0.05,
    "optimizer": "rmsprop",
    "learning_rate": 5e-7,
    "schedule": "cosine",
    "warmup": 0.05,
    "epochs": 1,
    "batch": 32,
    "max_length": 2048,
    "head_width": 1024,
    "head_learning_rate": 1e-3,
    "weight_low": -0.5,
    "weight_high": 1.5,
}


def test_defaults_are_those_of_the_paper() -> None:
    made = Recipe(objective="tbpo-q").model_dump()
    assert {key: made[key] for key in PAPER} == PAPER
    for name in ("dpo", "bpo", "tdpo1", "tdpo2", "tis-dpo", "tbpo-q", "tbpo-a"):
        assert vars(build_objective(name, {}))["beta"] == 0.1


@pytest.mark.parametrize(
    ("name", "base", "pairs"),
    [
        ("paper-mistral-7b", "mistral-7b-sft-alpha", "ultrafeedback_binarized:train_prefs"),
        ("paper-llama-3-8b", "LLaMA3-SFT-v2", "llama3-ultrafeedback-armorm:train"),
    ],
)
def test_recipes_of_the_paper(name: str, base: str, pairs: str) -> None:
    found = load_recipe(name, {})
    assert {key: found.model_dump()[key] for key in PAPER} == PAPER
    assert found.base.endswith(base)
    assert [p.rpartition("/")[2] for p in found.pairs] == [pairs]


def test_sft_of_the_paper_has_its_own_optimiser() -> None:
    found = load_recipe("paper-sft", {})
    expected = ("sft", "adamw", 2e-4, 32)
    assert (found.objective, found.optimizer, found.learning_rate, found.batch) == expected


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("name", sorted(known_recipes()))
def test_packaged_recipes_take_every_objective(name: str, objective: str) -> None:
    found = load_recipe(name, {**PAIRS, "objective": objective})
    assert found.objective == objective
    assert found.pairs == ("pairs.jsonl",)
    build_objective(found.objective, found.options)


def test_demo_searches_and_repeats_and_needs_pairs() -> None:
    found = load_recipe("demo", PAIRS)
    assert len(found.learning_rates) > 1
    assert len(found.seeds) > 1
    with pytest.raises(InputError, match="no preference pairs; give --pairs FILE"):
        load_recipe("demo", {})


# What is refused.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"betta": 1}, "unknown key 'betta'"),
        ({"batch": 0}, "batch: "),
        ({"batch": "many"}, "batch: .*many"),
        ({"learning_rate": float("nan")}, "learning_rate: "),
        ({"learning_rate": -1}, "learning_rate: "),
        ({"warmup": 1.5}, "warmup: "),
        ({"optimizer": "sgd"}, "optimizer: .*sgd"),
        ({"finetune": "prefix"}, "finetune: "),
        ({"steps": 0}, "steps: "),
        ({"seed": -1}, "seed: "),
        ({"learning_rates": [1e-3, -1]}, "learning_rates.1: "),
        ({"options": {"beta": [1]}}, "options.beta"),
        ({"batch": 6, "micro_batch": 4}, "batch 6 is not a multiple of micro_batch 4"),
        ({"batch": 2, "micro_batch": 4}, "batch 2 is not a multiple of micro_batch 4"),
        ({"weight_low": 1.5}, "weight_low must be below weight_high"),
        ({"contrastive_prompts": ["a"]}, "contrastive_prompts takes two values"),
        ({"contrastive_models": ["a", "b", "c"]}, "contrastive_models takes two values"),
        ({"seeds": [1, 1]}, "seeds repeats a value"),
        ({"learning_rates": [1e-3, 0.001]}, "learning_rates repeats a value"),
    ],
)
def test_wrong_keys_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=rf"^training options: .*{message}"):
        load_recipe(None, {"objective": "dpo", **PAIRS, **changes})
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump({"objective": "dpo", **PAIRS, **changes}))
    with pytest.raises(InputError, match=rf"own\.yaml: .*{message}"):
        load_recipe(str(file), {})


def test_objective_and_pairs_are_required() -> None:
    with pytest.raises(InputError, match="'objective' is missing"):
        load_recipe(None, PAIRS)
    with pytest.raises(InputError, match="no preference pairs"):
        load_recipe(None, {"objective": "dpo"})


def test_unknown_recipe_lists_the_packaged_ones() -> None:
    with pytest.raises(InputError, match=r"no recipe file gone.*Packaged: demo, paper-llama-3-8b"):
        load_recipe("gone", PAIRS)


# Flags over YAML.


@pytest.fixture
def own(tmp_path: Path) -> str:
    file = tmp_path / "own.yaml"
    values = {**PAIRS, "objective": "tbpo-q", "options": {"beta": 0.2, "centre": True}}
    file.write_text(yaml.safe_dump({**values, "batch": 8, "max_grad_norm": 0.5}))
    return str(file)


def test_flags_override_the_file(own: str) -> None:
    found = load_recipe(own, {"batch": "16", "max_grad_norm": None, "seeds": ("1", "2")})
    assert (found.batch, found.max_grad_norm, found.seeds) == (16, None, (1, 2))
    assert found.objective == "tbpo-q"


def test_options_are_merged_while_the_objective_stays(own: str) -> None:
    assert load_recipe(own, {}).options == {"beta": 0.2, "centre": True}
    merged = load_recipe(own, {"options": {"beta": 0.3}})
    assert merged.options == {"beta": 0.3, "centre": True}
    assert load_recipe(own, {"objective": "tbpo-q"}).options == {"beta": 0.2, "centre": True}
    assert load_recipe(own, {"objective": "dpo"}).options == {}
    other = load_recipe(own, {"objective": "dpo", "options": {"label_smoothing": 0.1}})
    assert other.options == {"label_smoothing": 0.1}


def test_none_stands_for_no_value_and_false_is_a_value() -> None:
    flags = {"steps": None, "seeds": (), "max_grad_norm": "none", "gradient_checkpointing": False}
    assert given_keys(flags) == {"max_grad_norm": None, "gradient_checkpointing": False}
    assert given_keys({"learning_rates": ("none",)}) == {"learning_rates": ()}
    assert load_recipe("demo", {**PAIRS, **given_keys({"seeds": ("none",)})}).seeds == ()


def test_objective_options_are_read_as_yaml() -> None:
    found = objective_options(("beta=0.2", "centre=true", "clamp=null", "kl=exact", "lam=-0.5"))
    assert found == {"beta": 0.2, "centre": True, "clamp": None, "kl": "exact", "lam": -0.5}
    with pytest.raises(InputError, match=r"--set 'beta': expected KEY=VALUE"):
        objective_options(("beta",))
    with pytest.raises(InputError, match=r"--set 'clamp=\[1': the value is not YAML: expected"):
        objective_options(("beta=0.2", "clamp=[1"))


OTHER: dict[str, tuple[list[str], Any]] = {
    "objective": (["tbpo-a"], "tbpo-a"),
    "base": (["folder"], "folder"),
    "reference": (["other"], "other"),
    "pairs": (["a.jsonl", "b.jsonl"], ("a.jsonl", "b.jsonl")),
    "finetune": (["full"], "full"),
    "lora_rank": (["3"], 3),
    "lora_alpha": (["5"], 5),
    "lora_dropout": (["0.3"], 0.3),
    "lora_targets": (["q_proj", "k_proj"], ("q_proj", "k_proj")),
    "optimizer": (["adamw"], "adamw"),
    "learning_rate": (["2e-5"], 2e-5),
    "schedule": (["linear"], "linear"),
    "warmup": (["0.2"], 0.2),
    "weight_decay": (["0.1"], 0.1),
    "max_grad_norm": (["none"], None),
    "head_learning_rate": (["1e-4"], 1e-4),
    "head_width": (["7"], 7),
    "epochs": (["2.5"], 2.5),
    "steps": (["9"], 9),
    "batch": (["12"], 12),
    "micro_batch": (["6"], 6),
    "group_by_length": ([], False),
    "max_length": (["none"], None),
    "max_prompt": (["100"], 100),
    "max_response": (["50"], 50),
    "long_responses": (["skip"], "skip"),
    "holdout": (["11"], 11),
    "contrastive_prompts": (["good", "bad"], ("good", "bad")),
    "contrastive_models": (["plus", "minus"], ("plus", "minus")),
    "weight_k": (["2"], 2.0),
    "weight_mu": (["3"], 3.0),
    "weight_low": (["-2"], -2.0),
    "weight_high": (["2"], 2.0),
    "seed": (["4"], 4),
    "data_seed": (["5"], 5),
    "learning_rates": (["1e-3", "1e-2"], (1e-3, 1e-2)),
    "seeds": (["1", "3"], (1, 3)),
    "bf16": (["no"], "no"),
    "gradient_checkpointing": ([], True),
    "chunk": (["17"], 17),
    "save_dtype": (["bfloat16"], "bfloat16"),
    "eval_every": (["10"], 10),
    "save_every": (["20"], 20),
}
"""Every key of a recipe: the words of its flag, and the value that differs from the default."""


def test_every_key_but_the_options_is_a_flag() -> None:
    flags = {p.name for p in train.get_params(click.Context(train))}
    assert set(Recipe.model_fields) - {"options"} <= flags
    assert {"recipe", "output", "options", "as_json"} <= flags


def test_every_flag_reaches_the_recipe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert set(OTHER) == set(Recipe.model_fields) - {"options"}
    defaults = Recipe(objective="dpo").model_dump()
    assert all(defaults[key] != value for key, (_, value) in OTHER.items())
    taken: list[Any] = []

    def refuse(recipe: Recipe, output: Path) -> None:
        taken.extend([recipe, output])
        raise InputError("enough")

    monkeypatch.setattr("harness.training.search.train", refuse)
    words = ["--output", str(tmp_path / "out"), "--set", "beta=0.5"]
    for key, (values, other) in OTHER.items():
        flag = f"--{'no-' if other is False else ''}{key.replace('_', '-')}"
        words += [w for v in values for w in (flag, v)] or [flag]
    done = CliRunner().invoke(cli, ["train", *words])
    assert str(done.exception) == "enough"
    expected = {key: value for key, (_, value) in OTHER.items()} | {"options": {"beta": 0.5}}
    assert taken == [Recipe(**expected), tmp_path / "out"]


def test_output_that_is_a_file_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    file = tmp_path / "out"
    file.write_text("mine")
    words = ["train", "--output", str(file), "--recipe", "gone", "--objective", "dpo"]
    done = CliRunner().invoke(cli, words)
    assert isinstance(done.exception, InputError)
    assert f"--output {file} is a file" in str(done.exception)
    assert file.read_text() == "mine"


def test_help_names_every_key_and_imports_no_torch() -> None:
    code = (
        "import sys\n"
        "sys.argv = ['tbpo', 'train', '--help']\n"
        "from harness.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = ('torch', 'transformers', 'peft', 'vllm', 'pandas', 'matplotlib', 'datasets')\n"
        "print([m for m in heavy if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    for key in OTHER:
        assert f"--{key.replace('_', '-')}" in done.stdout
    assert "[default: 5e-07]" in " ".join(done.stdout.split())
