"""Training stability: each figure by its definition, spreads over seeds, what is missing."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from stability_records import card, log_rows, row, write_seeds

from harness.errors import RunFolderError
from harness.stability import CURVES, FIGURES, TrainingRun, read_stability, training_gaps
from harness.stats.stability import (
    POINTS,
    end_mean,
    end_slope,
    explosion,
    loss_deviation,
    loss_limit,
    loss_noise,
    over_seeds,
    rank_correlation,
    running_mean,
    seed_curve,
    spike_share,
)
from harness.training_logs import find_logs
from harness.types import (
    CheckpointStability,
    SeedFinding,
    SeedSummary,
    StabilityParameters,
    Status,
    TrainingCard,
    TrainingRow,
    TrainingStability,
)

Floats = NDArray[np.float64]


def noisy(steps: int = 400, *, fall: float = 3.0, noise: float = 0.2, seed: int = 0) -> Floats:
    rng = np.random.default_rng(seed)
    return 1.0 - np.linspace(0, fall, steps) + noise * rng.standard_normal(steps)


# Figures of one run.


def test_spikes_are_counted_against_the_median_of_the_steps_before() -> None:
    norms = np.array([1.0, 1.0, 1.0, 1.0, 2.1, 1.0, 2.0, 9.0])
    found = spike_share(norms, factor=2.0, window=4)
    assert (found.value, found.n) == (0.5, 4)


def test_a_spike_does_not_hide_itself_and_the_first_steps_are_not_judged() -> None:
    norms = np.array([50.0, 1.0, 1.0, 1.0, 50.0])
    assert spike_share(norms, factor=2.0, window=3).value == 0.5
    assert spike_share(norms, factor=2.0, window=4).value == 1.0


def test_spikes_do_not_depend_on_the_scale_of_the_norm() -> None:
    norms = np.exp(np.random.default_rng(1).standard_normal(200))
    shares = [spike_share(norms * c, factor=2.0, window=16).value for c in (1e-6, 1.0, 1e6)]
    assert len(set(shares)) == 1
    assert 0.0 < (shares[0] or 0.0) < 1.0


@pytest.mark.parametrize("width", [5, 15, 31])
def test_loss_deviation_is_the_noise_around_a_line(width: int) -> None:
    found = [loss_deviation(noisy(seed=s), width=width).value for s in range(40)]
    assert np.mean(np.array(found)) == pytest.approx(0.2, rel=0.02)


def test_loss_deviation_is_zero_on_a_line() -> None:
    assert loss_deviation(noisy(noise=0.0), width=15).value == pytest.approx(0.0, abs=1e-12)


def test_loss_noise_is_the_deviation_over_the_fall_of_the_running_mean() -> None:
    losses = noisy(60, fall=0.8)
    smooth = [float(np.mean(losses[i : i + 15])) for i in range(46)]
    assert running_mean(losses, 15) == pytest.approx(smooth)
    deviation = loss_deviation(losses, width=15).value
    assert deviation is not None
    found = loss_noise(losses, width=15)
    assert found.value == pytest.approx(deviation / (smooth[0] - min(smooth)))
    assert found.n == 46


@pytest.mark.parametrize(("factor", "constant"), [(0.25, 0.0), (4.0, -7.0), (1e-3, 1e3)])
def test_loss_noise_ignores_scale_and_constant(factor: float, constant: float) -> None:
    losses = noisy()
    plain, changed = (loss_noise(v, width=15).value for v in (losses, factor * losses + constant))
    assert changed == pytest.approx(plain, rel=1e-6)


@pytest.mark.parametrize("fall", [0.0, -3.0])
def test_a_loss_that_does_not_fall_has_no_noise_ratio(fall: float) -> None:
    found = loss_noise(noisy(30, fall=fall), width=15)
    assert found.value is None
    assert "no more than its noise explains" in (found.reason or "")


def test_end_and_slope_are_of_the_last_steps() -> None:
    steps = np.arange(0, 200, 2)
    bent = np.where(steps < 100, 5.0, 5.0 + 0.003 * (steps - 100))
    assert end_slope(steps, bent, width=15).value == pytest.approx(0.3)
    assert end_mean(bent, width=15).value == pytest.approx(float(np.mean(bent[85:])))


@pytest.mark.parametrize(
    ("call", "steps"),
    [
        (lambda v: spike_share(v, factor=2.0, window=16), 16),
        (lambda v: loss_deviation(v, width=15), 29),
        (lambda v: loss_noise(v, width=15), 29),
        (lambda v: end_mean(v, width=15), 14),
        (lambda v: end_slope(np.arange(len(v)), v, width=15), 29),
    ],
)
def test_a_short_log_gives_no_number_but_a_reason(call: Any, steps: int) -> None:
    found = call(noisy(steps))
    assert found.value is None
    assert found.reason == f"too short: {steps} logged steps, {steps + 1} needed"
    assert call(noisy(steps + 1, fall=9.0)).value is not None


START = np.tile([0.6, 0.7, 0.8, 0.7], 15)
"""Losses of 60 steps: median 0.7 and range 0.2, so that a factor of 10 allows 2.7."""


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, None),
        ({"losses": (40, 2.6)}, None),
        ({"losses": (40, 2.8)}, 40),
        ({"losses": (16, 2.8)}, 16),
        ({"losses": (40, -90.0)}, None),
        ({"norms": (20, 99.0)}, None),
        ({"norms": (20, 101.0)}, 20),
        ({"norms": (20, 101.0), "losses": (18, 1e6)}, 18),
        ({"norms": (3, 101.0), "losses": (3, 1e6)}, 3),
    ],
)
def test_explosion(changes: dict[str, tuple[int, float]], expected: int | None) -> None:
    series = {"losses": START.copy(), "norms": np.full(60, 1.0)}
    for name, (place, value) in changes.items():
        series[name][place] = value
    found = explosion(**series, window=16, loss_factor=10.0, gradient_factor=100.0)
    assert (found and found[0]) == expected


@pytest.mark.parametrize("factor", [1e-3, 1.0, 250.0])
@pytest.mark.parametrize("constant", [-300.0, -0.7, 0.0, 40.0])
@pytest.mark.parametrize(("peak", "expected"), [(2.6, None), (2.8, 40)])
def test_explosion_ignores_scale_and_constant_of_the_loss(
    factor: float, constant: float, peak: float, expected: int | None
) -> None:
    losses = START.copy()
    losses[40] = peak
    found = explosion(
        factor * losses + constant,
        np.ones(60),
        window=16,
        loss_factor=10.0,
        gradient_factor=100.0,
    )
    assert (found and found[0]) == expected


def test_a_slow_start_makes_no_explosion_of_later_noise() -> None:
    rng = np.random.default_rng(0)
    warming = np.log(2) + 1e-5 * rng.standard_normal(16)
    losses = np.r_[warming, np.log(2) - 0.02 + 0.03 * rng.standard_normal(400)]
    given: Any = {"window": 16, "loss_factor": 10.0, "gradient_factor": 100.0}
    assert explosion(losses, np.ones(416), **given) is None
    losses[300] = 2.0
    assert (explosion(losses, np.ones(416), **given) or (0, ""))[0] == 300


@pytest.mark.parametrize(
    ("losses", "reason"),
    [
        (START[:16], "too short: 16 logged steps, 17 needed"),
        (np.r_[np.full(16, 0.7), 1e6], "the loss hardly ever changes"),
    ],
)
def test_without_a_scale_the_loss_gives_no_verdict_and_the_gradient_does(
    losses: Floats, reason: str
) -> None:
    limit = loss_limit(losses, window=16, factor=10.0)
    assert limit.value is None
    assert reason in (limit.reason or "")
    norms = np.ones(len(losses))
    given: Any = {"window": 16, "loss_factor": 10.0, "gradient_factor": 100.0}
    assert explosion(losses, norms, **given) is None
    norms[15] = 101.0
    assert explosion(losses, norms, **given) == (15, "gradient norm 101 above 100")


def test_a_gradient_that_starts_at_zero_gives_no_scale_to_explode_from() -> None:
    norms = np.zeros(40)
    norms[30] = 5.0
    assert explosion(norms, norms, window=16, loss_factor=10.0, gradient_factor=100.0) is None


def test_rank_correlation_is_that_of_scipy_with_ties() -> None:
    from scipy.stats import spearmanr  # type: ignore[import-untyped]

    rng = np.random.default_rng(3)
    x = rng.integers(0, 12, 50).astype(np.float64)
    y = np.exp(0.2 * x + rng.standard_normal(50))
    found = rank_correlation(x, y, needed=30)
    assert found.value == pytest.approx(float(spearmanr(x, y).statistic), abs=1e-12)
    assert found.n == 50
    assert rank_correlation(x, -np.exp(x), needed=30).value == pytest.approx(-1.0)


def test_rank_correlation_needs_two_things_that_vary() -> None:
    x: Floats = np.arange(40, dtype=np.float64)
    for pair in ((x, np.ones(40)), (np.ones(40), x)):
        found = rank_correlation(*pair, needed=30)
        assert (found.value, found.reason) == (None, "one of the two is the same at every step")
    assert rank_correlation(x[:29], x[:29], needed=30).value is None


# Over seeds.


def findings(*values: float | None) -> list[SeedFinding]:
    return [
        SeedFinding(seed=seed, value=value, reason=None if value is not None else "why")
        for seed, value in enumerate(values)
    ]


def test_spread_over_seeds() -> None:
    values = (0.61, 0.55, 0.58)
    found = over_seeds("f", findings(*values))
    assert found.median == statistics.median(values)
    assert (found.lowest, found.highest, found.sd) == (0.55, 0.61, statistics.stdev(values))
    assert (found.n, found.missing, found.reason) == (3, 0, None)


@pytest.mark.parametrize(
    ("values", "reason"),
    [((), "no log"), ((0.5,), "at least 2"), ((0.5, None), "at least 2"), ((None, None), "why")],
)
def test_fewer_than_two_seeds_have_no_spread(values: Any, reason: str) -> None:
    found = over_seeds("f", findings(*values))
    assert (found.lowest, found.highest, found.sd) == (None, None, None)
    assert found.median == next((v for v in values if v is not None), None)
    assert reason in (found.reason or "")
    assert found.missing == sum(v is None for v in values)


def test_equal_seeds_have_a_spread_of_zero() -> None:
    assert over_seeds("f", findings(5.4, 5.4, 5.4)).sd == 0.0


def test_curve_is_median_lowest_and_highest_at_each_step() -> None:
    steps = np.arange(1, 4)
    runs = [(steps, np.array([1.0, 2.0, 3.0])), (steps, np.array([3.0, 2.0, 0.0]))]
    found = seed_curve("q", [*runs, (steps[:1], np.array([7.0]))])
    assert found.steps == (1, 2, 3)
    assert found.median == (3.0, 2.0, 1.5)
    assert (found.lowest, found.highest) == ((1.0, 2.0, 0.0), (7.0, 2.0, 3.0))
    assert found.seeds == (3, 2, 2)


def test_a_long_curve_is_grouped_and_hides_no_extreme() -> None:
    values = np.ones(1000)
    values[617] = 80.0
    found = seed_curve("q", [(np.arange(1000), values)])
    assert len(found.steps) == POINTS
    assert found.steps[-1] == 999
    assert max(found.highest) == 80.0
    assert set(found.median) == {1.0}


# From rows to the comparison.


def read(rows: list[TrainingRow], **given: Any) -> TrainingStability:
    return read_stability(card(rows, **given), rows)


def steady(checkpoint: str, seed: int | None, steps: int = 40, **values: Any) -> list[TrainingRow]:
    return [
        row(checkpoint, seed, step, **{"loss": 2.0 - step / 40, "gradient_norm": 1.0} | values)
        for step in range(1, steps + 1)
    ]


def summary(found: CheckpointStability, key: str) -> SeedSummary:
    return next(s for s in found.summaries if s.figure == key)


def test_every_figure_of_every_checkpoint_is_there(tmp_path: Path) -> None:
    logs = [find_logs(n, write_seeds(tmp_path / n, n)) for n in ("dpo", "tbpo-q")]
    rows = [r for found in logs for r in found.rows]
    found = read(rows)
    for checkpoint in found.checkpoints:
        assert [s.figure for s in checkpoint.summaries] == [f.key for f in FIGURES]
        assert all(s.n == 3 and s.sd is not None for s in checkpoint.summaries)
        assert [c.quantity for c in checkpoint.curves] == list(CURVES)
        assert checkpoint.last_steps == (64, 64, 64)
        assert checkpoint.held_out_pairs == 200
        assert checkpoint.notes == ()
    assert TrainingStability.model_validate_json(found.model_dump_json()) == found


def test_figures_are_read_off_the_log(tmp_path: Path) -> None:
    (found,) = read(list(find_logs("dpo", write_seeds(tmp_path, "dpo")).rows)).checkpoints
    logs = [log_rows("dpo", seed) for seed in (0, 1, 2)]
    ends = [float(np.mean([r["kl_reference_policy"] for r in log[-15:]])) for log in logs]
    assert summary(found, "final_kl").median == pytest.approx(statistics.median(ends))
    assert summary(found, "final_kl").sd == pytest.approx(statistics.stdev(ends))
    last = [log[-1]["held_out_accuracy"] for log in logs]
    assert [f.value for f in summary(found, "held_out_accuracy").seeds] == last
    assert summary(found, "chosen_log_ratio").median == pytest.approx(-8, abs=1)


def test_the_order_of_the_rows_means_nothing(tmp_path: Path) -> None:
    rows = list(find_logs("dpo", write_seeds(tmp_path, "dpo")).rows)
    assert read_stability(card(rows), rows[::-1]) == read_stability(card(rows), rows)


def test_a_checkpoint_without_a_log_has_a_reason_and_no_number() -> None:
    base = next(c for c in read(steady("dpo", 0), without=["base"]).checkpoints)
    assert (base.checkpoint, base.reason) == ("base", "no log")
    assert (base.summaries, base.curves, base.divergences) == ((), (), ())


def test_a_run_that_diverged_has_no_end_and_is_counted() -> None:
    stopped = [
        *steady("dpo", 1, 38, kl_reference_policy=0.1),
        row("dpo", 1, 39, loss=None, gradient_norm=None, diverged="loss is nan"),
    ]
    (found,) = read([*steady("dpo", 0, kl_reference_policy=0.1), *stopped]).checkpoints
    assert [(d.seed, d.step, d.reason) for d in found.divergences] == [(1, 39, "loss is nan")]
    for key in ("final_loss", "final_kl", "kl_slope", "final_gradient_norm"):
        ended, broken = summary(found, key).seeds
        assert ended.value is not None
        assert (broken.value, broken.reason) == (None, "diverged at step 39")
        assert summary(found, key).sd is None
    assert summary(found, "gradient_spikes").n == 2
    assert found.notes == ()


def test_a_run_that_exploded_is_counted_once_and_keeps_its_end() -> None:
    rows = steady("dpo", 0)
    rows[30] = rows[30].model_copy(update={"gradient_norm": 500.0})
    rows[35] = rows[35].model_copy(update={"gradient_norm": 900.0})
    (found,) = read(rows).checkpoints
    (broken,) = found.divergences
    assert (broken.step, broken.reason) == (31, "exploded: gradient norm 500 above 100")
    assert summary(found, "final_loss").n == 1


def test_a_run_broken_at_its_first_step_has_no_figure() -> None:
    first = row("dpo", 0, 1, loss=None, gradient_norm=None, diverged="gradient is inf")
    (found,) = read([first]).checkpoints
    assert len(found.divergences) == 1
    assert all(s.median is None and s.reason for s in found.summaries)
    assert found.curves == ()


def test_what_a_log_lacks_is_named() -> None:
    (found,) = read(steady("dpo", 0)).checkpoints
    lacking = summary(found, "final_kl")
    assert (lacking.median, lacking.reason) == (None, "the log has no kl_reference_policy")
    assert {c.quantity for c in found.curves} == {"loss", "gradient_norm"}


def test_the_peak_learning_rate_comes_first_and_is_the_highest_of_the_log() -> None:
    rows = [
        r.model_copy(update={"learning_rate": rate * min(r.step / 4, 1.0)})
        for seed, rate in ((0, 1e-3), (1, 3e-3))
        for r in steady("dpo", seed)
    ]
    read_logs = read([*rows, *steady("sft", 0)])
    assert read_logs.figures[0].title == "Peak learning rate"
    dpo, sft = (summary(c, "peak_learning_rate") for c in read_logs.checkpoints)
    assert [f.value for f in dpo.seeds] == [1e-3, 3e-3]
    assert (sft.median, sft.reason) == (None, "the log has no learning_rate")


@pytest.mark.parametrize(("power", "expected"), [(1, 1.0), (-1, -1.0)])
def test_the_gradient_norm_is_held_against_the_length_of_its_step(
    power: int, expected: float
) -> None:
    lengths = 100 + np.random.default_rng(5).permutation(40)
    rows = [
        r.model_copy(update={"tokens": int(n), "gradient_norm": float(n) ** power})
        for r, n in zip(steady("dpo", 0), lengths, strict=True)
    ]
    bare = steady("dpo", 1)
    (found,) = read([*rows, *bare]).checkpoints
    one, other = summary(found, "gradient_length_correlation").seeds
    assert one.value == pytest.approx(expected)
    assert one.n == 40
    assert (other.value, other.reason) == (None, "the log has no tokens")


def test_steps_without_a_length_are_left_out_of_the_correlation() -> None:
    rows = [
        r.model_copy(update={"tokens": 100 + r.step, "gradient_norm": float(r.step)})
        for r in steady("dpo", 0)
    ]
    rows[7] = rows[7].model_copy(update={"tokens": None, "gradient_norm": 1e3})
    (found,) = read(rows).checkpoints
    (one,) = summary(found, "gradient_length_correlation").seeds
    assert one.value == pytest.approx(1.0)
    assert one.n == 39


def test_definitions_say_what_the_numbers_are_of() -> None:
    texts = {info.key: info.definition for info in read(steady("dpo", 0)).figures}
    assert "before clipping, without TBPO-Q's head" in texts["gradient_spikes"]
    assert (
        "(dpo, bpo, tdpo, tis-dpo) and those that average (sft, tbpo)" in texts["gradient_spikes"]
    )
    assert "both answers of a pair, not over samples of the policy" in texts["final_kl"]
    assert "bfloat16 where it was trained so" in texts["held_out_accuracy"]


def test_a_loss_that_gives_no_verdict_is_noted_unless_the_run_broke() -> None:
    flat = steady("dpo", 0, loss=0.7)
    (found,) = read(flat).checkpoints
    assert found.divergences == ()
    assert found.notes == (
        "seed 0: its loss cannot tell whether it exploded: the loss hardly ever changes, which "
        "gives no scale",
    )
    flat[30] = flat[30].model_copy(update={"gradient_norm": 500.0})
    (found,) = read(flat).checkpoints
    assert (len(found.divergences), found.notes) == (1, ())


def test_a_log_shorter_than_the_longest_is_noted() -> None:
    rows = [*steady("dpo", 0), *steady("dpo", 1, 33), *steady("sft", None)]
    dpo, sft = read(rows).checkpoints
    assert dpo.notes == (
        "seed 1: its log ends at step 33, the longest of this comparison at step 40",
    )
    assert sft.notes == ()


def test_parameters_decide_and_are_in_the_definitions() -> None:
    rows = steady("dpo", 0)
    rows[30] = rows[30].model_copy(update={"gradient_norm": 2.5})
    strict, lax = read(rows), read(rows, spike_factor=3.0)
    assert summary(strict.checkpoints[0], "gradient_spikes").median == pytest.approx(1 / 24)
    assert summary(lax.checkpoints[0], "gradient_spikes").median == 0.0
    (spikes,) = [info for info in lax.figures if info.key == "gradient_spikes"]
    assert "exceeds 3 times" in spikes.definition
    assert not [info for info in lax.figures if "{" in info.definition]


@pytest.mark.parametrize(
    "given", [{"smoothing": 14}, {"window": 2}, {"spike_factor": 1.0}, {"explosion_loss": 0.0}]
)
def test_senseless_parameters_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(given))):
        StabilityParameters(**given)


def test_a_step_of_no_known_log_is_refused() -> None:
    rows = steady("dpo", 0)
    with pytest.raises(RunFolderError, match="training steps of 'dpo', seed 4"):
        read_stability(card(rows), [*rows, row("dpo", 4, 1)])


def test_steps_not_copied_yet_are_a_gap_and_lost_ones_an_error() -> None:
    from run_records import run_manifest

    rows = steady("dpo", 0)
    made: TrainingCard = card(rows)
    running = run_manifest(status=Status.RUNNING).model_copy(update={"training": made})
    assert list(training_gaps(running, rows)) == []
    assert list(training_gaps(running, rows[:30])) == [
        "training logs, dpo, seed 0: 10 of 40 logged steps not copied"
    ]
    complete = running.model_copy(update={"status": Status.COMPLETE})
    with pytest.raises(RunFolderError, match="10 of 40 logged steps are gone"):
        list(training_gaps(complete, rows[:30]))
    assert list(training_gaps(run_manifest(), [])) == []


def test_runs_separate_the_broken_row() -> None:
    rows = [*steady("dpo", 0, 3), row("dpo", 0, 4, loss=None, diverged="loss is nan")]
    run = TrainingRun.of(0, rows)
    assert len(run.rows) == 3
    assert run.broken == rows[-1]
    assert run.last_step == 4
