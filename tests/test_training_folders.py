"""Whole runs: every objective's folder is loaded by the adapters, and its manifest is true."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from command_records import Tbpo
from training_records import (
    OBJECTIVES,
    equal_weights,
    flags,
    make_recipe,
    read_log,
    read_weights,
    save_base,
)

from harness.adapters import prepare
from harness.errors import InputError
from harness.files import sha256_file
from harness.training import search
from harness.training.recipe import Recipe
from harness.training.run import Workshop
from harness.training.search import train
from harness.types import CheckpointSpec

pytestmark = pytest.mark.slow

LORA_FILES = {"adapter_config.json", "adapter_model.safetensors"}
FULL_FILES = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
RUN_FILES = {"manifest.json", "train_log.jsonl"}


def loaded(folder: Path) -> Any:
    """The model that an engine would load from a trained folder, in float32."""
    from transformers import AutoModelForCausalLM

    ready = prepare(CheckpointSpec(name="trained", source=str(folder)))
    model: Any = AutoModelForCausalLM.from_pretrained(ready.folder, dtype=torch.float32)
    return model.eval()


def margin(recipe: Recipe, policy: Any, base: Any) -> float:
    """The mean margin on the held-out pairs, by plain forward passes over one answer at a time."""
    total = 0.0
    held = Workshop(recipe).corpus.held
    for pair in held:
        for sign, answer in ((1, pair.chosen), (-1, pair.rejected)):
            ids = torch.tensor([[*pair.prompt, *answer]])
            at = (range(len(pair.prompt) - 1, ids.shape[1] - 1), answer)
            with torch.no_grad():
                ours, theirs = (
                    float(m(input_ids=ids).logits[0].double().log_softmax(-1)[at].sum())
                    for m in (policy, base)
                )
            total += sign * (ours - theirs)
    return total / len(held)


@pytest.fixture(scope="module")
def tokens_a_step() -> dict[str, list[int]]:
    """What every run's steps have read; equal for all objectives."""
    return {}


