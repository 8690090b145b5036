"""Policy, reference and head as one module: its statistics are those of plain forward passes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from training_records import make_recipe, save_base

from harness.errors import CheckpointError, InputError, TrainingError
from harness.training.batches import Batch, Item, collate
from harness.training.checkpoints import load_policy, write_policy
from harness.training.data import TokenPair
from harness.training.model import (
    BaselineHead,
    PreferenceModel,
    build_model,
    load_base,
    sides,
    use_bfloat16,
)
from harness.training.objectives import Statistic
from harness.training.token_statistics import TokenReadings, token_readings

PAIRS = (
    TokenPair((5, 9, 14), (20, 21, 22, 2), (30, 2)),
    TokenPair((7,), (40,), (41, 42, 43, 44, 2)),
    TokenPair((8, 3, 2, 6, 11, 12), (50, 51, 2), (60, 61, 62)),
)
ROWS = [(p.prompt, p.chosen) for p in PAIRS] + [(p.prompt, p.rejected) for p in PAIRS]
ALL = frozenset(Statistic)
READ = ("policy", "reference", "kl", "reverse_kl", "entropy")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def save_architecture(folder: Path, tokenizer: Path, name: str, **changes: Any) -> Path:
    """Save a random model of another architecture, with the byte tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        name,
        **{
            "vocab_size": 264,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
            "initializer_range": 0.2,
            **changes,
        },
    )
    shutil.copytree(tokenizer, folder)
    torch.manual_seed(0)
    made: Any = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter_name, weight in made.named_parameters():
            if parameter_name.endswith("bias"):
                weight.normal_(std=0.2)
    made.save_pretrained(folder)
    return folder


def batch() -> Batch:
    return collate([Item(pair=p, index=i, weights=None) for i, p in enumerate(PAIRS)], 0)


def build(
    base: Path,
    reference: Path | None = None,
    requires: frozenset[Statistic] = frozenset(),
    **changes: Any,
) -> PreferenceModel:
    torch.manual_seed(1)
    recipe = make_recipe(base, Path("unused"), **changes)
    return build_model(recipe, str(base), reference and str(reference), requires)


def disturb(model: PreferenceModel, scale: float = 0.1) -> PreferenceModel:
    """Move the policy off its reference; a LoRA's B starts at zero."""
    torch.manual_seed(2)
    with torch.no_grad():
        for weight in model.policy_weights():
            weight.add_(scale * torch.randn_like(weight))
    return model.eval()


def plain(source: Path) -> Any:
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    return loaded.eval()


def naive(model: Any, prompt: tuple[int, ...], answer: tuple[int, ...]) -> Tensor:
    """(T, V) log-probabilities at the answer's positions, by a forward pass over one row."""
    with torch.no_grad():
        logits: Tensor = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0]
    return logits.log_softmax(-1)[len(prompt) - 1 : -1]


def check_statistics(model: PreferenceModel, reference: Any) -> None:
    found = model(**batch())
    assert (found["policy"] - found["reference"]).abs().max() > 0.05
    for i, (prompt, answer) in enumerate(ROWS):
        ours, theirs = naive(model.policy, prompt, answer), naive(reference, prompt, answer)
        at = (range(len(answer)), answer)
        expected = {
            "policy": ours[at],
            "reference": theirs[at],
            "kl": (theirs.exp() * (theirs - ours)).sum(-1),
            "reverse_kl": (ours.exp() * (ours - theirs)).sum(-1),
            "entropy": -(ours.exp() * ours).sum(-1),
        }
        for name, values in expected.items():
            assert torch.allclose(found[name][i, : len(answer)], values, rtol=0, atol=2e-5), name
            assert not found[name][i, len(answer) :].any(), name
    for part in ("policy", "reference"):
        alone = model(**batch(), part=part)
        assert alone.keys() == {part}
        assert torch.allclose(alone[part], found[part], rtol=0, atol=2e-5)


