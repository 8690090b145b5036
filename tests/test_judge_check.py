"""``tbpo judge check``: judges against human labels, measured on a server that judges as told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_records import Tbpo, refused
from judge_stand_in import GOOD, POOR, JudgeStandIn, judge_stand_in, prefers_first, prefers_good

from harness.judge_check import Check, check_judges
from harness.judging import llm_judge
from harness.types import JudgeSpec

ROWS = [
    {"prompt": f"Question {i // 2}", "chosen": f"{GOOD} {i}", "rejected": f"{POOR} {i} and more"}
    for i in range(12)
]
QUICK = {"attempts": 4, "timeout_s": 5.0, "backoff_s": 0.002}


@pytest.fixture
def server() -> Iterator[JudgeStandIn]:
    with judge_stand_in() as state:
        yield state


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "labelled.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def checked(path: Path, *specs: JudgeSpec, **changes: Any) -> Check:
    options: dict[str, Any] = {
        "limit": None,
        "engine": {},
        "endpoint": QUICK,
        "budget": {},
        "prices": None,
    }
    return check_judges(specs, [path], "hh/helpful", **(options | changes))


def test_judge_that_decides_as_people_do(server: JudgeStandIn, pairs: Path) -> None:
    server.choose = prefers_good
    (found,) = checked(pairs, JudgeSpec(name="llm", source=server.url)).judges
    agreement = found.figures["agreement with people"]
    assert (found.alike, found.half, found.opposed) == (12, 0, 0)
    assert (agreement.value, agreement.n, agreement.clusters) == (1.0, 12, 6)
    assert agreement.low is not None
    assert agreement.low < 1.0
    assert found.figures["flip rate"].value == 0.0
    assert found.figures["length preference"].value == 0.0


def test_judge_of_positions_is_a_coin(server: JudgeStandIn, pairs: Path) -> None:
    server.choose = prefers_first
    (found,) = checked(pairs, JudgeSpec(name="llm", source=server.url)).judges
    assert (found.alike, found.half, found.opposed) == (0, 12, 0)
    assert found.figures["agreement with people"].value == 0.5
    assert found.figures["flip rate"].value == 1.0
    assert found.figures["position preference"].value == 1.0


def test_several_judges_are_held_against_each_other(server: JudgeStandIn, pairs: Path) -> None:
    specs = [JudgeSpec(name=n, source=server.url, seed=i) for i, n in enumerate("ab")]
    found = checked(pairs, *specs)
    assert list(found.between) == ["Krippendorff's alpha", "kappa of a and b"]
    assert found.between["kappa of a and b"].value == 1.0


def test_what_was_found_stands_beside_later_verdicts(server: JudgeStandIn, pairs: Path) -> None:
    spec = JudgeSpec(name="llm", source=server.url)
    before = llm_judge(spec, {}, {}).info
    assert before.agreement is None
    assert not before.by_rule
    checked(pairs, spec)
    after = llm_judge(spec, {}, {}).info
    assert after.agreement is not None
    assert after.agreement.value == 1.0
    assert after.measured_on == "labelled.jsonl"
    other = llm_judge(spec.model_copy(update={"temperature": 0.5}), {}, {}).info
    assert other.agreement is None


def test_command(server: JudgeStandIn, pairs: Path, tbpo: Tbpo) -> None:
    words = ["judge", "check", "--pairs", pairs, "--limit", "4"]
    judge = f"llm={server.url}"
    code, out, _ = tbpo(*words, "--judge", judge)
    assert code == 0
    assert "4 pairs of labelled.jsonl, first 4 pairs, shown in both orders" in out
    assert "agreement with people" in out
    code, out, _ = tbpo(*words, "--judge", judge, "--json")
    assert json.loads(out)["judges"][0]["alike"] == 4
    refused(tbpo(*words), "no judge given")
    refused(tbpo(*words, "--judge", judge, "--judge", judge), "two judges have one name")
    refused(tbpo(*words, "--judge", f"{judge},colour=red"), "unknown key 'colour'")
    refused(tbpo("judge", "check", "--judge", judge, "--pairs", "none.jsonl"), "none.jsonl")
