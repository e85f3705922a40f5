"""Whether a mask lies on the side that was asked for."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from amvlm.inference.session import SliceResult
from amvlm.text import LOW_SIDE

_MOST = 0.05


class SideCheck:
    """Counts a text mask on either side of the middle of the scan, as its slices arrive.

    It counts only where a scan that shows both sides is asked for one: ``side`` is None otherwise, and the answer "".

    Parameters
    ----------
    side : {"left", "right", "both"} or None
        The patient's.
    axis : int
        Canonical axis of the slices.
    slices : int
        How many there are.
    """

    def __init__(self, side: Literal["left", "right", "both"] | None, axis: int, slices: int) -> None:
        self._side, self._axis, self._slices = side, axis, slices
        self._counts = np.zeros(2)

    def see(self, result: SliceResult) -> None:
        """Count the slices of a result; each slice once."""
        mask = result.text_mask > 127
        if self._axis == 0:
            low = np.asarray(result.indices) < self._slices / 2
            self._counts += [mask[low].sum(), mask[~low].sum()]
        else:
            self._counts += _halves(mask)

    def sentence(self) -> str:
        """What speaks against the mask, or ""."""
        if self._side not in ("left", "right") or not self._counts.sum():
            return ""
        other = self._counts[1] if self._side == LOW_SIDE else self._counts[0]
        share = float(other / self._counts.sum())
        if share <= _MOST:
            return ""
        return f"{share:.0%} of this text mask lie on the patient's other side, not the {self._side}: do not trust it."


def _halves(mask: NDArray[np.bool_]) -> list[float]:
    """Voxels in the low and the high half of the rows, (slices, rows, columns); the middle row counts half each."""
    rows = mask.sum((0, 2)).astype(float)
    middle, odd = divmod(len(rows), 2)
    shared = rows[middle] / 2 if odd else 0.0
    return [float(rows[:middle].sum() + shared), float(rows[middle + odd :].sum() + shared)]
