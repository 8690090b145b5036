"""The preference objectives: definitions, gradients, limits and invariances."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.errors import InputError
from harness.training.objectives import (
    Objective,
    Statistic,
    TokenStatistics,
    bregman,
    exact_kl,
    k3,
    token_logprobs,
)
from harness.training.objectives.bpo import Bpo
from harness.training.objectives.dpo import Dpo
from harness.training.objectives.sft import Sft
from harness.training.objectives.tbpo import TbpoA, TbpoQ
from harness.training.objectives.tdpo import Tdpo1, Tdpo2
from harness.training.objectives.tis_dpo import TisDpo, contrastive_weight

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
    "sba_lam1e-6": {"name": "sba", "lam": 1e-6},
    "sba_lam1e-2": {"name": "sba", "lam": 1e-2},
    "ba_lam-1e-6": {"name": "ba", "lam": -1e-6},
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
SEQUENCE_LEVEL: list[Objective] = [
    Dpo(),
    Dpo(label_smoothing=0.2),
    Dpo(loss="ipo"),
    *(Bpo(**options(name)) for name in GENERATORS),
    Tdpo1(),
    Tdpo2(alpha=0.7),
    TisDpo(),
    TisDpo(alpha=0.5),
]
EVERY: list[Objective] = [Sft(), *SEQUENCE_LEVEL, *TOKEN_LEVEL]


def label(objective: Objective) -> str:
    usual = vars(type(objective)())
    fields = [f"{k}={v}" for k, v in sorted(vars(objective).items()) if v != usual[k]]
    return "-".join([type(objective).__name__, *fields])


each = pytest.mark.parametrize("objective", EVERY, ids=label)
each_sequence_level = pytest.mark.parametrize("objective", SEQUENCE_LEVEL, ids=label)
each_token_level = pytest.mark.parametrize("objective", TOKEN_LEVEL, ids=label)
each_generator = pytest.mark.parametrize("name", GENERATORS)


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


@each_generator
@pytest.mark.parametrize("preference", [0.02, 0.3, 0.5, 0.9])
def test_expected_loss_is_least_at_the_ratio_of_the_data(name: str, preference: float) -> None:
    """p l_h(R) + (1-p) l_h(1/R) over log R is least where R = (1-p)/p."""
    loss = bregman(**GENERATORS[name])
    best = math.log((1 - preference) / preference)

    def expected(log_r: Tensor) -> Tensor:
        return preference * loss(log_r) + (1 - preference) * loss(-log_r)

    at_best = torch.tensor(best, dtype=torch.float64)
    assert derivative(expected, at_best).item() == pytest.approx(0.0, abs=1e-12)
    others = torch.linspace(-5, 5, 400, dtype=torch.float64)
    assert (expected(others) > expected(at_best)).all()


POWERS = [("sba", 4.0), ("sba", 1.0), ("ba", 1.0)]
"""Generators with lam, and what divides KLIEP in their limit."""


@pytest.mark.parametrize("lam", [1.0, -0.5, 0.1, -0.01, 2e-3, 1e-3])
@pytest.mark.parametrize(("name", "scale"), POWERS)
def test_power_generators_have_the_printed_values(name: str, scale: float, lam: float) -> None:
    log_r = torch.linspace(-3, 3, 25, dtype=torch.float64)
    up, down = ((lam + 1) * log_r).exp(), (-lam * log_r).exp()
    printed = {
        "ba": up - (lam + 1) / lam * down,
        "sba": up / (scale * (lam + 1)) - down / (scale * lam),
    }
    found = bregman(name, lam=lam, s=scale)(log_r)
    assert torch.allclose(found, printed[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("name", "scale"), POWERS)
def test_gradient_of_power_generators_becomes_that_of_kliep(
    name: str, scale: float, sign: int
) -> None:
    """The difference falls in proportion to lam, to nothing: no digits are lost on the way."""
    log_r = torch.linspace(-3, 3, 25, dtype=torch.float64)
    limit = derivative(bregman("kliep"), log_r) / scale

    def distance(lam: float) -> float:
        found = derivative(bregman(name, lam=sign * lam, s=scale), log_r)
        return float((found - limit).abs().max())

    for lam in (1e-2, 1e-3, 1e-4, 1e-6, 1e-8, 1e-12):
        assert distance(lam) < 100 * lam
        assert distance(lam) == pytest.approx(10 * distance(lam / 10), rel=0.2, abs=1e-12)
    assert distance(0.0) == 0.0


@pytest.mark.parametrize("lam", [9e-4, 1e-5, -1e-5, 1e-9, 1e-300, 0.0])
@pytest.mark.parametrize(("name", "scale"), POWERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_values_near_lam_zero_are_those_of_kliep(
    name: str, scale: float, lam: float, dtype: torch.dtype
) -> None:
    """The printed losses lack a constant here: 1/(s lam) for SBA, (lam+1)/lam for BA."""
    log_r = torch.linspace(-3, 3, 25, dtype=dtype)
    kliep = bregman("kliep")(log_r) / scale
    found = bregman(name, lam=lam, s=scale)(log_r)
    assert torch.allclose(found, kliep, rtol=0, atol=60 * abs(lam) + 1e-5)


def test_values_with_the_printed_constant_added_join_those_without() -> None:
    """Across the threshold only the constant changes."""
    log_r = torch.linspace(-3, 3, 25, dtype=torch.float64)
    below = bregman("sba", lam=0.9999e-3, s=4.0)(log_r)
    at = bregman("sba", lam=1e-3, s=4.0)(log_r) + 1 / (4.0 * 1e-3)
    assert torch.allclose(at, below, rtol=0, atol=1e-5)


def test_sba_with_scale_four_has_the_gradient_of_dpo_at_ratio_one() -> None:
    at_one = torch.zeros(1, dtype=torch.float64)
    slopes = [derivative(bregman("sba", lam=lam, s=4.0), at_one).item() for lam in (0.0, 1.0, -0.5)]
    assert slopes == pytest.approx([derivative(bregman("lr"), at_one).item()] * 3)


@pytest.mark.parametrize(
    "given", [*GENERATORS.values(), {"name": "sba", "lam": 8.0}, {"name": "ba", "lam": -0.999}]
)
def test_log_ratio_is_clamped_and_stays_finite_in_float32(given: dict[str, Any]) -> None:
    loss = bregman(**given)
    log_r = torch.tensor([-1e4, -30.0, 30.0, 1e4], requires_grad=True)
    values = loss(log_r)
    (slope,) = torch.autograd.grad(values.sum(), log_r)
    assert torch.isfinite(values).all()
    assert torch.isfinite(slope).all()
    assert values[0] == values[1]
    assert values[2] == values[3]
    assert slope[[0, 3]].tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lam": -1.0}, r"bregman needs lam > -1, a finite number; got -1\.0"),
        ({"lam": -1.5}, "lam > -1"),
        ({"lam": math.nan}, "lam > -1.*nan"),
        ({"lam": math.inf}, "lam > -1.*inf"),
        ({"s": 0.0}, "s > 0"),
        ({"s": -4.0}, "s > 0"),
        ({"s": math.nan}, "s > 0"),
        ({"name": "klep"}, r"unknown generator 'klep'. Did you mean 'kliep'\?"),
    ],
)
def test_unusable_generators_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        bregman(**given)


@pytest.mark.parametrize(
    ("make", "given", "message"),
    [
        (Dpo, {"beta": 0.0}, r"dpo needs beta > 0, a finite number; got 0\.0"),
        (Dpo, {"beta": "1e-1"}, "dpo needs beta > 0, a finite number; got '1e-1'"),
        (Dpo, {"beta": True}, "dpo needs beta > 0"),
        (Dpo, {"label_smoothing": 0.6}, "dpo needs label_smoothing >= 0 and <= 0.5"),
        (Dpo, {"label_smoothing": -0.1}, "dpo needs label_smoothing"),
        (Dpo, {"loss": "hinge"}, "dpo: unknown loss 'hinge'.*ipo, sigmoid"),
        (Dpo, {"loss": "ipo", "label_smoothing": 0.1}, "no label smoothing with loss 'ipo'.*0.1"),
        (Bpo, {"beta": math.inf}, "bpo needs beta > 0"),
        (Bpo, {"generator": "klep"}, r"bpo: unknown generator 'klep'. Did you mean 'kliep'\?"),
        (Tdpo1, {"beta": -1}, "tdpo1 needs beta > 0"),
        (Tdpo2, {"beta": -1}, "tdpo2 needs beta > 0"),
        (Tdpo2, {"alpha": -0.5}, "tdpo2 needs alpha >= 0"),
        (TisDpo, {"beta": 0}, "tis-dpo needs beta > 0"),
        (TisDpo, {"alpha": math.nan}, "tis-dpo needs alpha >= 0"),
        (TbpoQ, {"beta": -0.1}, "tbpo-q needs beta > 0"),
        (TbpoQ, {"lam": -2.0}, "tbpo-q needs lam > -1"),
        (TbpoQ, {"s": 0}, "tbpo-q needs s > 0"),
        (TbpoQ, {"clamp": 0.0}, "tbpo-q needs clamp > 0"),
        (TbpoQ, {"centre": "yes"}, "tbpo-q needs centre true or false; got 'yes'"),
        (TbpoA, {"beta": math.nan}, "tbpo-a needs beta > 0"),
        (TbpoA, {"generator": None}, "tbpo-a: unknown generator 'None'"),
        (TbpoA, {"kl": "k2"}, "tbpo-a: unknown kl 'k2'.*exact, k3"),
    ],
)
def test_unusable_options_are_refused_when_an_objective_is_made(
    make: Callable[..., Objective], given: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        make(**given)


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
        leaves = draw(), draw(), draw().abs(), draw().abs()
        policy, baseline, kl, reverse_kl = (leaf.requires_grad_() for leaf in leaves)
        weights = draw().exp()
        return TokenStatistics(
            policy, draw(), mask_of(index), baseline, kl, reverse_kl, token_weights=weights
        )

    return side(0), side(1)


def leaves(objective: Objective, side: TokenStatistics) -> dict[str, Tensor]:
    """What the objective reads of a side and passes gradient to."""
    learnt = objective.requires - {Statistic.TOKEN_WEIGHTS}
    names = ["policy", *sorted(statistic.value for statistic in learnt)]
    return {name: getattr(side, name) for name in names}


def gradients(
    objective: Objective, chosen: TokenStatistics, rejected: TokenStatistics
) -> list[dict[str, Tensor]]:
    given = [leaves(objective, side) for side in (chosen, rejected)]
    flat = [leaf for side in given for leaf in side.values()]
    total = objective.losses(chosen, rejected).sum()
    found = iter(torch.autograd.grad(total, flat, allow_unused=True, materialize_grads=True))
    return [{name: next(found) for name in side} for side in given]


@each
def test_gradient_agrees_with_finite_differences(objective: Objective) -> None:
    sides = random_sides()
    given = [leaves(objective, side) for side in sides]
    if isinstance(objective, Tdpo2):
        # By definition it has no gradient there, though its value moves.
        del given[0]["kl"]
    names = [list(side) for side in given]

    def losses(*values: Tensor) -> Tensor:
        parts = (values[: len(names[0])], values[len(names[0]) :])
        chosen, rejected = (
            replace(side, **dict(zip(named, part, strict=True)))
            for side, named, part in zip(sides, names, parts, strict=True)
        )
        return objective.losses(chosen, rejected)

    assert torch.autograd.gradcheck(losses, [v for side in given for v in side.values()])


@each
def test_extreme_log_ratios_stay_finite_in_float32(objective: Objective) -> None:
    chosen, rejected = (
        TokenStatistics(
            **{
                name: value.detach().to(torch.float32) if name != "mask" else value
                for name, value in vars(side).items()
            }
        )
        for side in random_sides()
    )
    for size in (1e4, -1e4):
        far = torch.full_like(chosen.policy, size).requires_grad_()
        near = torch.zeros_like(far).requires_grad_()
        losses = objective.losses(replace(chosen, policy=far), replace(rejected, policy=near))
        slopes = torch.autograd.grad(
            losses.sum(), [far, near], materialize_grads=True, allow_unused=True
        )
        assert all(torch.isfinite(found).all() for found in (losses, *slopes))


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


@each_sequence_level
def test_sequence_level_objectives_read_every_token_of_both_responses(
    objective: Objective,
) -> None:
    sides = random_sides()
    for side, found in zip(sides, gradients(objective, *sides), strict=True):
        assert torch.equal(found["policy"] != 0, side.mask)


def test_sft_reads_every_token_of_the_chosen_response_alone() -> None:
    sides = random_sides()
    kept, none = gradients(Sft(), *sides)
    mask = sides[0].mask.double()
    assert torch.allclose(kept["policy"], -mask / mask.sum(-1, keepdim=True))
    assert (none["policy"] == 0).all()


@each
def test_objectives_read_what_they_require_and_nothing_else(objective: Objective) -> None:
    """Without the other statistics the loss is the same; without a required one there is none."""
    chosen, rejected = random_sides()
    absent = {s.value: None for s in set(Statistic) - objective.requires}
    bare = [replace(side, **absent) for side in (chosen, rejected)]
    assert torch.equal(objective.losses(*bare), objective.losses(chosen, rejected))
    for statistic in objective.requires:
        for sides in (
            (replace(chosen, **{statistic.value: None}), rejected),
            (chosen, replace(rejected, **{statistic.value: None})),
        ):
            with pytest.raises(InputError, match=f"needs the {statistic.value} of both"):
                objective.losses(*sides)


# Objectives against each other


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_bpo_with_the_logistic_generator_is_dpo(beta: float) -> None:
    """Up to the clamp: beyond abs(log R) = 30 BPO stands still and DPO does not."""
    sides = random_sides()
    made = Dpo(beta=beta), Bpo(beta=beta, generator="lr")
    losses = [objective.losses(*sides) for objective in made]
    assert torch.allclose(*losses, rtol=0, atol=1e-15)
    slopes = [gradients(objective, *sides)[0]["policy"] for objective in made]
    assert torch.allclose(*slopes, rtol=0, atol=1e-15)
    far = replace(sides[0], policy=sides[0].policy - 400.0), sides[1]
    assert not torch.allclose(*(objective.losses(*far) for objective in made))


def test_tdpo_without_divergence_is_dpo() -> None:
    sides = [replace(side, kl=torch.zeros_like(side.policy)) for side in random_sides()]
    expected = Dpo().losses(*sides)
    for objective in (Tdpo1(), Tdpo2(), Tdpo2(alpha=0)):
        assert torch.allclose(objective.losses(*sides), expected, rtol=0, atol=1e-15)


def test_tdpo2_with_alpha_one_is_tdpo1_but_for_one_gradient() -> None:
    sides = random_sides()
    one, two = Tdpo1(), Tdpo2(alpha=1.0)
    assert torch.equal(one.losses(*sides), two.losses(*sides))
    first, second = gradients(one, *sides), gradients(two, *sides)
    assert torch.equal(first[0]["kl"] != 0, sides[0].mask)
    assert (second[0]["kl"] == 0).all()
    assert torch.equal(first[1]["kl"], second[1]["kl"])
    assert torch.equal(second[1]["kl"] != 0, sides[1].mask)


def test_tis_dpo_with_equal_weights_is_dpo_of_that_beta() -> None:
    sides = [replace(s, token_weights=torch.full_like(s.policy, 2.0)) for s in random_sides()]
    assert torch.allclose(TisDpo(beta=0.1).losses(*sides), Dpo(beta=0.2).losses(*sides))


def test_tis_dpo_weighs_the_divergence_against_the_policy() -> None:
    """alpha (K(y^w) - K(y^l)) is subtracted: drift on the chosen side costs, unlike TDPO's."""
    chosen, rejected = random_sides()
    assert chosen.reverse_kl is not None
    further = replace(chosen, reverse_kl=chosen.reverse_kl + 1.0)
    objective = TisDpo(alpha=0.5)
    assert (objective.losses(further, rejected) > objective.losses(chosen, rejected)).all()


