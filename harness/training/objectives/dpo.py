"""DPO, conservative DPO and IPO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor
from torch.nn import functional as F

from harness.errors import InputError
from harness.training.objectives.base import Statistic, TokenStatistics, margin
from harness.training.objectives.checks import check_choice, check_number


@dataclass(frozen=True)
class Dpo:
    """DPO, with M = sum_t m_t(y^w) - sum_t m_t(y^l) and e the label smoothing.

    ``loss="sigmoid"``: (1-e) softplus(-beta M) + e softplus(beta M); e = 0 is DPO (Rafailov et al.,
    2023, arXiv 2305.18290, equation 7), e in (0, 0.5] its conservative form, which takes a label as
    flipped with that probability.
    ``loss="ipo"``: (M - 1/(2 beta))^2 (Azar et al., 2023, arXiv 2310.12036). M is a sum over
    tokens, as there, not a mean.
    """

    name: ClassVar[str] = "dpo"

    beta: float = 0.1
    label_smoothing: float = 0.0
    loss: Literal["sigmoid", "ipo"] = "sigmoid"

    def __post_init__(self) -> None:
        check_number(self.name, "beta", self.beta, above=0)
        check_number(self.name, "label_smoothing", self.label_smoothing, low=0, high=0.5)
        check_choice(self.name, "loss", self.loss, ("sigmoid", "ipo"))
        if self.loss == "ipo" and self.label_smoothing:
            raise InputError(
                f"dpo has no label smoothing with loss 'ipo'; got label_smoothing "
                f"{self.label_smoothing!r}. Leave it out, or use loss 'sigmoid'."
            )

    @property
    def requires(self) -> frozenset[Statistic]:
        """Nothing beyond log-probabilities."""
        return frozenset()

    def losses(self, chosen: TokenStatistics, rejected: TokenStatistics) -> Tensor:
        """Return (B,) losses of the B pairs."""
        difference = margin(chosen, rejected)
        if self.loss == "ipo":
            return (difference - 1 / (2 * self.beta)).square()
        logits = self.beta * difference
        kept = 1 - self.label_smoothing
        return kept * F.softplus(-logits) + self.label_smoothing * F.softplus(logits)
