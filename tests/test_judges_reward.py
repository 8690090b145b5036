"""The reward judge: pure parts, a tampered folder, and its agreement measured again."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.engines.batching import batches
from harness.errors import CheckpointError, InputError, TrainingError
from harness.files import cache_root, packaged, read_json
from harness.judges.bradley_terry import reward_info
from harness.judges.reward import (
    MANIFEST,
    WEIGHTS,
    Recipe,
    RewardManifest,
    RewardModel,
    arithmetic,
    encode,
    encode_answer,
    encode_prompt,
    probability,
)
from harness.training.reward import (
    Array,
    Features,
    Pair,
    Rows,
    agreement,
    agreements,
    calibrate,
    cross_validate,
    fit_gate,
    fit_head,
    fit_logistic,
    length_differences,
    load_rows,
    log_loss,
    main,
)
from harness.types import Message, Role

FOLDER = packaged("judges", "hh-reward")
DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "hh_rlhf"
TEST_FILES = tuple(DATA / f"{name}.jsonl" for name in ("harmless", "helpful"))
RECIPE = Recipe(
    layers=(2,), pools=("last",), gate_layer=1, max_prompt=12, max_answer=4, batch_tokens=64
)


class WordTokenizer:
    """One token id per word; a turn costs one token more than its words."""

    eos_token_id = 0

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        assert not add_special_tokens
        return {"input_ids": [len(word) for word in text.split()]}

    def apply_chat_template(self, chat: Sequence[dict[str, str]], **options: Any) -> list[int]:
        assert options["add_generation_prompt"]
        ids: list[int] = []
        for turn in chat:
            ids += [{"system": 101, "user": 102, "assistant": 103}[turn["role"]]]
            ids += [len(word) for word in turn["content"].split()]
        return [*ids, 103]


def said(role: Role, text: str) -> Message:
    return Message(role=role, content=text)


DIALOGUE = (
    said(Role.SYSTEM, "be kind"),
    said(Role.USER, "one two three four"),
    said(Role.ASSISTANT, "yes"),
    said(Role.USER, "five six"),
)


def test_prompt_within_limit_is_whole() -> None:
    assert encode_prompt(WordTokenizer(), DIALOGUE, 14) == (
        *(101, 2, 4),
        *(102, 3, 3, 5, 4),
        *(103, 3),
        *(102, 4, 3),
        103,
    )


def test_prompt_beyond_limit_loses_oldest_turns_and_keeps_system() -> None:
    assert encode_prompt(WordTokenizer(), DIALOGUE, 13) == (101, 2, 4, 102, 4, 3, 103)


def test_last_user_turn_stays_whatever_its_length() -> None:
    long = (said(Role.USER, " ".join(["word"] * 50)),)
    assert len(encode_prompt(WordTokenizer(), long, 10)) == 52


def test_dialogue_without_user_turn_is_refused() -> None:
    with pytest.raises(InputError, match="without a user turn"):
        encode_prompt(WordTokenizer(), (said(Role.ASSISTANT, "hello"),), 10)


@pytest.mark.parametrize(
    ("text", "ids"), [("a bb", (1, 2, 0)), ("a bb ccc dddd", (1, 2, 3, 0)), ("", (0,))]
)
def test_answer_always_ends_with_end_of_sequence(text: str, ids: tuple[int, ...]) -> None:
    assert encode_answer(WordTokenizer(), text, 4) == ids


def test_unequal_lengths_are_refused() -> None:
    with pytest.raises(InputError, match="2 dialogues but 1 answers"):
        encode(WordTokenizer(), RECIPE, [DIALOGUE, DIALOGUE], ["one"])


def test_batches_cover_each_index_once_within_budget() -> None:
    lengths = [int(n) for n in np.random.default_rng(0).integers(1, 60, 200)]
    groups = batches(lengths, 128)
    assert sorted(i for group in groups for i in group) == list(range(200))
    assert all(len(g) * max(lengths[i] for i in g) <= 128 for g in groups if len(g) > 1)
    firsts = [lengths[group[0]] for group in groups]
    assert firsts == sorted(firsts, reverse=True)


def test_batch_of_an_item_beyond_the_budget_is_its_own() -> None:
    assert batches([5, 500, 5], 100) == [[1], [0, 2]]


@pytest.mark.parametrize("gap", [-800.0, -1.0, 0.0, 0.3, 800.0])
def test_probability_is_a_sigmoid_and_antisymmetric(gap: float) -> None:
    found = probability(gap, 0.0, 1.7)
    assert found + probability(0.0, gap, 1.7) == pytest.approx(1.0)
    if abs(gap) < 10:
        assert found == pytest.approx(1 / (1 + math.exp(-1.7 * gap)))


def test_logistic_fit_meets_its_first_order_condition() -> None:
    rng = np.random.default_rng(1)
    rows, weights = rng.normal(size=(80, 3)) + 0.4, rng.uniform(0.5, 2, 80)
    ridge = np.array([0.1, 0.5, 0.0])
    w = fit_logistic(rows, weights, ridge)
    pull = (weights / weights.sum()) @ (rows / (1 + np.exp(rows @ w))[:, None])
    assert pull == pytest.approx(ridge * w, abs=1e-5)


def planted(n: int, rng: np.random.Generator) -> Features:
    """Pairs whose better answer is higher in feature 0, or lower where the request is risky."""
    risky = rng.random(n) < 0.4
    prompt = rng.normal(size=(n, 4)) + np.where(risky, 3.0, -3.0)[:, None]
    chosen, rejected = rng.normal(size=(2, n, 2))
    wrong = (chosen[:, 0] > rejected[:, 0]) == risky
    swap = wrong & (rng.random(n) < 0.9)
    chosen[swap], rejected[swap] = rejected[swap], chosen[swap]
    return Features(chosen, rejected, prompt, risky, rng.random(n) < 0.7)


def test_gated_head_finds_a_preference_that_flips_with_risk() -> None:
    rows = planted(600, np.random.default_rng(2))
    share = agreement(cross_validate(rows, 0.01, seed=3)).share
    assert share > 0.85
    fitted = fit_head(rows, fit_gate(rows), 0.01)
    assert fitted.weight[0, 0] > 0 > fitted.weight[1, 0]


def test_rewards_are_those_of_the_fit_and_are_centred() -> None:
    torch = pytest.importorskip("torch")
    from harness.judges.reward import Head

    rows = planted(300, np.random.default_rng(4))
    fitted = fit_head(rows, fit_gate(rows), 0.1)
    parts = (fitted.weight, fitted.offset, fitted.gate.weight, np.array([fitted.gate.bias]))
    head = Head(*(torch.tensor(part) for part in parts))
    psi = torch.tensor(rows.prompt)
    better, worse = (head.rewards(torch.tensor(x), psi) for x in (rows.chosen, rows.rejected))
    assert (better - worse).numpy() == pytest.approx(fitted.differences(rows), abs=1e-9)
    centre = 0.5 * (rows.chosen.mean(0) + rows.rejected.mean(0))
    at_centre = head.rewards(torch.tensor(centre)[None], psi[:1])
    assert float(at_centre) == pytest.approx(0.0, abs=1e-9)


def test_gate_learns_from_single_turn_dialogues_only() -> None:
    rows = planted(300, np.random.default_rng(5))
    flipped = np.where(rows.single[:, None], rows.prompt, -rows.prompt)
    other = Features(rows.chosen, rows.rejected, flipped, rows.risky, rows.single)
    assert fit_gate(rows).weight == pytest.approx(fit_gate(other).weight)


def test_gate_without_one_subset_is_refused() -> None:
    rows = planted(50, np.random.default_rng(6))
    with pytest.raises(TrainingError, match="single-turn dialogues of subset"):
        fit_gate(rows[~rows.risky])


def test_calibration_recovers_the_scale() -> None:
    rng = np.random.default_rng(7)
    gaps = rng.normal(size=20_000) * 2
    better_first = rng.random(20_000) < 1 / (1 + np.exp(-1.5 * gaps))
    differences = np.where(better_first, gaps, -gaps)
    assert calibrate(differences) == pytest.approx(1.5, rel=0.06)


def test_agreement_counts_ties_as_wrong_and_gives_wilson() -> None:
    found = agreement(np.array([1.0] * 55 + [-1.0] * 44 + [0.0]))
    assert (found.correct, found.ties, found.n, found.share) == (55, 1, 100, 0.55)
    z, p, n = 1.959964, 0.55, 100
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    assert (found.low, found.high) == pytest.approx((middle - half, middle + half), abs=1e-6)
    assert found.contains_half


def test_shipped_manifest_is_whole_and_small() -> None:
    manifest = RewardManifest.model_validate(read_json(FOLDER / MANIFEST))
    assert set(manifest.test) == set(manifest.validation) == {"overall", "harmless", "helpful"}
    test = manifest.test
    assert test["overall"].n == test["harmless"].n + test["helpful"].n
    assert test["overall"].correct == test["harmless"].correct + test["helpful"].correct
    fitted, measured = ({f.sha256 for f in g} for g in (manifest.fitted_on, manifest.measured_on))
    assert not fitted & measured
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 1_000_000
    assert '"/' not in (FOLDER / MANIFEST).read_text(encoding="utf-8")  # no absolute path
    assert sum(variant.kept for variant in manifest.variants) == 1


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FOLDER, tmp_path / "copy"))


def test_damaged_weights_are_refused(copy: Path) -> None:
    with (copy / WEIGHTS).open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(CheckpointError, match="weights and manifest belong together"):
        RewardModel.load(copy)


def test_damaged_manifest_is_refused(copy: Path) -> None:
    content = read_json(copy / MANIFEST)
    (copy / MANIFEST).write_text(json.dumps({**content, "scale": -1}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="scale"):
        RewardModel.load(copy)


def test_another_base_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(CheckpointError, match="was fitted on smollm2"):
        RewardModel.load(FOLDER, base=tmp_path)


def test_fit_overwrites_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--pairs", "none.jsonl", "--test", "none.jsonl"]
    assert main([*files, "--output", str(tmp_path), "--seed", "0"]) == 2
    assert "exists" in capsys.readouterr().err


@pytest.mark.parametrize("able", [True, False])
def test_emulated_bfloat16_is_computed_in_float32_and_named_so(
    monkeypatch: pytest.MonkeyPatch, able: bool
) -> None:
    monkeypatch.setattr("harness.judges.reward.computes_bfloat16", lambda: able)
    assert arithmetic("bfloat16") == ("bfloat16" if able else "float32")
    assert arithmetic("float32") == "float32"
    found = reward_info().identity
    monkeypatch.setattr("harness.judges.reward.computes_bfloat16", lambda: not able)
    assert reward_info().identity != found


USER_CACHE = cache_root()
"""The user's cache, read before any test has a cache of its own."""


