"""What the plan is made from: numbers about a study, a machine and the minutes that a person gives.

Everything here is a pure function of numbers and small arrays; nothing reads a file or imports torch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from scipy import ndimage

_ENOUGH_OF_A_PART = 0.02
"""Parts below this share of a structure's voxels are specks of the brush and do not count."""
_FOREGROUND_VOXELS = 20_000
_FEWEST_SCANS, _ENOUGH_SCANS = 5, 10


class Facts(BaseModel):
    """Base of what is stored: immutable, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class CaseFacts(Facts):
    """One scan, along its stack axes: slices, rows, columns (canonical orientation, slices first)."""

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    modality: str = ""


class StructureFacts(Facts):
    """One structure over the accepted masks."""

    name: str
    cases: int = Field(ge=0, description="accepted masks")
    extent_mm: tuple[float, float, float] = Field(description="median bounding box: slices, rows, columns")
    largest_extent_mm: tuple[float, float, float] = Field(description="largest bounding box along each axis")
    slices: int = Field(ge=0, description="median number of slices that hold it")
    parts: int = Field(ge=0, description="most connected parts in any mask, specks left out")


class Intensities(Facts):
    """Foreground intensities over the study, in the scans' own units."""

    low: float = Field(description="0.5 % quantile")
    high: float = Field(description="99.5 % quantile")
    mean: float
    sd: float = Field(gt=0)


class Machine(Facts):
    """Where the run computes."""

    device: Literal["cpu", "cuda", "mps"] = "cpu"
    memory_gib: float = Field(0.0, ge=0, description="of the GPU; 0 where there is none")
    seconds_per_megapixel: float = Field(
        1.0, gt=0, description="one training step of the reference network, per million pixels of its input"
    )