@pytest.mark.parametrize("changes", [{}, {"chunk": 3}, {"lora_targets": ["all-linear"]}])
@pytest.mark.parametrize("tied", [True, False])
def test_lora_statistics(
    tmp_path: Path, tokenizer_folder: Path, tied: bool, changes: dict[str, Any]
) -> None:
    base = save_base(tmp_path / "base", tokenizer_folder, tie_word_embeddings=tied)
    model = disturb(build(base, **changes))
    assert model.reference is None
    check_statistics(model, plain(base))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("finetune", ["lora", "full"])
def test_statistics_with_a_reference_of_its_own(
    tmp_path: Path, tokenizer_folder: Path, finetune: str, tied: bool
) -> None:
    base = save_base(tmp_path / "base", tokenizer_folder, tie_word_embeddings=tied)
    other = save_base(tmp_path / "other", tokenizer_folder, seed=5)
    check_statistics(disturb(build(base, other, finetune=finetune)), plain(other))


def test_full_fine_tuning_keeps_the_base_as_reference(base: Path) -> None:
    model = disturb(build(base, finetune="full"))
    assert all(weight.requires_grad for weight in model.policy.parameters())
    assert not any(weight.requires_grad for weight in model.reference.parameters())
    check_statistics(model, plain(base))


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "phi": {"intermediate_size": 48},
    "gptj": {"rotary_dim": 4},
    "gpt2": {},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "bloom": {},
    "falcon": {},
    "qwen2": {"intermediate_size": 48, "num_key_value_heads": 2},
}


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
@pytest.mark.parametrize("name", ["phi", "gptj", "gpt2", "qwen2"])
def test_statistics_of_other_architectures(
    tmp_path: Path, tokenizer_folder: Path, name: str
) -> None:
    base = save_architecture(tmp_path / "base", tokenizer_folder, name, **ARCHITECTURES[name])
    biased = plain(base).get_output_embeddings().bias is not None
    assert biased == (name in ("phi", "gptj"))
    model = disturb(build(base, lora_targets=["all-linear"]))
    check_statistics(model, plain(base))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("gemma2", {"num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 48}),
        ("cohere", {"num_key_value_heads": 2, "intermediate_size": 48}),
        ("granite", {"num_key_value_heads": 2, "intermediate_size": 48, "logits_scaling": 8.0}),
    ],
)
def test_models_that_scale_or_cap_their_logits_are_refused(
    tmp_path: Path, tokenizer_folder: Path, name: str, changes: dict[str, Any]
) -> None:
    base = save_architecture(tmp_path / "base", tokenizer_folder, name, **changes)
    with pytest.raises(CheckpointError, match=r"base: the logits of .*\(a scale or a cap\)"):
        build(base, lora_targets=["all-linear"])


def test_a_reference_that_scales_its_logits_is_refused(
    base: Path, tmp_path: Path, tokenizer_folder: Path
) -> None:
    changes = {"num_key_value_heads": 2, "intermediate_size": 48, "logits_scaling": 8.0}
    other = save_architecture(tmp_path / "other", tokenizer_folder, "granite", **changes)
    with pytest.raises(CheckpointError, match=r"other: the logits of .*\(a scale or a cap\)"):
        build(base, other)


# Dropout

DROPOUT = {
    "llama": {"attention_dropout": 0.5},
    "gpt2": {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5},
    "opt": {"dropout": 0.5, "attention_dropout": 0.5, "activation_dropout": 0.5},
    "bloom": {"hidden_dropout": 0.5, "attention_dropout": 0.5},
    "falcon": {"hidden_dropout": 0.5, "attention_dropout": 0.5},
}


@pytest.mark.parametrize("name", sorted(DROPOUT))
def test_the_dropout_of_a_base_is_off(tmp_path: Path, tokenizer_folder: Path, name: str) -> None:
    changes = ARCHITECTURES.get(name, {"intermediate_size": 48}) | DROPOUT[name]
    base = save_architecture(tmp_path / "base", tokenizer_folder, name, **changes)
    ids = torch.arange(1, 20).unsqueeze(0)
    noisy = plain(base).train()
    assert not torch.equal(noisy(ids).logits, noisy(ids).logits)
    model = load_base(str(base), torch.float32).train()
    assert torch.equal(model(ids).logits, model(ids).logits)


