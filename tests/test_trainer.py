"""The training loop: gradients, optimisers, what a step logs, held-out measures."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from training_records import CLOCK, make_recipe, make_trainer, read_log, read_weights, save_base
from transformers import TrainerCallback

from harness.errors import InputError
from harness.training.batches import collate
from harness.training.trainer import PreferenceTrainer, arguments

pytestmark = pytest.mark.slow

FIELDS = {
    "step",
    "loss",
    "gradient_norm",
    "learning_rate",
    "margin",
    "accuracy",
    "kl_reference_policy",
    "kl_policy_reference",
    "entropy",
    "chosen_logprob",
    "rejected_logprob",
    "chosen_log_ratio",
    "rejected_log_ratio",
    "tokens",
    *CLOCK,
}
HELD_OUT = {
    "held_out_accuracy",
    "held_out_pairs",
    "held_out_chosen_log_ratio",
    "held_out_margin",
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Gradients(TrainerCallback):
    """Keeps the gradients that each optimiser step is about to use."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        named = given["model"].named_parameters()
        self.steps.append({n: p.grad.clone() for n, p in named if p.grad is not None})


def norm(gradients: dict[str, Tensor], prefix: str) -> float:
    squares = [g.square().sum() for n, g in gradients.items() if n.startswith(prefix)]
    return math.sqrt(sum(squares))


def run(trainer: PreferenceTrainer) -> list[dict[str, Tensor]]:
    """Train; return the gradients of each step."""
    seen = Gradients()
    trainer.add_callback(seen)
    trainer.run()
    return seen.steps


# Gradients and optimisers


@pytest.mark.parametrize("objective", ["dpo", "tbpo-q"])
def test_micro_batches_add_up_to_the_gradient_of_the_batch(
    base: Path, pairs: Path, tmp_path: Path, objective: str
) -> None:
    found, logs = {}, {}
    for micro in (4, 2, 1):
        output = tmp_path / str(micro)
        recipe = make_recipe(base, pairs, objective=objective, micro_batch=micro, finetune="full")
        found[micro] = run(make_trainer(recipe, output))
        logs[micro] = read_log(output)
    for micro in (2, 1):
        assert len(found[micro]) == 3
        for one, other in zip(found[4], found[micro], strict=True):
            assert one.keys() == other.keys()
            assert all(torch.allclose(one[n], other[n], rtol=1e-3, atol=1e-4) for n in one)
        first = {k: pytest.approx(v, rel=1e-4, abs=1e-4) for k, v in logs[4][0].items()}
        assert logs[micro][0] == first


def test_micro_batches_give_the_weights_of_the_batch(
    base: Path, pairs: Path, tmp_path: Path
) -> None:
    weights = []
    for micro in (4, 2):
        trainer = make_trainer(make_recipe(base, pairs, micro_batch=micro), tmp_path / str(micro))
        trainer.run()
        weights.append(trainer.model.policy_weights())
    for one, other in zip(*weights, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-4)


def test_logged_norm_is_before_clipping_and_without_the_head(
    base: Path, pairs: Path, tmp_path: Path
) -> None:
    found, logs = {}, {}
    for limit in (None, 0.01):
        output = tmp_path / str(limit)
        recipe = make_recipe(base, pairs, objective="tbpo-q", steps=1, max_grad_norm=limit)
        trainer = make_trainer(recipe, output)
        torch.nn.init.normal_(trainer.model.head.outer.weight)
        found[limit] = run(trainer)[0]
        logs[limit] = read_log(output)[0]["gradient_norm"]
    whole = norm(found[None], "policy.")
    assert whole > 0.02
    assert logs[None] == logs[0.01] == pytest.approx(whole, rel=1e-5)
    assert norm(found[0.01], "policy.") == pytest.approx(0.01, rel=1e-3)
    head = norm(found[None], "head.")
    assert head > 1e-3
    assert norm(found[0.01], "head.") == pytest.approx(head, rel=1e-5)


