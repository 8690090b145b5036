"""The preference objectives: published values, definitions, gradients and invariances."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from metric_records import SHARED
from torch import Tensor

from harness.errors import InputError
from harness.training.objectives import (
    Dpo,
    Objective,
    TbpoA,
    TbpoQ,
    TokenStatistics,
    bregman,
    exact_kl,
    k3,
    token_logprobs,
)

REFERENCE_LOSSES = SHARED / "objectives" / "reference_losses.json.gz"

GENERATORS: dict[str, dict[str, Any]] = {
    "lr": {"name": "lr"},
    "kliep": {"name": "kliep"},
    "lsif": {"name": "lsif"},
    "ba_lam0": {"name": "ba", "lam": 0.0},
    "ba_lam0.5": {"name": "ba", "lam": 0.5},
    "ba_lam-0.5": {"name": "ba", "lam": -0.5},
    "sba_lam0": {"name": "sba"},
    "sba_lam1": {"name": "sba", "lam": 1.0},
    "sba_lam-0.5": {"name": "sba", "lam": -0.5},
    "sba_lam0.5_s1": {"name": "sba", "lam": 0.5, "s": 1.0},
}


def options(generator: str) -> dict[str, Any]:
    """The named generator as fields of an objective."""
    chosen = dict(GENERATORS[generator])
    return {"generator": chosen.pop("name"), **chosen}


TOKEN_LEVEL: list[Objective] = [
    *(TbpoQ(**options(name)) for name in GENERATORS),
    TbpoQ(centre=True, clamp=0.5),
    *(TbpoA(kl=kl, **options(name)) for kl in ("k3", "exact") for name in GENERATORS),
]
EVERY: list[Objective] = [Dpo(), Dpo(label_smoothing=0.2), *TOKEN_LEVEL]


def label(objective: Objective) -> str:
    fields = [
        str(v)
        for k, v in sorted(vars(objective).items())
        if k in ("generator", "kl", "lam", "s", "clamp", "label_smoothing")
    ]
    return "-".join([type(objective).__name__, *fields])


each = pytest.mark.parametrize("objective", EVERY, ids=label)
each_token_level = pytest.mark.parametrize("objective", TOKEN_LEVEL, ids=label)
each_generator = pytest.mark.parametrize("name", GENERATORS)


# Published values


def from_logits(case: dict[str, Any]) -> tuple[TokenStatistics, TokenStatistics]:
    """Statistics of a case: position t of the logits predicts label t + 1, -100 is no token."""
    policy, reference = (
        torch.tensor(case[k], dtype=torch.float64)[:, :-1]
        for k in ("policy_logits", "reference_logits")
    )
    labels = torch.tensor(case["labels"])[:, 1:]
    mask = labels != -100
    tokens = labels.masked_fill(~mask, 0)
    values = (
        token_logprobs(policy, tokens),
        token_logprobs(reference, tokens),
        mask,
        torch.tensor(case["baseline"], dtype=torch.float64)[:, :-1],
        exact_kl(reference, policy),
    )
    n = case["n_pairs"]
    return TokenStatistics(*(v[:n] for v in values)), TokenStatistics(*(v[n:] for v in values))


def objective_of(key: str, beta: float) -> Objective | None:
    """The objective behind a key of the file; None where this package has none."""
    kind, _, generator = key.partition("/")
    if key == "dpo":
        return Dpo(beta=beta)
    if kind == "tbpo_q_plain":
        return TbpoQ(beta=beta, **options(generator))
    if kind == "tbpo_q_centered":
        return TbpoQ(beta=beta, centre=True, clamp=10.0, **options(generator))
    if kind == "tbpo_a_full_kl":
        return TbpoA(beta=beta, kl="exact", **options(generator))
    return None


@pytest.mark.skipif(not REFERENCE_LOSSES.is_file(), reason="shared reference losses are absent")
def test_published_reference_losses() -> None:
    checked = set()
    with gzip.open(REFERENCE_LOSSES, "rt", encoding="utf-8") as stream:
        cases = json.load(stream)["cases"]
    for case in cases:
        sides = from_logits(case)
        for key, expected in case["expected"].items():
            objective = objective_of(key, case["beta"])
            if objective is not None:
                found = objective.losses(*sides).tolist()
                assert found == pytest.approx(expected, rel=0, abs=1e-9), key
                checked.add(key)
    # DPO and three token-level forms with six generators each.
    assert len(checked) == 19


# Generators


def definition(name: str, *, lam: float = 0.0, s: float = 4.0) -> Callable[[Tensor], Tensor]:
    """h(R) of a generator; at lam = 0 the limit of the power forms."""
    if name == "lr":
        return lambda r: (r * r.log() - (1 + r) * (1 + r).log()) / 2
    if name == "kliep":
        return lambda r: r * r.log() - r
    if name == "lsif":
        return lambda r: (r - 1) ** 2
    scale = {"ba": 1.0, "sba": 1 / (s * (lam + 1))}[name]
    if lam == 0:
        return lambda r: scale * r * r.log()
    return lambda r: scale * (r ** (1 + lam) - r) / lam


def derivative(h: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    point = at.detach().clone().requires_grad_()
    (slope,) = torch.autograd.grad(h(point).sum(), point)
    return slope


@each_generator
def test_generator_follows_the_definition_up_to_a_constant(name: str) -> None:
    h = definition(**GENERATORS[name])
    ratio = torch.linspace(0.1, 6.0, 41, dtype=torch.float64)
    expected = derivative(h, ratio) * ratio - h(ratio) - derivative(h, 1 / ratio)
    offset = bregman(**GENERATORS[name])(ratio.log()) - expected
    assert torch.allclose(offset, offset[0].expand_as(offset), rtol=0, atol=1e-9)


@each_generator
def test_loss_rises_with_the_ratio(name: str) -> None:
    """h'' > 0 makes l_h rise with R: a better margin never costs more."""
    log_r = torch.linspace(-4, 4, 81, dtype=torch.float64)
    assert (derivative(bregman(**GENERATORS[name]), log_r) > 0).all()


@pytest.mark.parametrize("lam", [1e-5, -1e-5])
@pytest.mark.parametrize(("name", "scale"), [("sba", 4.0), ("ba", 1.0)])
def test_power_generators_become_kliep_as_lam_vanishes(name: str, scale: float, lam: float) -> None:
    log_r = torch.linspace(-3, 3, 25, dtype=torch.float64)
    at_one = torch.zeros((), dtype=torch.float64)
    power, kliep = bregman(name, lam=lam, s=scale), bregman("kliep")
    found = power(log_r) - power(at_one)
    expected = (kliep(log_r) - kliep(at_one)) / scale
    assert torch.allclose(found, expected, rtol=0, atol=2e-3)
    limit = bregman(name, s=scale)
    assert torch.allclose(limit(log_r), kliep(log_r) / scale)


def test_sba_with_scale_four_has_the_gradient_of_dpo_at_ratio_one() -> None:
    at_one = torch.zeros(1, dtype=torch.float64)
    slopes = [derivative(bregman("sba", lam=lam, s=4.0), at_one).item() for lam in (0.0, 1.0, -0.5)]
    assert slopes == pytest.approx([derivative(bregman("lr"), at_one).item()] * 3)


@each_generator
def test_log_ratio_is_clamped_and_stays_finite_in_float32(name: str) -> None:
    loss = bregman(**GENERATORS[name])
    log_r = torch.tensor([-1e4, -30.0, 30.0, 1e4], requires_grad=True)
    values = loss(log_r)
    (slope,) = torch.autograd.grad(values.sum(), log_r)
    assert torch.isfinite(values).all()
    assert torch.isfinite(slope).all()
    assert values[0] == values[1]
    assert values[2] == values[3]
    assert slope[[0, 3]].tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("ba", {"lam": -1.0}),
        ("ba", {"lam": math.nan}),
        ("ba", {"lam": math.inf}),
        ("sba", {"lam": -1.5}),
        ("sba", {"lam": math.nan}),
        ("sba", {"s": 0.0}),
        ("sba", {"s": -4.0}),
        ("sba", {"s": math.nan}),
    ],
)
def test_unusable_lam_and_scale_are_refused(name: str, given: dict[str, float]) -> None:
    with pytest.raises(InputError, match=f"'{name}' needs"):
        bregman(name, **given)


@pytest.mark.parametrize("objective", [TbpoQ, TbpoA])
def test_objectives_refuse_a_bad_generator_when_they_are_made(objective: Any) -> None:
    with pytest.raises(InputError, match=r"unknown generator 'klep'. Did you mean 'kliep'\?"):
        objective(generator="klep")
    with pytest.raises(InputError, match="lam > -1"):
        objective(lam=-2.0)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Dpo(beta=0.0), "beta"),
        (lambda: TbpoQ(beta=-0.1), "beta"),
        (lambda: TbpoA(beta=math.nan), "beta"),
        (lambda: Dpo(label_smoothing=0.6), "label_smoothing"),
        (lambda: TbpoQ(clamp=0.0), "clamp"),
        (lambda: TbpoA(kl="k2"), "k3"),  # type: ignore[arg-type]
    ],
)
def test_values_out_of_range_are_refused(make: Callable[[], object], named: str) -> None:
    with pytest.raises(InputError, match=named):
        make()


# Objectives on random statistics

LENGTHS = ((4, 2), (3, 5), (1, 1))
"""Tokens of the chosen and the rejected response of each pair, padded to five."""
WIDTH = 5


def mask_of(side: int) -> Tensor:
    return torch.arange(WIDTH) < torch.tensor([pair[side] for pair in LENGTHS]).unsqueeze(-1)


COMMON = mask_of(0) & mask_of(1)


def random_sides(seed: int = 0) -> tuple[TokenStatistics, TokenStatistics]:
    """Statistics of both sides; every tensor with a gradient is a leaf."""
    made = torch.Generator().manual_seed(seed)

    def draw() -> Tensor:
        return torch.randn(len(LENGTHS), WIDTH, generator=made, dtype=torch.float64)

    def side(index: int) -> TokenStatistics:
        policy, baseline, kl = draw(), draw(), draw().abs()
        for leaf in (policy, baseline, kl):
            leaf.requires_grad_()
        return TokenStatistics(policy, draw(), mask_of(index), baseline, kl)

    return side(0), side(1)


def leaves(objective: Objective, side: TokenStatistics) -> dict[str, Tensor]:
    """What the objective reads of a side and passes gradient to."""
    found: dict[str, Tensor | None] = {"policy": side.policy}
    if objective.needs_baseline:
        found["baseline"] = side.baseline
    if objective.needs_kl:
        found["kl"] = side.kl
    return {name: value for name, value in found.items() if value is not None}


def gradients(
    objective: Objective, chosen: TokenStatistics, rejected: TokenStatistics
) -> list[dict[str, Tensor]]:
    given = [leaves(objective, side) for side in (chosen, rejected)]
    flat = [leaf for side in given for leaf in side.values()]
    found = iter(torch.autograd.grad(objective.losses(chosen, rejected).sum(), flat))
    return [{name: next(found) for name in side} for side in given]


@each
def test_gradient_agrees_with_finite_differences(objective: Objective) -> None:
    sides = random_sides()
    given = [leaves(objective, side) for side in sides]
    names = list(given[0])

    def losses(*values: Tensor) -> Tensor:
        parts = (values[: len(names)], values[len(names) :])
        chosen, rejected = (
            replace(side, **dict(zip(names, part, strict=True)))
            for side, part in zip(sides, parts, strict=True)
        )
        return objective.losses(chosen, rejected)

    assert torch.autograd.gradcheck(losses, [v for side in given for v in side.values()])


def spoil(side: TokenStatistics) -> TokenStatistics:
    """The side with NaN wherever it has no token."""
    fields = {
        name: value.detach().masked_fill(~side.mask, math.nan).requires_grad_()
        for name, value in vars(side).items()
        if name != "mask"
    }
    return replace(side, **fields)


@each
def test_masked_positions_have_no_influence_and_no_gradient(objective: Objective) -> None:
    chosen, rejected = random_sides()
    expected = objective.losses(chosen, rejected)
    spoilt = spoil(chosen), spoil(rejected)
    assert torch.equal(objective.losses(*spoilt), expected)
    for side, found in zip(spoilt, gradients(objective, *spoilt), strict=True):
        for slope in found.values():
            assert (slope[~side.mask] == 0).all()


@each_token_level
def test_only_positions_that_both_responses_have_count(objective: Objective) -> None:
    chosen, rejected = random_sides()
    moved = replace(chosen, policy=chosen.policy + torch.where(COMMON, 0.0, 7.0))
    assert torch.equal(objective.losses(moved, rejected), objective.losses(chosen, rejected))
    for found in gradients(objective, chosen, rejected):
        assert (found["policy"][~COMMON] == 0).all()
        assert (found["policy"][COMMON] != 0).all()


def test_dpo_reads_every_token_of_both_responses() -> None:
    sides = random_sides()
    for side, found in zip(sides, gradients(Dpo(), *sides), strict=True):
        assert torch.equal(found["policy"] != 0, side.mask)


@each
def test_losses_of_pairs_are_independent(objective: Objective) -> None:
    """A batch of pairs gives what each pair gives alone."""

    def row(side: TokenStatistics, i: int) -> TokenStatistics:
        return TokenStatistics(
            *(v[i : i + 1] for v in vars(side).values() if isinstance(v, Tensor))
        )

    sides = random_sides()
    alone = [objective.losses(*(row(side, i) for side in sides)) for i in range(len(LENGTHS))]
    assert torch.allclose(torch.cat(alone), objective.losses(*sides), rtol=0, atol=1e-12)


@pytest.mark.parametrize("generator", GENERATORS)
@pytest.mark.parametrize("cut", [{}, {"centre": True, "clamp": 0.5}], ids=["plain", "centred"])
def test_tbpo_q_sees_only_the_difference_of_baselines(generator: str, cut: dict[str, Any]) -> None:
    objective = TbpoQ(**options(generator), **cut)
    chosen, rejected = random_sides()
    assert chosen.baseline is not None
    assert rejected.baseline is not None
    shift = torch.linspace(-3, 3, WIDTH, dtype=torch.float64)
    moved = (
        replace(chosen, baseline=chosen.baseline + shift),
        replace(rejected, baseline=rejected.baseline + shift),
    )
    expected = objective.losses(chosen, rejected)
    assert torch.allclose(objective.losses(*moved), expected, rtol=0, atol=1e-12)
    lifted = replace(chosen, baseline=chosen.baseline + shift)
    assert not torch.allclose(objective.losses(lifted, rejected), expected, rtol=0, atol=1e-6)


def test_tbpo_q_centring_removes_a_constant_between_the_sides() -> None:
    chosen, rejected = random_sides()
    assert chosen.baseline is not None
    lifted = replace(chosen, baseline=chosen.baseline + 2.5)
    plain, centred = TbpoQ(), TbpoQ(centre=True)
    kept = centred.losses(lifted, rejected)
    assert torch.allclose(kept, centred.losses(chosen, rejected), rtol=0, atol=1e-12)
    assert not torch.allclose(plain.losses(lifted, rejected), plain.losses(chosen, rejected))


def test_tbpo_q_clamps_after_centring() -> None:
    """log w = 9, 1, 2 has mean 4: centred 5, -3, -2, then limited to 2.5 in magnitude."""
    chosen, rejected = random_sides()
    given = torch.zeros(len(LENGTHS), WIDTH, dtype=torch.float64)
    given[1, :3] = torch.tensor([9.0, 1.0, 2.0])
    cut = torch.zeros_like(given)
    cut[1, :3] = torch.tensor([2.5, -2.5, -2.0])

    def loss(objective: Objective, log_w: Tensor) -> Tensor:
        none = replace(chosen, baseline=torch.zeros_like(log_w))
        return objective.losses(none, replace(rejected, baseline=log_w))[1]

    assert torch.allclose(loss(TbpoQ(centre=True, clamp=2.5), given), loss(TbpoQ(), cut))


def test_one_token_pair_without_baseline_is_dpo() -> None:
    chosen, rejected = (
        replace(side, baseline=torch.zeros_like(side.policy)) for side in random_sides()
    )
    token = TbpoQ(generator="lr").losses(chosen, rejected)
    sequence = Dpo().losses(chosen, rejected)
    single = [i for i, lengths in enumerate(LENGTHS) if lengths == (1, 1)]
    assert single
    assert torch.allclose(token[single], sequence[single])


def test_label_smoothing_is_symmetric() -> None:
    sides = random_sides()
    even = Dpo(label_smoothing=0.5)
    assert torch.allclose(even.losses(*sides), even.losses(*sides[::-1]))
    some, none = Dpo(label_smoothing=0.2), Dpo()
    both = some.losses(*sides) + some.losses(*sides[::-1])
    assert torch.allclose(both, none.losses(*sides) + none.losses(*sides[::-1]))
    assert not torch.allclose(some.losses(*sides), none.losses(*sides))


def test_gradient_of_tbpo_a_flows_through_the_k3_term() -> None:
    """With K3 the log-ratios cancel: log R = beta (r^l - r^w), r = pi_theta / pi_ref.

    Were the term constant, the slope would lack the factor r.
    """
    chosen, rejected = random_sides()
    beta = 0.1
    ratios = [side.log_ratio.exp() for side in (chosen, rejected)]
    log_r = beta * (ratios[1] - ratios[0])
    expected = (bregman()(log_r) * COMMON).sum(-1) / COMMON.sum(-1)
    objective = TbpoA(beta=beta)
    assert torch.allclose(objective.losses(chosen, rejected), expected)
    slopes = torch.autograd.grad(expected.sum(), [chosen.policy, rejected.policy])
    found = gradients(objective, chosen, rejected)
    for slope, side in zip(slopes, found, strict=True):
        assert torch.allclose(side["policy"], slope)


def test_exact_divergence_of_tbpo_a_carries_gradient() -> None:
    for found in gradients(TbpoA(kl="exact"), *random_sides()):
        assert torch.equal(found["kl"] != 0, COMMON)


@pytest.mark.parametrize("objective", [TbpoQ(), TbpoA(kl="exact")], ids=label)
def test_missing_statistics_are_refused(objective: Objective) -> None:
    chosen, rejected = (replace(side, baseline=None, kl=None) for side in random_sides())
    with pytest.raises(InputError, match="needs the"):
        objective.losses(chosen, rejected)


# Divergences


def small_vocabulary() -> tuple[Tensor, Tensor]:
    made = torch.Generator().manual_seed(3)
    logits = 2 * torch.randn(2, 4, 7, generator=made, dtype=torch.float64)
    return logits[0], logits[1]


def test_k3_is_unbiased_and_never_negative() -> None:
    reference, policy = small_vocabulary()
    log_ref, log_policy = reference.log_softmax(-1), policy.log_softmax(-1)
    estimates = k3(log_policy - log_ref)
    assert (estimates >= 0).all()
    assert k3(torch.zeros(1)).item() == 0.0
    mean = (log_ref.exp() * estimates).sum(-1)
    assert torch.allclose(mean, exact_kl(reference, policy))


def test_exact_divergence_matches_torch_and_ignores_the_logits_offset() -> None:
    reference, policy = small_vocabulary()
    expected = torch.nn.functional.kl_div(
        policy.log_softmax(-1), reference.log_softmax(-1), log_target=True, reduction="none"
    ).sum(-1)
    assert torch.allclose(exact_kl(reference + 5.0, policy - 3.0), expected)
    assert torch.allclose(exact_kl(policy, policy), torch.zeros(4, dtype=torch.float64))


def test_token_logprobs_pick_the_token_of_each_position() -> None:
    logits, _ = small_vocabulary()
    tokens = torch.tensor([6, 0, 3, 3])
    expected = logits.softmax(-1).log()[range(4), tokens]
    assert torch.allclose(token_logprobs(logits, tokens), expected)
