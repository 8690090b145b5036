"""Diversity of meaning: how far a prompt's samples lie apart as sentence embeddings."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.metrics import by_prompt, prompt_score
from harness.metrics.diversity.sentences import SentenceModel, model_folder, model_name
from harness.types import Direction, Example, Generation, MetricInfo, Score

Vectors = NDArray[np.floating[Any]]


def embedding_info(model: str) -> tuple[MetricInfo, ...]:
    """Return the family's keys; the model decides the values, so that the definitions name it."""
    return (
        MetricInfo(
            key="embedding_distance",
            title="Embedding distance",
            unit="1 - cosine",
            direction=Direction.HIGHER,
            definition="1 - cosine of the sentence embeddings of two samples of one prompt, mean "
            f"over all pairs, averaged over prompts; 0 where all say the same. Model: {model}.",
        ),
        MetricInfo(
            key="vendi",
            title="Vendi score",
            unit="effective samples",
            direction=Direction.HIGHER,
            definition="Effective number of different samples of one prompt, from 1 to their "
            "number: exponential of the entropy of the eigenvalues of their cosines, averaged "
            f"over prompts; compare equal numbers of samples. Model: {model}.",
        ),
    )


def embedding_distance(vectors: Vectors) -> float:
    """Return the mean of 1 - cosine over all pairs of two or more vectors, (n, d), not zero.

    Raises:
        ValueError: fewer than two vectors.
    """
    if len(vectors) < 2:
        raise ValueError(f"a distance needs two vectors or more, given {len(vectors)}")
    exact = np.asarray(vectors, dtype=np.float64)
    unit = exact / np.linalg.norm(exact, axis=1, keepdims=True)
    cosines = (unit @ unit.T)[np.triu_indices(len(unit), 1)]
    return float(1 - cosines.mean())


def vendi(vectors: Vectors) -> float:
    """Return the Vendi score of n vectors, (n, d), not zero: exp(-sum_i l_i log l_i).

    The l_i are the eigenvalues of K / n, K the matrix of cosines. 1 where all are the same, n
    where all are orthogonal.

    Source: Friedman and Dieng (2023), "The Vendi Score", TMLR, arXiv 2210.02410; their package.
    """
    with warnings.catch_warnings():
        # The package asks for scipy.sparse.csr, a name that scipy has deprecated.
        warnings.simplefilter("ignore", DeprecationWarning)
        from vendi_score import vendi as package

        return float(package.score_X(np.asarray(vectors, dtype=np.float64)))


class EmbeddingDiversity:
    """``embedding_distance`` and ``vendi`` of every prompt, over its samples that have text."""

    def __init__(self) -> None:
        self.info = embedding_info(model_name())

    def check_examples(self, examples: Sequence[Example]) -> None:
        """Fetch the model, so that a run that cannot have it ends before it begins."""
        model_folder()

    def score(self, examples: Sequence[Example], generations: Sequence[Generation]) -> list[Score]:
        """Return two scores for each prompt; None with fewer than two samples that have text."""
        found = [answers for _, answers in by_prompt(examples, generations)]
        written = [[a.text for a in answers if a.text.strip()] for answers in found]
        measured = [texts if len(texts) > 1 else [] for texts in written]
        vectors = iter(_embedded([text for texts in measured for text in texts]))
        return [
            score
            for answers, texts, kept in zip(found, written, measured, strict=True)
            for score in self._scores(answers[0], len(texts), [next(vectors) for _ in kept])
        ]

    def _scores(self, answer: Generation, written: int, vectors: list[Vectors]) -> list[Score]:
        if not vectors:
            reason = f"it needs two samples with text, the prompt has {written}"
            return [
                prompt_score(answer, i.key, None, reason=reason, undefined=True) for i in self.info
            ]
        matrix = np.array(vectors)
        values = {"embedding_distance": embedding_distance(matrix), "vendi": vendi(matrix)}
        return [prompt_score(answer, i.key, values[i.key]) for i in self.info]


def _embedded(texts: Sequence[str]) -> Vectors:
    """Return the embeddings of texts, each different one computed once."""
    different = list(dict.fromkeys(texts))
    if not different:
        return np.empty((0, 0))
    found = dict(zip(different, SentenceModel.load(model_folder()).embed(different), strict=True))
    return np.array([found[text] for text in texts])
