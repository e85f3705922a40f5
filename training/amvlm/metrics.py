"""Dice and IoU, undefined where both masks are empty (NaN, and counted), never 0 or 1 by convention."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Overlap:
    """Voxel counts of one case: intersection, prediction, truth."""

    both: int
    predicted: int
    truth: int

    @classmethod
    def of(cls, predicted: Tensor, truth: Tensor) -> Overlap:
        """Count two boolean masks of one shape."""
        if predicted.shape != truth.shape:
            raise ValueError(f"shapes differ: {tuple(predicted.shape)} and {tuple(truth.shape)}")
        predicted, truth = predicted.bool(), truth.bool()
        return cls(int((predicted & truth).sum()), int(predicted.sum()), int(truth.sum()))

    def __add__(self, other: Overlap) -> Overlap:
        """Counts of two parts of one case."""
        return Overlap(self.both + other.both, self.predicted + other.predicted, self.truth + other.truth)

    @property
    def dice(self) -> float:
        """2|A∩B| / (|A|+|B|) in [0, 1]; NaN for an empty truth."""
        return 2 * self.both / (self.predicted + self.truth) if self.truth else math.nan

    @property
    def iou(self) -> float:
        """|A∩B| / |A∪B| in [0, 1]; NaN for an empty truth."""
        return self.both / (self.predicted + self.truth - self.both) if self.truth else math.nan


@dataclass(frozen=True)
class Summary:
    """Per-case means and pooled Dice (they differ by up to 6 points: never mix them)."""

    cases: int
    empty_truths: int
    mean_dice: float
    sd_dice: float
    mean_iou: float
    pooled_dice: float


def summarise(overlaps: Iterable[Overlap]) -> Summary:
    """Mean ± sd over the cases with a truth, and Dice of the pooled voxels of all cases."""
    overlaps = list(overlaps)
    dices = torch.tensor([o.dice for o in overlaps if o.truth], dtype=torch.float64)
    ious = torch.tensor([o.iou for o in overlaps if o.truth], dtype=torch.float64)
    total = sum(o.predicted + o.truth for o in overlaps)
    return Summary(
        cases=len(overlaps),
        empty_truths=len(overlaps) - len(dices),
        mean_dice=float(dices.mean()) if len(dices) else math.nan,
        sd_dice=float(dices.std()) if len(dices) > 1 else math.nan,
        mean_iou=float(ious.mean()) if len(ious) else math.nan,
        pooled_dice=2 * sum(o.both for o in overlaps) / total if total else math.nan,
    )