@pytest.mark.parametrize("finetune", ["lora", "full"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_trains_a_policy_that_the_adapters_load(
    base: Path,
    pairs: Path,
    tmp_path: Path,
    tokens_a_step: dict[str, list[int]],
    objective: str,
    finetune: str,
) -> None:
    recipe = make_recipe(base, pairs, objective=objective, finetune=finetune, steps=4)
    manifest = train(recipe, tmp_path / "out")
    files = {file.name for file in (tmp_path / "out").iterdir()}
    expected = RUN_FILES | (LORA_FILES if finetune == "lora" else FULL_FILES)
    assert expected <= files
    assert ("baseline_head.safetensors" in files) == (objective == "tbpo-q")
    assert not files & {"checkpoints", "last_good", "README.md"}
    rows = read_log(tmp_path / "out")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert tokens_a_step.setdefault("all", [r["tokens"] for r in rows]) == [
        r["tokens"] for r in rows
    ]
    assert rows[-1]["chosen_log_ratio" if objective == "sft" else "margin"] > 0.05
    one, other = loaded(tmp_path / "out"), loaded(base)
    pieces = zip(one.named_parameters(), other.parameters(), strict=True)
    changed = {name for (name, ours), theirs in pieces if not torch.equal(ours, theirs)}
    targets = {f"model.layers.{i}.self_attn.{p}_proj.weight" for i in (0, 1) for p in "qv"}
    assert changed == targets if finetune == "lora" else len(changed) > 15
    found = manifest["held_out"]["after"]["margin_nats"]
    assert found == pytest.approx(margin(recipe, one, other), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("finetune", ["lora", "full"])
def test_weights_are_saved_in_the_wanted_type(
    base: Path, pairs: Path, tmp_path: Path, finetune: str
) -> None:
    recipe = make_recipe(base, pairs, finetune=finetune, save_dtype="bfloat16")
    manifest = train(recipe, tmp_path / "out")
    assert {value.dtype for value in read_weights(tmp_path / "out").values()} == {torch.bfloat16}
    whole = train(make_recipe(base, pairs, finetune=finetune), tmp_path / "whole")
    weights = read_weights(tmp_path / "whole")
    assert {value.dtype for value in weights.values()} == {torch.float32}
    rounded = read_weights(tmp_path / "out")
    assert all(torch.equal(weights[n].bfloat16(), rounded[n]) for n in weights)
    # The manifest measures what was saved, not what was trained.
    found, exact = (m["held_out"]["after"]["margin_nats"] for m in (manifest, whole))
    assert found != exact
    expected = margin(recipe, loaded(tmp_path / "out"), loaded(base))
    assert found == pytest.approx(expected, rel=2e-2 if finetune == "lora" else 1e-3)
    if finetune == "full":
        config = json.loads((tmp_path / "out" / "config.json").read_text())
        assert (config["dtype"], config["use_cache"]) == ("bfloat16", True)


def test_a_lora_names_its_base(base: Path, pairs: Path, tmp_path: Path) -> None:
    manifest = train(make_recipe(base, pairs, steps=1), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert manifest["base"]["name"] == config["base_model_name_or_path"] == str(base.resolve())


def test_embedded_base_is_recorded_by_its_public_name(
    base: Path, pairs: Path, tmp_path: Path
) -> None:
    from harness.adapters.embedded import SMOLLM2
    from harness.files import cache_root

    name = f"{SMOLLM2.name}-{SMOLLM2.version}-{SMOLLM2.wheel_sha256[:12]}"
    cached = cache_root() / "models" / name
    cached.parent.mkdir(parents=True)
    cached.symlink_to(base, target_is_directory=True)
    source = "embedded:smollm2-135m-instruct"
    manifest = train(make_recipe(base, pairs, base=source, steps=1), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert manifest["base"]["name"] == config["base_model_name_or_path"] == SMOLLM2.hub_id


def test_base_that_is_a_lora_is_merged_first(base: Path, pairs: Path, tmp_path: Path) -> None:
    train(make_recipe(base, pairs, objective="sft"), tmp_path / "sft")
    recipe = make_recipe(base, pairs, base=str(tmp_path / "sft"), finetune="full", steps=1)
    manifest = train(recipe, tmp_path / "dpo")
    assert manifest["held_out"]["before"]["token_shift_nats"] == 0
    assert read_log(tmp_path / "dpo")[0]["margin"] == 0
    first = loaded(tmp_path / "sft")
    assert manifest["held_out"]["after"]["margin_nats"] == pytest.approx(
        margin(recipe, loaded(tmp_path / "dpo"), first), rel=1e-3, abs=1e-4
    )


# Manifest


def test_manifest_says_what_was_done(base: Path, pairs: Path, tmp_path: Path) -> None:
    options = {"beta": 0.2, "clamp": 5.0}
    recipe = make_recipe(base, pairs, objective="tbpo-q", options=options, steps=12)
    manifest = train(recipe, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "manifest.json").read_text()) == json.loads(
        json.dumps(manifest)
    )
    rows = read_log(tmp_path / "out")
    by_name = recipe.model_copy(update={"pairs": (pairs.name,)})
    assert Recipe(**manifest["recipe"]) == by_name
    assert manifest["objective"] == "tbpo-q"
    assert manifest["objective_fields"] == {
        "beta": 0.2,
        "generator": "sba",
        "lam": 0.0,
        "s": 4.0,
        "centre": False,
        "clamp": 5.0,
    }
    assert manifest["steps"] == len(rows) == 12
    assert manifest["first_loss"] == rows[0]["loss"]
    assert manifest["final_loss"] == pytest.approx(sum(r["loss"] for r in rows[2:]) / 10)
    assert (manifest["pairs"]["training"], manifest["pairs"]["held_out"]) == (24, 6)
    assert [data["sha256"] for data in manifest["data"]] == [sha256_file(pairs)]
    before, after = manifest["held_out"]["before"], manifest["held_out"]["after"]
    assert before["token_shift_nats"] == 0
    assert before["implicit_reward_accuracy"]["value"] == 0.5
    assert after["implicit_reward_accuracy"]["value"] == rows[-1]["held_out_accuracy"]
    assert "search" not in manifest


def test_a_finished_run_is_not_repeated(
    base: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(base, pairs, steps=1)
    first = train(recipe, tmp_path / "out")
    monkeypatch.setattr(search, "train_once", None)
    assert train(recipe, tmp_path / "out") == json.loads(json.dumps(first))


@pytest.mark.parametrize(
    ("changes", "differing"),
    [
        ({"learning_rate": 1e-3}, "learning_rate"),
        ({"seed": 1, "batch": 2}, "batch, seed"),
        ({"holdout": 7}, "holdout, pairs"),
        ({"options": {"beta": 0.3}}, "options"),
    ],
)
def test_folder_of_another_run_is_refused(
    base: Path, pairs: Path, tmp_path: Path, changes: dict[str, Any], differing: str
) -> None:
    train(make_recipe(base, pairs, steps=1), tmp_path / "out")
    before = read_weights(tmp_path / "out")
    with pytest.raises(InputError, match=rf"belongs to another run: {differing} differ\."):
        train(make_recipe(base, pairs, steps=1, **changes), tmp_path / "out")
    assert read_weights(tmp_path / "out").keys() == before.keys()


def test_folder_of_other_data_or_another_base_is_refused(
    base: Path, pairs: Path, tmp_path: Path, tokenizer_folder: Path
) -> None:
    own = tmp_path / "own.jsonl"
    own.write_bytes(pairs.read_bytes())
    changed = save_base(tmp_path / "base", tokenizer_folder)
    train(make_recipe(changed, own, steps=1), tmp_path / "out")
    lines = own.read_text().splitlines(keepends=True)
    own.write_text("".join([*lines[1:], lines[0]]))
    with pytest.raises(InputError, match=r"belongs to another run: data differ\."):
        train(make_recipe(changed, own, steps=1), tmp_path / "out")
    own.write_bytes(pairs.read_bytes())
    save_base(tmp_path / "second", tokenizer_folder, seed=1)
    (tmp_path / "second" / "model.safetensors").replace(changed / "model.safetensors")
    with pytest.raises(InputError, match=r"belongs to another run: base differ\."):
        train(make_recipe(changed, own, steps=1), tmp_path / "out")


def test_folder_with_a_model_is_refused(base: Path, pairs: Path) -> None:
    with pytest.raises(InputError, match="already holds a model; give another --output"):
        train(make_recipe(base, pairs, steps=1), base)


# Command line


def test_command_line_trains_and_says_what_came_out(
    base: Path, pairs: Path, tmp_path: Path, tbpo: Tbpo
) -> None:
    words = flags(base=base, pairs=pairs)
    code, out, err = tbpo("train", *words, "--output", tmp_path / "out")
    assert code == 0, err
    assert out.startswith(f"{tmp_path / 'out'}: held-out preference accuracy ")
    assert out.endswith(", 6 pairs\n")
    train(make_recipe(base, pairs), tmp_path / "same")
    assert equal_weights(tmp_path / "out", tmp_path / "same")
    code, out, err = tbpo("train", *words, "--output", tmp_path / "out", "--json")
    assert json.loads(out) == json.loads((tmp_path / "out" / "manifest.json").read_text())
