"""Canonical orientation (nearest RAS+), its inverse, and the order in which slices are shown.

The model only ever sees the canonical orientation, so a scan stored in any of the 48 axis orders and
flips gives one mask in world space; every result goes back onto the scan's own grid.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from nibabel.affines import obliquity
from nibabel.orientations import (
    apply_orientation,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)
from numpy.typing import NDArray

from amvlm.imaging.volume import Volume

_RAS = np.array([[0, 1], [1, 1], [2, 1]])


def to_canonical(volume: Volume) -> Volume:
    """Return the volume with its axes permuted and flipped to nearest RAS+ (a view; no voxel changes)."""
    orientation = io_orientation(volume.affine)
    affine = volume.affine @ inv_ornt_aff(orientation, volume.shape)
    return replace(volume, array=apply_orientation(volume.array, orientation), affine=affine)


def to_original(canonical_array: NDArray[Any], original: Volume) -> NDArray[Any]:
    """Bring an array on the canonical grid of ``original`` back to its storage order.

    Parameters
    ----------
    canonical_array : ndarray, shape of ``to_canonical(original)``
    original : Volume

    Returns
    -------
    ndarray, shape ``original.shape``
        A view where possible.
    """
    back = ornt_transform(_RAS, io_orientation(original.affine))
    restored: NDArray[Any] = apply_orientation(canonical_array, back)
    if restored.shape[:3] != original.shape:
        raise ValueError(f"{canonical_array.shape} is not the canonical grid of {original.shape}")
    return restored


def canonical_mask(mask: NDArray[Any], original: Volume) -> NDArray[Any]:
    """Bring a mask on ``original``'s storage grid into canonical order, shape (X, Y, Z)."""
    oriented: NDArray[Any] = apply_orientation(mask, io_orientation(original.affine))
    return oriented


def to_display(ras: NDArray[Any]) -> NDArray[Any]:
    """A copy-free view of an RAS array in the order (S→I, A→P, R→L): all three planes are radiological.

    Writing to the view reaches the RAS array. RGB stays last.
    """
    axes = (2, 1, 0, 3) if ras.ndim == 4 else (2, 1, 0)
    return ras.transpose(axes)[::-1, ::-1, ::-1]


def from_display(shown: NDArray[Any]) -> NDArray[Any]:
    """The inverse of :func:`to_display` (which is its own inverse); a view."""
    return to_display(shown)


def obliquity_deg(volume: Volume) -> float:
    """The largest angle between a voxel axis and its nearest axis of the patient, degrees."""
    return float(np.degrees(obliquity(volume.affine)).max())


def slice_axis(spacing_mm: NDArray[np.float64], planar: bool = False) -> int:
    """The canonical axis across which a model slices: the coarsest spacing, on a tie the axial one (2).

    Spacings within 1 % count as equal, so that rounding in a header does not turn the slices.
    """
    if planar:
        return 2
    coarsest = float(spacing_mm.max())
    tied = [axis for axis in range(3) if spacing_mm[axis] >= 0.99 * coarsest]
    return max(tied)


def evenly_spread(array: NDArray[Any], most: int = 200_000) -> NDArray[Any]:
    """At most so many voxels on a regular grid, as a view: nothing large is copied, whatever the order in memory."""
    steps = [1, 1, 1]
    counts = list(array.shape[:3])
    while counts[0] * counts[1] * counts[2] > most:
        axis = counts.index(max(counts))
        steps[axis] += 1
        counts[axis] = -(-array.shape[axis] // steps[axis])
    return array[:: steps[0], :: steps[1], :: steps[2]]
