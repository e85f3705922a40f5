"""One box on one slice becomes a structure in 3-D: its mask is carried outward, slice by slice.

The next slice's box is the last mask's bounds, a little wider. It ends where the mask is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Plane = NDArray[np.bool_]
MARGIN = 2
"""Pixels by which the next box is wider on each side; with one, a kidney is lost on 3-mm CT."""
LEAST_OVERLAP = 0.7
"""Of the smaller of two neighbouring masks."""
_MOST_GROWTH = 3.0
_FEWEST_PIXELS = 4
_FULL = 0.25
_HOLE = 0.2


class Box(NamedTuple):
    """First and last row and column, both inside."""

    top: int
    left: int
    bottom: int
    right: int

    def grown(self, pixels: int, shape: tuple[int, int]) -> Box:
        """Wider on each side, within a slice."""
        return Box(
            max(0, self.top - pixels), max(0, self.left - pixels),
            min(shape[0] - 1, self.bottom + pixels), min(shape[1] - 1, self.right + pixels),
        )  # fmt: skip

    @classmethod
    def around(cls, mask: Plane) -> Box | None:
        """The bounds of a mask (rows, columns); None for an empty one."""
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if not len(rows):
            return None
        return cls(int(rows[0]), int(columns[0]), int(rows[-1]), int(columns[-1]))


SegmentSlice = Callable[[int, Box], Plane]
"""Slice and box → mask (rows, columns)."""


def carried(
    segment: SegmentSlice, count: int, start: int, box: Box, margin: int = MARGIN
) -> Iterator[tuple[int, Plane]]:
    """Masks of a structure: of the slice that the box is on, then of those before it and after it, nearest first.

    Parameters
    ----------
    segment : callable
        What finds a mask in a box.
    count : int
        Slices of the scan.
    start : int
        Slice of the box.
    box : Box
        Around the structure on that slice.
    margin : int
        Pixels by which the next box is wider than the last mask.

    Yields
    ------
    int, ndarray
        A slice and its mask (rows, columns), bool. The first one may be empty; then nothing follows.
    """
    first = largest_part(segment(start, box))
    yield start, first
    ends = {-1: first, 1: first}
    step = 0
    while ends:
        step += 1
        for direction, last in list(ends.items()):
            index = start + direction * step
            own = _next(segment, index, last, margin) if 0 <= index < count else None
            if own is None:
                del ends[direction]
            else:
                ends[direction] = own
                yield index, own


def _next(segment: SegmentSlice, index: int, last: Plane, margin: int) -> Plane | None:
    """The mask of the slice after ``last``; None where the structure ends."""
    bounds = Box.around(last)
    if bounds is None:
        return None
    rows, columns = last.shape
    found = _touching(segment(index, bounds.grown(margin, (rows, columns))), last)
    size, before = int(found.sum()), int(last.sum())
    if size < _FEWEST_PIXELS or size > _MOST_GROWTH * before:
        return None
    return found if int((found & last).sum()) >= LEAST_OVERLAP * min(size, before) else None


def _touching(mask: Plane, last: Plane) -> Plane:
    """The parts that lie over the last mask."""
    labels, count = ndimage.label(mask)
    over = np.unique(labels[last & mask])
    return np.isin(labels, over) if count > 1 and len(over) else mask


def largest_part(mask: Plane) -> Plane:
    labels, count = ndimage.label(mask)
    return mask if count < 2 else labels == 1 + int(np.bincount(labels.ravel())[1:].argmax())


def doubt_of(mask: Plane, box: Box) -> str:
    """What speaks against a box for this structure, in a sentence; "" if nothing does."""
    if not mask.any():
        return "Nothing was found in the box."
    holes = int(ndimage.binary_fill_holes(mask).sum()) - int(mask.sum())
    if holes > _HOLE * int(mask.sum()):
        return "This is a ring: a box does not say which part is meant. Paint it."
    parts = np.bincount(ndimage.label(mask)[0].ravel())[1:]
    if len(parts) > 1 and parts.max() < 0.8 * parts.sum():
        return "This has several parts: draw a box around each."
    area = (box.bottom - box.top + 1) * (box.right - box.left + 1)
    if int(mask.sum()) < _FULL * area:
        return "The mask fills little of the box: draw the box close around the structure, or paint it."
    return ""
