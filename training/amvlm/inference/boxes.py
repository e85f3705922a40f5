"""Boxes on the slices of a scan, read by LiteMedSAM: a mask of one slice, or of the whole structure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from amvlm.errors import UserError
from amvlm.imaging import Volume, slice_axis, to_canonical
from amvlm.imaging.orientation import evenly_spread
from amvlm.inference.carrying import Box, Plane, carried
from amvlm.models.lite_medsam import Embedded, LiteMedSam
from amvlm.models.scan import stack_of
from amvlm.planning import bounding_box, looks_like_hounsfield

SOFT_TISSUE_HU = (-160.0, 240.0)
_KEPT = 400
"""Slices whose features stay in memory, 2 MiB each."""


class BoxReader:
    """Boxes on one scan; what the encoder makes of a slice is kept for the next box.

    Parameters
    ----------
    network : LiteMedSam
    volume : Volume
    axis : {0, 1, 2}, optional
        Canonical axis across which slices lie; the coarsest one by default.
    window : (low, high), optional
        Intensities as a person looks at them; by default soft tissue on CT, else 0.5 to 99.5 % of the voxels that are
        no background.
    """

    def __init__(
        self, network: LiteMedSam, volume: Volume, axis: int | None = None, window: tuple[float, float] | None = None
    ) -> None:
        self._network = network
        if axis is None:
            axis = slice_axis(to_canonical(volume).spacing_mm, volume.planar)
        self._stack, _ = stack_of(volume, axis)
        self._window = usual_window(volume) if window is None else window
        self._read: OrderedDict[int, Embedded] = OrderedDict()

    @property
    def shape(self) -> tuple[int, int, int]:
        """Slices, rows, columns."""
        slices, rows, columns = self._stack.shape[:3]
        return slices, rows, columns

    def mask(self, index: int, box: Box) -> Plane:
        """What a box on a slice holds, (rows, columns), bool."""
        return (self._network.logits(self._embedded(index), box)[0] > 0).numpy()

    def structure(self, index: int, box: Box) -> Iterator[tuple[int, Plane]]:
        """The structure's masks, from this slice outward, see :func:`amvlm.inference.carrying.carried`."""
        return carried(self.mask, len(self._stack), index, box)

    def _embedded(self, index: int) -> Embedded:
        found = self._read.pop(index, None)
        if found is None:
            low, high = self._window
            plane = np.clip(np.asarray(self._stack[index], np.float32), low, high)
            colours_first = np.moveaxis(plane, -1, 0).copy() if plane.ndim == 3 else plane
            found = self._network.embed(torch.from_numpy(colours_first))
        self._read[index] = found
        while len(self._read) > _KEPT:
            self._read.popitem(last=False)
        return found


def usual_window(volume: Volume) -> tuple[float, float]:
    """How a scan is looked at where nobody says so."""
    sample = evenly_spread(to_canonical(volume).array)
    sample = sample[np.isfinite(sample)]
    if volume.modality == "CT" or (not volume.modality and looks_like_hounsfield(sample)):
        return SOFT_TISSUE_HU
    if not sample.size or sample.min() == sample.max():
        return 0.0, 1.0
    low, high = (float(value) for value in np.quantile(sample[sample > sample.min()], (0.005, 0.995)))
    return (low, high) if low < high else (float(sample.min()), float(sample.max()))


def box_of_voxels(
    volume: Volume, first: tuple[int, int, int], last: tuple[int, int, int]
) -> tuple[int, int, Box]:
    """A box between two voxels of the scan as it is stored.

    Returns
    -------
    axis, index, box
        Canonical axis across which its slice lies, the slice, and the box there.

    Raises
    ------
    UserError
        If it lies outside the scan, or is not on one slice.
    """
    shape = volume.array.shape[:3]
    low, high = (tuple(each(pair) for pair in zip(first, last, strict=True)) for each in (min, max))
    if min(low) < 0 or any(end >= side for end, side in zip(high, shape, strict=True)):
        raise UserError(f"the box lies outside the scan, which has {shape} voxels", remedy="Voxels count from 0.")
    marker: NDArray[np.uint8] = np.zeros(shape, np.uint8)
    marker[tuple(slice(a, b + 1) for a, b in zip(low, high, strict=True))] = 1
    found = bounding_box(to_canonical(volume.with_array(marker)).array) or (slice(0, 1),) * 3
    flat = [axis for axis in range(3) if found[axis].stop - found[axis].start == 1]
    if not flat:
        raise UserError("the box is not on one slice", remedy="Give the same number for both ends of one axis.")
    usual = slice_axis(to_canonical(volume).spacing_mm, volume.planar)
    axis = usual if usual in flat else flat[0]
    rows, columns = (found[other] for other in range(3) if other != axis)
    return axis, found[axis].start, Box(rows.start, columns.start, rows.stop - 1, columns.stop - 1)
