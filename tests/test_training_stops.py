"""Runs that stop: a loss, gradient or weight that is not finite, and what is kept."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from command_records import Tbpo, refused
from torch import Tensor
from training_records import (
    equal_weights,
    flags,
    make_recipe,
    make_trainer,
    read_log,
    read_weights,
    write_rows,
)
from transformers import TrainerCallback

from harness.errors import TrainingError
from harness.training.objectives import (
    Objective,
    Statistic,
    TokenStatistics,
    build_objective,
)
from harness.training.search import train

pytestmark = pytest.mark.slow

Spoil = Callable[[Tensor], Tensor]

SPOILS: dict[str, Spoil] = {
    "loss is nan": lambda loss: loss * float("nan"),
    "loss is inf": lambda loss: loss + float("inf"),
    "loss is -inf": lambda loss: loss - float("inf"),
    # The value stays; the derivative of a root at zero is infinite.
    "gradient is (nan|inf)": lambda loss: loss + (loss - loss.detach()).sqrt(),
}


@dataclass
class Spoiled:
    """An objective one of whose losses is spoiled when a batch is read for the ``call``-th time."""

    inner: Objective
    spoil: Spoil
    call: int
    row: int = 1
    calls: int = 0

    @property
    def requires(self) -> frozenset[Statistic]:
        return self.inner.requires

    def losses(self, chosen: TokenStatistics, rejected: TokenStatistics) -> Tensor:
        self.calls += 1
        losses = self.inner.losses(chosen, rejected)
        if self.calls != self.call:
            return losses
        return torch.stack([self.spoil(v) if i == self.row else v for i, v in enumerate(losses)])


CASES = [(what, "tbpo-q") for what in sorted(SPOILS)] + [("loss is nan", "dpo")]


@pytest.mark.parametrize(("what", "name"), CASES)
def test_stop_names_step_and_pairs_and_keeps_the_last_good_weights(
    base: Path, pairs: Path, tmp_path: Path, what: str, name: str
) -> None:
    recipe = make_recipe(base, pairs, objective=name, micro_batch=2, save_every=2)
    inner = build_objective(name, {})
    make_trainer(recipe, tmp_path / "whole").run()
    # Step 3 begins with the fifth micro-batch; one before the last shows that all are named.
    trainer = make_trainer(recipe, tmp_path / "out", Spoiled(inner, SPOILS[what], call=5))
    origins = [item["pair"].origin for item in trainer.train_dataset]
    with pytest.raises(TrainingError) as stopped:
        trainer.run()
    named = [origins[9]] if what.startswith("loss") else origins[8:12]
    message = str(stopped.value)
    assert re.match(what, message)
    assert f" at step 3, pairs {', '.join(named)}. The weights of step 2 are in " in message
    kept = tmp_path / "out" / "last_good"
    assert str(kept) in message
    assert re.fullmatch(r"sums\.jsonl:\d+", named[0])
    assert equal_weights(kept, tmp_path / "whole" / "checkpoints" / "checkpoint-2")
    assert not equal_weights(kept, tmp_path / "whole" / "checkpoints" / "checkpoint-3")
    assert any("baseline_head" in key for key in read_weights(kept)) == (name == "tbpo-q")
    rows = read_log(tmp_path / "out")
    assert rows[:2] == read_log(tmp_path / "whole")[:2]
    stop = {"step": 3, "loss": None, "diverged": rows[2]["diverged"], "pairs": named}
    assert rows[2:] == [stop]
    assert re.fullmatch(what, rows[2]["diverged"])


def test_stop_at_the_first_step_keeps_the_untrained_policy(
    base: Path, pairs: Path, tmp_path: Path
) -> None:
    objective = Spoiled(build_objective("dpo", {}), SPOILS["loss is nan"], call=1)
    with pytest.raises(TrainingError, match=r"at step 1, .* The weights of step 0 are in"):
        make_trainer(make_recipe(base, pairs), tmp_path, objective).run()
    kept = read_weights(tmp_path / "last_good")
    assert not any(value.any() for name, value in kept.items() if "lora_B" in name)


def test_command_line_ends_with_a_message_and_no_manifest(
    base: Path, pairs: Path, tmp_path: Path, tbpo: Tbpo, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoiled(name: str, options: dict[str, object]) -> Spoiled:
        return Spoiled(build_objective(name, options), SPOILS["loss is nan"], call=2)

    monkeypatch.setattr("harness.training.run.build_objective", spoiled)
    words = flags(base=base, pairs=pairs)
    refused(tbpo("train", *words, "--output", tmp_path / "out"), "loss is nan at step 2, pairs ")
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert not (tmp_path / "out" / "adapter_model.safetensors").exists()
    assert (tmp_path / "out" / "last_good" / "adapter_model.safetensors").exists()
    monkeypatch.setattr("harness.training.run.build_objective", build_objective)
    assert tbpo("train", *words, "--output", tmp_path / "out")[0] == 0
    assert "diverged" not in json.dumps(read_log(tmp_path / "out"))


@pytest.mark.parametrize(("steps", "every"), [(1, 50), (3, 1)])
def test_weights_that_overflow_are_a_divergence(
    base: Path, pairs: Path, tmp_path: Path, steps: int, every: int
) -> None:
    """A rate so high that the first update leaves no finite weight, and ends the run."""
    keys = {"optimizer": "rmsprop", "schedule": "constant", "steps": steps, "save_every": every}
    with pytest.raises(TrainingError, match=r"a weight is not finite .* at step 1\. No earlier"):
        train(make_recipe(base, pairs, learning_rate=1e38, **keys), tmp_path / "alone")
    (only,) = read_log(tmp_path / "alone")
    assert (only["step"], only["diverged"]) == (1, "a weight is not finite")
    rates = [1e-3, 1e38]
    manifest = train(make_recipe(base, pairs, learning_rates=rates, **keys), tmp_path / "grid")
    assert [r["diverged"] for r in manifest["search"]["results"]] == [None, only["diverged"]]
    assert manifest["search"]["chosen"] == 1e-3


def test_overflow_names_the_weights_that_were_kept(base: Path, pairs: Path, tmp_path: Path) -> None:
    trainer = make_trainer(make_recipe(base, pairs, steps=4, save_every=1), tmp_path)
    weight = trainer.model.policy_weights()[0]

    class Overflow(TrainerCallback):
        def on_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            if state.global_step == 2:
                weight.data.view(-1)[3] = float("inf")

    trainer.add_callback(Overflow())
    with pytest.raises(TrainingError, match=r"at step 3\. Earlier weights are in .*checkpoint-2\."):
        trainer.run()
    assert [row.get("diverged") is None for row in read_log(tmp_path)] == [True, True, False]


# Data that cannot be used, or not all of it


def turns(*said: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for role, text in said]


def row(chosen: str = "Yes.", rejected: str = "No.", **changes: object) -> dict[str, object]:
    sides = {"chosen": chosen, "rejected": rejected}
    made = {n: turns(("user", "Is it?"), ("assistant", text)) for n, text in sides.items()}
    return made | changes


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"chosen": "Yes."}, "'rejected' is missing or null"),
        (row(rejected=None), "must be a text, found null"),
        (row() | {"rejected": "No."}, "'chosen' is a list and 'rejected' is a text"),
    ],
)
def test_malformed_pair_is_named_by_file_and_line(
    base: Path, tmp_path: Path, tbpo: Tbpo, bad: object, message: str
) -> None:
    file = write_rows(tmp_path / "own.jsonl", [row(), bad])
    found = tbpo("train", *flags(base=base, pairs=file), "--output", tmp_path / "out")
    refused(found, f"{file}:2: ")
    assert message in found[2]
    assert not (tmp_path / "out").exists()


def test_unusable_pairs_are_counted_with_their_first_place(
    base: Path, pairs: Path, tmp_path: Path, tbpo: Tbpo
) -> None:
    twice = turns(("user", "Is it?"), ("user", "Is it not?"), ("assistant", "Yes."))
    long = "Please tell me about it in a prompt that goes on for far too long. " * 3
    asked, answers = turns(("user", long)), [turns(("assistant", text)) for text in "ab"]
    bad = [
        row(chosen=""),
        row(rejected="  "),
        row(chosen="Same.", rejected="Same."),
        {"prompt": asked, "chosen": answers[0], "rejected": answers[1]},
        {"chosen": twice, "rejected": twice},
        row(chosen="Y" * 60, rejected="N" * 60),
    ]
    file = write_rows(tmp_path / "own.jsonl", bad)
    words = flags(
        base=base,
        pairs=[pairs, file],
        holdout=1,
        max_prompt=100,
        max_response=40,
        long_responses="skip",
    )
    code, out, err = tbpo("train", *words, "--output", tmp_path / "out", "--json")
    assert code == 0, err
    counted = json.loads((tmp_path / "out" / "manifest.json").read_text())["pairs"]
    assert json.loads(out)["pairs"] == counted
    assert counted["skips"]["reading"] == {
        "empty answer": {"pairs": 2, "first": "own.jsonl:1"},
        "equal answers": {"pairs": 1, "first": "own.jsonl:3"},
        "wrong role order": {"pairs": 1, "first": "own.jsonl:5"},
    }
    assert counted["skips"]["training"] == {
        "answer longer than the limit": {"pairs": 1, "first": "own.jsonl:6"},
        "prompt longer than max_prompt tokens": {"pairs": 1, "first": "own.jsonl:4"},
    }
    assert (counted["training"], counted["held_out"]) == (29, 1)


def test_too_few_pairs_say_why(base: Path, tmp_path: Path, tbpo: Tbpo) -> None:
    file = write_rows(tmp_path / "own.jsonl", [row(f"{'Y' * 30}{i}", "N") for i in range(4)])
    words = flags(base=base, pairs=file, max_response=10, long_responses="skip", holdout=1)
    found = tbpo("train", *words, "--output", tmp_path / "out")
    refused(found, "cannot hold out 1 of 4 pairs")
    rows = [{"prompt": f"Is it {i}?", "chosen": "Y" * (30 * i), "rejected": "N"} for i in (1, 2)]
    file = write_rows(tmp_path / "two.jsonl", rows)
    words = flags(base=base, pairs=file, max_response=10, long_responses="skip", holdout=1)
    found = tbpo("train", *words, "--output", tmp_path / "out")
    refused(found, "0 usable training pairs and 0 held-out ones; expected at least one batch of 4")
    assert "answer longer than the limit: 1 (first: two.jsonl:" in found[2]
