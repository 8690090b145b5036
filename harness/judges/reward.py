"""A pairwise judge that needs no network: a Bradley-Terry reward model on the embedded base model.

A frozen language model reads a rendered dialogue x and an answer y. The reward is

    r(x, y) = sum_k p_k(x) (w_k . phi(x, y) - c_k),  k in (answer, refuse)

with phi the answer's pooled hidden states and p_answer(x) = 1 - p_refuse(x) = sigmoid(v . psi(x))
a gate on the dialogue's hidden states: what people prefer differs between ordinary requests and
risky ones (a longer answer is the better one in the former, the worse one in the latter). Answers
are compared by P(a beats b) = sigmoid(scale (r_a - r_b)) (Bradley and Terry, 1952; Ouyang et al.,
2022, arXiv 2203.02155, equation 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationError

from harness.engines.batching import batches
from harness.errors import CheckpointError, InputError
from harness.files import read_json, sha256_file
from harness.processor import computes_bfloat16
from harness.prompts import load_tokenizer, render
from harness.types import Message, Record, Role

if TYPE_CHECKING:
    from torch import Tensor

MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"


class Recipe(Record):
    """What turns a dialogue and an answer into features; all that inference depends on.

    Attributes:
        layers: hidden states that phi reads; n is the output of the n-th decoder layer.
        pools: ``last`` reads the answer's end-of-sequence position, ``mean`` averages its
            positions.
        gate_layer: hidden state that psi reads, averaged over the dialogue's positions but the
            first (an attention sink).
        max_prompt: tokens; beyond it the oldest turns are dropped.
        max_answer: tokens, end-of-sequence included; beyond it an answer is cut.
        batch_tokens: padded tokens in one forward pass.
    """

    layers: tuple[int, ...] = Field(min_length=1)
    pools: tuple[Literal["last", "mean"], ...] = Field(min_length=1)
    gate_layer: int = Field(ge=1)
    max_prompt: int = Field(ge=8)
    max_answer: int = Field(ge=2)
    batch_tokens: int = Field(ge=1)

    @property
    def depth(self) -> int:
        """Number of decoder layers that must be run."""
        return max(*self.layers, self.gate_layer)


class Base(Record):
    """The frozen language model below the head."""

    name: str
    hub_id: str
    weights_sha256: str
    dtype: Literal["bfloat16", "float32"]


class Agreement(Record):
    """How often a score prefers the answer that a human preferred.

    Attributes:
        correct: pairs ordered as the human did; ``ties`` (equal scores) are not among them.
        share: correct / n. low, high: Wilson's 95 % interval of it.
        contains_half: whether the interval contains 0.5, the share of a coin.
    """

    correct: int = Field(ge=0)
    ties: int = Field(ge=0)
    n: int = Field(ge=1)
    share: float
    low: float
    high: float
    contains_half: bool


class DataFile(Record):
    """A data file: ``rows`` as read, ``used`` after pairs that cannot be used were left out."""

    file: str
    sha256: str
    rows: int
    used: int


class Variant(Record):
    """A variant that was tried, and its agreement on training rows that it was not fitted on.

    Attributes:
        log_loss: mean -log sigmoid(r_chosen - r_rejected), nats; ln 2 = 0.693 for a coin.
    """

    name: str
    protocol: str
    accuracy: float
    log_loss: float | None
    n: int
    kept: bool = False


class RewardManifest(Record):
    """What a reward model is, how it was fitted and how well it agrees with humans.

    Attributes:
        training: hyper-parameters of the fit, by name.
        scale: calibration; the factor on a reward difference before the sigmoid.
        validation: out-of-fold agreement of the kept variant.
        test: agreement on rows never used for fitting or choosing, measured once.
        longer_answer_wins: agreement of "the longer answer is better" on the same test rows.
        files: SHA-256 of the weight file, by name.
    """

    schema_version: Literal[1] = 1
    what: str
    base: Base
    recipe: Recipe
    training: dict[str, Any]
    scale: float = Field(gt=0)
    seed: int
    fitted_on: tuple[DataFile, ...]
    measured_on: tuple[DataFile, ...]
    measured: str
    variants: tuple[Variant, ...] = ()
    validation: dict[str, Agreement]
    test: dict[str, Agreement]
    longer_answer_wins: dict[str, Agreement]
    notes: tuple[str, ...] = ()
    files: dict[str, str]


@dataclass(frozen=True)
class Encoded:
    """Token ids of a rendered dialogue and of one answer to it, end-of-sequence included."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


