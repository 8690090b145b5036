"""Language models as pairwise judges, behind an API or in this machine's engine."""

from __future__ import annotations

import numpy as np

from harness.engines import Engine
from harness.engines.settings import EndpointSettings
from harness.errors import InputError
from harness.judges.llm.budget import Budget, BudgetError, Limits, Spent, load_prices
from harness.judges.llm.endpoint import AskEndpoint
from harness.judges.llm.in_process import InProcess
from harness.judges.llm.judge import Forecast, LlmJudge
from harness.judges.llm.panel import panel_judgment
from harness.judges.llm.prompts import ByToken, load_prompts
from harness.judges.llm.questions import MultiTurnPair
from harness.types import JudgeSpec, Loadable

__all__ = [
    "Budget",
    "BudgetError",
    "Forecast",
    "Limits",
    "LlmJudge",
    "MultiTurnPair",
    "Spent",
    "endpoint_judge",
    "in_process_judge",
    "load_prices",
    "panel_judgment",
]


def endpoint_judge(
    spec: JudgeSpec,
    *,
    rng: np.random.Generator,
    settings: EndpointSettings | None = None,
    budget: Budget | None = None,
) -> LlmJudge:
    """Return a judge behind an API; the server is asked for its identity when that is needed.

    Raises:
        InputError: its prompts cannot be used.
    """
    settings, prompts = settings or EndpointSettings(), load_prompts(spec.prompts)
    told = spec.logprobs and settings.top_logprobs > 0
    if not told and any(isinstance(p.manner, ByToken) for p in prompts.prompts.values()):
        raise InputError(
            f"judge '{spec.name}': the prompt '{spec.prompts}' is read from log-probabilities, "
            "which are switched off"
        )
    return LlmJudge(spec, AskEndpoint(spec, settings, rng, budget), prompts)


def in_process_judge(
    spec: JudgeSpec, checkpoint: Loadable, engine: Engine, max_model_len: int
) -> LlmJudge:
    """Return a judge in an engine of its own, which starts when it is first asked.

    Args:
        checkpoint: ``harness.adapters.prepare(spec.checkpoint)``.
        max_model_len: longest sequence that the engine takes, in tokens.

    Raises:
        InputError: its prompts cannot be used so, or the engine cannot be read.
    """
    prompts = load_prompts(spec.prompts)
    if any(not prompt.labels for prompt in prompts.prompts.values()):
        raise InputError(
            f"judge '{spec.name}': the prompt '{spec.prompts}' wants more of a reply than a label, "
            "which a judge in process is asked for. Take another prompt, or an endpoint."
        )
    return LlmJudge(spec, InProcess(checkpoint, engine, max_model_len), prompts)
