"""The student that a plan describes: it reads patches on the plan's grid and answers on whole volumes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from monai.inferers import sliding_window_inference
from monai.networks.nets import DynUNet
from pydantic import ValidationError
from scipy import ndimage
from torch import Tensor, nn

from amvlm.errors import UserError
from amvlm.losses.exclusive import structure_logits
from amvlm.models.half_unet import HalfUNet
from amvlm.models.windows import window_of
from amvlm.planning import Plan, bounding_box

SURELY_NOT = -10.0
"""Logit of what lies outside the region, or in a smaller part than the largest."""
_WINDOWS = 8
"""How many windows go through the network at once, unless a GPU's memory holds fewer."""
TURNS_DEG = (0.0, 15.0, -15.0)
"""Turns within a slice that an accurate answer averages over; every training turns patches by 30° at most."""
Box = tuple[slice, slice, slice]


class View(NamedTuple):
    """A slice mirrored along some axes, then turned about its centre."""

    flip: tuple[int, ...] = ()
    degrees: float = 0.0

    def of(self, image: Tensor) -> Tensor:
        """The image (…, H, W) in this view."""
        image = image.flip(self.flip) if self.flip else image
        return turned(image, self.degrees) if self.degrees else image

    def back(self, logits: Tensor) -> Tensor:
        """Logits (…, H, W) of this view, on the image."""
        logits = turned(logits, -self.degrees) if self.degrees else logits
        return logits.flip(self.flip) if self.flip else logits


def views_of(plan: Plan) -> list[View]:
    """What an accurate answer averages over."""
    rows, columns = plan.mirror
    allowed: list[tuple[tuple[int, ...], bool]] = [((-2,), rows), ((-1,), columns), ((-2, -1), rows and columns)]
    flips: list[tuple[int, ...]] = [(), *(axes for axes, sees in allowed if sees)]
    return [View(flip, degrees) for flip in flips for degrees in TURNS_DEG]


def turned(image: Tensor, degrees: float) -> Tensor:
    """Turn (…, H, W) within its plane about the centre, bilinear, edges repeated."""
    rows, columns = image.shape[-2:]
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn = torch.tensor([[cos, -sin * rows / columns, 0.0], [sin * columns / rows, cos, 0.0]], device=image.device)
    flat = image.reshape(1, -1, rows, columns).float()
    grid = F.affine_grid(turn[None], [1, 1, rows, columns], align_corners=False)
    return F.grid_sample(flat, grid, padding_mode="border", align_corners=False).view(image.shape)


