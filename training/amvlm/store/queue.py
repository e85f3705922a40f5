"""Which case to label next."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np

from amvlm.store.records import Quality

Order = Literal["random", "worst", "disagreement", "diverse"]
DEFAULT_ORDER: Order = "random"
"""No other taught a model more by the same number of labels: docs/benchmarks.md, label efficiency."""


def queue(found: Iterable[Quality], order: Order = DEFAULT_ORDER, seed: int = 0) -> list[str]:
    """Case ids, the one to label next first; of several structures the one that comes first counts.

    ``worst`` expects the lowest Dice, ``disagreement`` has text mask and prediction farthest apart, ``diverse`` lies
    farthest from what is judged, ``random`` asks nothing of a model.
    """
    score: dict[str, float] = {}
    for q in found:
        score[q.case_id] = min(_score(q, order), score.get(q.case_id, np.inf))
    if order == "random":
        return shuffled(score, seed)
    return sorted(score, key=lambda case_id: (score[case_id], case_id))


def shuffled(case_ids: Iterable[str], seed: int = 0) -> list[str]:
    """The same random order at every call."""
    known = sorted(case_ids)
    return [known[int(index)] for index in np.random.default_rng(seed).permutation(len(known))]


def _score(q: Quality, order: Order) -> float:
    if order == "disagreement":
        return q.agreement
    if order == "diverse":
        return -(q.distance or 0.0)
    return q.soft_dice if q.expected_dice is None else q.expected_dice
