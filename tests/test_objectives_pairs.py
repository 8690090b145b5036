"""Losses from logits: published values, an independent reference in plain Python, errors."""

from __future__ import annotations

import ast
import gzip
import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
from metric_records import SHARED
from torch import Tensor

import harness.training.objectives
from harness import plugins
from harness.errors import InputError
from harness.training import pair_losses
from harness.training.objectives import Statistic, TokenStatistics, build_objective

REFERENCE_LOSSES = SHARED / "objectives" / "reference_losses.json.gz"

# Published values

PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "tbpo_q_centered": ("tbpo-q", {"centre": True, "clamp": 10.0}),
    "tbpo_q_plain": ("tbpo-q", {}),
    "tbpo_a_full_kl": ("tbpo-a", {"kl": "exact"}),
    "bpo": ("bpo", {}),
    "dpo": ("dpo", {}),
    "ipo": ("dpo", {"loss": "ipo"}),
    "tdpo1": ("tdpo1", {}),
    "tdpo2_alpha0.5": ("tdpo2", {"alpha": 0.5}),
    "tisdpo": ("tis-dpo", {}),
    "tisdpo_token_level_alpha0.5": ("tis-dpo", {"alpha": 0.5}),
}
PUBLISHED_GENERATORS: dict[str, dict[str, Any]] = {
    "": {},
    "lr": {"generator": "lr"},
    "kliep": {"generator": "kliep"},
    "sba_lam0": {"generator": "sba", "lam": 0.0},
    "sba_lam1": {"generator": "sba", "lam": 1.0},
    "sba_lam-0.5": {"generator": "sba", "lam": -0.5},
    "ba_lam0.5": {"generator": "ba", "lam": 0.5},
}


@pytest.mark.skipif(not REFERENCE_LOSSES.is_file(), reason="shared reference losses are absent")
def test_losses_equal_the_published_ones() -> None:
    """Every row of the file, in float64."""
    with gzip.open(REFERENCE_LOSSES, "rt", encoding="utf-8") as stream:
        cases = json.load(stream)["cases"]
    assert cases
    for case in cases:
        policy, reference, baseline, weights = (
            torch.tensor(case[name], dtype=torch.float64)
            for name in ("policy_logits", "reference_logits", "baseline", "tis_weights")
        )
        for key, expected in case["expected"].items():
            kind, _, generator = key.partition("/")
            name, options = PUBLISHED[kind]
            found = pair_losses(
                name,
                policy,
                reference,
                torch.tensor(case["labels"]),
                baseline=baseline,
                token_weights=weights,
                beta=case["beta"],
                **options,
                **PUBLISHED_GENERATORS[generator],
            )
            assert found.tolist() == pytest.approx(expected, rel=0, abs=1e-9), key
        # Six single objectives, and four with six generators each.
        assert len(case["expected"]) == 30


# The same losses once more, token by token in plain Python


@dataclass(frozen=True)
class Token:
    """What a response says at one column."""

    logp: float
    m: float
    kl: float
    reverse_kl: float
    baseline: float
    weight: float


Response = dict[int, Token]
"""Column of the label to token."""


def log_softmax(logits: list[float]) -> list[float]:
    top = max(logits)
    total = math.log(sum(math.exp(x - top) for x in logits))
    return [x - top - total for x in logits]


def divergence(of: list[float], to: list[float]) -> float:
    return sum(math.exp(p) * (p - q) for p, q in zip(of, to, strict=True))


def response(case: Case, row: int) -> Response:
    found = {}
    for column, token in enumerate(case.labels[row].tolist()):
        if column == 0 or token == -100:
            continue
        policy = log_softmax(case.policy[row, column - 1].tolist())
        reference = log_softmax(case.reference[row, column - 1].tolist())
        found[column] = Token(
            logp=policy[token],
            m=policy[token] - reference[token],
            kl=divergence(reference, policy),
            reverse_kl=divergence(policy, reference),
            baseline=case.baseline[row, column - 1].item(),
            weight=case.weights[row, column].item(),
        )
    return found


