"""A slice as a small picture: grey values in the window's limits, masks as outlines. Numpy only."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Colour = tuple[int, int, int]
Picture = NDArray[np.uint8]
_OFF = 0.5
"""Of a pixel: samples are taken at its centre."""


def size_in(room: tuple[int, int], shape: tuple[int, int], spacing_mm: tuple[float, float]) -> tuple[int, int]:
    """Rows and columns of the largest picture with a slice's physical aspect that fits into the room, at least one."""
    extent = [length * mm for length, mm in zip(shape, spacing_mm, strict=True)]
    scale = min(side / mm for side, mm in zip(room, extent, strict=True))
    rows, columns = (max(1, int(scale * mm)) for mm in extent)
    return rows, columns


def sampled(plane: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """A slice (H, W) at so many rows and columns, the nearest voxel for each."""
    rows, columns = (
        ((np.arange(side) + _OFF) * length / side).astype(np.intp)
        for side, length in zip(size, plane.shape[:2], strict=True)
    )
    found: NDArray[Any] = plane[rows[:, None], columns[None]]
    return found


def picture_of(
    plane: NDArray[Any],
    masks: Iterable[tuple[NDArray[np.uint8], Colour]],
    limits: tuple[float, float],
    size: tuple[int, int],
) -> Picture:
    """An RGB picture (rows, columns, 3) of a slice (H, W), later masks over earlier ones."""
    low, high = limits
    grey = np.nan_to_num((sampled(plane, size).astype(np.float32) - low) / max(high - low, 1e-12))
    found = np.repeat((grey.clip(0, 1) * 255).astype(np.uint8)[..., None], 3, axis=-1)
    for mask, colour in masks:
        found[outline(sampled(mask, size) > 0)] = colour
    return np.ascontiguousarray(found)


def outline(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels of a mask (H, W) beside one that is none of it; the picture's border is no such one."""
    inside = mask.copy()
    inside[1:] &= mask[:-1]
    inside[:-1] &= mask[1:]
    inside[:, 1:] &= mask[:, :-1]
    inside[:, :-1] &= mask[:, 1:]
    return mask & ~inside
