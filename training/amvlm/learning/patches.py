"""Patches of a prepared study: where they are drawn, and how they are changed on the way to the network."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.random import Generator as Rng
from numpy.typing import NDArray
from torch import Tensor

from amvlm.models.planned import grown_box
from amvlm.planning import Plan, bounding_box

FOREGROUND_SHARE = 1 / 3
ANYWHERE_SHARE = 0.1
_KEPT_VOXELS = 5_000
_REACH = 1.45
"""A crop is drawn so much larger than the patch, so that turned and scaled patches stay inside it."""


@dataclass(frozen=True)
class PreparedCase:
    """One case on the plan's grid.

    ``image`` is (Z, C, H, W), float16, normalised, mapped from disk; ``labels`` (Z, 1 or S, H, W), uint8, as
    :func:`amvlm.imaging.regrid.resampled_labels` makes them; ``known`` (S,) says which structures were judged.
    """

    case_id: str
    image: NDArray[np.float16]
    labels: NDArray[np.uint8]
    known: NDArray[np.float32]
    spacing_mm: tuple[float, float, float]

    @property
    def shape(self) -> tuple[int, int, int]:
        return int(self.image.shape[0]), int(self.image.shape[2]), int(self.image.shape[3])

    def mask(self, structure: int) -> NDArray[np.bool_]:
        """Where a structure is, (Z, H, W)."""
        labels: NDArray[np.uint8] = np.asarray(self.labels)
        mask: NDArray[np.bool_] = labels[:, 0] == structure + 1 if labels.shape[1] == 1 else labels[:, structure] > 0
        return mask

    @functools.cached_property
    def foreground(self) -> list[NDArray[np.int32]]:
        """Some voxels (N, 3) of each structure that is there, evenly chosen."""
        found = []
        for structure in range(len(self.known)):
            voxels = np.argwhere(self.mask(structure)).astype(np.int32)
            if len(voxels):
                found.append(voxels[:: math.ceil(len(voxels) / _KEPT_VOXELS)])
        return found

    def region(self, plan: Plan) -> tuple[slice, slice, slice]:
        """Where crops are centred: around all structures, as large as the plan's region; everywhere without any."""
        shape = self.shape
        labelled: NDArray[np.uint8] = np.asarray(self.labels).max(axis=1)
        box = bounding_box(labelled) if plan.region_mm is not None else None
        if box is None or plan.region_mm is None:
            return slice(0, shape[0]), slice(0, shape[1]), slice(0, shape[2])
        sides = [mm / own for mm, own in zip(plan.region_mm, self.spacing_mm, strict=True)]
        return grown_box(box, sides, shape)


class PatchBatch(NamedTuple):
    """``image`` (B, inputs or planes, H, W); ``labels`` (B, 1 or S[, planes], H, W), uint8 values as floats;
    ``known`` (B, S)."""

    image: Tensor
    labels: Tensor
    known: Tensor

    def to(self, device: torch.device) -> PatchBatch:
        return PatchBatch(*(field.to(device, non_blocking=True) for field in self))


class Place(NamedTuple):
    """The centre of a crop: slice, row and column of a case."""

    case: PreparedCase
    centre: list[int]


