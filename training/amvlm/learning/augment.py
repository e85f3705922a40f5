"""Weak and strong views, on whole batches. Nothing here changes a side or a level by more than a small tilt."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from amvlm.learning.noise import CaseNoise


def weak_view(
    image: Tensor,
    masks: Tensor | None,
    noise: CaseNoise,
    mirrored: Tensor | None = None,
    flip_axis: int = 2,
    any_orientation: bool = False,
) -> tuple[Tensor, Tensor]:
    """Rotate ±10°, scale 0.9–1.1, shift ±3 %, and mirror the images that the caller chose.

    Never a turn by 90° and never upside down, unless ``any_orientation``: captions name sides and levels.

    Parameters
    ----------
    image : Tensor, (B, 3, H, W)
    masks : Tensor, (B, S, H, W), optional
    noise : CaseNoise
        The only source of chance.
    mirrored : Tensor, (B,), bool, optional
        Which to mirror left-right; their captions must have their sides swapped.
    flip_axis : {2, 3}
        The array axis that runs left-right.
    any_orientation : bool
        Quarter turns as well, for images without an up.

    Returns
    -------
    image, masks : Tensor
        The same move applied to both; without masks the second has no channel.
    """
    count = image.shape[0]
    angle = noise.uniform(-math.pi / 18, math.pi / 18)
    if any_orientation:
        angle = angle + noise.uniform(0, 4).floor() * (math.pi / 2)
    scale = noise.uniform(0.9, 1.1)
    shift = torch.stack([noise.uniform(-0.06, 0.06), noise.uniform(-0.06, 0.06)], 1)
    mirror = torch.ones(count, 2)
    if mirrored is not None:
        mirror[:, 3 - flip_axis] = torch.where(mirrored, -1.0, 1.0)
    cosine, sine = torch.cos(angle) * scale, torch.sin(angle) * scale
    rows = torch.stack([torch.stack([cosine, -sine], 1), torch.stack([sine, cosine], 1)], 1) * mirror[:, None]
    affine = torch.cat([rows, shift[:, :, None]], 2).to(image.device)
    grid = F.affine_grid(affine, list(image.shape), align_corners=False)
    moved = F.grid_sample(image, grid, padding_mode="border", align_corners=False)
    if masks is None:
        return moved, image.new_zeros(count, 0, *image.shape[2:])
    return moved, (F.grid_sample(masks, grid, align_corners=False) > 0.5).float()


def strong_intensity(image: Tensor, noise: CaseNoise) -> Tensor:
    """Contrast, brightness, gamma-like bending, noise, and blur on half of the images: (B, 3, H, W)."""

    def column(low: float, high: float) -> Tensor:
        return noise.uniform(low, high).view(-1, 1, 1, 1).to(image.device)

    changed = image * column(0.7, 1.4) + column(-0.4, 0.4)
    changed = changed + column(-0.2, 0.2) * changed.abs().clamp(max=3) * changed.sign()
    blurred = F.avg_pool2d(F.pad(changed, (1, 1, 1, 1), mode="replicate"), 3, 1)
    changed = torch.where(column(0, 1) < 0.5, blurred, changed)
    grain = noise.normal(*image.shape[1:]).to(image.device)
    return changed + column(0, 0.15) * grain


def cut_mix_boxes(noise: CaseNoise, height: int, width: int, share: float = 0.5) -> Tensor:
    """Where to paste the neighbour's pixels (CutMix): boxes of 10–40 % of the area on a share of the images.

    A box is pasted at its own place, so sides and levels do not change.

    Returns
    -------
    Tensor, (B, 1, H, W), bool
    """
    chosen = noise.uniform(0, 1) < share
    side, down, across = noise.uniform(0.1, 0.4).sqrt(), noise.uniform(0, 1), noise.uniform(0, 1)
    box = torch.zeros(len(noise), 1, height, width, dtype=torch.bool)
    for row in torch.nonzero(chosen).flatten().tolist():
        tall, wide = int(side[row] * height), int(side[row] * width)
        top, left = int(down[row] * (height - tall + 1)), int(across[row] * (width - wide + 1))
        box[row, :, top : top + tall, left : left + wide] = True
    return box


def mixed(x: Tensor, box: Tensor) -> Tensor:
    """Inside its box (B, 1, H, W) an image or target (B, …, H, W) becomes its neighbour's in the batch."""
    if x.ndim > box.ndim:
        box = box[:, None]
    return torch.where(box, x.roll(1, 0), x)
