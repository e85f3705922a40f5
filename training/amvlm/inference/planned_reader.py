"""A planned student on one volume: the region first, then slices as they are asked for."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from amvlm.imaging import Volume
from amvlm.imaging.regrid import resampled
from amvlm.models.planned import Box, PlannedStudent, keep_largest_part
from amvlm.models.scan import Spacing, plan_input


class PlannedReader:
    """Keeps a volume on the plan's grid and where its structures lie.

    Parameters
    ----------
    student : PlannedStudent
    volume : Volume
    device : torch.device
        Where the logits are kept.
    accurate : bool
        Average over turned copies, see :func:`amvlm.models.planned.views_of`.
    """

    def __init__(self, student: PlannedStudent, volume: Volume, device: torch.device, accurate: bool) -> None:
        self._student, self._volume, self._device, self._accurate = student, volume, device, accurate

    @functools.cached_property
    def _input(self) -> tuple[Tensor, Spacing]:
        planes, spacing_mm = plan_input(self._volume, self._student.plan)
        return planes.half(), spacing_mm

    @property
    def planes(self) -> Tensor:
        """The volume on the plan's grid, (Z, C, H, W), float16."""
        return self._input[0]

    @functools.cached_property
    def region(self) -> Box:
        """Where the student's structures lie on that grid."""
        return self._student.region(*self._input)

    def slices(self, indices: list[int]) -> Tensor | None:
        """Logits of some slices, (len(indices), S, h, w); None for a 3-D plan, which answers all at once."""
        if self._student.plan.dimensions == 3:
            return None
        found = self._student.slices_logits(self._input[0], torch.tensor(indices), self.region, self._accurate)
        return found.movedim(1, 0).to(self._device)

    def everything(self, slices: int) -> Tensor:
        """Logits of the whole volume, (slices, S, h, w)."""
        every = torch.arange(len(self.planes))
        logits = self._student.slices_logits(self.planes, every, self.region, self._accurate).movedim(1, 0)
        self.tidy(logits)
        return resampled(logits, (slices, logits.shape[2], logits.shape[3])).to(self._device)

    def tidy(self, logits: Tensor) -> list[int]:
        """Keep the largest part of the structures that have one, in place; which slices changed."""
        changed = torch.zeros(len(logits), dtype=torch.bool)
        for structure, alone in enumerate(self._student.plan.largest_part):
            if alone:
                own = logits[:, structure].cpu()
                changed |= keep_largest_part(own)
                logits[:, structure] = own.to(logits.device)
        return [int(index) for index in changed.nonzero().flatten()]
