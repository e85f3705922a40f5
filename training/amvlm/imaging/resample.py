"""From a canonical volume to the slices a network sees, and back onto the voxel grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from amvlm.imaging.orientation import evenly_spread, slice_axis, to_canonical, to_original
from amvlm.imaging.volume import Volume


@dataclass(frozen=True)
class SliceGrid:
    """How a volume is cut: across ``axis`` of the canonical orientation, each slice letterboxed to a square.

    ``window`` is (top, left, height, width) of the slice inside the square, in pixels; the physical aspect is kept.
    """

    original: Volume
    axis: int
    plane: tuple[int, int]
    size: int
    window: tuple[int, int, int, int]

    @classmethod
    def of(cls, volume: Volume, size: int, axis: int | None = None) -> SliceGrid:
        """Plan the slices of ``volume`` for a network of input ``size`` px, across ``axis`` or the coarsest one."""
        canonical = to_canonical(volume)
        axis = slice_axis(canonical.spacing_mm, canonical.planar) if axis is None else axis
        rest = [a for a in range(3) if a != axis]
        plane = (canonical.shape[rest[0]], canonical.shape[rest[1]])
        extent = np.array([plane[0] * canonical.spacing_mm[rest[0]], plane[1] * canonical.spacing_mm[rest[1]]])
        height, width = (int(max(1, round(size * e / extent.max()))) for e in extent)
        return cls(volume, axis, plane, size, ((size - height) // 2, (size - width) // 2, height, width))

    @property
    def slice_ratio(self) -> float:
        """Spacing of the slices over the spacing of the square's pixels: 1 is isotropic."""
        spacing = to_canonical(self.original).spacing_mm
        extent = max(self.plane[i] * spacing[a] for i, a in enumerate(a for a in range(3) if a != self.axis))
        return float(spacing[self.axis] / (extent / self.size))

    @property
    def count(self) -> int:
        """Number of slices."""
        return int(to_canonical(self.original).shape[self.axis])

    def stack(self, array: NDArray[Any]) -> NDArray[Any]:
        """A view of an array on the storage grid as (slices, rows, columns[, 3])."""
        canonical = to_canonical(self.original.with_array(array)).array
        return np.moveaxis(canonical, self.axis, 0)

    def unstack(self, slices: NDArray[Any]) -> NDArray[Any]:
        """The inverse of :meth:`stack`: a view on the storage grid."""
        return to_original(np.moveaxis(slices, 0, self.axis), self.original)

    def to_square(self, slices: torch.Tensor, mode: str = "area") -> torch.Tensor:
        """Letterbox (N, C, rows, columns) to (N, C, size, size); ``area`` averages when shrinking."""
        top, left, height, width = self.window
        shrinking = height <= self.plane[0] and width <= self.plane[1]
        if mode == "area" and not shrinking:
            mode = "bilinear"
        fitted = F.interpolate(
            slices, (height, width), mode=mode, **({"align_corners": False} if mode == "bilinear" else {})
        )
        padding = (left, self.size - width - left, top, self.size - height - top)
        return F.pad(fitted, padding)

    def from_square(self, squares: torch.Tensor, plane: tuple[int, int] | None = None) -> torch.Tensor:
        """Take (N, C, size, size) back to (N, C, rows, columns), bilinear, or to another grid of the same extent."""
        top, left, height, width = self.window
        inside = squares[..., top : top + height, left : left + width]
        return F.interpolate(inside, plane or self.plane, mode="bilinear", align_corners=False)


@dataclass(frozen=True)
class IntensityScale:
    """Scales voxels to mean 0 and sd 1 after clipping to the *volume's* 0.5–99.5 % quantiles.

    Per volume, not per slice: data sets mix units (some hippocampus scans reach 1e6).
    """

    low: float
    high: float
    mean: float
    sd: float

    @classmethod
    def of(cls, array: NDArray[Any]) -> IntensityScale:
        """Measure a whole volume on at most 200,000 evenly spread voxels; non-finite ones do not count.

        ``array`` is in canonical order, so that a scan stored otherwise gives the same scale.
        """
        sample = evenly_spread(array).astype(np.float64).ravel()
        sample = sample[np.isfinite(sample)]
        if sample.size == 0:
            return cls(0.0, 0.0, 0.0, 1.0)
        low, high = (float(value) for value in np.quantile(sample, (0.005, 0.995)))
        if high <= low:
            low, high = float(sample.min()), float(sample.max())
        clipped = np.clip(sample, low, high)
        return cls(low, high, float(clipped.mean()), float(clipped.std()) or 1.0)

    def apply(self, array: NDArray[Any]) -> NDArray[np.float32]:
        """Scale any part of that volume; NaN becomes the mean."""
        scaled = np.nan_to_num(array.astype(np.float32), nan=self.mean, posinf=self.high, neginf=self.low)
        np.clip(scaled, self.low, self.high, out=scaled)
        scaled -= np.float32(self.mean)
        scaled /= np.float32(self.sd)
        return scaled


def slabs(array: NDArray[Any], scale: IntensityScale, grid: SliceGrid, indices: list[int]) -> torch.Tensor:
    """The network's input for some slices of a volume.

    Parameters
    ----------
    array : ndarray, (slices, rows, columns[, 3])
        ``grid.stack`` of the volume.
    indices : list of int
        Which slices.

    Returns
    -------
    Tensor, (len(indices), 3, size, size), float32
        Channels are the slices z−1, z, z+1 (edges repeated), or RGB, or one grey picture three times.
    """
    if array.ndim == 4:
        planes = torch.from_numpy(scale.apply(array[indices])).movedim(-1, 1)
        return grid.to_square(planes)
    last = array.shape[0] - 1
    neighbours = [[max(0, z - 1), z, min(last, z + 1)] for z in indices]
    needed = sorted({z for triple in neighbours for z in triple})
    position = {z: n for n, z in enumerate(needed)}
    planes = grid.to_square(torch.from_numpy(scale.apply(array[needed]))[:, None])[:, 0]
    return planes[torch.tensor([[position[z] for z in triple] for triple in neighbours])]