class PatchSampler:
    """Draws patches; all chance comes from the generator that is handed in. ``crop`` holds the rows and columns that it
    cuts."""

    def __init__(self, plan: Plan, cases: Sequence[PreparedCase]) -> None:
        self._plan, self._cases = plan, list(cases)
        self._regions = [case.region(plan) for case in cases]
        _, rows, columns = plan.patch
        self.crop = (math.ceil(rows * _REACH), math.ceil(columns * _REACH))

    def draw(self, count: int, rng: Rng) -> PatchBatch:
        """``count`` crops, larger than the patch, not changed yet."""
        return self.cut(self.places(count, rng))

    def places(self, count: int, rng: Rng) -> list[Place]:
        """Which cases, and where in them, crops are centred."""
        found = []
        for _ in range(count):
            index = int(rng.integers(len(self._cases)))
            found.append(Place(self._cases[index], self._centre(self._cases[index], self._regions[index], rng)))
        return found

    def cut(self, places: Sequence[Place]) -> PatchBatch:
        """The crops around some places."""
        plan = self._plan
        cuts = [self._cut(case, centre) for case, centre in places]
        image = torch.from_numpy(np.stack([image for image, _ in cuts])).float()
        labels = torch.from_numpy(np.stack([label for _, label in cuts])).float()
        if plan.dimensions == 3:
            image, labels = image[:, :, 0], labels.movedim(1, 2)
        else:
            image, labels = image.flatten(1, 2), labels[:, 0]
        return PatchBatch(image, labels, torch.from_numpy(np.stack([case.known for case, _ in places])))

    def corner(self, place: Place) -> tuple[int, int]:
        """First row and column of a place's crop, which may lie outside the slice."""
        return place.centre[1] - self.crop[0] // 2, place.centre[2] - self.crop[1] // 2

    def _centre(self, case: PreparedCase, region: tuple[slice, slice, slice], rng: Rng) -> list[int]:
        kind = rng.random()
        if kind < FOREGROUND_SHARE and case.foreground:
            voxels = case.foreground[int(rng.integers(len(case.foreground)))]
            return [int(place) for place in voxels[int(rng.integers(len(voxels)))]]
        if kind > 1 - ANYWHERE_SHARE:
            region = tuple(slice(0, side) for side in case.shape)  # type: ignore[assignment]
        centre = []
        for part, side, patch in zip(region, case.shape, self._plan.patch, strict=True):
            low, high = part.start, part.stop - 1
            if patch > 1:  # a patch lies inside the region where it fits there
                low, high = low + patch // 2, high - (patch - patch // 2) + 1
                low, high = sorted((low, high))  # where the region is the smaller one, the patch holds all of it
            centre.append(min(side - 1, max(0, int(rng.integers(low, high + 1)))))
        return centre

    def _cut(self, case: PreparedCase, centre: Sequence[int]) -> tuple[NDArray[np.float16], NDArray[np.uint8]]:
        """Planes (with context), rows and columns around a centre; edges are repeated, labels end there."""
        plan = self._plan
        first = centre[0] - plan.patch[0] // 2
        inner = np.arange(first, first + plan.patch[0])
        outer = np.arange(first - plan.context, first + plan.patch[0] + plan.context)
        last = case.shape[0] - 1
        spans = [_span(centre[axis], self.crop[axis - 1], case.shape[axis]) for axis in (1, 2)]
        (rows, pad_rows), (columns, pad_columns) = spans
        image = case.image[np.clip(outer, 0, last)][:, :, rows, columns]
        label = case.labels[np.clip(inner, 0, last)][:, :, rows, columns]
        if any(pad_rows + pad_columns):
            image = np.pad(image, ((0, 0), (0, 0), pad_rows, pad_columns), mode="edge")
            label = np.pad(label, ((0, 0), (0, 0), pad_rows, pad_columns))
        if plan.patch[0] > 1:
            label[(inner < 0) | (inner > last)] = 0
        return image, label


def _span(centre: int, side: int, length: int) -> tuple[slice, tuple[int, int]]:
    """Voxels of a crop that exist, and how many are missing before and after."""
    start = centre - side // 2
    stop = start + side
    inside = slice(max(0, start), min(length, stop))
    return inside, (inside.start - start, stop - inside.stop)


def augmented(batch: PatchBatch, plan: Plan, rng: Rng) -> PatchBatch:
    """Turn, scale, mirror and shift crops into patches, then change their intensities; all on the batch's device."""
    crop = (batch.image.shape[-2], batch.image.shape[-1])
    return changed(moved(batch, plan, affine_moves(len(batch.image), crop, plan, rng)), rng)


