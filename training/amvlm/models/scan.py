"""A scan as a planned student reads it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from amvlm.imaging import Volume, to_canonical
from amvlm.imaging.regrid import Sides, grid_shape, resampled
from amvlm.imaging.resample import IntensityScale
from amvlm.planning import Plan

Spacing = tuple[float, float, float]


def stack_of(volume: Volume, axis: int) -> tuple[NDArray[Any], Spacing]:
    """A view of a volume as (slices, rows, columns[, 3]) in canonical order, and its spacing in that order, mm."""
    canonical = to_canonical(volume)
    order = [axis, *(a for a in range(3) if a != axis)]
    slices, rows, columns = (float(canonical.spacing_mm[a]) for a in order)
    return np.moveaxis(canonical.array, axis, 0), (slices, rows, columns)


def plan_shape(shape: tuple[int, ...], spacing_mm: Spacing, plan: Plan) -> tuple[Sides, Spacing]:
    """Voxels of the plan's grid for a stack, and their spacing."""
    target = tuple(own if wanted == 0 else wanted for own, wanted in zip(spacing_mm, plan.spacing_mm, strict=True))
    return grid_shape(shape[:3], spacing_mm, plan.spacing_mm), (target[0], target[1], target[2])


def nearest_slice(z: int, slices: int, others: int) -> int:
    """The slice of a stack of ``others`` that lies nearest to slice ``z`` of ``slices`` over the same extent."""
    return min(others - 1, int((z + 0.5) * others / slices))


def plan_input(volume: Volume, plan: Plan) -> tuple[Tensor, Spacing]:
    """What the network reads of a scan: (Z, C, H, W), float32, normalised, on the plan's grid; and its spacing."""
    stack, spacing_mm = stack_of(volume, plan.axis)
    shape, own = plan_shape(stack.shape, spacing_mm, plan)
    foreground = plan.normalisation.for_scan(volume.modality, bool(stack.min() < 0))
    scale = IntensityScale.of(stack)
    if foreground is not None:
        scale = IntensityScale(foreground.low, foreground.high, foreground.mean, foreground.sd)
    planes = torch.from_numpy(np.ascontiguousarray(scale.apply(stack)))
    planes = planes.movedim(-1, 1) if planes.ndim == 4 else planes[:, None]
    if planes.shape[1] != plan.channels:  # a grey scan for a colour network, or the other way about
        planes = planes.mean(1, keepdim=True).expand(-1, plan.channels, -1, -1)
    return resampled(planes, shape), own
