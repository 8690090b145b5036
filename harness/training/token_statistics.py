"""Per-token statistics of policy and reference over the whole vocabulary, in chunks of positions.

With z the policy's logits at a state, p = softmax(z), r the reference's distribution and a the
observed token, the statistics and their derivatives by z are

    log p(a)       e_a - p
    KL(r || p)     p - r
    KL(p || r)     p * (log p - log r - KL(p || r))
    entropy of p   not needed

A chunk of logits exists only while it is read. While the head is frozen (LoRA) the derivative by
the hidden state is known in the forward pass, one (D,) row a position and statistic, and the
backward pass scales it. A head that is trained also needs the derivative by its weight, which
depends on the incoming gradient, so the backward pass computes each chunk again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from harness.errors import InputError

CHUNK = 256
"""Positions whose logits exist at once: half as many make a bfloat16 product a quarter slower."""

CPU_BLOCK = 2**22
"""Elements of a block on a CPU.

More leave the caches; fewer mean more barriers between threads, and each waits where cores are
shared.
"""


@dataclass(frozen=True)
class TokenReadings:
    """Statistics at N positions, (N,) each, nats; float32, or float64 from float64 weights.

    Attributes:
        policy: log pi_theta of the target, with gradient.
        reference: log pi_ref of the target.
        kl: KL(pi_ref || pi_theta) over the vocabulary, with gradient where asked.
        reverse_kl: KL(pi_theta || pi_ref) over the vocabulary, with gradient where asked.
        entropy: of pi_theta over the vocabulary.
    """

    policy: Tensor
    reference: Tensor
    kl: Tensor
    reverse_kl: Tensor
    entropy: Tensor


def token_readings(
    states: Tensor,
    weight: Tensor,
    reference_states: Tensor,
    reference_weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    reference_bias: Tensor | None = None,
    kl_gradient: bool = False,
    reverse_kl_gradient: bool = False,
    chunk: int = CHUNK,
) -> TokenReadings:
    """Return the statistics of ``targets`` without the logits of more than ``chunk`` positions.

    Logits are products in the weights' dtype, or in autocast's where that is on, and are read in
    float32. Gradients reach ``states``, ``weight`` and ``bias``, once differentiable; the reference
    gets none. Values that are not finite are not hidden.

    Args:
        states: (N, D) final hidden states of the policy. weight: (V, D) of its head.
        reference_states: (N, E) of the reference. reference_weight: (V, E), may be ``weight``.
        targets: (N,) ids of the observed tokens.
        bias, reference_bias: (V,) of the heads, or None.
        kl_gradient, reverse_kl_gradient: whether ``kl`` and ``reverse_kl`` carry gradient, which
            costs a matrix product each.

    Raises:
        InputError: shapes or dtypes that do not fit, or a target outside the vocabulary.
    """
    head = _Head.of(states, weight, bias)
    # Autocast's copy of a shared weight is not made a second time.
    shared = head.weight if reference_weight is weight else reference_weight
    reference = _Head.of(reference_states, shared, reference_bias).detached()
    _check_heads(head, reference)
    _check_targets(targets, head)
    if chunk < 1:
        raise InputError(f"chunk must be at least one position, got {chunk}")
    graph = torch.is_grad_enabled()
    sought = _Sought(graph, graph and kl_gradient, graph and reverse_kl_gradient)
    task = _Task(reference, targets, sought, chunk)
    values = _Readings.apply(head.states, head.weight, head.bias, task)  # type: ignore[no-untyped-call]
    return TokenReadings(*values)


class _Sought(NamedTuple):
    """Which readings carry gradient."""

    policy: bool
    kl: bool
    reverse_kl: bool


_NOTHING = _Sought(False, False, False)


@dataclass(frozen=True)
class _Head:
    """Hidden states and the linear head that turns them into logits, all of one dtype."""

    states: Tensor
    weight: Tensor
    bias: Tensor | None

    @classmethod
    def of(cls, states: Tensor, weight: Tensor, bias: Tensor | None) -> _Head:
        dtype = _product_dtype(weight)
        return cls(states.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))

    @property
    def reading_dtype(self) -> torch.dtype:
        return torch.float64 if self.weight.dtype == torch.float64 else torch.float32

    def detached(self) -> _Head:
        bias = None if self.bias is None else self.bias.detach()
        return _Head(self.states.detach(), self.weight.detach(), bias)

    def logits(self, rows: slice, out: Tensor) -> None:
        if self.bias is None:
            torch.mm(self.states[rows], self.weight.T, out=out)
        else:
            torch.addmm(self.bias, self.states[rows], self.weight.T, out=out)


def _product_dtype(weight: Tensor) -> torch.dtype:
    device = weight.device.type
    if torch.is_autocast_enabled(device) and weight.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return weight.dtype


@dataclass(frozen=True)
class _Task:
    """What a pass over the chunks needs besides the policy's head."""

    reference: _Head
    targets: Tensor
    sought: _Sought
    chunk: int


