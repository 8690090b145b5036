"""Language model with a LoRA adapter, read out as per-token statistics of given answers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from harness.errors import TrainingError
from harness.training.data import TokenPair
from harness.training.objectives import TokenStatistics, exact_kl, token_logprobs

HEAD_WIDTH = 1024
"""Hidden width of TBPO-Q's baseline head (TokenRatio paper)."""


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adaptation (Hu et al., 2021, arXiv 2106.09685)."""

    rank: int = 8
    alpha: int = 16
    dropout: float = 0.0
    targets: tuple[str, ...] = ("q_proj", "v_proj")


@dataclass(frozen=True)
class Batch:
    """2B sequences (B chosen, then B rejected), right-padded.

    Attributes:
        tokens: (2B, L) ids. attention: (2B, L) 1 where a token stands.
        positions: (2B, T) index of the state that predicts each response token.
        targets: (2B, T) response token ids. mask: (2B, T) bool, True where a token stands.
    """

    tokens: Tensor
    attention: Tensor
    positions: Tensor
    targets: Tensor
    mask: Tensor


def collate(pairs: Sequence[TokenPair], pad: int) -> Batch:
    """Return the padded batch of ``pairs``, chosen answers first."""
    rows = [(p.prompt, p.chosen) for p in pairs] + [(p.prompt, p.rejected) for p in pairs]
    length = max(len(prompt) + len(answer) for prompt, answer in rows)
    width = max(len(answer) for _, answer in rows)
    tokens = torch.full((len(rows), length), pad, dtype=torch.long)
    attention = torch.zeros((len(rows), length), dtype=torch.long)
    targets = torch.full((len(rows), width), pad, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.bool)
    positions = torch.zeros((len(rows), width), dtype=torch.long)
    for i, (prompt, answer) in enumerate(rows):
        both = torch.tensor([*prompt, *answer])
        tokens[i, : len(both)] = both
        attention[i, : len(both)] = 1
        targets[i, : len(answer)] = both[len(prompt) :]
        mask[i, : len(answer)] = True
        start = len(prompt) - 1
        positions[i, : len(answer)] = torch.arange(start, start + len(answer))
    return Batch(tokens, attention, positions, targets, mask)


class BaselineHead(nn.Module):
    """b_phi: scalar head on the final hidden state, one hidden layer of 1024 with GELU.

    Estimates log Z of a state (TokenRatio paper, TBPO-Q). It sees detached hidden states, so no
    gradient reaches the backbone. The last layer starts at zero: training starts at w = 1.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, HEAD_WIDTH)
        self.outer = nn.Linear(HEAD_WIDTH, 1)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return (..., ) values, nats, of (..., D) hidden states."""
        values: Tensor = self.outer(nn.functional.gelu(self.inner(hidden.detach().float())))
        return values.squeeze(-1)


class LoraPolicy:
    """A causal language model with a LoRA adapter; the reference is the model without it."""

    def __init__(self, folder: Path, settings: LoraSettings, *, bfloat16: bool = True) -> None:
        from peft import LoraConfig, TaskType, get_peft_model
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.bfloat16 = bfloat16
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        dtype = torch.bfloat16 if bfloat16 else torch.float32
        base: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        base = base.to(self.device)
        config = LoraConfig(
            task_type=TaskType.CAUSAL_LM,
            r=settings.rank,
            lora_alpha=settings.alpha,
            lora_dropout=settings.dropout,
            target_modules=list(settings.targets),
        )
        self.model: Any = get_peft_model(base, config).eval()
        for weight in self.trainable():
            weight.data = weight.data.float()

    @classmethod
    def trained(cls, folder: Path, adapter: Path, settings: LoraSettings) -> Self:
        """Return the policy of a saved adapter in float32, to be measured."""
        from peft import set_peft_model_state_dict
        from safetensors.torch import load_file

        policy = cls(folder, settings, bfloat16=False)
        set_peft_model_state_dict(policy.model, load_file(adapter / "adapter_model.safetensors"))
        return policy

    @property
    def hidden_size(self) -> int:
        """Width D of the final hidden state."""
        return int(self.model.config.hidden_size)

    @property
    def pad(self) -> int:
        """Token id used for padding."""
        ids = self.tokenizer
        return int(ids.eos_token_id if ids.pad_token_id is None else ids.pad_token_id)

    def trainable(self) -> list[nn.Parameter]:
        """Return the adapter's parameters."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def set_dropout(self, active: bool) -> None:
        """Switch the adapter's dropout; the base model's own stays off, as in the reference."""
        for name, module in self.model.named_modules():
            if ".lora_dropout." in name:
                module.train(active)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.bfloat16:
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    def _states(self, batch: Batch) -> Tensor:
        """(2B, T, D) final hidden states at the response positions."""
        backbone = self.model.get_base_model().model
        out = backbone(
            input_ids=batch.tokens.to(self.device), attention_mask=batch.attention.to(self.device)
        ).last_hidden_state
        rows = torch.arange(len(out), device=self.device).unsqueeze(-1)
        states: Tensor = out[rows, batch.positions.to(self.device)]
        return states

    def _logits(self, states: Tensor) -> Tensor:
        logits: Tensor = self.model.get_base_model().lm_head(states)
        return logits.float()

    def reference_logprobs(self, batch: Batch) -> Tensor:
        """Return (2B, T) log pi_ref of the response tokens, nats: the adapter is switched off."""
        with torch.no_grad(), self.model.disable_adapter(), self._autocast():
            logits = self._logits(self._states(batch))
        return token_logprobs(logits, batch.targets.to(self.device))

    def statistics(
        self, batch: Batch, reference: Tensor, head: BaselineHead | None, *, kl: bool
    ) -> TokenStatistics:
        """Return the policy's statistics with gradient; ``reference`` as reference_logprobs."""
        with self._autocast():
            states = self._states(batch)
            logits = self._logits(states)
        policy = token_logprobs(logits, batch.targets.to(self.device))
        divergence = None
        if kl:
            with torch.no_grad(), self.model.disable_adapter(), self._autocast():
                reference_logits = self._logits(self._states(batch))
            divergence = exact_kl(reference_logits, logits)
        mask = batch.mask.to(self.device)
        baseline = head(states) if head is not None else None
        return TokenStatistics(policy, reference.to(self.device), mask, baseline, divergence)

    def save(self, folder: Path) -> None:
        """Write the adapter as a PEFT folder in bfloat16; the policy keeps the rounded weights.

        Raises:
            TrainingError: a weight is NaN or infinite.
        """
        for name, weight in self.model.named_parameters():
            if weight.requires_grad and not torch.isfinite(weight).all():
                raise TrainingError(f"adapter weight {name} is not finite; nothing was saved")
        for weight in self.trainable():
            weight.data = weight.data.to(torch.bfloat16)
        self.model.save_pretrained(folder, safe_serialization=True)
        # PEFT's model card is a form of blanks that quotes the base's local path.
        (folder / "README.md").unlink(missing_ok=True)
        for weight in self.trainable():
            weight.data = weight.data.float()


def halves(stats: TokenStatistics) -> tuple[TokenStatistics, TokenStatistics]:
    """Split statistics of 2B sequences into those of B chosen and B rejected answers."""

    def part(value: Tensor | None, first: bool) -> Tensor | None:
        if value is None:
            return None
        middle = len(value) // 2
        return value[:middle] if first else value[middle:]

    def side(first: bool) -> TokenStatistics:
        policy, reference, mask = (
            part(v, first) for v in (stats.policy, stats.reference, stats.mask)
        )
        assert policy is not None
        assert reference is not None
        assert mask is not None
        return TokenStatistics(
            policy, reference, mask, part(stats.baseline, first), part(stats.kl, first)
        )

    return side(True), side(False)