def test_the_dropout_of_a_lora_is_on_in_training_alone(base: Path) -> None:
    model = disturb(build(base, lora_dropout=0.5))
    expected = model(**batch())
    assert torch.equal(model(**batch())["policy"], expected["policy"])
    model.train()
    found = model(**batch())
    assert not torch.allclose(found["policy"], expected["policy"], atol=1e-3)
    assert not torch.equal(model(**batch())["policy"], found["policy"])
    assert torch.equal(found["reference"], expected["reference"])


# Gradients


def test_untrained_policy_is_its_reference_to_the_bit(base: Path) -> None:
    for finetune in ("lora", "full"):
        found = build(base, finetune=finetune)(**batch())
        assert torch.equal(found["policy"], found["reference"])
        assert found["kl"].abs().max() < 1e-5


def test_gradient_reaches_every_lora_weight_and_nothing_else(base: Path) -> None:
    model = disturb(build(base))
    model(**batch())["policy"].sum().backward()
    for name, weight in model.policy.named_parameters():
        assert ("lora_" in name) == (weight.grad is not None and bool(weight.grad.any())), name


@pytest.mark.parametrize("reference", [False, True])
def test_a_shared_output_layer_is_passed_as_one_tensor(
    base: Path, monkeypatch: pytest.MonkeyPatch, reference: bool
) -> None:
    taken: list[tuple[Tensor, Tensor]] = []

    def spy(states: Tensor, weight: Tensor, *rest: Any, **more: Any) -> TokenReadings:
        taken.append((weight, rest[1]))
        return token_readings(states, weight, *rest, **more)

    monkeypatch.setattr("harness.training.model.token_readings", spy)
    build(base, base if reference else None)(**batch())
    weight, theirs = taken[0]
    assert (theirs is weight) != reference
    assert torch.equal(theirs, weight)


@pytest.mark.parametrize("statistic", ["kl", "reverse_kl"])
def test_divergences_carry_gradient_where_they_are_required(base: Path, statistic: str) -> None:
    for requires in (frozenset({Statistic(statistic)}), frozenset[Statistic]()):
        model = disturb(build(base, requires=requires))
        assert model(**batch())[statistic].requires_grad == bool(requires)


def test_head_sees_the_final_states_and_passes_no_gradient_to_the_backbone(base: Path) -> None:
    model = disturb(build(base, requires=frozenset({Statistic.BASELINE})))
    assert model.head is not None
    assert not model(**batch())["baseline"].any()
    torch.nn.init.normal_(model.head.outer.weight)
    found = model(**batch())["baseline"]
    for i, (prompt, answer) in enumerate(ROWS):
        ids = torch.tensor([[*prompt, *answer]])
        states = model.policy.get_base_model().model(ids).last_hidden_state[0]
        expected = model.head(states[len(prompt) - 1 : -1])
        assert torch.allclose(found[i, : len(answer)], expected, atol=1e-5)
    found.sum().backward()
    assert all(weight.grad is None for weight in model.policy.parameters())
    assert all(w.grad is not None and w.grad.any() for w in model.head.parameters())


def test_head_has_one_hidden_layer_and_stays_in_float32() -> None:
    head = BaselineHead(8, 5)
    torch.nn.init.normal_(head.outer.weight)
    states = torch.randn(3, 8)
    inner, outer = head.inner, head.outer
    hidden = torch.nn.functional.gelu(states @ inner.weight.T + inner.bias)
    assert torch.allclose(head(states), (hidden @ outer.weight.T + outer.bias)[:, 0])
    expected = head(states)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(head(states), expected)
        assert head(states.bfloat16()).dtype == torch.float32


def test_gradient_checkpointing_changes_no_gradient(base: Path) -> None:
    grads = []
    for checkpointing in (False, True):
        model = disturb(build(base, gradient_checkpointing=checkpointing)).train()
        model(**batch())["policy"].sum().backward()
        grads.append([weight.grad for weight in model.policy_weights()])
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*grads, strict=True))


# Sides, folders


