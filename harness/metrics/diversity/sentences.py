"""Sentence embeddings: texts as unit vectors, by a local model.

The model is all-MiniLM-L6-v2, carried by a package on PyPI, or the folder that the environment
variable ``TBPO_EMBEDDING_MODEL`` names: a model of the sentence-transformers kind with mean
pooling. It is run by transformers on the CPU, in float32, as its card says: mean of the last
hidden states over the tokens, then scaled to length 1 (Reimers and Gurevych 2019, arXiv
1908.10084).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.errors import CheckpointError
from harness.files import read_json, sha256_file

VARIABLE = "TBPO_EMBEDDING_MODEL"
POOLING = "1_Pooling/config.json"
LIMITS = "sentence_bert_config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")

BATCH = 32
LONGEST = 512
"""Tokens that are read of a text where the folder does not say."""

Floats = NDArray[np.float32]


def chosen_folder() -> Path | None:
    """Return the folder that the environment names, or None for the embedded model.

    Raises:
        CheckpointError: it is no folder with a model, or one with another pooling than the mean.
    """
    given = os.environ.get(VARIABLE)
    if not given:
        return None
    folder = Path(given).expanduser()
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{VARIABLE}={given} is not a model folder: no config.json in it")
    if not _weights(folder):
        raise CheckpointError(f"{VARIABLE}={given} has no weights: none of {', '.join(WEIGHTS)}")
    pooling = folder / POOLING
    if pooling.is_file() and not read_json(pooling).get("pooling_mode_mean_tokens"):
        raise CheckpointError(f"{pooling}: only mean pooling is supported, and this is another")
    return folder


def _weights(folder: Path) -> Path | None:
    found = (folder / name for name in WEIGHTS if (folder / name).is_file())
    return next(found, None)


def model_folder() -> Path:
    """Return the folder of the chosen model, fetching the embedded one the first time.

    Raises:
        CheckpointError: it cannot be used, or the package cannot be fetched.
    """
    from harness.adapters.embedded import sentence_model_folder

    return chosen_folder() or sentence_model_folder()


def model_name() -> str:
    """Return what the chosen model is, for a metric's definition; fetches nothing.

    Raises:
        CheckpointError: the folder that the environment names cannot be used.
    """
    folder = chosen_folder()
    if folder is None:
        from harness.adapters.embedded import MINILM

        return f"{MINILM.hub_id.split('/')[1]} ({MINILM.package} {MINILM.version})"
    weights = _weights(folder)
    assert weights is not None
    return f"{folder.name} (SHA-256 {sha256_file(weights)[:12]})"


@dataclass(frozen=True)
class SentenceModel:
    """A loaded model with its tokenizer; ``longest`` is the number of tokens it reads."""

    model: Any
    tokenizer: Any
    longest: int

    @classmethod
    def load(cls, folder: Path) -> SentenceModel:
        """Load the model in ``folder``.

        Raises:
            CheckpointError: transformers cannot load it.
        """
        import torch
        from transformers import AutoModel, AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(folder)
            model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(f"{folder}: the sentence model cannot be loaded: {error}") from (
                error
            )
        return cls(model, tokenizer, _longest(folder, tokenizer))

    def embed(self, texts: Sequence[str]) -> Floats:
        """Return unit vectors, (n, d); what a text has beyond ``longest`` tokens is not read."""
        order = sorted(range(len(texts)), key=lambda place: (len(texts[place]), texts[place]))
        found = np.empty((len(texts), self.model.config.hidden_size), dtype=np.float32)
        for start in range(0, len(order), BATCH):
            places = order[start : start + BATCH]
            found[places] = self._embed([texts[place] for place in places])
        return found

    def _embed(self, texts: list[str]) -> Floats:
        import torch

        inputs = self.tokenizer(
            texts, padding=True, truncation=True, max_length=self.longest, return_tensors="pt"
        )
        with torch.inference_mode():
            states = self.model(**inputs).last_hidden_state
        mask = inputs["attention_mask"].unsqueeze(-1).to(states.dtype)
        mean = (states * mask).sum(1) / mask.sum(1)
        vectors: Floats = torch.nn.functional.normalize(mean, dim=1).numpy()
        return vectors


def _longest(folder: Path, tokenizer: Any) -> int:
    """Return how many tokens the model reads: what its folder says, else its tokenizer."""
    path = folder / LIMITS
    said = read_json(path).get("max_seq_length") if path.is_file() else None
    return min(int(said or tokenizer.model_max_length), LONGEST)
