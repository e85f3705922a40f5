"""What the model in use so far says of the validation cases, on the new plan's grid: before and after side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from amvlm.imaging import Volume
from amvlm.imaging.regrid import resampled
from amvlm.imaging.resample import IntensityScale, SliceGrid, slabs
from amvlm.learning.fitting import case_dices
from amvlm.learning.patches import PreparedCase
from amvlm.learning.study import Study
from amvlm.models import AmvlmModel
from amvlm.models.planned import PlannedStudent
from amvlm.models.scan import plan_input
from amvlm.models.student import Student
from amvlm.planning import Plan

_SLICES = 32


@torch.no_grad()
def dices_before(
    model: AmvlmModel | None, study: Study, plan: Plan, cases: Sequence[PreparedCase], device: torch.device
) -> dict[str, float]:
    """Mean Dice of an earlier model's prediction by structure; only of structures that both know.

    Empty without a model, without cases, or if it slices along another axis.
    """
    known = [structure.name for structure in model.card.structures] if model is not None else []
    columns = [known.index(name) if name in known else None for name in plan.structures]
    if model is None or model.student is None or not any(column is not None for column in columns):
        return {}
    model.to(device).eval()
    table = []
    for case in cases:
        logits = _answer(model, study.store.read_image(study.cases[case.case_id]), plan.axis)
        if logits is None:
            return {}
        fitted = resampled(logits, case.shape).movedim(1, 0)
        nothing = torch.full(case.shape, -1.0)
        ordered = torch.stack([nothing if column is None else fitted[column] for column in columns])
        table.append(case_dices(ordered, case))
    dices = np.array(table).reshape(len(table), len(columns))
    means = {name: dices[~np.isnan(dices[:, s]), s] for s, name in enumerate(plan.structures) if columns[s] is not None}
    return {name: round(float(own.mean()), 4) for name, own in means.items() if len(own)}


def _answer(model: AmvlmModel, volume: Volume, axis: int) -> Tensor | None:
    """Logits (Z, S, H, W) on a grid of the scan's own extent; None along another axis."""
    student = model.student
    if isinstance(student, PlannedStudent):
        same = student.plan.axis == axis
        return student.volume_logits(*plan_input(volume, student.plan)).movedim(1, 0) if same else None
    grid = SliceGrid.of(volume, model.image_size)
    if grid.axis != axis or student is None:
        return None
    stack = grid.stack(volume.array)
    scale = IntensityScale.of(stack)
    places = [list(range(z, min(z + _SLICES, len(stack)))) for z in range(0, len(stack), _SLICES)]
    images = [slabs(stack, scale, grid, part) for part in places]
    square = (grid.window[2], grid.window[3])
    return grid.from_square(_squares(student, images), square).cpu()


def _squares(student: Student, images: list[Tensor]) -> Tensor:
    device = next(student.parameters()).device
    if student.settings.dimensions == 3:
        planes = torch.cat([image[:, 1] for image in images]).to(device)
        return student.volume_logits(planes).movedim(1, 0)
    return torch.cat([student(image.to(device)).float() for image in images])