class _Block:
    """Both models' distributions at a block of n positions, in borrowed (n, V) buffers."""

    def __init__(self, logits: Tensor, targets: Tensor, work: Tensor) -> None:
        self._targets = targets.unsqueeze(-1)
        buffers = work[:, : len(targets)].unbind()
        self._policy, self._reference, self._p, self._r, self._scratch, self._total = buffers
        self._normalise(logits[0], self._policy, self._p)
        self._normalise(logits[1], self._reference, self._r)

    def _normalise(self, logits: Tensor, logprobs: Tensor, probabilities: Tensor) -> None:
        self._scratch.copy_(logits)
        torch.log_softmax(self._scratch, -1, out=logprobs)
        torch.softmax(self._scratch, -1, out=probabilities)

    def _expected(self, probabilities: Tensor, values: Tensor) -> Tensor:
        return torch.mul(probabilities, values, out=self._scratch).sum(-1)

    def readings(self) -> Tensor:
        """Return (5, n) values in the order of TokenReadings."""
        policy = self._policy.gather(-1, self._targets).squeeze(-1)
        reference = self._reference.gather(-1, self._targets).squeeze(-1)
        entropy = -self._expected(self._p, self._policy)
        self._ratio = self._policy.sub_(self._reference)
        kl = -self._expected(self._r, self._ratio)
        self._reverse_kl = self._expected(self._p, self._ratio)
        return torch.stack([policy, reference, kl, self._reverse_kl, entropy])

    def slopes(self, sought: _Sought) -> Iterator[Tensor]:
        """Yield (n, V) derivatives by the policy's logits, each in the same buffer.

        Only after ``readings``.
        """
        if sought.policy:
            out = torch.neg(self._p, out=self._scratch)
            yield out.scatter_add_(-1, self._targets, torch.ones_like(out[:, :1]))
        if sought.kl:
            yield torch.sub(self._p, self._r, out=self._scratch)
        if sought.reverse_kl:
            out = torch.sub(self._ratio, self._reverse_kl.unsqueeze(-1), out=self._scratch)
            yield out.mul_(self._p)

    def slope(self, gradients: Tensor, sought: _Sought) -> Tensor:
        """Return (n, V): the sum of ``slopes``, weighted by ``gradients`` (K, n)."""
        total = self._total.zero_()
        for gradient, slope in zip(gradients, self.slopes(sought), strict=True):
            total.addcmul_(slope, gradient.unsqueeze(-1))
        return total


def _chunks(head: _Head, task: _Task, slots: int) -> Iterator[tuple[slice, Tensor]]:
    """Yield a range of n positions and (slots, n, V) buffers, the first two filled with logits.

    The buffers are the same for every chunk: on a CPU fresh memory of this size costs more in page
    faults than the arithmetic on it.
    """
    total = len(head.states)
    buffers = head.weight.new_empty(max(2, slots), min(task.chunk, total), len(head.weight))
    for start in range(0, total, task.chunk):
        rows = slice(start, min(start + task.chunk, total))
        part = buffers[:, : rows.stop - start]
        head.logits(rows, part[0])
        task.reference.logits(rows, part[1])
        yield rows, part