def by_definition(name: str, lam: float, s: float) -> Callable[[float], float]:
    """l_h(R) = h'(R) R - h(R) - h'(1/R), less the constant that the published losses drop.

    The first function is h, the second h', the number the constant.
    """
    log = math.log
    if name == "lr":
        h = (
            lambda r: (r * log(r) - (1 + r) * log(1 + r)) / 2,
            lambda r: (log(r) - log(1 + r)) / 2,
            0.0,
        )
    elif name == "kliep" or (name in ("ba", "sba") and lam == 0):
        scale = 1 / s if name == "sba" else 1.0
        h = (lambda r: scale * (r * log(r) - r), lambda r: scale * log(r), 0.0)
    elif name == "lsif":
        h = (lambda r: (r - 1) ** 2, lambda r: 2 * (r - 1), 1.0)
    else:
        scale = 1 / (s * (lam + 1)) if name == "sba" else 1.0
        h = (
            lambda r: scale * (r ** (1 + lam) - r) / lam,
            lambda r: scale * ((1 + lam) * r**lam - 1) / lam,
            scale / lam,
        )
    value, slope, constant = h
    return lambda r: slope(r) * r - value(r) - slope(1 / r) - constant


def softplus(x: float) -> float:
    return math.log1p(math.exp(-abs(x))) + max(x, 0.0)


def ratio_loss(generator: Callable[[float], float], beta: float, log_rs: list[float]) -> float:
    return sum(generator(math.exp(beta * x)) for x in log_rs) / len(log_rs)


def k3_of(token: Token) -> float:
    return math.exp(token.m) - 1 - token.m


def plain_loss(
    name: str, chosen: Response, rejected: Response, beta: float, o: dict[str, Any]
) -> float:
    """The loss of a pair, term by term as the papers print it."""

    def total(value: Callable[[Token], float]) -> float:
        return sum(map(value, chosen.values())) - sum(map(value, rejected.values()))

    margin = total(lambda t: t.m)
    generator = by_definition(o.get("generator", "sba"), o.get("lam", 0.0), o.get("s", 4.0))
    both = [(chosen[i], rejected[i]) for i in sorted(set(chosen) & set(rejected))]
    match name:
        case "sft":
            return -sum(t.logp for t in chosen.values()) / len(chosen)
        case "dpo" if o.get("loss") == "ipo":
            return (margin - 0.5 / beta) ** 2
        case "dpo":
            e = o.get("label_smoothing", 0.0)
            return (1 - e) * softplus(-beta * margin) + e * softplus(beta * margin)
        case "bpo":
            return ratio_loss(generator, beta, [-margin])
        case "tdpo1" | "tdpo2":
            alpha = o.get("alpha", 0.5) if name == "tdpo2" else 1.0
            return softplus(-beta * (margin + alpha * total(lambda t: t.kl)))
        case "tis-dpo":
            alpha = o.get("alpha", 0.0)
            return softplus(-beta * total(lambda t: t.weight * (t.m - alpha * t.reverse_kl)))
        case "tbpo-q":
            log_w = [low.baseline - high.baseline for high, low in both]
            mean = sum(log_w) / len(log_w) if o.get("centre") else 0.0
            limit = o.get("clamp", math.inf)
            log_w = [min(max(x - mean, -limit), limit) for x in log_w]
        case "tbpo-a" if o.get("kl") == "exact":
            log_w = [low.kl - high.kl for high, low in both]
        case "tbpo-a":
            log_w = [k3_of(low) - k3_of(high) for high, low in both]
        case _:
            raise AssertionError(name)
    log_rs = [low.m - high.m + x for (high, low), x in zip(both, log_w, strict=True)]
    return ratio_loss(generator, beta, log_rs)


@dataclass(frozen=True)
class Case:
    """Inputs of ``pair_losses``."""

    policy: Tensor
    reference: Tensor
    labels: Tensor
    baseline: Tensor
    weights: Tensor

    def losses(self, objective: str, **options: Any) -> Tensor:
        return pair_losses(
            objective,
            self.policy,
            self.reference,
            self.labels,
            baseline=self.baseline,
            token_weights=self.weights,
            **options,
        )


LABELS = (
    # Prompts of different lengths, an answer with gaps, a token in the first column.
    (-100, -100, 3, 1, 0, 4, -100, -100),
    (2, -100, 3, -100, -100, 2, 2, -100),
    (-100, -100, -100, -100, -100, -100, -100, 1),
    (-100, -100, 1, 1, 2, -100, -100, -100),
    (-100, 4, -100, 0, 3, 1, 2, 2),
    (-100, -100, -100, -100, -100, 0, 0, 3),
)
VOCABULARY = 5