class PlannedStudent(nn.Module):
    """A network that works on the plan's grid.

    In two dimensions it reads patches (B, inputs, H, W); in three, blocks (B, planes, H, W).
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan
        self.network = _network(plan)
        self.windows = _WINDOWS if plan.dimensions == 2 else 1
        steps = plan.strides or ((1, 2, 2),) * len(plan.widths)
        self._multiple = [math.prod(step[axis] for step in steps) for axis in range(3 - plan.dimensions, 3)]

    @property
    def smallest_input(self) -> tuple[int, int, int, int]:
        """Shape of a small input that the network reads."""
        return 1, self.plan.inputs if self.plan.dimensions == 2 else min(16, self.plan.patch[0]), 32, 32

    def forward(self, image: Tensor) -> Tensor:
        """Logits as the loss takes them: (B, outputs, H, W), in 3-D (B, outputs, planes, H, W)."""
        shape = image.shape[-self.plan.dimensions :]
        if self.plan.dimensions == 3:
            image = image[:, None]
        missing = [-side % by for side, by in zip(shape, self._multiple, strict=True)]
        if any(missing):
            image = F.pad(image, [part for by in reversed(missing) for part in (0, by)], mode="replicate")
        logits: Tensor = self.network(image)
        inside: Any = (..., *(slice(0, side) for side in shape))
        return logits[inside]

    @torch.no_grad()
    def volume_logits(self, planes: Tensor, spacing_mm: tuple[float, float, float], accurate: bool = False) -> Tensor:
        """One logit per structure of a whole volume.

        A coarse pass (windows side by side, every few slices) finds the region; there windows overlap by half under
        Gaussian weights; then the largest part is kept where the plan says so.

        Parameters
        ----------
        planes : Tensor, (Z, C, H, W)
            The volume on the plan's grid, normalised.
        spacing_mm : tuple of float
            Of those planes: slices, rows, columns.
        accurate : bool
            Average over :data:`TURNS`, and over mirrored copies where training saw them.

        Returns
        -------
        Tensor, (S, Z, H, W), float32, on the CPU
        """
        was_training = self.training
        self.eval()
        box = self.region(planes, spacing_mm)
        found = self.slices_logits(planes, torch.arange(len(planes)), box, accurate)
        for index, alone in enumerate(self.plan.largest_part):
            if alone:
                keep_largest_part(found[index])
        self.train(was_training)
        return found

    @torch.no_grad()
    def region(self, planes: Tensor, spacing_mm: tuple[float, float, float]) -> Box:
        """Where the structures are: the largest part of a coarse answer, grown to the plan's region, at least a patch.

        Everywhere, if the plan has no region or the coarse answer is empty.
        """
        shape = (len(planes), planes.shape[-2], planes.shape[-1])
        everywhere = (slice(0, shape[0]), slice(0, shape[1]), slice(0, shape[2]))
        if self.plan.region_mm is None:
            return everywhere
        sides = [
            max(mm / spacing, side)
            for mm, spacing, side in zip(self.plan.region_mm, spacing_mm, self.plan.patch, strict=True)
        ]
        if all(side >= length for side, length in zip(sides, shape, strict=True)):
            return everywhere
        step = max(1, int(sides[0] / 1.5 / 4)) if self.plan.dimensions == 2 else 1
        chosen = torch.arange(min(step // 2, shape[0] - 1), shape[0], step)
        logits = self._windows(planes, chosen, everywhere, 0.0, View())
        parts = largest_part((logits.amax(0) > 0).numpy())
        box = None if parts is None else bounding_box(parts)
        if box is None:
            return everywhere
        slices = slice(int(chosen[box[0].start]), int(chosen[box[0].stop - 1]) + 1)
        grown = (slice(slices.start - step, slices.stop + step), box[1], box[2])
        return grown_box(grown, sides, shape)

    @torch.no_grad()
    def slices_logits(self, planes: Tensor, places: Tensor, box: Box, accurate: bool = False) -> Tensor:
        """Logits (S, len(places), H, W) of some slices, surely not outside the box; in 3-D ``places`` are all."""
        found = torch.full((len(self.plan.structures), len(places), *planes.shape[-2:]), SURELY_NOT)
        inside = ((places >= box[0].start) & (places < box[0].stop)).nonzero().flatten()
        if len(inside):
            found[:, inside, box[1], box[2]] = self._inside(planes, places[inside], box, accurate)
        return found

    def _inside(self, planes: Tensor, places: Tensor, box: Box, accurate: bool) -> Tensor:
        views = views_of(self.plan) if accurate else [View()]
        logits = self._windows(planes, places, box, 0.5, views[0])
        for view in views[1:]:
            logits += self._windows(planes, places, box, 0.5, view)
        return logits / len(views)

    def _windows(self, planes: Tensor, places: Tensor, box: Box, overlap: float, view: View) -> Tensor:
        """Logits of some slices inside a box, (S, Z, H, W); fewer at once where a GPU's memory does not hold them.

        Raises
        ------
        UserError
            If it does not even hold one.
        """
        while True:
            try:
                return self._all_windows(planes, places, box, overlap, view)
            except torch.OutOfMemoryError as error:
                if self.windows == 1:
                    patch = " × ".join(map(str, self.plan.patch[3 - self.plan.dimensions :]))
                    raise UserError(
                        f"the GPU's memory does not hold one window of {patch} voxels", remedy="Choose --device cpu."
                    ) from error
                self.windows //= 2
            torch.cuda.empty_cache()

    def _all_windows(self, planes: Tensor, places: Tensor, box: Box, overlap: float, view: View) -> Tensor:
        exclusive, device = self.plan.exclusive, next(self.parameters()).device

        def predict(image: Tensor) -> Tensor:
            logits = self(image if self.plan.dimensions == 2 else image[:, 0])
            return structure_logits(logits, exclusive)

        rows, columns = box[1], box[2]
        if self.plan.dimensions == 3:
            block = view.of(planes[box[0], 0, rows, columns].float())[None, None]
            found: Any = sliding_window_inference(
                block, self.plan.patch, self.windows, predict, overlap=overlap, mode="gaussian", sw_device=device,
                device=torch.device("cpu"),  # the answer grows there: only windows are on the GPU
            )  # fmt: skip
            return view.back(_cpu(found[0]))
        window = window_of(self.plan.patch[1:], (rows.stop - rows.start, columns.stop - columns.start))
        answers = []
        for begin in range(0, len(places), self.windows):
            image = with_context(planes, places[begin : begin + self.windows], self.plan.context)[..., rows, columns]
            image = view.of(image).to(device)
            if window == tuple(image.shape[-2:]):
                answer = predict(image)
            else:
                answer = sliding_window_inference(
                    image, window, self.windows, predict, overlap=overlap, mode="gaussian", padding_mode="replicate"
                )
            answers.append(view.back(_cpu(answer)))
        return torch.cat(answers).movedim(1, 0)


def read_plan(stored: dict[str, Any], file: Path) -> Plan:
    """The plan that a model or a run was made with.

    Raises
    ------
    UserError
        If another version of this program made it.
    """
    try:
        return Plan.model_validate(stored)
    except ValidationError as error:
        raise UserError(
            "its plan was made by another version of amvlm", file=file, remedy="Train again with this release."
        ) from error


def with_context(planes: Tensor, places: Tensor, context: int) -> Tensor:
    """Slices with their neighbours as channels, edges repeated: (Z, C, H, W) → (B, C·(2·context + 1), H, W)."""
    reach = torch.arange(-context, context + 1)
    rows = (places[:, None] + reach).clamp(0, len(planes) - 1)
    return planes[rows].flatten(1, 2).float()


def grown_box(box: Box, sides: list[float], shape: tuple[int, int, int]) -> Box:
    """A box grown about its centre to at least ``sides`` voxels, within ``shape``."""
    grown = []
    for part, side, length in zip(box, sides, shape, strict=True):
        missing = max(0.0, side - (part.stop - part.start)) / 2
        start = int(np.floor(max(0, part.start - missing)))
        grown.append(slice(start, int(np.ceil(min(length, part.stop + missing)))))
    return grown[0], grown[1], grown[2]


def largest_part(mask: Any) -> Any:
    """The largest connected part of a mask, (Z, H, W) bool; None for an empty one."""
    labels, count = ndimage.label(mask, np.ones((3, 3, 3)))
    if count == 0:
        return None
    return labels == 1 + int(np.bincount(labels.ravel())[1:].argmax())


def keep_largest_part(logits: Tensor) -> Tensor:
    """In place: foreground of (Z, H, W) outside its largest part becomes surely background; which slices changed."""
    mask = (logits > 0).numpy()
    kept = largest_part(mask)
    if kept is None:
        return torch.zeros(len(logits), dtype=torch.bool)
    lost = torch.from_numpy(mask & ~kept)
    logits[lost] = SURELY_NOT
    return lost.any((1, 2))


def _cpu(logits: Tensor) -> Tensor:
    return logits.float().cpu()


def _network(plan: Plan) -> nn.Module:
    if plan.network == "half_unet":
        return HalfUNet(plan.inputs, plan.outputs, plan.widths, plan.decoder)
    flat = plan.dimensions == 2
    strides = [step[1:] if flat else step for step in ((1, 1, 1), *plan.strides)]
    network: nn.Module = DynUNet(
        plan.dimensions, plan.inputs, plan.outputs, [3] * len(strides), strides, strides[1:], filters=plan.widths,
        norm_name="instance",
    )  # fmt: skip
    return network
