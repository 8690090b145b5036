"""Policy, reference and baseline head as one module that reads batches as token statistics."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from harness.errors import CheckpointError, InputError
from harness.training.batches import Batch
from harness.training.objectives import Statistic, TokenStatistics, token_logprobs
from harness.training.recipe import Recipe
from harness.training.token_statistics import token_readings

PROBE_TOLERANCE = 1e-3
"""Largest difference, relative to the largest logit, of a model's own logits and ours."""

EVALUATED_ROWS = 256
"""Answer tokens whose logits are held at once where no gradient is wanted."""

Part = Literal["both", "policy", "reference"]


class BaselineHead(nn.Module):
    """b_phi: scalar head on the final hidden state, one hidden layer with GELU.

    Estimates log Z of a state (TokenRatio paper, TBPO-Q; hidden width 1024). It sees detached
    states, so no gradient reaches the backbone. The last layer starts at zero: training starts
    at w = 1.
    """

    def __init__(self, states: int, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(states, width)
        self.outer = nn.Linear(width, 1)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return (N,) values, nats, of (N, D) hidden states; float32 whatever autocast says."""
        with torch.autocast(hidden.device.type, enabled=False):
            values: Tensor = self.outer(nn.functional.gelu(self.inner(hidden.detach().float())))
        return values.squeeze(-1)


def silence_dropout(model: Any) -> None:
    """Switch off a base model's own dropout: the reference has none, nor may the policy.

    Architectures keep it in modules, as numbers beside them (OPT, Bloom), or read it from their
    configuration (Falcon).
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    for owner in (model.config, *model.modules()):
        for name, value in list(vars(owner).items()):
            if "drop" in name and isinstance(value, float):
                setattr(owner, name, 0.0)


def load_base(source: str, dtype: torch.dtype) -> Any:
    """Return a causal language model from a folder or hub id, without dropout.

    Raises:
        CheckpointError: transformers cannot load it (its own words are in the message), or its
            logits are not output layer times final state.
    """
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{source} cannot be loaded for training: {error}") from error
    silence_dropout(model)
    check_head(model, source)
    return model


def _with_lora(base: Any, recipe: Recipe) -> Any:
    from peft import LoraConfig, TaskType, get_peft_model

    targets: Any = recipe.lora_targets
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=recipe.lora_rank,
        lora_alpha=recipe.lora_alpha,
        lora_dropout=recipe.lora_dropout,
        target_modules=targets[0] if targets == ("all-linear",) else list(targets),
    )
    try:
        model: Any = get_peft_model(base, config)
    except ValueError as error:
        raise InputError(f"lora_targets {', '.join(targets)}: {error}") from error
    _check_output_layer(base, targets)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()
    return model