def random_case(seed: int = 0) -> Case:
    made = torch.Generator().manual_seed(seed)
    labels = torch.tensor(LABELS)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*labels.shape, *shape, generator=made, dtype=torch.float64)

    return Case(0.7 * draw(VOCABULARY), 0.7 * draw(VOCABULARY), labels, 3 * draw(), draw().exp())


GENERATORS: list[dict[str, Any]] = [
    {},
    {"generator": "lr"},
    {"generator": "kliep"},
    {"generator": "lsif"},
    {"generator": "ba"},
    {"generator": "ba", "lam": 0.5},
    {"generator": "ba", "lam": -0.5},
    {"generator": "sba", "lam": 1.0},
    {"generator": "sba", "lam": -0.5, "s": 1.0},
]
SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("sft", {}),
    ("dpo", {}),
    ("dpo", {"label_smoothing": 0.2}),
    ("dpo", {"loss": "ipo"}),
    ("tdpo1", {}),
    ("tdpo2", {}),
    ("tdpo2", {"alpha": 0.9}),
    ("tis-dpo", {}),
    ("tis-dpo", {"alpha": 0.5}),
    *(("bpo", g) for g in GENERATORS),
    *(("tbpo-q", g) for g in GENERATORS),
    ("tbpo-q", {"centre": True}),
    ("tbpo-q", {"clamp": 0.8}),
    ("tbpo-q", {"centre": True, "clamp": 0.8, "generator": "lr"}),
    *(("tbpo-a", g) for g in GENERATORS),
    *(("tbpo-a", {"kl": "exact", **g}) for g in GENERATORS),
]
each = pytest.mark.parametrize(
    ("objective", "options"),
    SETTINGS,
    ids=["-".join([name, *(f"{k}={v}" for k, v in o.items())]) for name, o in SETTINGS],
)


@each
@pytest.mark.parametrize("beta", [0.1, 0.6])
def test_losses_equal_the_plain_ones(objective: str, options: dict[str, Any], beta: float) -> None:
    for seed in range(3):
        case = random_case(seed)
        rows = [response(case, row) for row in range(len(LABELS))]
        pairs = zip(rows[:3], rows[3:], strict=True)
        expected = [plain_loss(objective, *pair, beta, options) for pair in pairs]
        found = case.losses(objective, beta=beta, **options).tolist()
        assert found == pytest.approx(expected, rel=1e-11, abs=1e-11)


def test_every_registered_objective_is_checked() -> None:
    assert {name for name, _ in SETTINGS} == set(plugins.names("objectives"))


# Gradients


@pytest.mark.parametrize(
    ("objective", "options"), [(name, options) for name, options in SETTINGS if name != "tdpo2"]
)
def test_gradient_agrees_with_finite_differences(objective: str, options: dict[str, Any]) -> None:
    """Into the policy's logits and the baseline. TDPO2's is not that of its value: see below."""
    case = random_case()
    policy, baseline = case.policy.requires_grad_(), case.baseline.requires_grad_()

    def losses(policy: Tensor, baseline: Tensor) -> Tensor:
        return Case(policy, case.reference, case.labels, baseline, case.weights).losses(
            objective, **options
        )

    # Along random directions: there are 288 numbers, and the objectives were checked one by one.
    assert torch.autograd.gradcheck(losses, (policy, baseline), fast_mode=True)


