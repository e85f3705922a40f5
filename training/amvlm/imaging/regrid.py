"""Between a scan's stack of slices and the plan's grid, which has the same extent and another spacing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Sides = tuple[int, int, int]


def grid_shape(shape: Sequence[int], spacing_mm: Sequence[float], target_mm: Sequence[float]) -> Sides:
    """Voxels of the grid of spacing ``target_mm`` over the same extent; a target of 0 keeps an axis as it is."""
    sides = [
        max(1, round(n * own / wanted)) if wanted > 0 else n
        for n, own, wanted in zip(shape, spacing_mm, target_mm, strict=True)
    ]
    return sides[0], sides[1], sides[2]


def resampled(planes: Tensor, shape: Sides) -> Tensor:
    """(Z, C, H, W) on another shape: linear, averaging where it shrinks within a slice."""
    if tuple(planes.shape[-2:]) != shape[1:]:
        planes = F.interpolate(planes, shape[1:], mode="bilinear", align_corners=False, antialias=True)
    if len(planes) != shape[0]:
        columns = planes.flatten(1).T[:, None]  # (C·H·W, 1, Z)
        moved = F.interpolate(columns, shape[0], mode="linear", align_corners=False)
        planes = moved[:, 0].T.reshape(shape[0], *planes.shape[1:])
    return planes


def resampled_labels(masks: Sequence[NDArray[Any]], shape: Sides, exclusive: bool) -> NDArray[np.uint8]:
    """Masks of one case, (Z, H, W) each, on another shape; no mask dilates.

    Each mask is resampled linearly and a voxel belongs to it from ½ on. Exclusive structures become one label map: a
    voxel belongs to any of them where their sum reaches ½, and then to the largest.

    Returns
    -------
    ndarray, uint8
        Exclusive: (Z, 1, h, w) with 1 for the first structure. Otherwise (Z, S, h, w), {0, 1}.
    """
    found = np.zeros((shape[0], 1 if exclusive else len(masks), *shape[1:]), np.uint8)
    most = total = None
    for index, mask in enumerate(masks):
        binary = np.ascontiguousarray(np.asarray(mask) > 0)
        share = resampled(torch.from_numpy(binary).float()[:, None], shape)[:, 0].numpy()
        if not exclusive:
            found[:, index] = share >= 0.5
            continue
        if most is None or total is None:
            most, total = np.zeros_like(share), np.zeros_like(share)
        found[:, 0][share > most] = index + 1
        most = np.maximum(most, share)
        total += share
    if total is not None:
        found[:, 0][total < 0.5] = 0
    return found


def back_on_slices(logits: Tensor, plane: tuple[int, int]) -> Tensor:
    """Logits (N, C, h, w) of the plan's grid on a slice's own pixels, (N, C, H, W), bilinear."""
    if tuple(logits.shape[-2:]) == plane:
        return logits
    return F.interpolate(logits, plane, mode="bilinear", align_corners=False)
