"""lm-eval kept to itself: its chatter, its seeding of global generators, the network."""

from __future__ import annotations

import io
import logging
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import numpy as np

SILENCED = ("lm_eval", "datasets")
"""Loggers whose messages are about lm-eval's inner workings."""


@contextmanager
def quiet() -> Iterator[None]:
    """Silence lm-eval's messages and progress bars; errors come as exceptions."""
    loggers = [logging.getLogger(name) for name in SILENCED]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with (
            redirect_stdout(io.StringIO()),
            redirect_stderr(io.StringIO()),
            warnings.catch_warnings(action="ignore"),
        ):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def same_random_state() -> Iterator[None]:
    """Give the global random generators of Python, numpy and torch back as they were."""
    import torch

    before = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.random.set_rng_state(before[2])


@contextmanager
def offline(wanted: bool) -> Iterator[None]:
    """Refuse every request to a hub while ``wanted``, as HF_HUB_OFFLINE does from the start."""
    import datasets.config  # type: ignore[import-untyped]
    import huggingface_hub.constants

    places: list[Any] = [datasets.config, huggingface_hub.constants]
    before = [place.HF_HUB_OFFLINE for place in places]
    for place, was in zip(places, before, strict=True):
        place.HF_HUB_OFFLINE = wanted or was
    try:
        yield
    finally:
        for place, was in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = was