@pytest.mark.parametrize("alpha", [0.5, 0.9])
def test_gradient_of_tdpo2_leaves_out_the_divergence_of_the_chosen(alpha: float) -> None:
    """It is that of the value with K(y^w) held at what it is."""
    case = random_case()
    beta, pairs = 0.3, 3
    held = [sum(t.kl for t in response(case, row).values()) for row in range(pairs)]
    policy = case.policy.requires_grad_()

    def surrogate(policy: Tensor) -> Tensor:
        """DPO's margin and K(y^l) by autograd, K(y^w) a number."""
        rows = policy.log_softmax(-1)
        reference = case.reference.log_softmax(-1)
        losses = []
        for pair in range(pairs):
            margin = torch.zeros((), dtype=torch.float64)
            drift = -torch.tensor(held[pair], dtype=torch.float64)
            for row, sign in ((pair, 1), (pair + pairs, -1)):
                for column, token in enumerate(LABELS[row]):
                    if column and token != -100:
                        p, q = rows[row, column - 1], reference[row, column - 1]
                        margin = margin + sign * (p[token] - q[token])
                        drift = drift + (sign < 0) * (q.exp() * (q - p)).sum()
            losses.append(-torch.nn.functional.logsigmoid(beta * (margin - alpha * drift)))
        return torch.stack(losses)

    assert torch.autograd.gradcheck(surrogate, policy, fast_mode=True)
    found = case.losses("tdpo2", beta=beta, alpha=alpha)
    expected = surrogate(policy)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    slopes = [torch.autograd.grad(losses.sum(), policy)[0] for losses in (found, expected)]
    assert torch.allclose(*slopes, rtol=0, atol=1e-12)


@each
def test_masked_positions_have_no_influence(objective: str, options: dict[str, Any]) -> None:
    """Whatever stands where no response token is predicted; not even NaN passes."""
    case = random_case()
    expected = case.losses(objective, **options)
    labelled = case.labels[:, 1:] != -100
    predicts = torch.nn.functional.pad(labelled, (0, 1))
    weighed = torch.nn.functional.pad(labelled, (1, 0))
    logits = case.policy.masked_fill(~predicts.unsqueeze(-1), math.nan).requires_grad_()
    spoilt = Case(
        logits,
        case.reference.masked_fill(~predicts.unsqueeze(-1), math.nan),
        case.labels,
        case.baseline.masked_fill(~predicts, math.nan),
        case.weights.masked_fill(~weighed, math.nan),
    )
    assert torch.equal(spoilt.losses(objective, **options), expected)


def test_reference_gets_no_gradient() -> None:
    case = random_case()
    reference = case.reference.requires_grad_()
    moved = Case(case.policy, reference, case.labels, case.baseline, case.weights)
    assert not moved.losses("tbpo-a", kl="exact").requires_grad


@each
def test_extreme_logits_stay_finite_in_float32(objective: str, options: dict[str, Any]) -> None:
    """Log-ratios of about +-1e4 nats at every token."""
    case = random_case()
    for size in (1e4, -1e4):
        policy = (size * case.policy).float().requires_grad_()
        extreme = Case(
            policy, case.reference.float(), case.labels, case.baseline.float(), case.weights.float()
        )
        losses = extreme.losses(objective, **options)
        assert torch.isfinite(losses).all()
        assert losses.dtype == torch.float32
        (slope,) = torch.autograd.grad(losses.sum(), policy)
        assert torch.isfinite(slope).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_logits_are_widened(dtype: torch.dtype) -> None:
    case = random_case()
    narrow = Case(case.policy.to(dtype), case.reference.to(dtype), *list(vars(case).values())[2:])
    wide = Case(narrow.policy.float(), narrow.reference.float(), *list(vars(case).values())[2:])
    assert torch.equal(narrow.losses("tdpo2"), wide.losses("tdpo2"))


# Invariances