@pytest.mark.parametrize("name", ["rmsprop", "adamw"])
def test_policy_and_head_have_optimisers_of_their_own(
    base: Path, pairs: Path, tmp_path: Path, name: str
) -> None:
    keys = {"optimizer": name, "weight_decay": 0.1, "head_learning_rate": 0.02}
    trainer = make_trainer(make_recipe(base, pairs, objective="tbpo-q", **keys), tmp_path)
    policy, head = trainer.create_optimizer(), trainer.head_optimizer
    kinds = {"rmsprop": torch.optim.RMSprop, "adamw": torch.optim.AdamW}
    assert type(policy) is kinds[name]
    assert type(head) is torch.optim.AdamW
    groups = [(o.param_groups[0]["lr"], o.param_groups[0]["weight_decay"]) for o in (policy, head)]
    assert groups == [(5e-3, 0.1), (0.02, 0.0)]
    held = [{id(p) for g in o.param_groups for p in g["params"]} for o in (policy, head)]
    assert held[0] == {id(p) for p in trainer.model.policy_weights()}
    assert held[1] == {id(p) for p in trainer.model.head.parameters()}
    before = [p.detach().clone() for p in trainer.model.head.parameters()]
    trainer.run()
    after = list(trainer.model.head.parameters())
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert head.param_groups[0]["lr"] == 0.02


@pytest.mark.parametrize(
    ("schedule", "factor"),
    [
        ("cosine", lambda done: 0.5 * (1 + math.cos(math.pi * done))),
        ("linear", lambda done: 1 - done),
        ("constant", lambda done: 1.0),
    ],
)
def test_learning_rate_rises_then_follows_the_schedule(
    base: Path, pairs: Path, tmp_path: Path, schedule: str, factor: Any
) -> None:
    recipe = make_recipe(base, pairs, steps=10, warmup=0.2, schedule=schedule)
    make_trainer(recipe, tmp_path).run()
    rates = [row["learning_rate"] / 5e-3 for row in read_log(tmp_path)]
    expected = [0.0, 0.5, *(factor(i / 8) for i in range(8))]
    assert rates == pytest.approx(expected)


def test_batch_is_shared_out_over_devices(base: Path, pairs: Path, tmp_path: Path) -> None:
    made = arguments(make_recipe(base, pairs, batch=12, micro_batch=3), tmp_path, 5)
    assert (made.per_device_train_batch_size, made.gradient_accumulation_steps) == (3, 4)
    from harness.training.trainer import _accumulation

    assert _accumulation(32, 4, 4) == 2
    with pytest.raises(InputError, match=r"batch 32 is not a multiple of 3 .* 4 devices"):
        _accumulation(32, 3, 4)


def test_seed_decides_the_weights(base: Path, pairs: Path, tmp_path: Path) -> None:
    found = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        recipe = make_recipe(base, pairs, objective="tbpo-q", seed=seed, lora_dropout=0.1)
        trainer = make_trainer(recipe, tmp_path / name)
        trainer.run()
        trainer.save_model(str(tmp_path / name))
        found.append(read_weights(tmp_path / name))
    first, again, other = found
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not any(torch.equal(first[key], other[key]) for key in first)


# What a step logs


def test_rows_have_the_fields_of_the_contract(base: Path, pairs: Path, tmp_path: Path) -> None:
    make_trainer(make_recipe(base, pairs, steps=5, eval_every=2), tmp_path).run()
    rows = read_log(tmp_path, clock=True)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    for row in rows:
        measured = row["step"] in (2, 4, 5)
        assert set(row) == FIELDS | (HELD_OUT if measured else set())
        assert row["peak_memory_bytes"] > 1e6
        assert row["seconds"] > 0
        assert row["tokens_per_second"] == pytest.approx(row["tokens"] / row["seconds"], rel=0.2)


@pytest.mark.parametrize("finetune", ["lora", "full"])
def test_first_step_has_no_margin(base: Path, pairs: Path, tmp_path: Path, finetune: str) -> None:
    make_trainer(make_recipe(base, pairs, finetune=finetune), tmp_path).run()
    first, *later = read_log(tmp_path)
    zero = ("margin", "chosen_log_ratio", "rejected_log_ratio")
    assert [first[key] for key in zero] == [0, 0, 0]
    assert first["accuracy"] == 0.5
    assert first["loss"] == pytest.approx(math.log(2))
    assert abs(first["kl_reference_policy"]) < 1e-6
    assert all(row["margin"] != 0 and row["kl_reference_policy"] > 0 for row in later)


