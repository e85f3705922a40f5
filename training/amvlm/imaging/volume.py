"""One class owns voxels and geometry."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray

from amvlm.errors import UserError

SMALLEST_MM, LARGEST_MM = 1e-4, 1e3
"""Voxels from a tenth of a micrometre to below a metre; all else is a mistake in units, or damage."""
FARTHEST_MM = 1e6
_EXPORT = "Export the scan again from its source with correct spacing and orientation."

@dataclass(frozen=True, eq=False)
class Volume:
    """An image or mask with its place in the patient.

    Parameters
    ----------
    array : ndarray, shape (I, J, K) or (I, J, K, 3)
        Voxels in storage order, stored dtype; the last axis of length 3 holds RGB.
    affine : ndarray, shape (4, 4), float64
        Voxel indices → RAS+ world, millimetres.
    sides_known : bool
        False where the file does not say which side is the patient's left (2-D pictures, NIfTI without
        qform and sform).
    planar : bool
        True for a 2-D picture, held as one slice.
    modality : str
        "CT", "MR", "CR", … where the file says it, else "".
    notes : tuple of str
        Sentences for whoever looks at this scan: what the file left open or what its geometry makes approximate.

    Raises
    ------
    ValueError
        If shapes are wrong or the affine is not finite.
    UserError
        If the affine is singular, or states voxels or a place that no scanner has (below 0.1 µm, a metre or more,
        a kilometre away).
    """

    array: NDArray[Any]
    affine: NDArray[np.float64]
    sides_known: bool = True
    planar: bool = False
    modality: str = ""
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.array.ndim not in (3, 4) or (self.array.ndim == 4 and self.array.shape[3] != 3):
            raise ValueError(f"expected (I, J, K) or (I, J, K, 3), got shape {self.array.shape}")
        affine = np.asarray(self.affine, dtype=np.float64)
        if affine.shape != (4, 4):
            raise ValueError(f"expected a 4×4 affine, got shape {affine.shape}")
        if not np.isfinite(affine).all() or not np.allclose(affine[3], (0, 0, 0, 1)):
            raise UserError("the affine is not finite, so the voxels have no place in the patient", remedy=_EXPORT)
        sizes = np.linalg.norm(affine[:3, :3], axis=0)
        if sizes.min() <= 0 or abs(np.linalg.det(affine[:3, :3] / sizes)) < 1e-4:
            raise UserError(
                "the affine is singular, so the voxels have no volume",
                remedy=_EXPORT,
            )
        if sizes.min() < SMALLEST_MM or sizes.max() >= LARGEST_MM or np.abs(affine[:3, 3]).max() > FARTHEST_MM:
            stated = " × ".join(f"{size:.3g}" for size in sizes)
            raise UserError(
                f"the header states voxels of {stated} mm at {', '.join(f'{mm:.3g}' for mm in affine[:3, 3])} mm",
                remedy="Such lengths are a mistake in units, or damage: export the scan again from its source.",
            )
        object.__setattr__(self, "affine", affine)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along each storage axis."""
        i, j, k = self.array.shape[:3]
        return int(i), int(j), int(k)

    @property
    def spacing_mm(self) -> NDArray[np.float64]:
        """Voxel size along each storage axis, mm, shape (3,)."""
        return np.asarray(voxel_sizes(self.affine), dtype=np.float64)

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in millilitres."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000.0

    def with_array(self, array: NDArray[Any]) -> Volume:
        """The same place, other voxels of the same grid."""
        if array.shape[:3] != self.shape:
            raise ValueError(f"array of shape {array.shape} does not fit grid {self.shape}")
        return replace(self, array=array)

    def same_grid(self, other: Volume) -> bool:
        """Equal shape, and affines equal to a hundredth of a voxel at every corner."""
        if self.shape != other.shape:
            return False
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in self.shape])).reshape(3, -1)
        homogeneous = np.vstack([corners, np.ones(corners.shape[1])])
        distance = np.abs((self.affine - other.affine) @ homogeneous)[:3].max()
        return bool(distance <= 0.01 * self.spacing_mm.min())