@pytest.fixture
def test_rows() -> Rows:
    missing = [file.name for file in TEST_FILES if not file.is_file()]
    if missing:
        pytest.skip(f"{', '.join(missing)} not found in ../shared/data/hh_rlhf beside the checkout")
    return load_rows(TEST_FILES)


@pytest.fixture
def real_model(monkeypatch: pytest.MonkeyPatch) -> RewardModel:
    monkeypatch.setenv("TBPO_CACHE", str(USER_CACHE))
    return RewardModel.load(FOLDER)


@pytest.mark.slow
def test_length_baseline_is_measured_again(test_rows: Rows) -> None:
    found = agreements(length_differences(test_rows.pairs), test_rows.subsets)
    assert found == RewardManifest.model_validate(read_json(FOLDER / MANIFEST)).longer_answer_wins


def reward_differences(pairs: Sequence[Pair], model: RewardModel) -> Array:
    dialogues = [pair.messages for pair in pairs] * 2
    answers = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    counts: list[int] = []
    rewards = np.array(model.rewards(dialogues, answers, counts.append))
    assert sum(counts) == len(answers)
    return rewards[: len(pairs)] - rewards[len(pairs) :]


@pytest.mark.slow
def test_a_tenth_of_the_pairs_agrees_as_all_do(test_rows: Rows, real_model: RewardModel) -> None:
    """Within three standard errors; a judge that prefers the rejected answers is four away."""
    whole = real_model.manifest.test["overall"]
    differences = reward_differences(test_rows.pairs[::10], real_model)
    share, n = whole.correct / whole.n, len(differences)
    assert abs((differences > 0).mean() - share) <= 3 * math.sqrt(share * (1 - share) / n)


@pytest.mark.long
def test_agreement_is_measured_again(test_rows: Rows, real_model: RewardModel) -> None:
    rows = test_rows
    assert rows.files == real_model.manifest.measured_on
    differences = reward_differences(rows.pairs, real_model)
    for name, found in agreements(differences, rows.subsets).items():
        expected = real_model.manifest.test[name]
        assert found.n == expected.n
        assert abs(found.correct - expected.correct) <= 2
    assert log_loss(differences, real_model.manifest.scale) < math.log(2)


@pytest.mark.slow
def test_rewards_do_not_depend_on_order_or_company(real_model: RewardModel) -> None:
    dialogue = (said(Role.USER, "How do I boil an egg?"),)
    answers = ["Eight minutes in boiling water, then into cold water.", "No idea.", "Ask a cook."]
    together = real_model.rewards([dialogue] * 3, answers)
    assert real_model.rewards([dialogue] * 3, answers) == together
    backwards = real_model.rewards([dialogue] * 3, answers[::-1])[::-1]
    alone = [real_model.rewards([dialogue], [answer])[0] for answer in answers]
    assert backwards == pytest.approx(together, abs=0.05)
    assert alone == pytest.approx(together, abs=0.05)
    assert together[0] == max(together)