def test_sides_are_the_chosen_and_the_rejected_rows(base: Path) -> None:
    made = batch()
    made["weights"] = torch.rand(6, 5)
    values = disturb(build(base, requires=ALL))(**made)
    chosen, rejected = sides(values, made, ALL)
    whole = values | {"mask": made["mask"], "token_weights": made["weights"]}
    for name in ("policy", "reference", "mask", "baseline", "kl", "reverse_kl", "token_weights"):
        joined = torch.cat([getattr(chosen, name), getattr(rejected, name)])
        assert torch.equal(joined, whole[name]), name
    bare, _ = sides(values, made, frozenset())
    assert bare.baseline is bare.kl is bare.reverse_kl is bare.token_weights is None


@pytest.mark.parametrize("finetune", ["lora", "full"])
def test_a_written_policy_is_loaded_in_place(base: Path, tmp_path: Path, finetune: str) -> None:
    requires = frozenset({Statistic.BASELINE})
    one = disturb(build(base, requires=requires, finetune=finetune))
    torch.nn.init.normal_(one.head.outer.weight)  # type: ignore[union-attr]
    write_policy(one, one.state_dict(), tmp_path, torch.float32)
    other = build(base, requires=requires, finetune=finetune)
    load_policy(other, tmp_path)
    expected, found = one(**batch()), other.eval()(**batch())
    assert all(torch.equal(expected[name], found[name]) for name in (*READ, "baseline"))


@pytest.mark.parametrize("finetune", ["lora", "full"])
def test_another_policy_is_refused(
    base: Path, tmp_path: Path, tokenizer_folder: Path, finetune: str
) -> None:
    deeper = save_base(tmp_path / "deeper", tokenizer_folder, num_hidden_layers=3)
    model = build(deeper, finetune=finetune)
    write_policy(model, model.state_dict(), tmp_path / "out", torch.float32)
    with pytest.raises(TrainingError, match="holds another model"):
        load_policy(build(base, finetune=finetune), tmp_path / "out")


def test_weights_that_are_not_finite_are_not_written(base: Path, tmp_path: Path) -> None:
    model = build(base)
    with torch.no_grad():
        model.policy_weights()[0].view(-1)[0] = float("nan")
    with pytest.raises(TrainingError, match=r"weight .*lora_A.* is not finite; nothing was saved"):
        write_policy(model, model.state_dict(), tmp_path / "out", torch.float32)
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_unusable_bases_and_targets_are_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="lora_targets gone_proj: "):
        build(base, lora_targets=["gone_proj"])
    for targets in (["lm_head"], ["q_proj", "embed_tokens"]):
        with pytest.raises(InputError, match=rf"{', '.join(targets)}: the output layer cannot"):
            build(base, lora_targets=targets)
    tmp_path.joinpath("config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="cannot be loaded for training: "):
        build(tmp_path)


def test_an_output_layer_of_its_own_carries_no_lora_and_embeddings_may(
    tmp_path: Path, tokenizer_folder: Path
) -> None:
    base = save_base(tmp_path / "base", tokenizer_folder, tie_word_embeddings=False)
    with pytest.raises(InputError, match="lm_head: the output layer cannot carry a LoRA here"):
        build(base, lora_targets=["lm_head"])
    check_statistics(disturb(build(base, lora_targets=["embed_tokens"])), plain(base))


@pytest.mark.parametrize("emulated", [True, False])
def test_bfloat16_is_refused_on_a_gpu_without_it(
    base: Path, monkeypatch: pytest.MonkeyPatch, emulated: bool
) -> None:
    recipes = {bf16: make_recipe(base, Path("unused"), bf16=bf16) for bf16 in ("yes", "no", "auto")}
    assert use_bfloat16(recipes["yes"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "an old card")
    monkeypatch.setattr(
        torch.cuda,
        "is_bf16_supported",
        lambda including_emulation=True: emulated and including_emulation,
    )
    with pytest.raises(InputError, match="bf16: yes, but an old card has no bfloat16"):
        use_bfloat16(recipes["yes"])
    assert not use_bfloat16(recipes["no"])
    assert not use_bfloat16(recipes["auto"])
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert use_bfloat16(recipes["yes"])
    assert use_bfloat16(recipes["auto"])
