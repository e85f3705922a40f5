"""Corrections of a binary mask that a person asks for; pure functions on arrays, shape (X, Y, Z), uint8 {0, 1}."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.measure import label as connected_components

Mask = NDArray[np.uint8]
Spacing = tuple[float, float, float]


def smooth(mask: Mask, spacing_mm: Spacing, sigma_mm: float | None = None) -> Mask:
    """Round off steps: a Gaussian of the mask, cut at one half, which keeps the volume of what is large.

    Parameters
    ----------
    mask : ndarray
    spacing_mm : tuple of 3 float
    sigma_mm : float, optional
        One voxel of the finest spacing by default.
    """
    sigma = min(spacing_mm) if sigma_mm is None else sigma_mm
    sigmas = [sigma / spacing if count > 1 else 0.0 for spacing, count in zip(spacing_mm, mask.shape, strict=True)]
    margin = [int(np.ceil(4 * s)) + 1 for s in sigmas]
    return _inside(mask, margin, lambda part: ndimage.gaussian_filter(part.astype(np.float32), sigmas) >= 0.5)


def fill_holes(mask: Mask, axis: int) -> Mask:
    """Fill what is enclosed in each slice across ``axis``, as it is seen on screen."""
    structure = np.zeros((3, 3, 3), bool)
    np.moveaxis(structure, axis, 0)[1] = ndimage.generate_binary_structure(2, 1)
    return _inside(mask, [0, 0, 0], lambda part: _filled(part, axis, structure))


def _filled(part: Mask, axis: int, structure: NDArray[np.bool_]) -> NDArray[np.bool_]:
    padded = np.pad(part > 0, [(0, 0) if a == axis else (1, 1) for a in range(3)])
    filled: NDArray[np.bool_] = ndimage.binary_fill_holes(padded, structure)
    return filled[tuple(slice(None) if a == axis else slice(1, -1) for a in range(3))]


def largest_component(mask: Mask) -> Mask:
    """Keep the largest connected part (26 neighbours); of equal ones the first."""

    def keep(part: Mask) -> NDArray[np.bool_]:
        labels = connected_components(part, connectivity=3)
        largest: NDArray[np.bool_] = labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
        return largest

    return _inside(mask, [0, 0, 0], keep)


def interpolate(mask: Mask, axis: int, spacing_mm: Spacing) -> Mask:
    """Fill empty slices across ``axis`` between painted ones (shape-based: signed distances in between).

    Raya and Udupa, IEEE TMI 1990, doi 10.1109/42.52980. Painted slices stay as they are; nothing is added beyond the
    first and the last.
    """
    result = mask.copy(order="K")
    slices = np.moveaxis(result, axis, 0)
    painted = np.flatnonzero(slices.any(axis=(1, 2)))
    plane = [spacing_mm[a] for a in range(3) if a != axis]
    for first, last in zip(painted[:-1].tolist(), painted[1:].tolist(), strict=True):
        if last - first < 2:
            continue
        both = slices[first] | slices[last]
        rows, columns = (slice(int(w.min()), int(w.max()) + 1) for w in np.nonzero(both))
        before, after = (_signed_distance(slices[z][rows, columns], plane) for z in (first, last))
        for z in range(first + 1, last):
            share = (z - first) / (last - first)
            slices[z][rows, columns] = (1 - share) * before + share * after > 0
    return result


def _signed_distance(plane: Mask, spacing: list[float]) -> NDArray[np.float64]:
    """mm to the outline, positive inside; the frame counts as outside."""
    padded = np.pad(plane > 0, 1)
    inside = ndimage.distance_transform_edt(padded, sampling=spacing)
    outside = ndimage.distance_transform_edt(~padded, sampling=spacing)
    distance: NDArray[np.float64] = (inside - outside)[1:-1, 1:-1]
    return distance


def _inside(mask: Mask, margin: list[int], change: Callable[[Mask], NDArray[np.bool_]]) -> Mask:
    """Apply a change to the bounding box and its margin only: whole volumes are large, structures are not."""
    result = np.zeros_like(mask)
    if not mask.any():
        return result
    box = []
    for axis, extra in enumerate(margin):
        there = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        box.append(slice(max(0, int(there[0]) - extra), int(there[-1]) + 1 + extra))
    where = tuple(box)
    result[where] = change(mask[where])
    return result
