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
from amvlm.models.planned_text import Frame, PlannedFilmUNet, projected_patches
from amvlm.models.scan import nearest_slice, plan_input
from amvlm.models.student import Student
from amvlm.models.text_volume import VolumeTextMask
from amvlm.planning import Plan

_SLICES = 32


@torch.no_grad()
def dices_before(
    model: AmvlmModel | None, study: Study, plan: Plan, cases: Sequence[PreparedCase], device: torch.device
) -> dict[str, dict[str, float]]:
    """Mean Dice of an earlier model's prediction ("student") and text mask ("text_mask") by structure; only of
    structures that both know.

    Empty without a model, without cases, or if it slices along another axis.
    """
    known = [structure.name for structure in model.card.structures] if model is not None else []
    columns = [known.index(name) if name in known else None for name in plan.structures]
    if model is None or model.student is None or not any(column is not None for column in columns):
        return {}
    model.to(device).eval()
    prompts = model.vlm.embed_prompt([(*structure.prompts, structure.name)[0] for structure in model.card.structures])
    tables: dict[str, list[list[float]]] = {"student": [], "text_mask": []}
    for case in cases:
        volume = study.store.read_image(study.cases[case.case_id])
        answers = _answers(model, volume, plan.axis, prompts)
        if answers is None:
            return {}
        for table, logits in zip(tables.values(), answers, strict=True):
            fitted = resampled(logits, case.shape).movedim(1, 0)
            nothing = torch.full(case.shape, -1.0)
            ordered = torch.stack([nothing if column is None else fitted[column] for column in columns])
            table.append(case_dices(ordered, case))
    judged = [s for s, column in enumerate(columns) if column is not None]
    means = {kind: _means(table, plan.structures, judged) for kind, table in tables.items()}
    return means if means["student"] else {}


def _means(table: list[list[float]], names: Sequence[str], judged: Sequence[int]) -> dict[str, float]:
    dices = np.array(table).reshape(len(table), len(names))
    means = {names[s]: dices[~np.isnan(dices[:, s]), s] for s in judged}
    return {name: round(float(own.mean()), 4) for name, own in means.items() if len(own)}


def _answers(model: AmvlmModel, volume: Volume, axis: int, prompts: Tensor) -> tuple[Tensor, Tensor] | None:
    """Prediction's and text mask's logits, (Z, S, H, W) each, on grids of the scan's own extent; None along another
    axis."""
    student, generator, plan = model.student, model.generator, model.plan
    grid = SliceGrid.of(volume, model.image_size, None if plan is None else plan.axis)
    if grid.axis != axis or student is None:
        return None
    stack = grid.stack(volume.array)
    scale = IntensityScale.of(stack)

    def images(places: list[int]) -> Tensor:
        return slabs(stack, scale, grid, places).to(prompts.device)

    parts = [list(range(z, min(z + _SLICES, len(stack)))) for z in range(0, len(stack), _SLICES)]
    inside = (grid.window[2], grid.window[3])
    if isinstance(student, PlannedStudent):
        planes, spacing_mm = plan_input(volume, student.plan)
        predicted = student.volume_logits(planes, spacing_mm).movedim(1, 0)
    else:
        predicted = grid.from_square(_squares(student, [images(part) for part in parts]), inside).cpu()
    if isinstance(student, PlannedStudent) and isinstance(generator, PlannedFilmUNet):
        every, region = list(range(len(planes))), student.region(planes, spacing_mm)
        seen = VolumeTextMask(
            generator, planes,
            lambda place: projected_patches(model.vlm, images([nearest_slice(place, len(every), len(stack))]))[0],
            Frame.of(grid),
        )  # fmt: skip
        return predicted, torch.stack([seen.logits(every, prompt, region) for prompt in prompts], 1)
    texts = torch.cat([generator(images(part), prompts.expand(len(part), -1, -1)).float() for part in parts])
    return predicted, grid.from_square(texts, inside).cpu()


def _squares(student: Student, images: list[Tensor]) -> Tensor:
    device = next(student.parameters()).device
    if student.settings.dimensions == 3:
        planes = torch.cat([image[:, 1] for image in images]).to(device)
        return student.volume_logits(planes).movedim(1, 0)
    return torch.cat([student(image.to(device)).float() for image in images])
