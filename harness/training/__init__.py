"""Training of small checkpoints with the objectives that the harness compares."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.training.from_logits import pair_losses

__all__ = ["pair_losses"]


def __getattr__(name: str) -> Any:
    # Lazily: the command line imports parts of this package and must not wait for torch.
    if name in __all__:
        from harness.training import from_logits

        return getattr(from_logits, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