@pytest.mark.parametrize("micro", [4, 2])
def test_logged_values_are_means_over_pairs_and_tokens(
    base: Path, pairs: Path, tmp_path: Path, tokenizer_folder: Path, micro: int
) -> None:
    other = save_base(tmp_path / "other", tokenizer_folder, seed=3)
    recipe = make_recipe(base, pairs, reference=str(other), steps=1, micro_batch=micro)
    trainer = make_trainer(recipe, tmp_path / "out")
    batch = collate(trainer.train_dataset[:4], 0)
    with torch.no_grad():
        values = trainer.model.eval()(**batch)
    rows = [{name: v[i][batch["mask"][i]].double() for name, v in values.items()} for i in range(8)]
    ratios = [float((row["policy"] - row["reference"]).sum()) for row in rows]
    margins = [ratios[i] - ratios[i + 4] for i in range(4)]
    tokens = sum(len(row["policy"]) for row in rows)
    expected = {
        "step": 1,
        "loss": sum(math.log1p(math.exp(-0.1 * m)) for m in margins) / 4,
        "margin": sum(margins) / 4,
        "accuracy": sum(m > 0 for m in margins) / 4,
        "chosen_logprob": sum(float(row["policy"].sum()) for row in rows[:4]) / 4,
        "rejected_logprob": sum(float(row["policy"].sum()) for row in rows[4:]) / 4,
        "chosen_log_ratio": sum(ratios[:4]) / 4,
        "rejected_log_ratio": sum(ratios[4:]) / 4,
        "kl_reference_policy": sum(float(row["kl"].sum()) for row in rows) / tokens,
        "kl_policy_reference": sum(float(row["reverse_kl"].sum()) for row in rows) / tokens,
        "entropy": sum(float(row["entropy"].sum()) for row in rows) / tokens,
        "tokens": tokens,
    }
    assert len({len(row["policy"]) for row in rows}) > 1
    trainer.run()
    found = read_log(tmp_path / "out")[0]
    assert {k: found[k] for k in expected} == {
        k: pytest.approx(v, rel=1e-4) for k, v in expected.items()
    }


def test_held_out_measures_are_those_of_the_held_out_pairs(
    base: Path, pairs: Path, tmp_path: Path
) -> None:
    recipe = make_recipe(base, pairs, steps=4, micro_batch=2, holdout=7)
    trainer = make_trainer(recipe, tmp_path)
    final = trainer.run()
    from harness.training.run import Workshop

    held = Workshop(recipe).corpus.held
    trained = {item["pair"] for item in trainer.train_dataset}
    assert len(held) == 7
    assert not trained & set(held)
    model = trainer.model.policy.eval()
    margins, chosen, shift, tokens = [], [], 0.0, 0
    for pair in held:
        sums = []
        for answer in (pair.chosen, pair.rejected):
            ids = torch.tensor([[*pair.prompt, *answer]])
            at = (range(len(pair.prompt) - 1, ids.shape[1] - 1), answer)
            with torch.no_grad():
                ours = model(input_ids=ids).logits[0].log_softmax(-1)[at]
                with model.disable_adapter():
                    theirs = model(input_ids=ids).logits[0].log_softmax(-1)[at]
            sums.append(float((ours - theirs).sum()))
            shift += float((ours - theirs).abs().sum())
            tokens += len(answer)
        margins.append(sums[0] - sums[1])
        chosen.append(sums[0])
    row = read_log(tmp_path)[-1]
    assert row["held_out_pairs"] == final.implicit_reward_accuracy.n == 7
    assert row["held_out_accuracy"] == sum(m > 0 for m in margins) / 7
    assert row["held_out_margin"] == pytest.approx(sum(margins) / 7, rel=1e-4)
    assert row["held_out_chosen_log_ratio"] == pytest.approx(sum(chosen) / 7, rel=1e-4)
    assert final.token_shift == pytest.approx(shift / tokens, rel=1e-4)


def test_measuring_changes_nothing(base: Path, pairs: Path, tmp_path: Path) -> None:
    logs = []
    for every in (None, 1):
        recipe = make_recipe(base, pairs, eval_every=every, lora_dropout=0.2)
        make_trainer(recipe, tmp_path / str(every)).run()
        rows = read_log(tmp_path / str(every))
        logs.append([{k: v for k, v in row.items() if k not in HELD_OUT} for row in rows])
    assert logs[0] == logs[1]
