"""Whether a mask lies on the side that was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amvlm.inference.session import Session, SliceResult
from amvlm.models import ModelCard
from amvlm.text import LOW_SIDE, names_a_side, swap_sides
from amvlm.text.anatomy import SideAsked
from amvlm.text.reading import ReadPrompt
from amvlm.text.terms import plain

MOST_ON_THE_OTHER_SIDE = 0.05


class SideCheck:
    """Counts text mask and merged mask on either side of the middle of the scan, as its slices arrive.

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

    def __init__(self, side: SideAsked | None, axis: int, slices: int) -> None:
        self._side, self._axis, self._slices = side if side in ("left", "right") else None, axis, slices
        self._counts = np.zeros((2, 2))

    @classmethod
    def of(cls, session: Session, reading: ReadPrompt) -> SideCheck:
        """The check of a prompt as it was read.

        It counts where the middle of the scan is the middle of the body, as far as the model knows, and where the scan
        says which side is which. A 2-D picture never does; its usual radiological display is taken for granted, as its
        captions do.
        """
        volume = session.volume
        counts = (volume.sides_known or volume.planar) and shows_both_sides(session.model.card, reading)
        return cls(reading.side if counts else None, session.axis, session.slices)

    def see(self, result: SliceResult) -> None:
        """Count the slices of a result; each slice once."""
        for row, probs in enumerate((result.text_mask, result.merged)):
            mask = probs > 127
            if self._axis == 0:
                low = np.asarray(result.indices) < self._slices / 2
                self._counts[row] += [mask[low].sum(), mask[~low].sum()]
            else:
                self._counts[row] += _halves(mask)

    def see_volume(self, masks: Mapping[str, NDArray[np.uint8]]) -> None:
        """Count whole masks on the canonical grid, as :meth:`Session.segment_volume` gives them."""
        for row, kind in enumerate(("text mask", "merged")):
            self._counts[row] += _halves(masks[kind].reshape(1, len(masks[kind]), -1) > 127)

    @property
    def share(self) -> float:
        """Of the text mask or the merged mask, whichever is worse: how much lies on the other side; 0 to 1."""
        if self._side is None:
            return 0.0
        other = self._counts[:, 1] if self._side == LOW_SIDE else self._counts[:, 0]
        return float((other / self._counts.sum(1).clip(1)).max())

    def sentence(self, cut: bool = False) -> str:
        """What speaks against the mask, or ""; with ``cut`` where :meth:`kept` is what remains of it."""
        if self.share <= MOST_ON_THE_OTHER_SIDE:
            return ""
        outcome = "that part is left out" if cut else "do not trust it"
        return f"{self.share:.0%} of this mask lie on the patient's other side, not the {self._side}: {outcome}."

    def kept(self, mask: NDArray[Any]) -> NDArray[Any]:
        """A canonical mask without what lies on the other side, where too much does; the plane in the middle stays."""
        if not self.sentence():
            return mask
        mask = mask.copy(order="K")
        middle, odd = divmod(len(mask), 2)
        if self._side == LOW_SIDE:
            mask[middle + odd :] = 0
        else:
            mask[:middle] = 0
        return mask


def shows_both_sides(card: ModelCard, reading: ReadPrompt) -> bool:
    """True where the model learned from scans of both sides: from reports, or from the same structure of each side."""
    if card.free_captions:
        return True
    name = plain(reading.structure or "")
    return names_a_side(name) and swap_sides(name) in {plain(structure.name) for structure in card.structures}


def _halves(mask: NDArray[np.bool_]) -> list[float]:
    """Voxels in the low and the high half of the rows, (slices, rows, columns); the middle row counts half each."""
    rows = mask.sum((0, 2)).astype(float)
    middle, odd = divmod(len(rows), 2)
    shared = rows[middle] / 2 if odd else 0.0
    return [float(rows[:middle].sum() + shared), float(rows[middle + odd :].sum() + shared)]