class Fingerprint(Facts):
    """A study in numbers."""

    version: Literal[1] = 1
    cases: tuple[CaseFacts, ...] = Field(min_length=1)
    axis: Literal[0, 1, 2] = Field(2, description="canonical axis of the slices")
    channels: Literal[1, 3] = 1
    planar: bool = False
    structures: tuple[StructureFacts, ...]
    exclusive: bool = Field(description="no two structures overlap in any accepted mask")
    foreground: Intensities | None = None
    region_mm: tuple[float, float, float] = Field(description="median bounding box of all structures together")
    turn_deg: float | None = Field(
        None, ge=0, le=180, description="how far structures lie turned in a slice, nine scans of ten; None: unknown"
    )
    labelled: int = Field(ge=1)
    unlabelled: int = Field(ge=0)
    minutes: float = Field(gt=0, description="what the person gives to the training")
    known_widths: tuple[int, ...] = Field((), description="of the network that the run goes on from, if any")
    machine: Machine = Field(default_factory=Machine)

    @property
    def modalities(self) -> tuple[str, ...]:
        """Every modality that a scan names."""
        return tuple(sorted({case.modality for case in self.cases if case.modality}))

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Median spacing along each stack axis."""
        return _median([case.spacing_mm for case in self.cases])

    @property
    def shape(self) -> tuple[int, int, int]:
        """Median shape along each stack axis."""
        slices, rows, columns = (round(side) for side in _median([case.shape for case in self.cases]))
        return slices, rows, columns

    @property
    def extent_mm(self) -> tuple[float, float, float]:
        """Median size of a scan along each stack axis."""
        sides = [[n * mm for n, mm in zip(case.shape, case.spacing_mm, strict=True)] for case in self.cases]
        return _median(sides)


class MaskFacts(Facts):
    """One accepted mask."""

    extent_mm: tuple[float, float, float]
    slices: int
    parts: int
    centre_mm: tuple[float, float] = Field((0.0, 0.0), description="rows, columns")


def mask_facts(mask: NDArray[Any], spacing_mm: Sequence[float]) -> MaskFacts | None:
    """Extent and parts of a mask, (slices, rows, columns); None for an empty one."""
    box = bounding_box(mask)
    if box is None:
        return None
    inside = np.asarray(mask[box]) > 0
    sides = [(part.stop - part.start) * mm for part, mm in zip(box, spacing_mm, strict=True)]
    labels, _ = ndimage.label(inside, np.ones((3, 3, 3)))
    sizes = np.bincount(labels.ravel())[1:]
    return MaskFacts(
        extent_mm=(sides[0], sides[1], sides[2]),
        slices=int(inside.any((1, 2)).sum()),
        parts=int((sizes >= _ENOUGH_OF_A_PART * sizes.sum()).sum()),
        centre_mm=_centre_mm(inside, box, spacing_mm),
    )


def _centre_mm(
    inside: NDArray[np.bool_], box: tuple[slice, slice, slice], spacing_mm: Sequence[float]
) -> tuple[float, float]:
    rows, columns = inside.sum((0, 2)), inside.sum((0, 1))
    row = box[1].start + float(rows @ np.arange(len(rows))) / float(rows.sum())
    column = box[2].start + float(columns @ np.arange(len(columns))) / float(columns.sum())
    return row * spacing_mm[1], column * spacing_mm[2]


def turn_deg(cases: Sequence[Mapping[str, MaskFacts]]) -> float | None:
    """How far nine scans of ten lie turned in the plane of the slices against their mean, degrees.

    Read from the direction between the two structures that lie farthest apart. Of fewer than ten scans, which often are
    several of one patient, it is twice the largest; None with fewer than five that hold both.
    """
    names = sorted({name for case in cases for name in case})
    farthest: tuple[float, NDArray[np.float64]] = (0.0, np.empty(0))
    for first, second in itertools.combinations(names, 2):
        both = [case for case in cases if first in case and second in case]
        if len(both) < _FEWEST_SCANS:
            continue
        ways = np.array([np.subtract(case[second].centre_mm, case[first].centre_mm) for case in both])
        apart = float(np.median(np.hypot(*ways.T)))
        if apart > farthest[0]:
            farthest = apart, np.arctan2(*ways.T)
    angles = farthest[1]
    if len(angles) == 0:
        return None
    mean = np.angle(np.exp(1j * angles).mean())
    off = np.abs(np.angle(np.exp(1j * (angles - mean))))
    if len(off) < _ENOUGH_SCANS:
        return min(180.0, 2 * float(np.degrees(off.max())))
    return float(np.degrees(np.quantile(off, 0.9)))


def structure_facts(name: str, masks: Sequence[MaskFacts]) -> StructureFacts:
    """What the masks of one structure have in common."""
    extents = [mask.extent_mm for mask in masks]
    return StructureFacts(
        name=name,
        cases=len(masks),
        extent_mm=_median(extents) if extents else (0.0, 0.0, 0.0),
        largest_extent_mm=_most(extents) if extents else (0.0, 0.0, 0.0),
        slices=round(float(np.median([mask.slices for mask in masks]))) if masks else 0,
        parts=max((mask.parts for mask in masks), default=0),
    )


def overlap(masks: Sequence[NDArray[Any]]) -> bool:
    """Whether any voxel belongs to two of the masks."""
    total = np.zeros(masks[0].shape, np.uint16)
    for mask in masks:
        total += mask > 0
    return bool((total > 1).any())


def bounding_box(mask: NDArray[Any]) -> tuple[slice, slice, slice] | None:
    """The smallest box that holds a mask; None for an empty one."""
    sides = []
    for axis in range(3):
        places = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        if len(places) == 0:
            return None
        sides.append(slice(int(places[0]), int(places[-1]) + 1))
    return sides[0], sides[1], sides[2]


def foreground_sample(image: NDArray[Any], mask: NDArray[Any]) -> NDArray[np.float64]:
    """At most 20,000 evenly chosen finite intensities inside a mask."""
    values = np.asarray(image[mask > 0], np.float64)
    values = values[np.isfinite(values)]
    return values[:: max(1, math.ceil(len(values) / _FOREGROUND_VOXELS))]


def looks_like_hounsfield(image: NDArray[Any]) -> bool:
    """Whether a scan that names no modality is a CT by its values: air near −1000, nothing beyond metal."""
    values = image[np.isfinite(image)] if np.issubdtype(image.dtype, np.floating) else image
    if values.size == 0:
        return False
    return -1100 <= float(np.quantile(values, 0.01)) <= -500 and float(values.max()) <= 32_000


def intensities(samples: Sequence[NDArray[np.float64]]) -> Intensities | None:
    """Statistics of the foreground over all scans; None without any."""
    values = np.concatenate(samples) if samples else np.empty(0)
    if len(values) == 0:
        return None
    low, high = (float(q) for q in np.quantile(values, (0.005, 0.995)))
    clipped = np.clip(values, low, high)
    return Intensities(low=low, high=high, mean=float(clipped.mean()), sd=float(clipped.std()) or 1.0)


def _median(rows: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    first, second, third = (float(value) for value in np.median(np.asarray(rows, np.float64), axis=0))
    return first, second, third


def _most(rows: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    first, second, third = (float(value) for value in np.asarray(rows, np.float64).max(axis=0))
    return first, second, third