def plain(batch: PatchBatch, plan: Plan) -> PatchBatch:
    """The middle of each crop, unchanged."""
    _, rows, columns = plan.patch
    top, left = ((side - own) // 2 for side, own in zip(batch.image.shape[-2:], (rows, columns), strict=True))
    inside = (..., slice(top, top + rows), slice(left, left + columns))
    return PatchBatch(batch.image[inside], batch.labels[inside], batch.known)


def affine_moves(count: int, crop: tuple[int, int], plan: Plan, rng: Rng) -> Tensor:
    """One affine move per sample, in the plane of the slices: ±30° and 0.7–1.4 on a part of them each, and any
    angle on the plan's share.

    Returns
    -------
    Tensor, (count, 2, 3), float32
        From the patch's normalised coordinates to those of the crop, which spans −1 to 1.
    """
    _, rows, columns = plan.patch
    which, turn = rng.random(count), rng.uniform(-np.pi, np.pi, count)
    angle = np.where(which < 1 - plan.any_angle, np.where(which < 0.4, turn / 6, 0.0), turn)
    scale = np.where(rng.random(count) < 0.4, rng.uniform(0.7, 1.4, count), 1.0)
    flips = np.stack([np.where((rng.random(count) < 0.5) & allowed, -1.0, 1.0) for allowed in plan.mirror[::-1]], 1)
    cosine, sine = np.cos(angle) * scale, np.sin(angle) * scale
    crop_rows, crop_columns = crop
    theta = np.zeros((count, 2, 3), np.float32)
    theta[:, 0, 0], theta[:, 0, 1] = cosine * columns / crop_columns, -sine * rows / crop_columns
    theta[:, 1, 0], theta[:, 1, 1] = sine * columns / crop_rows, cosine * rows / crop_rows
    theta[:, :, :2] *= flips[:, None, :]
    return torch.from_numpy(theta)


def moved(batch: PatchBatch, plan: Plan, moves: Tensor) -> PatchBatch:
    """The patches that :func:`affine_moves` leads to."""
    image, labels = batch.image, batch.labels
    _, rows, columns = plan.patch
    flat = labels.flatten(1, -3)
    grid = F.affine_grid(moves.to(image.device), [len(image), 1, rows, columns], align_corners=False)
    turned = F.grid_sample(image, grid, padding_mode="border", align_corners=False)
    answer = F.grid_sample(flat, grid, mode="nearest", align_corners=False)
    return PatchBatch(turned, answer.reshape(*labels.shape[:-2], rows, columns), batch.known)


def changed(batch: PatchBatch, rng: Rng) -> PatchBatch:
    """Noise, blur, brightness, contrast, low resolution and gamma, each on a part of the samples (as nnU-Net does)."""
    image = batch.image
    count, device = len(image), image.device

    def chosen(share: float, low: float, high: float, otherwise: float) -> Tensor:
        values = np.where(rng.random(count) < share, rng.uniform(low, high, count), otherwise)
        return torch.from_numpy(values.astype(np.float32)).view(-1, 1, 1, 1).to(device)

    grain = torch.Generator(device).manual_seed(int(rng.integers(2**62)))
    noise = chosen(0.15, 0.0, 0.3, 0.0)
    noisy = noise.flatten().nonzero().flatten()
    if len(noisy):
        drawn = torch.randn(len(noisy), *image.shape[1:], generator=grain, device=device)
        image = image.index_add(0, noisy, noise[noisy] * drawn)
    image = _partly(image, rng.random(count) < 0.15, _blurred)
    image = _partly(image, rng.random(count) < 0.15, _coarsened)
    image = image * chosen(0.3, 0.7, 1.4, 1.0) + chosen(0.3, -0.4, 0.4, 0.0)
    gamma = chosen(0.4, 0.7, 1.5, 1.0)
    bent = (gamma.flatten() != 1).nonzero().flatten()
    if len(bent):
        image = image.index_copy(0, bent, _gamma(image[bent], gamma[bent]))
    return PatchBatch(image, batch.labels, batch.known)


def _partly(image: Tensor, which: NDArray[np.bool_], change: Callable[[Tensor], Tensor]) -> Tensor:
    rows = torch.from_numpy(np.flatnonzero(which)).to(image.device)
    return image.index_copy(0, rows, change(image[rows])) if len(rows) else image


def _blurred(image: Tensor) -> Tensor:
    return F.avg_pool2d(F.pad(image, (1, 1, 1, 1), mode="replicate"), 3, 1)


def _coarsened(image: Tensor) -> Tensor:
    small = F.interpolate(image, scale_factor=0.5, mode="nearest")
    return F.interpolate(small, image.shape[-2:], mode="bilinear", align_corners=False)


def _gamma(image: Tensor, gamma: Tensor) -> Tensor:
    """Bend intensities within each sample's own range; mean and sd stay."""
    low, high = image.amin((1, 2, 3), keepdim=True), image.amax((1, 2, 3), keepdim=True)
    span = (high - low).clamp(min=1e-6)
    bent = ((image - low) / span).pow(gamma)
    mean, sd = image.mean((1, 2, 3), keepdim=True), image.std((1, 2, 3), keepdim=True)
    own_mean, own_sd = bent.mean((1, 2, 3), keepdim=True), bent.std((1, 2, 3), keepdim=True)
    return (bent - own_mean) / own_sd.clamp(min=1e-6) * sd + mean