def _check_output_layer(model: Any, targets: tuple[str, ...]) -> None:
    """Refuse a LoRA on the output layer, or on the embeddings that share its weight."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    output, tokens = model.get_output_embeddings(), model.get_input_embeddings()
    sharing = [layer for layer in (output, tokens) if layer.weight is output.weight]
    if any(isinstance(layer, BaseTunerLayer) for layer in sharing):
        raise InputError(
            f"lora_targets {', '.join(targets)}: the output layer cannot carry a LoRA here, "
            "because the statistics read its plain weight. Leave out the output layer, and the "
            "embeddings where they share its weight."
        )


def build_model(
    recipe: Recipe, base: str, reference: str | None, requires: frozenset[Statistic]
) -> PreferenceModel:
    """Return policy and reference of a recipe; the caller has set torch's seed.

    A LoRA's base is held in bfloat16 under bfloat16 autocast, in float32 otherwise; weights that
    are trained are always float32. The reference of a LoRA is the policy with the adapter off, so
    that the model is held once; full fine-tuning, or another reference, holds a second model.

    Raises:
        CheckpointError: a model cannot be loaded, or its logits are not head times state.
        InputError: the LoRA's targets fit nothing or the output layer; no bfloat16 on this GPU.
    """
    frozen = torch.bfloat16 if use_bfloat16(recipe) else torch.float32
    full = recipe.finetune == "full"
    policy = load_base(base, torch.float32 if full else frozen)
    if recipe.gradient_checkpointing:
        policy.gradient_checkpointing_enable({"use_reentrant": False})
        policy.enable_input_require_grads()
    other = load_base(reference or base, frozen) if full or reference else None
    if other is not None:
        other.requires_grad_(False)
    head = None
    if Statistic.BASELINE in requires:
        head = BaselineHead(policy.config.get_text_config().hidden_size, recipe.head_width)
    if not full:
        policy = _with_lora(policy, recipe)
    return PreferenceModel(policy, other, head, requires, recipe.chunk)


def use_bfloat16(recipe: Recipe) -> bool:
    """Return whether a run autocasts to bfloat16.

    Raises:
        InputError: it is asked for on a GPU that can only emulate it.
    """
    gpu = torch.cuda.is_available()
    native = gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    if recipe.bf16 == "yes" and gpu and not native:
        raise InputError(
            f"bf16: yes, but {torch.cuda.get_device_name()} has no bfloat16; give bf16: no"
        )
    return native if recipe.bf16 == "auto" else recipe.bf16 == "yes"


@torch.no_grad()
def check_head(model: Any, name: str) -> None:
    """Check that a model's logits are its output layer times its final states, and no more.

    Raises:
        CheckpointError: they are scaled or capped (Gemma-2, Cohere, Granite...), which the
            chunked statistics do not do.
    """
    probe = torch.arange(1, 5).unsqueeze(0)
    states = model.base_model(input_ids=probe).last_hidden_state
    own = model(input_ids=probe).logits
    made = model.get_output_embeddings()(states)
    if made.shape != own.shape or (made - own).abs().max() > PROBE_TOLERANCE * own.abs().max():
        raise CheckpointError(
            f"{name}: the logits of {type(model).__name__} are more than its output layer times "
            "its final hidden states (a scale or a cap); such models cannot be trained here"
        )


class PreferenceModel(nn.Module):
    """The policy, its reference and TBPO-Q's head; one forward reads one batch.

    It is what the trainer wraps, so that every weight is used inside the wrapped module's
    forward, as sharded training demands.
    """

    def __init__(
        self,
        policy: Any,
        reference: Any | None,
        head: BaselineHead | None,
        requires: frozenset[Statistic],
        chunk: int | None,
    ) -> None:
        super().__init__()
        self.policy = policy
        self.reference = reference
        self.head = head
        self.requires = requires
        self.chunk = chunk

    def policy_weights(self) -> list[nn.Parameter]:
        """Return the policy's trained parameters."""
        return [p for p in self.policy.parameters() if p.requires_grad]

    def _bare(self, model: Any) -> Any:
        return model.get_base_model() if hasattr(model, "get_base_model") else model

    def _states(self, model: Any, batch: Batch) -> Tensor:
        """(N, D) final hidden states that predict the N answer tokens, row by row."""
        out = self._bare(model).base_model(
            input_ids=batch["tokens"], attention_mask=batch["attention"], use_cache=False
        )
        rows = torch.arange(len(batch["tokens"]), device=batch["tokens"].device).unsqueeze(-1)
        states: Tensor = out.last_hidden_state[rows, batch["positions"]]
        return states[batch["mask"]]

    def _without_adapter(self) -> AbstractContextManager[Any]:
        if self.reference is not None:
            return nullcontext()
        context: AbstractContextManager[Any] = self.policy.disable_adapter()
        return context

    def _reference_states(self, batch: Batch) -> tuple[Any, Tensor]:
        model = self.policy if self.reference is None else self.reference
        with torch.no_grad(), self._without_adapter():
            return self._bare(model).get_output_embeddings(), self._states(model, batch)

    def forward(
        self,
        tokens: Tensor,
        attention: Tensor,
        positions: Tensor,
        targets: Tensor,
        mask: Tensor,
        weights: Tensor,
        index: Tensor,
        part: Part = "both",
    ) -> dict[str, Tensor]:
        """Return (2B, T) statistics by name, zero where masked, nats.

        ``policy``, ``reference``, ``kl``, ``reverse_kl``, ``entropy`` as in
        :class:`harness.training.token_statistics.TokenReadings`, and ``baseline`` where there is
        a head. With ``part`` "policy" or "reference" that log-probability alone, by less work.
        """
        batch = Batch(
            tokens=tokens,
            attention=attention,
            positions=positions,
            targets=targets,
            mask=mask,
            weights=weights,
            index=index,
        )
        if part == "both":
            return self._spread(batch, self._readings(batch))
        if part == "reference":
            layer, states = self._reference_states(batch)
        else:
            layer = self._bare(self.policy).get_output_embeddings()
            states = self._states(self.policy, batch)
        return self._spread(batch, {part: self._logprobs(layer, states, batch)})

    def _logprobs(self, layer: Any, states: Tensor, batch: Batch) -> Tensor:
        targets = batch["targets"][batch["mask"]]
        starts = range(0, len(states), EVALUATED_ROWS)
        pieces = [slice(start, start + EVALUATED_ROWS) for start in starts]
        return torch.cat([token_logprobs(layer(states[p]).float(), targets[p]) for p in pieces])

    def _chunk(self) -> dict[str, int]:
        return {} if self.chunk is None else {"chunk": self.chunk}

    def _readings(self, batch: Batch) -> dict[str, Tensor]:
        reference_layer, reference_states = self._reference_states(batch)
        states = self._states(self.policy, batch)
        layer = self._bare(self.policy).get_output_embeddings()
        read = token_readings(
            states,
            layer.weight,
            reference_states,
            reference_layer.weight,
            batch["targets"][batch["mask"]],
            bias=layer.bias,
            reference_bias=reference_layer.bias,
            kl_gradient=Statistic.KL in self.requires,
            reverse_kl_gradient=Statistic.REVERSE_KL in self.requires,
            **self._chunk(),
        )
        values = {
            "policy": read.policy,
            "reference": read.reference,
            "kl": read.kl,
            "reverse_kl": read.reverse_kl,
            "entropy": read.entropy,
        }
        return values | ({"baseline": self.head(states)} if self.head is not None else {})

    def _spread(self, batch: Batch, values: dict[str, Tensor]) -> dict[str, Tensor]:
        empty = torch.zeros(batch["mask"].shape, device=batch["mask"].device)
        return {n: empty.masked_scatter(batch["mask"], v.float()) for n, v in values.items()}


def sides(
    values: dict[str, Tensor], batch: Batch, requires: frozenset[Statistic]
) -> tuple[TokenStatistics, TokenStatistics]:
    """Return the statistics of B chosen and B rejected answers, with what the objective needs."""
    extra = {s.value: values[s.value] for s in requires if s is not Statistic.TOKEN_WEIGHTS}
    if Statistic.TOKEN_WEIGHTS in requires:
        extra["token_weights"] = batch["weights"]
    whole = {"policy": values["policy"], "reference": values["reference"], "mask": batch["mask"]}
    parts = {name: value.chunk(2) for name, value in {**whole, **extra}.items()}
    chosen, rejected = ({n: p[i] for n, p in parts.items()} for i in (0, 1))
    return TokenStatistics(**chosen), TokenStatistics(**rejected)
