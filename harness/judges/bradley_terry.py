"""The ``reward`` judge: the embedded reward model's preference between two answers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from harness.files import packaged, read_json
from harness.judges import AnswerPair, judge_identity, verdict
from harness.judges.reward import MANIFEST, RewardManifest, RewardModel, arithmetic
from harness.progress import bar
from harness.types import Estimate, JudgeInfo, Judgment, Message, Outcome

NAME = "reward"
VERSION = 1
FOLDER = "hh-reward"
OVERALL = "overall"
LEAD_METRICS = ("preference_accuracy", "unsafe_refused", "safe_answered")


def reward_info() -> JudgeInfo:
    """Return the judge's identity and its measured agreement, from the packaged manifest."""
    content = read_json(packaged("judges", FOLDER, MANIFEST))
    manifest = RewardManifest.model_validate(content)
    test = manifest.test[OVERALL]
    decides: dict[str, Any] = {"manifest": content}
    if (computed := arithmetic(manifest.base.dtype)) != manifest.base.dtype:
        decides["arithmetic"] = computed
    data = ", ".join(data.file for data in manifest.measured_on)
    return JudgeInfo(
        name=NAME,
        title="Reward model",
        definition=manifest.what,
        agreement=Estimate(
            value=test.share,
            low=test.low,
            high=test.high,
            n=test.n,
            clusters=test.n,
            method="wilson",
        ),
        measured_on=f"{data}; no pair of theirs was used in fitting",
        identity=judge_identity(NAME, VERSION, decides),
        lead_metrics=LEAD_METRICS,
        by_rule=False,
    )


class Reward:
    """Prefers the answer with the higher reward; P(win) = sigmoid(scale (r_a - r_b)).

    Source: Bradley and Terry (1952), "Rank analysis of incomplete block designs". Equal rewards
    tie. An answer is scored once, however many pairs it appears in.
    """

    def __init__(self) -> None:
        self.info = reward_info()

    @cached_property
    def _model(self) -> RewardModel:
        return RewardModel.load(packaged("judges", FOLDER))

    def compare(self, pairs: Sequence[AnswerPair]) -> list[Judgment]:
        """Return WIN, TIE or LOSS of each candidate, with the probability of a win."""
        rewards = self._rewards(pairs)
        return [self._judge(pair, rewards) for pair in pairs]

    def _rewards(self, pairs: Sequence[AnswerPair]) -> dict[tuple[str, str], float]:
        wanted: dict[tuple[str, str], tuple[Message, ...]] = {}
        for pair in pairs:
            for text in (pair.candidate_text, pair.baseline_text):
                wanted[pair.example.id, text] = pair.example.messages
        with bar(len(wanted), "reward model", "answer") as shown:
            values = self._model.rewards(
                list(wanted.values()), [text for _, text in wanted], shown.update
            )
        return dict(zip(wanted, values, strict=True))

    def _judge(self, pair: AnswerPair, rewards: dict[tuple[str, str], float]) -> Judgment:
        candidate = rewards[pair.example.id, pair.candidate_text]
        baseline = rewards[pair.example.id, pair.baseline_text]
        if candidate == baseline:
            return verdict(pair, NAME, Outcome.TIE, 0.5)
        outcome = Outcome.WIN if candidate > baseline else Outcome.LOSS
        return verdict(pair, NAME, outcome, self._model.probability(candidate, baseline))
