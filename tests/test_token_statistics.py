"""Chunked token statistics against the same numbers from whole logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from harness.errors import InputError
from harness.training import token_statistics
from harness.training.token_statistics import TokenReadings, token_readings

NAMES = [field.name for field in fields(TokenReadings)]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a chunk of these small cases hold more than one block."""
    monkeypatch.setattr(token_statistics, "CPU_BLOCK", 4 * 50)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)


def case(
    *, count: int = 23, dtype: torch.dtype = torch.float32, bias: bool = False, shared: bool = False
) -> dict[str, Any]:
    """Inputs of ``count`` positions, 50 tokens, 8 and 6 (reference) hidden units."""
    made = torch.Generator().manual_seed(5)

    def values(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=made).to(dtype)

    weight = values(50, 8)
    width = 8 if shared else 6
    return {
        "states": values(count, 8),
        "weight": weight,
        "reference_states": values(count, width),
        "reference_weight": weight if shared else values(50, width),
        "targets": torch.randint(50, (count,), generator=made),
        "bias": values(50) if bias else None,
        "reference_bias": values(50) if bias else None,
    }


def whole(given: dict[str, Any]) -> TokenReadings:
    """The definition, on the whole logits, with gradient everywhere."""
    logits = F.linear(given["states"], given["weight"], given["bias"])
    reference_logits = F.linear(
        given["reference_states"], given["reference_weight"].detach(), given["reference_bias"]
    )
    kind = torch.float64 if logits.dtype == torch.float64 else torch.float32
    policy = logits.to(kind).log_softmax(-1)
    reference = reference_logits.to(kind).log_softmax(-1)
    at = given["targets"].unsqueeze(-1)
    return TokenReadings(
        policy.gather(-1, at).squeeze(-1),
        reference.gather(-1, at).squeeze(-1),
        (reference.exp() * (reference - policy)).sum(-1),
        (policy.exp() * (policy - reference)).sum(-1),
        -(policy.exp() * policy).sum(-1),
    )


def objective(readings: TokenReadings, *names: str) -> Tensor:
    """A scalar in which every position and every named reading has a weight of its own."""
    parts = [
        (getattr(readings, name) * torch.linspace(-1.0, 2.0 + i, len(readings.policy))).sum()
        for i, name in enumerate(names)
    ]
    return torch.stack(parts).sum()


def gradients(
    given: dict[str, Any],
    read: Callable[[dict[str, Any]], TokenReadings],
    leaves: tuple[str, ...],
    names: tuple[str, ...],
) -> list[Tensor]:
    fresh = given | {name: given[name].detach().clone().requires_grad_() for name in leaves}
    if given["reference_weight"] is given["weight"]:
        fresh["reference_weight"] = fresh["weight"]
    return list(
        torch.autograd.grad(objective(read(fresh), *names), [fresh[name] for name in leaves])
    )


def chunked(names: tuple[str, ...], chunk: int = 7) -> Callable[[dict[str, Any]], TokenReadings]:
    return lambda given: token_readings(
        **given,
        kl_gradient="kl" in names,
        reverse_kl_gradient="reverse_kl" in names,
        chunk=chunk,
    )


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("chunk", [1, 7, 23, 1000])
def test_values_equal_those_of_whole_logits(bias: bool, shared: bool, chunk: int) -> None:
    given = case(bias=bias, shared=shared)
    found, wanted = token_readings(**given, chunk=chunk), whole(given)
    for name in NAMES:
        torch.testing.assert_close(
            getattr(found, name), getattr(wanted, name), rtol=0, atol=1e-5, msg=name
        )


@pytest.mark.parametrize(
    "names",
    [
        ("policy",),
        ("policy", "kl"),
        ("policy", "reverse_kl"),
        ("kl",),
        ("policy", "kl", "reverse_kl"),
    ],
)
@pytest.mark.parametrize(
    "leaves", [("states",), ("states", "weight"), ("states", "weight", "bias"), ("weight",)]
)
@pytest.mark.parametrize("shared", [False, True])
def test_gradients_equal_those_of_whole_logits(
    names: tuple[str, ...], leaves: tuple[str, ...], shared: bool
) -> None:
    given = case(bias="bias" in leaves, shared=shared)
    found = gradients(given, chunked(names), leaves, names)
    wanted = gradients(given, whole, leaves, names)
    for leaf, one, other in zip(leaves, found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5, msg=leaf)


@pytest.mark.parametrize("trained", [("states",), ("states", "weight", "bias")])
def test_gradcheck(trained: tuple[str, ...]) -> None:
    given = case(count=5, dtype=torch.float64, bias=True)
    names = ("policy", "kl", "reverse_kl")

    def outputs(*leaves: Tensor) -> tuple[Tensor, ...]:
        readings = chunked(names, 2)(given | dict(zip(trained, leaves, strict=True)))
        return tuple(getattr(readings, name) for name in names)

    assert torch.autograd.gradcheck(outputs, [given[n].clone().requires_grad_() for n in trained])


def test_only_what_was_asked_carries_gradient() -> None:
    given = case()
    given["states"].requires_grad_()
    plain = token_readings(**given)
    assert [getattr(plain, name).requires_grad for name in NAMES] == [True, *[False] * 4]
    both = token_readings(**given, kl_gradient=True, reverse_kl_gradient=True)
    assert [getattr(both, name).requires_grad for name in NAMES] == [True, False, True, True, False]


