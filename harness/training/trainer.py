"""The training loop: transformers' Trainer with the loss, the logs and the stops of this project.

TRL's DPOTrainer was looked at first. Its loss is one method that branches on names and reads
sequence sums; replacing it means replacing the forward pass, the reference pass and the logging
too, and nothing of TRL would be left. transformers' Trainer brings what is wanted of it:
checkpoints, resume, gradient accumulation, and data parallelism through accelerate.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from harness.errors import InputError, TrainingError
from harness.progress import bar
from harness.training.batches import Item, collate
from harness.training.checkpoints import (
    CHECKPOINTS,
    complete_folder,
    drop_partial,
    last_checkpoint,
    load_policy,
    mark_whole,
    step_of,
    write_policy,
)
from harness.training.heldout import HeldOut, HeldOutSet
from harness.training.logs import StepSums, TrainLog, pair_values, peak_memory
from harness.training.model import PreferenceModel, sides, use_bfloat16
from harness.training.objectives import Objective
from harness.training.ranks import on_first, processes
from harness.training.recipe import Recipe
from harness.training_logs import LAST_GOOD, LOG

HEAD_OPTIMIZER = "baseline_head_optimizer.pt"
KEPT = 2
"""Checkpoints kept while training, so that one is whole while the next is written."""


def arguments(recipe: Recipe, output: Path, steps: int) -> TrainingArguments:
    """Return the Trainer's arguments of a recipe."""
    cpu = not torch.cuda.is_available()
    devices = processes().num_processes
    micro = recipe.micro_batch or max(1, recipe.batch // devices)
    # The rate of step 1 is zero under warm-up: a run of one step has none.
    warm = min(math.ceil(recipe.warmup * steps), steps - 1)
    made = TrainingArguments(
        output_dir=str(output / CHECKPOINTS),
        per_device_train_batch_size=micro,
        max_steps=steps,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="constant_with_warmup"
        if recipe.schedule == "constant"
        else recipe.schedule,
        warmup_steps=warm,
        max_grad_norm=0.0,
        seed=recipe.seed,
        bf16=use_bfloat16(recipe),
        use_cpu=cpu,
        save_strategy="steps",
        save_steps=recipe.save_every,
        save_total_limit=KEPT,
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_drop_last=True,
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=not cpu,
        train_sampling_strategy="sequential",
    )
    made.gradient_accumulation_steps = _accumulation(recipe.batch, micro, devices)
    if made.n_gpu > 1:
        # Several GPUs in one process would mean DataParallel: n_gpu times the recipe's batch.
        made._n_gpu = 1
    return made


def _accumulation(batch: int, micro: int, devices: int) -> int:
    if batch % (micro * devices):
        raise InputError(
            f"batch {batch} is not a multiple of {micro} pairs on each of {devices} devices; "
            "set batch or micro_batch"
        )
    return batch // (micro * devices)


def make_optimizer(recipe: Recipe, weights: Sequence[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """Return the policy's optimiser."""
    kind = torch.optim.RMSprop if recipe.optimizer == "rmsprop" else torch.optim.AdamW
    return kind(weights, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)


@dataclass(frozen=True)
class Material:
    """What a run trains on, and what its folder needs to be loaded.

    Attributes:
        items: the pairs of the whole run, ``batch`` of them a step. held: held-out pairs.
        pad: token id to pad with. tokenizer: the base's. base: the name a LoRA gives its base.
    """

    items: Sequence[Item]
    held: HeldOutSet
    pad: int
    tokenizer: Any
    base: str


class PreferenceTrainer(Trainer):
    """Trains the policy of a :class:`PreferenceModel` on one objective."""

    def __init__(
        self,
        recipe: Recipe,
        model: PreferenceModel,
        objective: Objective,
        material: Material,
        output: Path,
    ) -> None:
        self.recipe = recipe
        self.objective: Objective = objective
        self.material = material
        self.output = output
        self._origin = {item["index"]: item["pair"].origin for item in material.items}
        self.train_log = TrainLog(output / LOG)
        self.head_optimizer: torch.optim.Optimizer | None = None
        self.final: HeldOut | None = None
        self._sums = StepSums()
        self._seen: list[Tensor] = []
        self._step: dict[str, float] = {}
        # Trainer's annotations know datasets and dicts; a list of items and a TypedDict will do.
        dataset: Any = material.items
        collator: Any = partial(collate, pad=material.pad)
        super().__init__(
            model=model,
            args=arguments(recipe, output, len(material.items) // recipe.batch),
            train_dataset=dataset,
            data_collator=collator,
            callbacks=[_Steps(self)],
        )
        self.remove_callback(PrinterCallback)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Make the policy's optimiser and, where there is a baseline head, the head's AdamW."""
        bare: PreferenceModel = self.accelerator.unwrap_model(model or self.model)
        if self.optimizer is None:
            self.optimizer = make_optimizer(self.recipe, bare.policy_weights())
        if bare.head is not None and self.head_optimizer is None:
            self.head_optimizer = torch.optim.AdamW(
                bare.head.parameters(), lr=self.recipe.head_learning_rate, weight_decay=0.0
            )
        return self.optimizer

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the mean loss of a micro-batch's pairs; collect what the step logs.

        Raises:
            TrainingError: a loss is NaN or infinite; step and pairs are named.
        """
        values = model(**inputs)
        chosen, rejected = sides(values, inputs, self.objective.requires)
        losses = self.objective.losses(chosen, rejected)
        self._sums.add(pair_values(losses, chosen, rejected), values, inputs["mask"])
        self._seen.append(inputs["index"])
        self._check("loss", losses.detach(), inputs["index"])
        return (losses.mean(), values) if return_outputs else losses.mean()

    def training_step(
        self, model: Any, inputs: Any, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Add a micro-batch's gradient; with the last, measure and clip the policy's gradient.

        Raises:
            TrainingError: loss or gradient is not finite. No weight has been changed by it.
        """
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            self._step["gradient_norm"] = self._clip(model)
            pairs = torch.cat(self._seen)
            self._check("gradient", torch.tensor([self._step["gradient_norm"]]), pairs)
            self._check("gradient of the baseline head", self._head_gradient(model), pairs)
            assert self.optimizer is not None
            self._step["learning_rate"] = float(self.optimizer.param_groups[0]["lr"])
            if self.head_optimizer is not None:
                self.head_optimizer.step()
        return loss

    def _head_gradient(self, model: Any) -> Tensor:
        """(1,) norm of the head's gradient, zero without a head."""
        head = self.accelerator.unwrap_model(model).head
        found = [] if head is None else [p.grad for p in head.parameters() if p.grad is not None]
        return torch.nn.utils.get_total_norm(found).reshape(1) if found else torch.zeros(1)

    def _clip(self, model: Any) -> float:
        """Clip the policy's gradient; return its norm before."""
        bare: PreferenceModel = self.accelerator.unwrap_model(model)
        weights = model.parameters() if bare.head is None else bare.policy_weights()
        limit = self.recipe.max_grad_norm or math.inf
        return float(self.accelerator.clip_grad_norm_(weights, limit))

    def _check(self, what: str, values: Tensor, index: Tensor) -> None:
        """Stop where ``values`` are not finite on any device; keep the last good weights."""
        bad = ~torch.isfinite(values)
        if not self.accelerator.reduce(bad.sum().to(self.args.device), "sum"):
            return
        mine = index[bad] if len(bad) == len(index) else index if bad.any() else index[:0]
        found = [(values[bad][:1].tolist(), [self._origin[int(i)] for i in mine])]
        gathered: Any = gather_object(found)
        number = next(n for numbers, _ in gathered for n in numbers)
        pairs = [name for _, names in gathered for name in names]
        step, kept = self.state.global_step + 1, self.output / LAST_GOOD
        reason = f"{what} is {number}"
        self._log({"step": step, "loss": None, "diverged": reason, "pairs": pairs})
        self._save_whole(kept)
        raise TrainingError(
            f"{reason} at step {step}, pairs {', '.join(pairs)}. The weights of "
            f"step {step - 1} are in {kept}. Look at these pairs, or lower learning_rate, and "
            "train into a new folder."
        )

    def close_step(self) -> None:
        """Log the step that just ended, with held-out measures where they are due.

        Raises:
            TrainingError: the step left a weight that is not finite.
        """
        step = self.state.global_step
        row = {"step": step, **self._sums.close(self._total), **self._step}
        seconds = time.monotonic() - self._started
        row |= {
            "tokens_per_second": round(row["tokens"] / seconds, 1),
            "peak_memory_bytes": peak_memory(self.args.device),
            "seconds": round(seconds, 3),
        }
        every = self.recipe.eval_every
        if self._overflowed():
            self._log(row | {"diverged": "a weight is not finite"})
            raise TrainingError(self._overflow(step))
        if step == self.state.max_steps or (every and step % every == 0):
            row |= self._held_out()
        self._log(row)

    def _overflowed(self) -> bool:
        """Return whether a trained weight is not finite on any device."""
        bare: PreferenceModel = self.accelerator.unwrap_model(self.model_wrapped)
        trained = [weight.detach() for weight in bare.parameters() if weight.requires_grad]
        bad = torch.stack([~torch.isfinite(weight).all() for weight in trained]).sum()
        return bool(self.accelerator.reduce(bad, "sum"))

    def _overflow(self, step: int) -> str:
        kept = last_checkpoint(self.output)
        where = "No earlier weights were kept" if kept is None else f"Earlier weights are in {kept}"
        return (
            f"a weight is not finite after the update at step {step}. {where}. Lower "
            "learning_rate, and train into a new folder."
        )

    def open_step(self) -> None:
        """Start the step's clock and its list of pairs."""
        self._started = time.monotonic()
        self._seen = []

    def _total(self, value: Tensor) -> Tensor:
        summed: Tensor = self.accelerator.reduce(value.to(self.args.device), "sum")
        return summed.cpu()

    def _held_out(self) -> dict[str, float | int | None]:
        measured = self.material.held.measure(self.model_wrapped, self.args.device)
        self.final = measured
        accuracy = measured.implicit_reward_accuracy
        return {
            "held_out_accuracy": accuracy.value,
            "held_out_pairs": accuracy.n,
            "held_out_margin": measured.margin,
            "held_out_chosen_log_ratio": measured.chosen_log_ratio,
        }

    def _log(self, row: dict[str, Any]) -> None:
        if self.is_world_process_zero():
            self.train_log.add(row)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the policy in float32 as a PEFT or Hugging Face folder, the head beside it.

        Raises:
            TrainingError: a weight is not finite.
        """
        self._write(Path(output_dir or self.output), torch.float32)

    def save_final(self) -> None:
        """Write the trained policy to the output, in the recipe's type.

        Raises:
            TrainingError: a weight is not finite.
        """
        self._save_whole(self.output)

    def _save_whole(self, folder: Path) -> None:
        """Write the policy as the adapters load it: a LoRA's base named, a model's tokenizer."""
        self._write(folder, getattr(torch, self.recipe.save_dtype))
        if self.args.should_save:
            complete_folder(folder, self.material.base, self.material.tokenizer)

    def _write(self, folder: Path, dtype: torch.dtype) -> None:
        state: dict[str, Tensor] = self.accelerator.get_state_dict(self.model_wrapped)
        if self.args.should_save:
            write_policy(self.accelerator.unwrap_model(self.model_wrapped), state, folder, dtype)

    def seal_checkpoint(self) -> None:
        """Add the head's optimiser to the checkpoint just written, then mark it whole."""
        if not self.args.should_save:
            return
        folder = self.output / CHECKPOINTS / f"checkpoint-{self.state.global_step}"
        if self.head_optimizer is not None:
            torch.save(self.head_optimizer.state_dict(), folder / HEAD_OPTIMIZER)
        mark_whole(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        bare: PreferenceModel = self.accelerator.unwrap_model(model or self.model)
        load_policy(bare, Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self.head_optimizer is not None:
            state = torch.load(Path(checkpoint) / HEAD_OPTIMIZER, weights_only=True)
            self.head_optimizer.load_state_dict(state)

    def run(self) -> HeldOut:
        """Train to the end, from the last whole checkpoint if there is one.

        Returns:
            the held-out measures after the last step.

        Raises:
            TrainingError: loss or gradient is not finite.
        """
        start = on_first(self._start)
        self.train(resume_from_checkpoint=start)
        if self.final is None:
            self._held_out()
        assert self.final is not None
        return self.final

    def _start(self) -> str | None:
        """Return the last whole checkpoint; what is later or in part is removed."""
        drop_partial(self.output)
        found = last_checkpoint(self.output)
        self.train_log.cut(0 if found is None else step_of(found))
        return None if found is None else str(found)


class _Steps(TrainerCallback):
    """Tells the trainer where its steps begin and end, and shows progress."""

    def __init__(self, trainer: PreferenceTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._bar = bar(state.max_steps, f"train {self._trainer.recipe.objective}", "step")
        self._bar.update(state.global_step)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._trainer.open_step()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._trainer.close_step()
        self._bar.update(1)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._trainer.seal_checkpoint()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._bar.close()