def test_ipo_is_least_at_its_target_margin() -> None:
    chosen, rejected = random_sides()
    beta = 0.25
    target = (1 / (2 * beta) + rejected.log_ratio.sum(-1, keepdim=True)) / chosen.mask.sum(
        -1, keepdim=True
    )
    met = replace(chosen, policy=chosen.reference + target)
    objective = Dpo(beta=beta, loss="ipo")
    assert torch.allclose(objective.losses(met, rejected), torch.zeros(3, dtype=torch.float64))
    assert (gradients(objective, met, rejected)[1]["policy"].abs() < 1e-12).all()


def test_contrastive_weights_follow_the_clamped_ratio() -> None:
    ratio = torch.tensor([-9.0, -0.5, 0.0, 1.0, 1.5, 9.0], dtype=torch.float64)
    negative = torch.linspace(-4, -1, 6, dtype=torch.float64)
    inside = [-0.5, -0.5, 0.0, 1.0, 1.5, 1.5]
    for mu, k in ((1.0, 1.0), (-1.0, 1.0), (2.0, 3.0)):
        found = contrastive_weight(negative + ratio, negative, mu=mu, k=k)
        assert found.tolist() == pytest.approx([k * math.exp(mu * c) for c in inside])
    narrow = contrastive_weight(ratio, torch.zeros_like(ratio), mu=1.0, low=0.0, high=0.0)
    assert narrow.tolist() == [1.0] * 6


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"k": 0.0}, "k > 0"),
        ({"mu": math.nan}, "needs mu, a finite number; got nan"),
        ({"low": 2.0}, "low <= 1.5"),
        ({"high": math.inf}, "needs high, a finite number"),
    ],
)
def test_unusable_weight_options_are_refused(given: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        contrastive_weight(torch.zeros(2), torch.zeros(2), **{"mu": 1.0, **given})


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