def encode_prompt(tokenizer: Any, dialogue: Sequence[Message], limit: int) -> tuple[int, ...]:
    """Return the token ids of a dialogue in the chat template, generation marker included.

    The oldest turns are dropped until at most ``limit`` tokens are left; a leading system message
    stays, and so does the last user turn, whatever its length.

    Raises:
        InputError: the dialogue has no user turn.
    """
    system = tuple(m for m in dialogue[:1] if m.role == Role.SYSTEM)
    starts = [i for i, m in enumerate(dialogue) if m.role == Role.USER]
    if not starts:
        raise InputError("a dialogue without a user turn cannot be judged. Give the user's turn.")
    ids: tuple[int, ...] = ()
    for start in starts:
        ids = tuple(render(tokenizer, (*system, *dialogue[start:])))
        if len(ids) <= limit:
            break
    return ids


def encode_answer(tokenizer: Any, answer: str, limit: int) -> tuple[int, ...]:
    """Return at most ``limit`` token ids of an answer, the last being end-of-sequence."""
    ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
    return (*ids[: limit - 1], tokenizer.eos_token_id)


def encode(
    tokenizer: Any,
    recipe: Recipe,
    dialogues: Sequence[tuple[Message, ...]],
    answers: Sequence[str],
) -> list[Encoded]:
    """Return the tokens of every (dialogue, answer); a dialogue is rendered once.

    Raises:
        InputError: the two sequences differ in length, or a dialogue has no user turn.
    """
    if len(dialogues) != len(answers):
        raise InputError(
            f"{len(dialogues)} dialogues but {len(answers)} answers. Give one dialogue per answer."
        )
    prompts = {d: encode_prompt(tokenizer, d, recipe.max_prompt) for d in set(dialogues)}
    return [
        Encoded(prompts[d], encode_answer(tokenizer, a, recipe.max_answer))
        for d, a in zip(dialogues, answers, strict=True)
    ]


def arithmetic(dtype: str) -> str:
    """Return what a model of ``dtype`` is computed in here: float32 where bfloat16 is emulated."""
    return "float32" if dtype == "bfloat16" and not computes_bfloat16() else dtype


def load_backbone(folder: Path, recipe: Recipe, dtype: str) -> Any:
    """Return the base model in ``folder``, cut above the last layer that the recipe reads.

    Weights are rounded to ``dtype`` and then computed in what ``arithmetic`` says.

    Raises:
        CheckpointError: the model has fewer layers than the recipe reads.
    """
    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    if len(model.layers) < recipe.depth:
        raise CheckpointError(
            f"{folder} has {len(model.layers)} decoder layers, the reward model reads layer "
            f"{recipe.depth}. Give the base model that its manifest names."
        )
    model.layers = model.layers[: recipe.depth]
    model.norm = torch.nn.Identity()
    return model.to(getattr(torch, arithmetic(dtype))).requires_grad_(False)


def _hidden_states(model: Any, batch: Sequence[Encoded]) -> tuple[Tensor, ...]:
    """Return hidden states (B, T, D), one for each layer; causal, so right padding is unseen."""
    import torch

    ids = torch.zeros(len(batch), max(map(len, batch)), dtype=torch.long)
    for row, item in enumerate(batch):
        ids[row, : len(item)] = torch.tensor(item.prompt + item.answer)
    output = model(input_ids=ids, use_cache=False, output_hidden_states=True)
    return tuple(output.hidden_states)


def pooled_features(model: Any, recipe: Recipe, batch: Sequence[Encoded]) -> tuple[Tensor, Tensor]:
    """Return phi (B, layers x pools x D) of the answers and psi (B, D) of the dialogues, float32.

    Must run under ``torch.inference_mode`` or ``no_grad``.
    """
    import torch

    states = _hidden_states(model, batch)
    phi: list[Tensor] = []
    psi: list[Tensor] = []
    for row, item in enumerate(batch):
        start, end = len(item.prompt), len(item)
        parts: list[Tensor] = []
        for layer in recipe.layers:
            answer = states[layer][row, start:end].float()
            parts += [answer[-1] if pool == "last" else answer.mean(0) for pool in recipe.pools]
        phi.append(torch.cat(parts))
        psi.append(states[recipe.gate_layer][row, 1:start].float().mean(0))
    return torch.stack(phi), torch.stack(psi)