@each
def test_offsets_of_the_logits_change_nothing(objective: str, options: dict[str, Any]) -> None:
    case = random_case()
    moved = Case(
        case.policy + 5.0,
        case.reference - case.baseline.unsqueeze(-1),
        *list(vars(case).values())[2:],
    )
    expected = case.losses(objective, **options)
    assert torch.allclose(moved.losses(objective, **options), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_prompts_of_equal_length_may_be_cut_off(seed: int) -> None:
    """Absolute columns and columns counted from the first response token agree."""
    case = random_case(seed)
    made = torch.Generator().manual_seed(seed)
    prompt, width = 3, len(LABELS[0])
    lengths = torch.randint(1, width - prompt + 1, (len(LABELS),), generator=made)
    column = torch.arange(width)
    answer = (column >= prompt) & (column < prompt + lengths.unsqueeze(-1))
    tokens = torch.randint(0, VOCABULARY, case.labels.shape, generator=made)
    whole = Case(
        case.policy, case.reference, tokens.masked_fill(~answer, -100), case.baseline, case.weights
    )
    cut = Case(*(value[:, prompt - 1 :] for value in vars(whole).values()))
    for objective, options in SETTINGS:
        found = cut.losses(objective, **options)
        expected = whole.losses(objective, **options)
        assert torch.allclose(found, expected, rtol=0, atol=1e-12), objective


def test_pairs_are_independent_and_exchange_with_their_labels() -> None:
    case = random_case()
    order = torch.tensor([2, 0, 1, 5, 3, 4])
    mixed = Case(*(value[order] for value in vars(case).values()))
    for objective, options in SETTINGS:
        expected = case.losses(objective, **options)[order[:3]]
        assert torch.allclose(mixed.losses(objective, **options), expected, rtol=0, atol=1e-14)


def test_beta_goes_only_to_objectives_that_have_it() -> None:
    case = random_case()
    assert torch.equal(case.losses("sft", beta=0.1), case.losses("sft", beta=9.0))
    assert not torch.equal(case.losses("dpo", beta=0.1), case.losses("dpo", beta=9.0))


# Errors


def call(objective: str = "dpo", drop: str = "", options: Any = None, **changes: Any) -> Tensor:
    case = random_case()
    given: dict[str, Any] = {
        "policy_logits": case.policy,
        "reference_logits": case.reference,
        "labels": case.labels,
        "baseline": case.baseline,
        "token_weights": case.weights,
    }
    given |= changes
    given.pop(drop, None)
    return pair_losses(objective, **given, **(options or {}))


def labels_with(row: int, column: int, value: int) -> Tensor:
    labels = torch.tensor(LABELS)
    labels[row, column] = value
    return labels


ONLY_FIRST_COLUMN = labels_with(2, 7, -100)
ONLY_FIRST_COLUMN[2, 0] = 1
"""Row 2 has a token that no logits predict, and no other."""


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"objective": "dqo"}, r"unknown objective 'dqo'\. Did you mean 'dpo'\? Known: .*tis-dpo"),
        ({"options": {"betta": 1}}, "'dpo' has no option betta. Options: beta, label_smoothing"),
        ({"options": {"beta": 0}}, "dpo needs beta > 0"),
        ({"objective": "bpo", "options": {"lam": -1}}, "bpo needs lam > -1"),
        (
            {"objective": "tbpo-q", "drop": "baseline"},
            r"tbpo-q needs baseline, a tensor of the labels' shape \(6, 8\); got None",
        ),
        ({"objective": "tis-dpo", "drop": "token_weights"}, "tis-dpo needs token_weights"),
        ({"baseline": torch.zeros(6, 7)}, r"baseline has shape \(6, 7\); expected .*\(6, 8\)"),
        ({"token_weights": torch.zeros(3, 8)}, r"token_weights has shape \(3, 8\)"),
        ({"policy_logits": torch.zeros(6, 8)}, r"policy_logits has shape \(6, 8\).*\(2B, T, V\)"),
        ({"policy_logits": torch.zeros(6, 8, 5).long()}, "int64; expected floats"),
        ({"reference_logits": torch.zeros(6, 8, 4)}, r"reference_logits has shape \(6, 8, 4\)"),
        (
            {
                "policy_logits": torch.zeros(5, 8, 5),
                "reference_logits": torch.zeros(5, 8, 5),
                "labels": torch.tensor(LABELS)[:5],
            },
            "have 5 rows; expected 2B",
        ),
        (
            {
                "policy_logits": torch.zeros(0, 8, 5),
                "reference_logits": torch.zeros(0, 8, 5),
                "labels": torch.tensor(LABELS)[:0],
            },
            "have 0 rows",
        ),
        (
            {
                "policy_logits": torch.zeros(6, 1, 5),
                "reference_logits": torch.zeros(6, 1, 5),
                "labels": torch.zeros(6, 1).long(),
            },
            "one position or none",
        ),
        ({"labels": torch.tensor(LABELS)[:, :7]}, r"labels has shape \(6, 7\).*\(6, 8\)"),
        ({"labels": torch.tensor(LABELS).double()}, "float64; expected integers"),
        ({"labels": labels_with(4, 3, 5)}, "label 5 at row 4, position 3 .* of 5; expected 0 to 4"),
        ({"labels": labels_with(1, 0, -1)}, "label -1 at row 1, position 0"),
        ({"labels": labels_with(2, 7, -100)}, "row 2 has no response token"),
        (
            {"labels": torch.tensor(LABELS).where(torch.arange(8) == 0, -100)},
            "row 0 has no response token",
        ),
        ({"labels": ONLY_FIRST_COLUMN}, "row 2 has no response token after position 0"),
    ],
)
def test_unusable_input_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(**given)


