"""Overlapping windows over a plane, joined under Gaussian weights (positions and weights are MONAI's)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from monai.data.utils import compute_importance_map, dense_patch_slices
from torch import Tensor

_SHARP = 0.125


def window_of(patch: tuple[int, int], sides: tuple[int, int]) -> tuple[int, int]:
    """One window over all of a region up to twice the patch; else windows of the patch's size."""
    if all(side <= 2 * own for side, own in zip(sides, patch, strict=True)):
        return sides
    return patch


class Windows:
    """Windows of one size over planes of ``sides`` pixels; a plane shorter than the window repeats its edge.

    ``corners`` holds the first row and column of each.
    """

    def __init__(self, sides: tuple[int, int], patch: tuple[int, int]) -> None:
        self.sides, self.size = sides, window_of(patch, sides)
        self._padded = [max(pair) for pair in zip(sides, self.size, strict=True)]
        steps = [
            own if own == side else max(1, own // 2) for own, side in zip(self.size, self._padded, strict=True)
        ]
        found = dense_patch_slices(self._padded, self.size, steps)
        self.corners = [(int(rows.start), int(columns.start)) for rows, columns in found]
        self._weight = torch.ones(self.size)
        if len(self.corners) > 1:
            self._weight = compute_importance_map(self.size, mode="gaussian", sigma_scale=_SHARP).clamp(min=1e-3)

    def cut(self, planes: Tensor) -> Tensor:
        """(B, C, H, W) → (B, windows, C, h, w)."""
        missing = [padded - side for padded, side in zip(self._padded, self.sides, strict=True)]
        if any(missing):
            planes = F.pad(planes, (0, missing[1], 0, missing[0]), mode="replicate")
        rows, columns = self.size
        return torch.stack([planes[..., r : r + rows, c : c + columns] for r, c in self.corners], 1)

    def joined(self, tiles: Tensor) -> Tensor:
        """(B, windows, h, w) → (B, H, W), float32 on the CPU, the weighted mean where windows overlap."""
        if len(self.corners) == 1:
            return tiles[:, 0, : self.sides[0], : self.sides[1]].float().cpu()
        total, weight = torch.zeros(len(tiles), *self._padded), torch.zeros(*self._padded)
        rows, columns = self.size
        for index, (r, c) in enumerate(self.corners):
            total[:, r : r + rows, c : c + columns] += tiles[:, index].float().cpu() * self._weight
            weight[r : r + rows, c : c + columns] += self._weight
        return (total / weight)[:, : self.sides[0], : self.sides[1]]
