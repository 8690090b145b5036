"""Several judges on one pair: their common verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from harness.errors import InputError
from harness.types import Judgment, Outcome

PANEL = "panel"


def panel_judgment(judgments: Sequence[Judgment], name: str = PANEL) -> Judgment:
    """Return the verdict of a panel on one pair, under the panel's ``name``.

    The rule: INVALID verdicts are left out. Where more than half of the judges gave a valid one,
    the outcome is the one that more than half of the valid verdicts share, else TIE, and the
    preference is the mean of theirs. Otherwise the panel's verdict is INVALID.

    Raises:
        InputError: there is no judgment, two are by one judge, or they are about different pairs.
    """
    _check(judgments)
    valid = [j for j in judgments if j.outcome is not Outcome.INVALID]
    if 2 * len(valid) <= len(judgments):
        why = f"{len(valid)} of {len(judgments)} judges gave a verdict"
        return _panels(judgments[0], name, Outcome.INVALID, None, why)
    outcome, votes = Counter(j.outcome for j in valid).most_common(1)[0]
    degrees = [j.preference for j in valid if j.preference is not None]
    majority = outcome if 2 * votes > len(valid) else Outcome.TIE
    return _panels(judgments[0], name, majority, sum(degrees) / len(degrees), None)


def _panels(
    of: Judgment, name: str, outcome: Outcome, preference: float | None, reason: str | None
) -> Judgment:
    given = of.model_dump(exclude={"judge", "outcome", "preference", "reason", "orders"})
    return Judgment(**given, judge=name, outcome=outcome, preference=preference, reason=reason)


def _check(judgments: Sequence[Judgment]) -> None:
    if not judgments:
        raise InputError("a panel needs the judgments of one judge at least")
    pairs = {(j.suite, j.candidate, j.baseline, j.example_id) for j in judgments}
    if len(pairs) > 1:
        listed = "; ".join("/".join(pair) for pair in sorted(pairs)[:3])
        raise InputError(f"a panel judges one pair at a time, found {len(pairs)}: {listed}")
    twice = [judge for judge, n in Counter(j.judge for j in judgments).items() if n > 1]
    if twice:
        raise InputError(f"judge '{twice[0]}' sits on the panel twice")