def test_the_reference_gets_no_gradient() -> None:
    given = case()
    for name in ("states", "reference_states", "reference_weight"):
        given[name].requires_grad_()
    objective(chunked(("policy", "kl"))(given), "policy", "kl").backward()
    assert given["states"].grad is not None
    assert given["reference_states"].grad is None
    assert given["reference_weight"].grad is None


def kept(given: dict[str, Any]) -> list[tuple[int, ...]]:
    """Shapes of the tensors that the graph keeps for the backward pass."""
    shapes: list[tuple[int, ...]] = []

    def pack(tensor: Tensor) -> Tensor:
        shapes.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        chunked(("policy", "kl"))(given)
    return shapes


def test_what_is_kept_for_the_backward_pass_has_no_vocabulary() -> None:
    given = case()
    given["states"].requires_grad_()
    assert kept(given) == [(2, 23, 8)]


def forward_products(monkeypatch: pytest.MonkeyPatch, given: dict[str, Any]) -> list[int]:
    """Widths of the matrix products of one forward pass over one chunk."""
    widths: list[int] = []
    plain = torch.mm

    def watched(one: Tensor, other: Tensor, *, out: Tensor) -> Tensor:
        widths.append(other.shape[1])
        return plain(one, other, out=out)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "mm", watched)
        chunked(("policy", "kl"), chunk=100)(given)
    return widths


def test_derivatives_are_made_early_only_for_states(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = [50, 50]
    given = case()
    assert forward_products(monkeypatch, given) == logits
    given["states"].requires_grad_()
    assert forward_products(monkeypatch, given) == [*logits, 8, 8]
    with torch.no_grad():
        assert forward_products(monkeypatch, given) == logits
        assert not token_readings(**given).policy.requires_grad
    given["weight"].requires_grad_()
    assert forward_products(monkeypatch, given) == logits


def test_buffers_hold_one_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    plain = torch.softmax

    def watched(values: Tensor, *rest: Any, **options: Any) -> Tensor:
        sizes.append(len(values))
        return plain(values, *rest, **options)

    monkeypatch.setattr(torch, "softmax", watched)
    token_readings(**case(), chunk=7)
    assert max(sizes) == 4
    assert sum(sizes) == 2 * 23


def test_no_positions() -> None:
    given = case(count=0)
    leaves, names = ("states", "weight"), ("policy", "kl")
    assert chunked(names)(given).kl.shape == (0,)
    by_states, by_weight = gradients(given, chunked(names), leaves, names)
    assert by_states.shape == (0, 8)
    assert not by_weight.any()


@pytest.mark.parametrize("leaves", [("states",), ("states", "weight")])
def test_bfloat16_weights_are_read_in_float32(leaves: tuple[str, ...]) -> None:
    given, names = case(dtype=torch.bfloat16), ("policy", "kl")
    found, wanted = chunked(names)(given), whole(given)
    for name in NAMES:
        assert getattr(found, name).dtype == torch.float32
        torch.testing.assert_close(getattr(found, name), getattr(wanted, name), rtol=0, atol=1e-5)
    pairs = zip(
        gradients(given, chunked(names), leaves, names),
        gradients(given, whole, leaves, names),
        strict=True,
    )
    for one, other in pairs:
        assert one.dtype == torch.bfloat16
        torch.testing.assert_close(one, other, rtol=2e-2, atol=4e-2)


def test_autocast_products_and_float32_gradients() -> None:
    given = case(shared=True)
    given["states"].requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = token_readings(**given)
        objective(found, "policy").backward()
    rounded = {k: v.bfloat16() if k.endswith(("states", "weight")) else v for k, v in given.items()}
    torch.testing.assert_close(found.policy, whole(rounded).policy, rtol=0, atol=1e-5)
    assert found.policy.dtype == given["states"].grad.dtype == torch.float32


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_not_hidden(bad: float) -> None:
    given = case()
    given["states"][3, 2] = bad
    given["states"].requires_grad_()
    found = chunked(("policy",))(given)
    for name in ("policy", "kl", "reverse_kl", "entropy"):
        values = getattr(found, name)
        assert values.isfinite().sum() == 22
        assert not values[3].isfinite()
    found.policy.sum().backward()
    assert not given["states"].grad[3].isfinite().any()
    assert given["states"].grad[4].isfinite().all()


def test_a_second_derivative_is_refused() -> None:
    given = case()
    given["states"].requires_grad_()
    loss = token_readings(**given).policy.square().sum()
    (first,) = torch.autograd.grad(loss, given["states"], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"states": torch.zeros(23, 9)}, r"policy: states \(23, 9\) and head \(50, 8\)"),
        ({"reference_states": torch.zeros(22, 6)}, "cover 23 positions, reference states 22"),
        ({"reference_weight": torch.zeros(51, 6)}, "50 tokens, the reference's 51"),
        ({"reference_weight": torch.zeros(50, 6).bfloat16()}, "load both models in one dtype"),
        ({"bias": torch.zeros(49)}, r"policy: bias \(49,\) must be \(50,\)"),
        ({"targets": torch.zeros(22, dtype=torch.long)}, r"targets are \(22,\) torch.int64"),
        ({"targets": torch.zeros(23)}, r"targets are \(23,\) torch.float32"),
        ({"targets": torch.arange(23) - 20}, "target -20 at position 0 is outside"),
        ({"targets": torch.arange(23) + 30}, "target 50 at position 20 is outside"),
        ({"chunk": 0}, "chunk must be at least one position, got 0"),
    ],
)
def test_inputs_that_do_not_fit(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        token_readings(**case() | change)
