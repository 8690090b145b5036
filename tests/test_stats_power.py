"""What a plan promises: against published values, its own algebra, and simulation."""

from __future__ import annotations

import math

import pytest
from coverage_cells import needs_benchmarks, simulations
from pydantic import ValidationError

from harness.stats.power import (
    Design,
    WinRateDesign,
    detection_power,
    difference_sd,
    minimum_detectable_difference,
    minimum_detectable_win_rate,
    prompts_for_difference,
    prompts_for_win_rate,
    verdict_sd,
    win_rate_power,
)


@pytest.mark.parametrize(
    ("effect", "prompts", "power"), [(0.5, 34, 0.808), (0.2, 199, 0.802), (0.8, 15, 0.821)]
)
def test_power_equals_published_tables(effect: float, prompts: int, power: float) -> None:
    # Pairs for a paired t test and the power they have, as of G*Power 3.
    found = detection_power(Design(prompts=prompts, sd=1.0), effect)
    assert found == pytest.approx(power, abs=1e-3)
    assert detection_power(Design(prompts=prompts - 1, sd=1.0), effect) < 0.8


@pytest.mark.parametrize(("effect", "prompts"), [(0.5, 34), (0.2, 199), (0.8, 15)])
def test_required_prompts_equal_published_tables(effect: float, prompts: int) -> None:
    found = prompts_for_difference(Design(prompts=2, sd=1.0), effect)
    assert (found.prompts, found.difference, found.power) == (prompts, effect, 0.8)


def test_a_design_finds_its_own_smallest_difference() -> None:
    design = Design(prompts=80, per_prompt=4, icc=0.4, sd=0.45)
    found = minimum_detectable_difference(design).difference
    assert found is not None
    assert detection_power(design, found) == pytest.approx(0.8)
    assert prompts_for_difference(design, found).prompts == 80


def test_power_of_no_difference_is_the_level() -> None:
    assert detection_power(Design(prompts=30, sd=0.5), 0.0, alpha=0.05) == pytest.approx(0.05)


def test_answers_of_one_prompt_are_worth_less_than_prompts() -> None:
    single = Design(prompts=100, sd=0.5)
    several = Design(prompts=100, per_prompt=5, icc=0.5, sd=0.5)
    fivefold = Design(prompts=500, sd=0.5)
    assert several.design_effect == 3.0
    assert single.standard_error > several.standard_error > fivefold.standard_error
    same = Design(prompts=100, per_prompt=5, icc=1.0, sd=0.5)
    assert same.standard_error == pytest.approx(single.standard_error)


def test_more_prompts_find_smaller_win_rates() -> None:
    found = [
        minimum_detectable_win_rate(WinRateDesign(prompts=n)).difference for n in (50, 200, 805)
    ]
    assert found == pytest.approx([0.1988, 0.0991, 0.0494], abs=5e-4)


def test_a_handful_of_prompts_finds_nothing() -> None:
    found = minimum_detectable_win_rate(WinRateDesign(prompts=4))
    assert found.difference is None


def test_prompts_for_a_win_rate_are_the_fewest_that_do() -> None:
    design = WinRateDesign(prompts=2, per_prompt=2, icc=0.6, ties=0.1)
    needed = prompts_for_win_rate(design, 0.55).prompts
    found = [
        win_rate_power(design.model_copy(update={"prompts": n}), 0.05) for n in (needed - 1, needed)
    ]
    assert found[0] < 0.8 <= found[1]


def test_spread_of_verdicts() -> None:
    assert verdict_sd(0.5) == 0.5
    assert verdict_sd(0.6, ties=0.2) == pytest.approx(math.sqrt(0.5 + 0.05 - 0.36))
    with pytest.raises(ValueError, match=r"no win rate can be 0\.95"):
        verdict_sd(0.95, ties=0.2)


def test_spread_of_differences() -> None:
    assert difference_sd(0.5, 0.5, 0.5) == pytest.approx(0.5)
    assert difference_sd(0.5, 0.5, 1.0) == 0.0


@pytest.mark.parametrize("wrong", [{"prompts": 1}, {"icc": 1.2}, {"sd": 0.0}, {"per_prompt": 0}])
def test_impossible_designs_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Design(**({"prompts": 50, "sd": 0.5} | wrong))  # type: ignore[arg-type]


@needs_benchmarks
@pytest.mark.parametrize("size", [1, 5])
@pytest.mark.parametrize("name", ["win rate, t", "paired difference, t"])
def test_plans_come_true(name: str, size: int) -> None:
    found = simulations()
    row = next(row for row in found.PROMISES if row.name == name)
    # 1,000 evaluations: a standard error of 1.3 points.
    assert found.power(row, found.Shape(50, size), 1000) == pytest.approx(0.8, abs=0.04)
