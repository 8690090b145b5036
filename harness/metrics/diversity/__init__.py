"""Diversity of the answers: distinct n-grams, Self-BLEU, embeddings, compression, repetition.

Every family gives scores for each prompt or answer; the value of a suite is their mean, and its
interval comes from resampling prompts. Figures of a corpus as a whole (Distinct-n, Self-BLEU
across prompts) are given as jackknife contributions, see `harness.stats.jackknife`.
"""

from harness.metrics.diversity.adjusted import (
    DISTINCT_N_INFO,
    VOCABULARY,
    DistinctN,
    adjusted_distinct,
    expected_distinct,
)
from harness.metrics.diversity.bleu import (
    SELF_BLEU_INFO,
    SelfBleu,
    pairwise_bleu,
    self_bleu,
)
from harness.metrics.diversity.bleu_across import (
    SELF_BLEU_ACROSS_INFO,
    SelfBleuAcross,
    across_contributions,
)
from harness.metrics.diversity.compressed import (
    COMPRESSION_INFO,
    Compression,
    compression_ratio,
)
from harness.metrics.diversity.embeddings import EmbeddingDiversity, embedding_distance, vendi
from harness.metrics.diversity.pooled import (
    DISTINCT_INFO,
    Distinct,
    distinct,
    distinct_contributions,
)
from harness.metrics.diversity.repeated import REPETITION_INFO, Repetition, repetition
from harness.metrics.diversity.words import tokens

__all__ = [
    "COMPRESSION_INFO",
    "DISTINCT_INFO",
    "DISTINCT_N_INFO",
    "REPETITION_INFO",
    "SELF_BLEU_ACROSS_INFO",
    "SELF_BLEU_INFO",
    "VOCABULARY",
    "Compression",
    "Distinct",
    "DistinctN",
    "EmbeddingDiversity",
    "Repetition",
    "SelfBleu",
    "SelfBleuAcross",
    "across_contributions",
    "adjusted_distinct",
    "compression_ratio",
    "distinct",
    "distinct_contributions",
    "embedding_distance",
    "expected_distinct",
    "pairwise_bleu",
    "repetition",
    "self_bleu",
    "tokens",
    "vendi",
]
