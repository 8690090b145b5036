"""``tbpo judge check`` with a real small model as the judge, in this machine's vLLM engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from judge_degrees import degree_by_transformers

from harness.adapters.embedded import embedded_folder
from harness.judge_check import Check, check_judges
from harness.judges.llm import LlmJudge
from harness.judges.llm.questions import question_messages
from harness.judging import llm_judge
from harness.labelled import Labelled, labelled_pairs, read_labelled
from harness.training.data import Skips
from harness.types import JudgeSpec, Judgment, Outcome, Shown

pytestmark = [pytest.mark.long, pytest.mark.engine]

SUITE = "hh/helpful"
ENGINE = {"max_model_len": 1024, "max_num_seqs": 4}
GREETED = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Name a river.\n\nAssistant:"
ROWS = [
    {"prompt": "What is two and two?", "chosen": "Four.", "rejected": "I like trains."},
    {"prompt": "Why is the sky blue?", "chosen": "Air scatters blue most.", "rejected": ""},
    {"chosen": f"{GREETED} The Elbe.", "rejected": f"{GREETED} No."},
]


class Found(NamedTuple):
    judge: LlmJudge
    pairs: list[Labelled]
    judgments: list[Judgment]
    check: Check


@pytest.fixture(scope="module")
def folder() -> Path:
    pytest.importorskip("vllm", reason="vLLM is not installed (extra cpu or gpu)")
    return embedded_folder()


@pytest.fixture(scope="module")
def found(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Found]:
    """What the judge said, and the check, which asks nothing that was answered before."""
    path = tmp_path_factory.mktemp("pairs") / "labelled.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    spec = JudgeSpec(name="smol", source=str(folder), dtype="float32")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TBPO_CACHE", str(tmp_path_factory.mktemp("cache")))
        pairs = labelled_pairs(read_labelled([path], Skips())[0], SUITE)
        judge = llm_judge(spec, ENGINE, {}, own_length=True)
        try:
            judgments = judge.compare([pair.asked for pair in pairs])
        finally:
            judge.close()
        check = check_judges(
            [spec],
            [path],
            SUITE,
            limit=None,
            engine=ENGINE,
            endpoint={},
            budget={},
            prices=None,
        )
        yield Found(judge, pairs, judgments, check)


def test_degrees_are_those_of_transformers(found: Found, folder: Path) -> None:
    prompt = found.judge.prompts.prompts["judge_helpful"]
    for pair, judgment in zip(found.pairs, found.judgments, strict=True):
        assert len(judgment.orders) == 2
        for order in judgment.orders:
            messages = question_messages(prompt, pair.asked, order.shown)
            first = degree_by_transformers(folder, messages)
            expected = first if order.shown is Shown.CANDIDATE_FIRST else 1 - first
            assert order.preference == pytest.approx(expected, abs=2e-3)


def test_the_check_follows_from_the_verdicts(found: Found) -> None:
    (measured,) = found.check.judges
    right = [Outcome.WIN if pair.preferred else Outcome.LOSS for pair in found.pairs]
    said = [judgment.outcome for judgment in found.judgments]
    alike = sum(a == b for a, b in zip(said, right, strict=True))
    ties = said.count(Outcome.TIE)
    assert (measured.alike, measured.half) == (alike, ties)
    assert measured.opposed == len(ROWS) - alike - ties
    agreement = measured.figures["agreement with people"]
    assert agreement.value == pytest.approx((alike + ties / 2) / len(ROWS))
    assert (agreement.n, agreement.clusters) == (len(ROWS), len(ROWS))
    assert measured.figures["invalid"].value == 0.0
    assert measured.identity == found.judge.info.identity
