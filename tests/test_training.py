"""Training: preference data, token positions, the adapter, and whole runs on a tiny model."""

from __future__ import annotations

import gzip
import json
import math
import shutil
from collections.abc import Iterator, Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from harness.cli import cli
from harness.errors import DataError, InputError, TrainingError
from harness.training.data import (
    Pair,
    Skips,
    TokenPair,
    parse_pair,
    read_pairs,
    split_holdout,
    tokenize_pair,
)
from harness.training.model import BaselineHead, LoraPolicy, LoraSettings, collate, halves
from harness.training.objectives import Dpo, Objective, TbpoA, TbpoQ
from harness.training.trainer import (
    Recipe,
    Trainer,
    batches,
    build_objective,
    evaluate,
    held_out_set,
    schedule,
    train,
)
from harness.types import Message, Role

TEMPLATE = (
    "{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)
HIDDEN = 32


def save_tokenizer(folder: Path) -> int:
    """A tokenizer of single bytes with a chat template; returns the size of its vocabulary."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {text: i for i, text in enumerate(["<end>", "<pad>", *alphabet])}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    fast: Any = PreTrainedTokenizerFast
    made = fast(tokenizer_object=raw, eos_token="<end>", pad_token="<pad>", chat_template=TEMPLATE)
    made.save_pretrained(folder)
    return len(vocabulary)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama with its tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    llama: Any = LlamaForCausalLM
    model = llama(
        LlamaConfig(
            vocab_size=save_tokenizer(folder),
            hidden_size=HIDDEN,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            # Large enough that the tiny model's distributions are far from uniform.
            initializer_range=0.2,
        )
    )
    model.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TBPO_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny matrices are faster on one thread, and the sums keep one order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tokenizer(base: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(base)


# Preference pairs


def dialogue(*turns: str) -> str:
    """An HH dialogue of alternating turns."""
    return "".join(
        f"\n\n{'Assistant' if i % 2 else 'Human'}: {text}" for i, text in enumerate(turns)
    )


def user(text: str) -> Message:
    return Message(role=Role.USER, content=text)


def assistant(text: str) -> Message:
    return Message(role=Role.ASSISTANT, content=text)


def test_pair_is_split_into_prompt_and_two_answers() -> None:
    pair = parse_pair(
        dialogue("Which tea is mild?", "Green or black?", "Green.", "Try sencha."),
        dialogue("Which tea is mild?", "Green or black?", "Green.", "No idea.\n\nSorry."),
    )
    turns = (user("Which tea is mild?"), assistant("Green or black?"), user("Green."))
    assert pair == Pair(turns, "Try sencha.", "No idea.\n\nSorry.")


def test_neighbouring_turns_of_one_speaker_are_merged() -> None:
    opening = "\n\nHuman: Hello.\n\nHuman: Are you there?"
    pair = parse_pair(
        f"{opening}\n\nAssistant: Yes.\n\nAssistant: What is it?", f"{opening}\n\nAssistant: No."
    )
    assert pair == Pair((user("Hello.\n\nAre you there?"),), "Yes.\n\nWhat is it?", "No.")


GOOD = dialogue("Name a river.", "The Elbe.")
UNUSABLE = [
    ("Name a river.", GOOD, "opens with"),
    ("\n\nAssistant: Hello.\n\nHuman: Hi.", GOOD, "opens with"),
    (f"A note.{GOOD}", GOOD, "opens with"),
    (dialogue("Name a river.", "The Elbe.", "Another?"), GOOD, "ends with an assistant turn"),
    (GOOD, dialogue("Name a river.", "  "), "empty answer"),
    (GOOD, dialogue("Name a lake.", "The Elbe is no lake."), "different prompts"),
    (GOOD, dialogue("Name a river.", " The Elbe. "), "equal answers"),
]


@pytest.mark.parametrize(("chosen", "rejected", "reason"), UNUSABLE)
def test_unusable_pairs_are_refused(chosen: str, rejected: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_pair(chosen, rejected)


def write_rows(path: Path, rows: Sequence[tuple[str, str]]) -> Path:
    lines = [json.dumps({"chosen": better, "rejected": worse}) for better, worse in rows]
    text = "".join(line + "\n" for line in lines)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def test_files_are_read_in_order_and_unusable_pairs_counted(tmp_path: Path) -> None:
    plain = write_rows(
        tmp_path / "a.jsonl", [(GOOD, dialogue("Name a river.", "1")), *(u[:2] for u in UNUSABLE)]
    )
    packed = write_rows(tmp_path / "b.jsonl.gz", [(GOOD, dialogue("Name a river.", "2"))])
    skips = Skips()
    pairs = read_pairs([packed, plain], skips)
    assert [pair.rejected for pair in pairs] == ["2", "1"]
    assert sum(skips.counts.values()) == len(UNUSABLE)
    assert skips.counts["equal answers"] == 1
    assert skips.counts["empty answer"] == 1


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"chosen": ', "not valid JSON"),
        ('["chosen", "rejected"]', "expected an object"),
        ('{"chosen": "x"}', "expected an object"),
        ('{"chosen": "x", "rejected": null}', "expected an object"),
    ],
)
@pytest.mark.parametrize("name", ["bad.jsonl", "bad.jsonl.gz"])
def test_malformed_line_is_named(tmp_path: Path, name: str, line: str, problem: str) -> None:
    path = write_rows(tmp_path / name, [(GOOD, dialogue("Name a river.", "Po."))])
    packed = path.suffix == ".gz"
    with path.open("ab") as stream:
        stream.write(gzip.compress(line.encode()) if packed else line.encode())
    with pytest.raises(DataError, match=rf"{name}:2: {problem}"):
        read_pairs([path], Skips())


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    rows = [(GOOD, dialogue("Name a river.", str(i * i))) for i in range(99)]
    whole = write_rows(tmp_path / "whole.jsonl.gz", rows).read_bytes()
    not_deflated = whole[:10] + b"\xff" * 20
    contents = {
        "no.jsonl.gz": b"not gzip",
        "cut.jsonl.gz": whole[: len(whole) // 2],
        "damaged.jsonl.gz": not_deflated,
        "latin.jsonl": b'{"chosen": "\xe9"}\n',
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    for name in [*contents, "absent.jsonl"]:
        with pytest.raises(InputError, match=rf"{name}.* cannot be read"):
            read_pairs([tmp_path / name], Skips())


def test_file_without_usable_pairs_says_why(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "same.jsonl", [(GOOD, GOOD)] * 3)
    with pytest.raises(InputError, match=r"no usable preference pair.*equal answers: 3"):
        read_pairs([path], Skips())


def test_holdout_is_a_partition_drawn_by_the_generator() -> None:
    pairs = [Pair((user("?"),), str(i), "worse") for i in range(20)]
    training, held = split_holdout(pairs, 6, np.random.default_rng(1))
    assert len(held) == 6
    assert sorted([*training, *held], key=pairs.index) == pairs
    assert (training, held) == split_holdout(pairs, 6, np.random.default_rng(1))
    assert held != split_holdout(pairs, 6, np.random.default_rng(2))[1]
    with pytest.raises(InputError, match="cannot hold out 20 of 20"):
        split_holdout(pairs, 20, np.random.default_rng(1))


# Tokens


def tokens_of(tokenizer: Any, pair: Pair, prompt: int = 99, response: int = 99) -> Any:
    skips = Skips()
    made = tokenize_pair(tokenizer, pair, max_prompt=prompt, max_response=response, skips=skips)
    return made, dict(skips.counts)


LONG = Pair((user("first"), assistant("second"), user("third")), "good", "bad")


def test_tokens_are_the_rendered_chat_and_answers_with_an_end(tokenizer: Any) -> None:
    made, counts = tokens_of(tokenizer, LONG)
    assert tokenizer.decode(made.prompt) == "u:first\na:second\nu:third\na:"
    assert tokenizer.decode(made.chosen) == "good<end>"
    assert tokenizer.decode(made.rejected) == "bad<end>"
    assert counts == {}


def test_oldest_turns_are_dropped_until_the_prompt_fits(tokenizer: Any) -> None:
    tail = "u:third\na:"
    whole = len("u:first\na:second\n" + tail)
    assert len(tokens_of(tokenizer, LONG, prompt=whole)[0].prompt) == whole
    for limit in (whole - 1, len(tail)):
        made, counts = tokens_of(tokenizer, LONG, prompt=limit)
        assert tokenizer.decode(made.prompt) == tail
        assert counts == {}
    made, counts = tokens_of(tokenizer, LONG, prompt=len(tail) - 1)
    assert made is None
    assert counts == {"prompt longer than max_prompt tokens": 1}


def test_long_answers_are_cut_without_an_end_and_counted(tokenizer: Any) -> None:
    made, counts = tokens_of(tokenizer, LONG, response=4)
    assert tokenizer.decode(made.chosen) == "good"
    assert tokenizer.decode(made.rejected) == "bad<end>"
    assert counts == {"answers cut at max_response tokens": 1}


def test_answers_equal_after_the_cut_are_left_out(tokenizer: Any) -> None:
    made, counts = tokens_of(tokenizer, Pair((user("?"),), "same but", "same and"), response=5)
    assert made is None
    assert counts["answers equal after the cut"] == 1


# Positions and statistics

PAIRS = (
    TokenPair((5, 9, 14), (20, 21, 22, 0), (30, 0)),
    TokenPair((7,), (40,), (41, 42, 43, 44, 0)),
    TokenPair((8, 3, 2, 6, 11, 12), (50, 51, 0), (60, 61, 62)),
)
ROWS = [(p.prompt, p.chosen) for p in PAIRS] + [(p.prompt, p.rejected) for p in PAIRS]
SETTINGS = LoraSettings(rank=4, alpha=8)


def make_policy(base: Path, settings: LoraSettings = SETTINGS) -> LoraPolicy:
    torch.manual_seed(1)
    return LoraPolicy(base, settings, bfloat16=False)


def disturb(policy: LoraPolicy, scale: float = 0.3) -> None:
    """Give the adapter's zero halves values, so that policy and reference differ."""
    torch.manual_seed(2)
    with torch.no_grad():
        for weight in policy.trainable():
            weight.add_(scale * torch.randn_like(weight))


def naive_logprobs(model: Any, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:
    """(T, V) log-probabilities at the answer's positions, by a forward pass over one row."""
    ids = torch.tensor([[*prompt, *answer]])
    with torch.no_grad():
        logits: Tensor = model(ids).logits[0].float()
    return logits.log_softmax(-1)[len(prompt) - 1 : -1]


def test_batch_holds_chosen_then_rejected_rows() -> None:
    made = collate(PAIRS, pad=1)
    assert made.tokens.shape == made.attention.shape == (6, 9)
    assert made.targets.shape == made.mask.shape == made.positions.shape == (6, 5)
    for i, (prompt, answer) in enumerate(ROWS):
        assert made.tokens[i][made.attention[i].bool()].tolist() == [*prompt, *answer]
        assert made.targets[i][made.mask[i]].tolist() == list(answer)
        predicted = made.tokens[i][made.positions[i][made.mask[i]] + 1]
        assert predicted.tolist() == list(answer)


def test_statistics_agree_with_a_plain_forward_pass(base: Path) -> None:
    policy = make_policy(base)
    disturb(policy)
    batch = collate(PAIRS, policy.pad)
    stats = policy.statistics(batch, policy.reference_logprobs(batch), None, kl=True)
    assert stats.kl is not None
    assert stats.log_ratio.abs().max() > 0.1
    for i, (prompt, answer) in enumerate(ROWS):
        ours = naive_logprobs(policy.model, prompt, answer)
        with policy.model.disable_adapter():
            theirs = naive_logprobs(policy.model, prompt, answer)
        at = range(len(answer)), answer
        divergence = (theirs.exp() * (theirs - ours)).sum(-1)
        for found, expected in (
            (stats.policy, ours[at]),
            (stats.reference, theirs[at]),
            (stats.kl, divergence),
        ):
            assert torch.allclose(found[i, : len(answer)], expected, rtol=0, atol=1e-5)


def test_reference_is_the_untouched_base(base: Path) -> None:
    from transformers import AutoModelForCausalLM

    policy = make_policy(base)
    disturb(policy)
    batch = collate(PAIRS, policy.pad)
    found = policy.reference_logprobs(batch)
    plain: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    for i, (prompt, answer) in enumerate(ROWS):
        expected = naive_logprobs(plain, prompt, answer)[range(len(answer)), answer]
        assert torch.allclose(found[i, : len(answer)], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("bfloat16", [False, True])
def test_untrained_adapter_equals_the_reference_exactly(base: Path, bfloat16: bool) -> None:
    policy = LoraPolicy(base, SETTINGS, bfloat16=bfloat16)
    batch = collate(PAIRS, policy.pad)
    reference = policy.reference_logprobs(batch)
    stats = policy.statistics(batch, reference, None, kl=True)
    assert stats.kl is not None
    assert torch.equal(stats.policy, reference)
    assert stats.kl.abs().max() < 1e-6
    held = held_out_set(policy, PAIRS, batch=2)
    assert evaluate(policy, held, trained=False) == evaluate(policy, held, trained=True)


def test_halves_are_the_chosen_and_the_rejected_rows(base: Path) -> None:
    policy = make_policy(base)
    batch = collate(PAIRS, policy.pad)
    head = BaselineHead(HIDDEN)
    stats = policy.statistics(batch, policy.reference_logprobs(batch), head, kl=True)
    chosen, rejected = halves(stats)
    for name, whole in vars(stats).items():
        assert torch.equal(torch.cat([getattr(chosen, name), getattr(rejected, name)]), whole)


def test_dropout_works_in_training_and_not_in_measurement(base: Path) -> None:
    policy = make_policy(base, LoraSettings(rank=4, alpha=8, dropout=0.5))
    disturb(policy)
    batch = collate(PAIRS, policy.pad)
    reference = policy.reference_logprobs(batch)

    def reading() -> Tensor:
        return policy.statistics(batch, reference, None, kl=False).policy

    assert torch.equal(reading(), reading())
    policy.set_dropout(True)
    assert not torch.equal(reading(), reading())
    assert torch.equal(policy.reference_logprobs(batch), reference)
    held = held_out_set(policy, PAIRS, batch=2)
    assert evaluate(policy, held, trained=True) == evaluate(policy, held, trained=True)


def test_evaluation_counts_pairs_and_is_free_of_the_batch_size(base: Path) -> None:
    policy = make_policy(base)
    disturb(policy)
    found = [evaluate(policy, held_out_set(policy, PAIRS, n), trained=True) for n in (1, 2, 3)]
    batch = collate(PAIRS, policy.pad)
    stats = policy.statistics(batch, policy.reference_logprobs(batch), None, kl=False)
    chosen, rejected = halves(stats)
    margin = (chosen.log_ratio.sum(-1) - rejected.log_ratio.sum(-1)).detach()
    for measures in found:
        accuracy = measures.implicit_reward_accuracy
        assert (accuracy.n, accuracy.value) == (3, int((margin > 0).sum()) / 3)
        assert measures.mean_margin == pytest.approx(margin.mean().item(), abs=1e-4)
        tokens = sum(len(answer) for _, answer in ROWS)
        shift = stats.log_ratio.detach().abs().sum().item() / tokens
        assert measures.mean_abs_token_shift == pytest.approx(shift, abs=1e-5)


# Gradients

OBJECTIVES: list[Objective] = [Dpo(), TbpoQ(), TbpoA(), TbpoA(kl="exact")]


def backward(policy: LoraPolicy, objective: Objective, head: BaselineHead | None) -> None:
    batch = collate(PAIRS, policy.pad)
    reference = policy.reference_logprobs(batch)
    stats = policy.statistics(batch, reference, head, kl=objective.needs_kl)
    torch.autograd.backward(objective.losses(*halves(stats)).mean())


@pytest.mark.parametrize("objective", OBJECTIVES, ids=["dpo", "tbpo-q", "tbpo-a-k3", "tbpo-a-kl"])
def test_gradient_reaches_every_adapter_weight_and_nothing_else(
    base: Path, objective: Objective
) -> None:
    policy = make_policy(base)
    disturb(policy)
    head = BaselineHead(HIDDEN) if objective.needs_baseline else None
    backward(policy, objective, head)
    for name, weight in policy.model.named_parameters():
        assert ("lora_" in name) == (weight.grad is not None and bool(weight.grad.any())), name


def test_baseline_head_passes_no_gradient_to_the_backbone() -> None:
    head = BaselineHead(HIDDEN)
    torch.nn.init.normal_(head.outer.weight)
    hidden = torch.randn(2, 3, HIDDEN, requires_grad=True)
    values = head(hidden)
    assert values.shape == (2, 3)
    torch.autograd.backward(values.sum())
    assert hidden.grad is None
    assert all(p.grad is not None and p.grad.any() for p in head.parameters())


def test_head_values_change_the_loss_but_reach_the_adapter_only_as_weights(base: Path) -> None:
    """With a constant head the adapter's gradient is that of a head which is not there."""
    grads = []
    for bias in (0.0, 3.0):
        policy = make_policy(base)
        disturb(policy)
        head = BaselineHead(HIDDEN)
        torch.nn.init.constant_(head.outer.bias, bias)
        backward(policy, TbpoQ(), head)
        grads.append([weight.grad for weight in policy.trainable()])
    for plain, biased in zip(*grads, strict=True):
        assert torch.allclose(plain, biased, atol=1e-7)


def test_head_starts_at_one_ratio_and_is_trained(base: Path) -> None:
    trainer = Trainer(recipe("tbpo-q"), base)
    assert trainer.head is not None
    batch = collate(PAIRS, trainer.policy.pad)
    before = {name: value.clone() for name, value in trainer.head.named_parameters()}
    assert not before["outer.weight"].any()
    for index in range(2):
        trainer.step(index, batch)
    moved = {n for n, value in trainer.head.named_parameters() if not torch.equal(value, before[n])}
    assert {"outer.weight", "inner.weight", "inner.bias"} <= moved


def test_steps_follow_the_schedule(base: Path) -> None:
    """Adam's first step moves a weight by the learning rate wherever its gradient is not tiny."""
    plan = recipe(steps=20, warmup=0.5)
    for index in (0, 4, 19):
        trainer = Trainer(plan, base)
        before = [weight.detach().clone() for weight in trainer.policy.trainable()]
        trainer.step(index, collate(PAIRS, trainer.policy.pad))
        after = trainer.policy.trainable()
        largest = max((b - a).abs().max().item() for a, b in zip(before, after, strict=True))
        assert largest == pytest.approx(plan.learning_rate * schedule(plan, index), rel=1e-2)


@pytest.mark.parametrize("objective", ["dpo", "tbpo-q", "tbpo-a"])
def test_repeated_steps_on_one_batch_lower_its_loss(base: Path, objective: str) -> None:
    trainer = Trainer(recipe(objective, steps=12, learning_rate=2e-2), base)
    batch = collate(PAIRS, trainer.policy.pad)
    rows = [trainer.step(index, batch) for index in range(12)]
    assert rows[0]["margin"] == 0.0
    assert rows[0]["accuracy"] == 0.5
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert rows[-1]["margin"] > 0


# Schedule and batches


def recipe(objective: str = "dpo", **changes: Any) -> Recipe:
    fields: dict[str, Any] = {
        "steps": 3,
        "batch": 2,
        "holdout": 4,
        "learning_rate": 1e-2,
        "max_prompt": 40,
        "max_response": 20,
        "bfloat16": False,
        "lora": SETTINGS,
    }
    return Recipe(objective=objective, **{**fields, **changes})


def test_schedule_rises_linearly_then_falls_to_nearly_zero() -> None:
    plan = recipe(steps=100, warmup=0.1)
    factors = [schedule(plan, step) for step in range(100)]
    assert factors[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert factors[10] == pytest.approx(1.0)
    assert factors[55] == pytest.approx(0.5)
    assert all(a > b for a, b in pairwise(factors[10:]))
    assert 0 < factors[-1] < 1e-3
    assert schedule(recipe(steps=1), 0) == 1.0


def pairs_of_lengths(count: int) -> list[TokenPair]:
    return [TokenPair((2,) * (1 + 7 * i % 13), (3, 0), (4, 0)) for i in range(count)]


@pytest.mark.parametrize("count", [6, 16, 17, 39, 64])
def test_an_epoch_repeats_no_pair_and_leaves_out_less_than_a_batch(count: int) -> None:
    pairs, size = pairs_of_lengths(count), 2
    in_epoch = count // size
    plan = recipe(steps=2 * in_epoch, batch=size)
    drawn = list(batches(pairs, plan, np.random.default_rng(0)))
    assert all(len(group) == size for group in drawn)
    epochs = [sorted(chain.from_iterable(part)) for part in (drawn[:in_epoch], drawn[in_epoch:])]
    for epoch in epochs:
        assert len(set(epoch)) == len(epoch) == in_epoch * size
    assert drawn[:in_epoch] != drawn[in_epoch:]
    assert drawn == list(batches(pairs, plan, np.random.default_rng(0)))
    assert drawn != list(batches(pairs, plan, np.random.default_rng(1)))


def test_batches_keep_like_lengths_together() -> None:
    pairs = pairs_of_lengths(16)
    spread = [
        abs(len(pairs[a].prompt) - len(pairs[b].prompt))
        for a, b in batches(pairs, recipe(steps=8), np.random.default_rng(0))
    ]
    assert max(spread) <= 1


# Whole runs


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [
        (
            dialogue(f"What is {i} plus one?", f"It is {i + 1}."),
            dialogue(f"What is {i} plus one?", f"{i}"),
        )
        for i in range(12)
    ]
    return write_rows(tmp_path_factory.mktemp("data") / "sums.jsonl.gz", [*rows, (GOOD, GOOD)])


def adapter_weights(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")


@pytest.mark.parametrize("objective", ["dpo", "tbpo-q", "tbpo-a"])
def test_run_writes_adapter_log_and_manifest(
    base: Path, data: Path, tmp_path: Path, objective: str
) -> None:
    output = tmp_path / "out"
    manifest = train(recipe(objective), base, [data], output)
    assert {file.name for file in output.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "manifest.json",
        "train_log.jsonl",
    }
    assert json.loads((output / "manifest.json").read_text()) == json.loads(json.dumps(manifest))
    log = [json.loads(line) for line in (output / "train_log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log] == [0, 1, 2]
    assert manifest["objective"] == objective
    assert manifest["first_loss"] == log[0]["loss"]
    assert manifest["final_loss"] == pytest.approx(np.mean([row["loss"] for row in log]))
    assert manifest["pairs"] == {
        "training": 8,
        "held_out": 4,
        "skips": {"equal answers": 1},
        "held_out_skips": {},
    }
    before, after = manifest["held_out"]["before"], manifest["held_out"]["after"]
    assert before["mean_abs_token_shift_nats"] == 0.0
    assert before["implicit_reward_accuracy"]["value"] == 0.5
    assert after["mean_abs_token_shift_nats"] > 0
    assert all(value.any() for value in adapter_weights(output).values())


def test_adapter_loads_with_peft_as_the_policy_that_was_measured(
    base: Path, data: Path, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    trainer = Trainer(recipe(), base)
    batch = collate(PAIRS, trainer.policy.pad)
    for index in range(3):
        trainer.step(index, batch)
    trainer.policy.save(tmp_path)
    plain: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    loaded: Any = PeftModel.from_pretrained(plain, str(tmp_path)).eval()
    stats = trainer.policy.statistics(
        batch, trainer.policy.reference_logprobs(batch), None, kl=False
    )
    assert stats.log_ratio.abs().max() > 1e-3
    for i, (prompt, answer) in enumerate(ROWS):
        expected = naive_logprobs(loaded, prompt, answer)[range(len(answer)), answer]
        assert torch.allclose(stats.policy[i, : len(answer)], expected, rtol=0, atol=1e-5)


def test_adapter_names_a_base_from_which_it_can_be_prepared(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.adapters import prepare
    from harness.types import CheckpointSpec

    monkeypatch.chdir(base.parent)
    train(recipe(), Path(base.name), [data], tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    merged = prepare(CheckpointSpec(name="trained", source=str(tmp_path / "out")))
    assert (Path(merged.folder) / "config.json").is_file()


def test_folder_named_like_the_embedded_model_is_not_taken_for_it(
    base: Path, data: Path, tmp_path: Path
) -> None:
    other = tmp_path / "smollm2-135m-instruct-0.1.2-of-mine"
    other.symlink_to(base, target_is_directory=True)
    manifest = train(recipe(steps=1), other, [data], tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert manifest["base"]["name"] == config["base_model_name_or_path"] == str(base.resolve())


def test_embedded_base_is_recorded_by_its_public_name(
    base: Path, data: Path, tmp_path: Path
) -> None:
    from harness.adapters.embedded import SMOLLM2, embedded_folder
    from harness.files import cache_root

    name = f"{SMOLLM2.name}-{SMOLLM2.version}-{SMOLLM2.wheel_sha256[:12]}"
    cached = cache_root() / "models" / name
    cached.parent.mkdir(parents=True)
    cached.symlink_to(base, target_is_directory=True)
    manifest = train(recipe(steps=1), embedded_folder(), [data], tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert manifest["base"]["name"] == config["base_model_name_or_path"] == SMOLLM2.hub_id


def test_seed_decides_the_weights(base: Path, data: Path, tmp_path: Path) -> None:
    found = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(recipe("tbpo-q", seed=seed), base, [data], tmp_path / name)
        found.append(adapter_weights(tmp_path / name))
    first, again, other = found
    assert first.keys() == again.keys() == other.keys()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not any(torch.equal(first[key], other[key]) for key in first)


def test_folder_that_holds_an_adapter_is_refused(base: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="already holds an adapter"):
        train(recipe(), base, [data], tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["adapter_config.json"]


def test_diverging_run_names_the_step_and_writes_no_adapter(
    base: Path, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match=r"is nan at step 1; .*No adapter was written"):
        train(recipe(learning_rate=1e30), base, [data], tmp_path / "out")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["train_log.jsonl"]
    assert len((tmp_path / "out" / "train_log.jsonl").read_text().splitlines()) == 1


def test_loss_that_is_not_a_number_names_the_step_and_writes_no_adapter(
    base: Path, data: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(base, broken)
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"][0] = math.nan
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TrainingError, match=r"loss is nan at step 0; .*No adapter was written"):
        train(recipe(), broken, [data], tmp_path / "out")
    assert not list((tmp_path / "out").glob("adapter*"))


def test_infinite_gradient_stops_the_step_that_made_it(base: Path) -> None:
    trainer = Trainer(recipe(), base)
    before = [weight.clone() for weight in trainer.policy.trainable()]
    weight: Any = trainer.policy.trainable()[0]
    weight.register_hook(lambda grad: grad * math.inf)
    with pytest.raises(TrainingError, match=r"gradient norm is (nan|inf) at step 7"):
        trainer.step(7, collate(PAIRS, trainer.policy.pad))
    after = trainer.policy.trainable()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_weights_that_are_not_finite_are_not_saved(base: Path, tmp_path: Path) -> None:
    policy = make_policy(base)
    policy.trainable()[0].data[0, 0] = math.nan
    with pytest.raises(TrainingError, match=r"lora_A.* is not finite"):
        policy.save(tmp_path)
    assert not list(tmp_path.glob("adapter*"))


def test_too_few_usable_pairs_are_refused(base: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="8 usable training pairs and 4 held-out"):
        train(recipe(batch=9), base, [data], tmp_path / "out")
    with pytest.raises(InputError, match="0 usable training pairs and 0 held-out"):
        train(recipe(max_prompt=3), base, [data], tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dqo", {}, r"unknown objective 'dqo'\. Did you mean 'dpo'\? Known: .*tbpo-a.*tbpo-q"),
        ("dpo", {"betta": 1.0}, r"'dpo' has no option betta\. Options: beta, label_smoothing\."),
        ("dpo", {"needs_kl": True}, "no option needs_kl"),
        ("tbpo-a", {"beta": "1e-1"}, r"'tbpo-a' cannot use the options .*1e-1"),
        ("tbpo-a", {"kl": "k4"}, "unknown kl 'k4'"),
        ("tbpo-q", {"lam": -1}, "lam > -1"),
    ],
)
def test_unusable_objectives_and_options_are_refused(
    name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        build_objective(name, options)


def test_options_become_the_objective() -> None:
    found = build_objective("tbpo-q", {"beta": 0.5, "generator": "lr", "centre": True})
    assert found == TbpoQ(beta=0.5, generator="lr", centre=True)
    assert build_objective("tbpo-a", {"kl": "exact"}).needs_kl
    assert not build_objective("tbpo-a", {}).needs_kl


@pytest.mark.parametrize(
    "changes",
    [{"steps": 0}, {"batch": -1}, {"learning_rate": math.nan}, {"holdout": 0}, {"warmup": 1.5}],
)
def test_recipe_refuses_numbers_out_of_range(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(changes))):
        recipe(**changes)


# Command line


def test_command_line_passes_its_flags_to_the_recipe(
    base: Path, data: Path, tmp_path: Path
) -> None:
    flags = {
        "--objective": "tbpo-a",
        "--pairs": data,
        "--base": base,
        "--output": tmp_path / "out",
        "--steps": 2,
        "--batch": 3,
        "--learning-rate": 0.002,
        "--seed": 5,
        "--holdout": 3,
        "--max-prompt": 41,
        "--max-response": 21,
        "--set": "kl=exact",
    }
    words = [str(word) for flag in flags.items() for word in flag]
    done = CliRunner().invoke(cli, ["train", *words, "--set", "beta=0.2", "--json"])
    assert done.exit_code == 0, done.output
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert json.loads(done.stdout) == manifest
    expected = Recipe(
        objective="tbpo-a",
        options={"kl": "exact", "beta": 0.2},
        steps=2,
        batch=3,
        learning_rate=0.002,
        seed=5,
        holdout=3,
        max_prompt=41,
        max_response=21,
    )
    assert Recipe(**{**manifest["recipe"], "lora": LoraSettings()}) == expected


def test_command_line_refuses_a_value_without_a_key(base: Path, data: Path, tmp_path: Path) -> None:
    words = ["train", "--objective", "dpo", "--pairs", str(data), "--base", str(base)]
    done = CliRunner().invoke(cli, [*words, "--output", str(tmp_path), "--set", "beta"])
    assert isinstance(done.exception, InputError)
    assert "KEY=VALUE" in str(done.exception)