@dataclass(frozen=True)
class Head:
    """The fitted part, float32.

    Attributes:
        weight: (2, F) w_k; row 0 for ordinary requests (answer), row 1 for risky ones (refuse).
        offset: (2,) c_k, which centres the rewards of the training rows.
        gate: (D,) v. gate_bias: (1,).
    """

    weight: Tensor
    offset: Tensor
    gate: Tensor
    gate_bias: Tensor

    def ordinary(self, psi: Tensor) -> Tensor:
        """(B,) p_answer: the gate's probability that a request is an ordinary one."""
        return (psi @ self.gate + self.gate_bias).sigmoid()

    def rewards(self, phi: Tensor, psi: Tensor) -> Tensor:
        """(B,) rewards of phi (B, F) and psi (B, D)."""
        ordinary = self.ordinary(psi)
        each = phi @ self.weight.T - self.offset
        return ordinary * each[:, 0] + (1 - ordinary) * each[:, 1]


def _read_manifest(folder: Path) -> RewardManifest:
    file = folder / MANIFEST
    try:
        return RewardManifest.model_validate(read_json(file))
    except ValidationError as error:
        raise CheckpointError(f"{file} is not a reward model's manifest: {error}") from error


def _read_head(folder: Path, manifest: RewardManifest) -> Head:
    from safetensors.torch import load_file

    file = folder / WEIGHTS
    found = sha256_file(file) if file.is_file() else "none (no such file)"
    if found != manifest.files.get(WEIGHTS):
        raise CheckpointError(
            f"{file} has SHA-256 {found}, its manifest says {manifest.files.get(WEIGHTS)}. "
            "Restore the folder; weights and manifest belong together."
        )
    return Head(**load_file(file))


def _check_base(folder: Path, expected: Base) -> None:
    from harness.adapters.identity import weights_sha256

    found = weights_sha256(folder)
    if found != expected.weights_sha256:
        raise CheckpointError(
            f"{folder} holds weights {found}, the reward model was fitted on {expected.name} "
            f"({expected.weights_sha256}). Give that base, or leave it out for the embedded one."
        )


class RewardModel:
    """A fitted reward model, ready to score answers."""

    def __init__(self, manifest: RewardManifest, tokenizer: Any, model: Any, head: Head) -> None:
        self.manifest = manifest
        self._tokenizer = tokenizer
        self._model = model
        self._head = head

    @classmethod
    def load(cls, folder: Path, base: Path | None = None) -> RewardModel:
        """Load the model in ``folder`` on its base (None: the embedded model that it names).

        Raises:
            CheckpointError: manifest or weights are damaged, or ``base`` holds other weights than
                those the model was fitted on.
        """
        from harness.adapters.embedded import embedded_folder

        manifest = _read_manifest(folder)
        head = _read_head(folder, manifest)
        base = embedded_folder(manifest.base.name) if base is None else base
        _check_base(base, manifest.base)
        model = load_backbone(base, manifest.recipe, manifest.base.dtype)
        return cls(manifest, load_tokenizer(str(base)), model, head)

    def rewards(
        self,
        dialogues: Sequence[tuple[Message, ...]],
        answers: Sequence[str],
        on_progress: Callable[[int], None] | None = None,
    ) -> list[float]:
        """Return one reward per answer, in order; only differences on one dialogue mean anything.

        Args:
            dialogues: the turns before each answer.
            answers: one per dialogue.
            on_progress: called after every batch with the number of answers in it.

        Raises:
            InputError: the sequences differ in length, or a dialogue has no user turn.
        """
        items = encode(self._tokenizer, self.manifest.recipe, dialogues, answers)
        scored: dict[int, float] = {}
        for group in batches([len(i) for i in items], self.manifest.recipe.batch_tokens):
            values = self._score([items[i] for i in group])
            scored.update(zip(group, values, strict=True))
            if on_progress is not None:
                on_progress(len(group))
        return [scored[i] for i in range(len(items))]

    def _score(self, batch: Sequence[Encoded]) -> list[float]:
        import torch

        with torch.inference_mode():
            phi, psi = pooled_features(self._model, self.manifest.recipe, batch)
            return [float(r) for r in self._head.rewards(phi, psi)]

    def probability(self, a: float, b: float) -> float:
        """Return P(answer with reward ``a`` beats one with ``b``), calibrated on held-out rows."""
        return probability(a, b, self.manifest.scale)


def probability(a: float, b: float, scale: float) -> float:
    """Return sigmoid(scale (a - b)), without overflow."""
    half = 0.5 * scale * (a - b)
    return 0.5 * (1.0 + math.tanh(half))
