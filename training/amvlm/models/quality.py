"""How good a pseudo-label probably is, without its truth (METHOD §5)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from scipy import ndimage
from torch import Tensor

from amvlm.losses import merged_logits
from amvlm.metrics import Overlap

FEWEST_CASES = 5
"""Cases from which expected Dice is worth telling."""
_PRIOR_CASES = 5.0
"""The ridge: how many cases the assumption below is worth."""
_SCALES = (0.1, 0.2, 0.05, 0.3, 0.5, 2.0)
_PRIOR_WEIGHTS = (0.03, 0.08, 0.0, 0.0, 0.0, 0.0)
"""Spreads of the features in :meth:`QualityFeatures.vector` that count as one, and what each is assumed to be worth in
Dice before a case was seen: masks that agree, and that are sure of themselves, are better ones."""
_FARTHEST = 4.0
Sign = Annotated[float, Field(allow_inf_nan=False)]
_NEARLY_ALL, _DISJOINT = 0.99, 0.01


@dataclass(frozen=True)
class QualityFeatures:
    """What can be seen of one case's pseudo-label for one structure.

    Parameters
    ----------
    agreement : float in [0, 1]
        Dice of thresholded text mask and prediction; 1 where both are empty.
    soft_dice : float in [0, 1]
        Dice that the merged probabilities themselves expect of their thresholded mask.
    confidence : float in [0.5, 1]
        Mean of max(p, 1 − p) over voxels that either mask names.
    entropy : float, bits
        Summed over all voxels, per voxel of the mask; capped at 4.
    foreground : float in [0, 1]
        Share of the voxels.
    components : int
        Connected parts of the thresholded merged mask.
    """

    agreement: float
    soft_dice: float
    confidence: float
    entropy: float
    foreground: float
    components: int

    @classmethod
    def of(cls, teacher_logits: Tensor, text_mask_logits: Tensor, text_weight: float) -> QualityFeatures:
        """Read them off logits of one structure, (Z, H, W) each; α in [0, 1] merges them."""
        probs = merged_logits(teacher_logits, text_mask_logits, text_weight).sigmoid().double()
        mask = probs > 0.5
        either = (teacher_logits > 0) | (text_mask_logits > 0) | mask
        both, total = _overlap(text_mask_logits > 0, teacher_logits > 0)
        sure = torch.maximum(probs, 1 - probs)
        entropy = -(torch.special.xlogy(probs, probs) + torch.special.xlogy(1 - probs, 1 - probs)) / math.log(2)
        expected, size = float((probs * mask).sum()), float(mask.sum())
        return cls(
            agreement=2 * both / total if total else 1.0,
            soft_dice=2 * expected / (float(probs.sum()) + size) if size else 0.0,
            confidence=float(sure[either].mean()) if bool(either.any()) else float(sure.mean()),
            entropy=min(4.0, float(entropy.sum()) / max(1.0, size)),
            foreground=size / probs.numel(),
            components=int(ndimage.label(mask.cpu().numpy())[1]),
        )

    def vector(self) -> list[float]:
        """What the calibration reads."""
        return [
            self.soft_dice, self.agreement, self.confidence, self.entropy,
            math.log10(max(self.foreground, 1e-6)), float(min(self.components, 10)),
        ]  # fmt: skip

    def flags(self) -> tuple[str, ...]:
        """What a person should look at first."""
        found = []
        if self.foreground >= _NEARLY_ALL:
            found.append("nearly everything is foreground")
        if self.foreground == 0:
            found.append("empty")
        if self.agreement <= _DISJOINT:
            found.append("text mask and prediction do not meet")
        return tuple(found)


class ExpectedDice(BaseModel):
    """Expected Dice of the merged mask: a ridge regression on :class:`QualityFeatures`, fitted
    on cases that no network trained on.

    They are measured in fixed spreads and at most four of them from their mean, so that a few alike cases do not make
    small differences look large.
    """

    model_config = ConfigDict(frozen=True)

    mean_dice: float = Field(ge=0, le=1)
    means: Annotated[tuple[Sign, ...], Field(min_length=len(_SCALES), max_length=len(_SCALES))]
    weights: Annotated[tuple[Sign, ...], Field(min_length=len(_SCALES), max_length=len(_SCALES))]
    cases: int = Field(ge=1)

    @classmethod
    def fit(cls, signs: Sequence[QualityFeatures], dices: Sequence[float]) -> ExpectedDice | None:
        """From judged cases: their signs, and Dice in [0, 1]; None without any case."""
        if not signs:
            return None
        x, y = np.array([s.vector() for s in signs]), np.array(dices)
        z, prior = _standard(x, x.mean(0)), np.array(_PRIOR_WEIGHTS)
        unexplained = y - y.mean() - z @ prior
        weights = prior + np.linalg.solve(z.T @ z + _PRIOR_CASES * np.eye(z.shape[1]), z.T @ unexplained)
        return cls(
            mean_dice=float(y.mean()), means=tuple(x.mean(0).tolist()), weights=tuple(weights.tolist()), cases=len(y)
        )

    def of(self, signs: QualityFeatures) -> float:
        """Expected Dice in [0, 1]."""
        z = _standard(np.array(signs.vector()), np.array(self.means))
        return float(np.clip(self.mean_dice + z @ np.array(self.weights), 0.0, 1.0))


def foretold(expected: ExpectedDice | None, signs: QualityFeatures) -> float | None:
    """Expected Dice in [0, 1]; None where fewer than ``FEWEST_CASES`` cases tell it: that is not yet known."""
    return None if expected is None or expected.cases < FEWEST_CASES else expected.of(signs)


def _standard(vector: NDArray[np.float64], means: NDArray[np.float64]) -> NDArray[np.float64]:
    z: NDArray[np.float64] = np.clip((vector - means) / np.array(_SCALES), -_FARTHEST, _FARTHEST)
    return z


def judged_dice(predicted: Tensor, truth: Tensor) -> float:
    """Dice in [0, 1]; of an absent structure 1 where nothing is predicted, else 0."""
    found = Overlap.of(predicted, truth)
    if found.truth:
        return found.dice
    return float(found.predicted == 0)


def _overlap(first: Tensor, second: Tensor) -> tuple[int, int]:
    return int((first & second).sum()), int(first.sum()) + int(second.sum())
