"""Language models as judges, made from what the user named: behind an API, or in an engine here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from harness.adapters import prepare
from harness.engines.settings import EndpointSettings, EngineSettings
from harness.errors import InputError
from harness.groups import LENGTH, checked_settings, make_groups, model_facts
from harness.judges.llm import (
    Budget,
    Limits,
    LlmJudge,
    endpoint_judge,
    in_process_judge,
    load_prices,
)
from harness.suites import validation_text
from harness.types import JudgeSpec

LONGEST = 4096
"""Context of a judge in process, in tokens, where its model has as much."""


def llm_judge(
    spec: JudgeSpec,
    engine: Mapping[str, Any],
    endpoint: Mapping[str, Any],
    budget: Budget | None = None,
    *,
    own_length: bool = False,
) -> LlmJudge:
    """Return the judge that a spec names; nothing is started or asked yet.

    Args:
        engine: settings of the engine for a judge in process, by name.
        endpoint: settings for endpoints, by name.
        budget: shared by all judges behind an API.
        own_length: ``max_model_len`` among the engine's settings is meant for the judge, and not
            for the checkpoints of a run, whose questions are shorter than the judge's.

    Raises:
        InputError: the spec, its prompts or a setting cannot be used.
        CheckpointError: the checkpoint of a judge in process cannot be loaded.
    """
    if spec.asks_an_api:
        settings = checked_settings(EndpointSettings(), endpoint, "endpoint")
        rng = np.random.default_rng()  # chance in the waits between tries; decides no verdict
        judge = endpoint_judge(spec, rng=rng, settings=settings, budget=budget)
        if budget is not None:
            budget.check(judge.transport.model)
        return judge
    checkpoint = prepare(spec.checkpoint)
    own = {key: value for key, value in engine.items() if own_length or key != LENGTH}
    length = None if LENGTH in own else min(model_facts(checkpoint).context, LONGEST)
    group = make_groups([checkpoint], own, {}, length)[0]
    assert isinstance(group.settings, EngineSettings)
    return in_process_judge(spec, checkpoint, group.make(0), group.settings.max_model_len)


def make_budget(given: Mapping[str, Any], prices: Path | None) -> Budget:
    """Return the budget that ``--budget`` and ``--prices`` name.

    Raises:
        InputError: an unknown or wrong cap, or a price table that cannot be read.
    """
    try:
        return Budget(Limits.model_validate(dict(given)), load_prices(prices))
    except ValidationError as error:
        raise InputError(f"--budget: {validation_text(error)}") from error