def test_what_an_objective_does_not_read_may_be_missing() -> None:
    for drop in ("baseline", "token_weights"):
        assert torch.equal(call(drop=drop), call())


# Entry points


def test_a_package_adds_an_objective_in_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stranger.py").write_text(
        "class Hinge:\n"
        "    def __init__(self, width: float = 1.0) -> None:\n"
        "        self.width = width\n"
        "    requires = frozenset()\n"
        "    def losses(self, chosen, rejected):\n"
        "        gap = chosen.log_ratio.sum(-1) - rejected.log_ratio.sum(-1)\n"
        "        return (self.width - gap).clamp(min=0)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    point = EntryPoint("hinge", "stranger:Hinge", "tbpo.objectives")
    monkeypatch.setattr(plugins, "entry_points", lambda group: [point])
    case = random_case()
    rows = [sum(t.m for t in response(case, row).values()) for row in range(6)]
    expected = [max(0.0, 2.0 - w + r) for w, r in zip(rows[:3], rows[3:], strict=True)]
    assert case.losses("hinge", width=2.0).tolist() == pytest.approx(expected)
    with pytest.raises(InputError, match=r"'hinge' has no option wide\. Options: width\."):
        case.losses("hinge", wide=2.0)
    with pytest.raises(InputError, match=r"unknown objective 'dpo'\. Known: hinge"):
        case.losses("dpo")


def test_options_that_an_objective_cannot_take_are_an_input_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fragile(scale: float = 1.0) -> Any:
        return scale + 1

    monkeypatch.setattr(plugins, "load", lambda group, name: fragile)
    with pytest.raises(InputError, match=r"'fragile' cannot use the options \{'scale': 'x'\}"):
        build_objective("fragile", {"scale": "x"})


OBJECTIVE_FILES = {
    point.value.partition(":")[0]
    for point in plugins.entry_points(group="tbpo.objectives")
    if point.value.startswith("harness.")
}


@pytest.mark.parametrize("module", sorted(OBJECTIVE_FILES))
def test_the_file_of_an_objective_imports_no_other_objective(module: str) -> None:
    folder = Path(harness.training.objectives.__file__).parent
    tree = ast.parse((folder / f"{module.rpartition('.')[2]}.py").read_text())
    found = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert found & (OBJECTIVE_FILES - {module}) == set()


def test_one_objective_is_loaded_without_the_others_and_the_package_without_torch() -> None:
    code = (
        "import sys, harness.training\n"
        "assert 'torch' not in sys.modules\n"
        "from harness import plugins\n"
        "plugins.load('objectives', 'tdpo1')\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert OBJECTIVE_FILES & set(done.stdout.split()) == {"harness.training.objectives.tdpo"}


def test_statistics_name_the_fields_that_carry_them() -> None:
    fields = set(TokenStatistics.__dataclass_fields__)
    assert fields - {"policy", "reference", "mask"} == {s.value for s in Statistic}


@pytest.mark.parametrize(
    ("name", "options", "required"),
    [
        ("sft", {}, set()),
        ("dpo", {}, set()),
        ("bpo", {}, set()),
        ("tdpo1", {}, {Statistic.KL}),
        ("tdpo2", {}, {Statistic.KL}),
        ("tis-dpo", {}, {Statistic.TOKEN_WEIGHTS}),
        ("tis-dpo", {"alpha": 0.5}, {Statistic.TOKEN_WEIGHTS, Statistic.REVERSE_KL}),
        ("tbpo-q", {}, {Statistic.BASELINE}),
        ("tbpo-a", {}, set()),
        ("tbpo-a", {"kl": "exact"}, {Statistic.KL}),
    ],
)
def test_objectives_require_what_their_equation_has(
    name: str, options: dict[str, Any], required: set[Statistic]
) -> None:
    made = build_objective(name, options)
    assert made.requires == required
    with pytest.raises(InputError, match="no option requires"):
        build_objective(name, {"requires": frozenset()})
    # Its name in error messages is the one it is registered under.
    assert getattr(made, "name", name) == name