def _workspace(head: _Head, task: _Task) -> Tensor:
    """Return (6, n, V) buffers for a block, in the dtype of the readings."""
    vocabulary, device = len(head.weight), head.weight.device
    rows = min(task.chunk, len(head.states))
    if device.type == "cpu":
        # A row is one thread's work.
        rows = min(rows, max(torch.get_num_threads(), CPU_BLOCK // vocabulary))
    return torch.empty(6, rows, vocabulary, dtype=head.reading_dtype, device=device)


def _blocks(logits: Tensor, targets: Tensor, work: Tensor) -> Iterator[tuple[slice, _Block]]:
    """Yield the blocks of a chunk; each overwrites the one before."""
    size = work.shape[1]
    for start in range(0, len(targets), size):
        rows = slice(start, min(start + size, len(targets)))
        yield rows, _Block(logits[:2, rows], targets[rows], work)


def _read(head: _Head, task: _Task, sought: _Sought) -> tuple[Tensor, Tensor]:
    """Return (5, N) readings and (K, N, D) derivatives by the states of the K sought."""
    count, work = sum(sought), _workspace(head, task)
    readings = work.new_empty(5, len(head.states))
    slopes = head.states.new_empty(count, *head.states.shape)
    for rows, slots in _chunks(head, task, count):
        for part, block in _blocks(slots, task.targets[rows], work):
            readings[:, rows][:, part] = block.readings()
            # The block's logits have been read: their place is free.
            for slot, slope in zip(slots[:count, part], block.slopes(sought), strict=True):
                slot.copy_(slope)
        for slot, slope in zip(slots[:count], slopes[:, rows], strict=True):
            torch.mm(slot, head.weight, out=slope)
    return readings, slopes


def _head_gradients(
    head: _Head, task: _Task, gradients: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the gradients of states, weight and bias; ``gradients`` (K, N) are the readings'."""
    work = _workspace(head, task)
    by_states = torch.empty_like(head.states)
    by_weight = torch.zeros_like(head.weight, dtype=work.dtype)
    by_bias = None if head.bias is None else torch.zeros_like(head.bias, dtype=work.dtype)
    for rows, slots in _chunks(head, task, 2):
        for part, block in _blocks(slots, task.targets[rows], work):
            block.readings()
            slope = block.slope(gradients[:, rows][:, part], task.sought)
            slots[0, part].copy_(slope)
            if by_bias is not None:
                by_bias += slope.sum(0)
        torch.mm(slots[0], head.weight, out=by_states[rows])
        by_weight += slots[0].T @ head.states[rows]
    return by_states, by_weight, by_bias


class _Readings(torch.autograd.Function):
    """The five readings as a function of the policy's head."""

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, task: _Task
    ) -> tuple[Tensor, ...]:
        head = _Head(states, weight, bias)
        ctx.task, ctx.trained = task, any(ctx.needs_input_grad[1:3])
        early = ctx.needs_input_grad[0] and not ctx.trained
        with torch.autocast(weight.device.type, enabled=False):
            readings, slopes = _read(head, task, task.sought if early else _NOTHING)
        ctx.save_for_backward(*((states, weight, bias) if ctx.trained else (slopes,)))
        policy, reference, kl, reverse_kl, entropy = outputs = tuple(
            row.clone() for row in readings
        )
        sought = zip((policy, kl, reverse_kl), task.sought, strict=True)
        constant = [value for value, asked in sought if not asked]
        ctx.mark_non_differentiable(reference, entropy, *constant)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        policy, _, kl, reverse_kl, _ = gradients
        sought = zip((policy, kl, reverse_kl), ctx.task.sought, strict=True)
        incoming = torch.stack([gradient for gradient, asked in sought if asked])
        if not ctx.trained:
            (slopes,) = ctx.saved_tensors
            by_states = (incoming.unsqueeze(-1) * slopes).sum(0)
            return by_states.to(slopes.dtype), None, None, None
        head = _Head(*ctx.saved_tensors)
        with torch.autocast(head.weight.device.type, enabled=False):
            by_states, by_weight, by_bias = _head_gradients(head, ctx.task, incoming)
        dtype = head.weight.dtype
        return by_states, by_weight.to(dtype), None if by_bias is None else by_bias.to(dtype), None


def _check_heads(head: _Head, reference: _Head) -> None:
    _check_head("policy", head)
    _check_head("reference", reference)
    if len(reference.states) != len(head.states):
        raise InputError(
            f"policy states cover {len(head.states)} positions, reference states "
            f"{len(reference.states)}; read both models at the same positions"
        )
    if len(reference.weight) != len(head.weight):
        raise InputError(
            f"the policy's head has {len(head.weight)} tokens, the reference's "
            f"{len(reference.weight)}; a divergence needs one vocabulary"
        )
    if reference.weight.dtype != head.weight.dtype:
        raise InputError(
            f"the policy's head is {head.weight.dtype}, the reference's {reference.weight.dtype}; "
            "load both models in one dtype"
        )


def _check_head(name: str, head: _Head) -> None:
    states, weight, bias = head.states, head.weight, head.bias
    if states.dim() != 2 or weight.dim() != 2 or states.shape[1] != weight.shape[1]:
        raise InputError(
            f"{name}: states {tuple(states.shape)} and head {tuple(weight.shape)} must be (N, D) "
            "and (V, D)"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise InputError(
            f"{name}: bias {tuple(bias.shape)} must be ({len(weight)},), one value a token"
        )


def _check_targets(targets: Tensor, head: _Head) -> None:
    total, vocabulary = len(head.states), len(head.weight)
    if targets.shape != (total,) or targets.dtype != torch.long:
        raise InputError(
            f"targets are {tuple(targets.shape)} {targets.dtype}, expected ({total},) torch.int64, "
            "one token id a position"
        )
    outside = ((targets < 0) | (targets >= vocabulary)).nonzero()
    if len(outside):
        at = int(outside[0])
        raise InputError(
            f"target {int(targets[at])} at position {at} is outside the vocabulary of "
            f"{vocabulary}; leave masked positions out"
        )
