"""Weak and strong views, on whole batches. Nothing here changes a side or a level by more than a small tilt."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor


def _uniform(count: int, low: float, high: float, noise: Generator) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=noise)


def weak_view(image: Tensor, masks: Tensor | None, flip_axis: int | None, noise: Generator) -> tuple[Tensor, Tensor]:
    """Rotate ±20°, scale 0.85–1.15, shift ±5 %, and mirror where ``flip_axis`` allows.

    Parameters
    ----------
    image : Tensor, (B, 3, H, W)
    masks : Tensor, (B, S, H, W), optional
    flip_axis : {2, 3} or None
        The array axis that runs left-right, when no caption names a side.
    noise : torch.Generator
        The only source of chance.

    Returns
    -------
    image, masks : Tensor
        The same move applied to both; without masks the second has no channel.
    """
    count = image.shape[0]
    angle = _uniform(count, -math.pi / 9, math.pi / 9, noise)
    scale = _uniform(count, 0.85, 1.15, noise)
    shift = _uniform(2 * count, -0.1, 0.1, noise).view(count, 2)
    mirror = torch.ones(count, 2)
    if flip_axis is not None:
        mirror[:, 3 - flip_axis] = torch.where(torch.rand(count, generator=noise) < 0.5, -1.0, 1.0)
    cosine, sine = torch.cos(angle) * scale, torch.sin(angle) * scale
    rows = torch.stack([torch.stack([cosine, -sine], 1), torch.stack([sine, cosine], 1)], 1) * mirror[:, None]
    affine = torch.cat([rows, shift[:, :, None]], 2).to(image.device)
    grid = F.affine_grid(affine, list(image.shape), align_corners=False)
    moved = F.grid_sample(image, grid, padding_mode="border", align_corners=False)
    if masks is None:
        return moved, image.new_zeros(count, 0, *image.shape[2:])
    return moved, (F.grid_sample(masks, grid, align_corners=False) > 0.5).float()


def strong_intensity(image: Tensor, noise: Generator) -> Tensor:
    """Contrast, brightness, gamma-like bending, noise, and blur on half of the images: (B, 3, H, W)."""
    count = image.shape[0]

    def column(low: float, high: float) -> Tensor:
        return _uniform(count, low, high, noise).view(-1, 1, 1, 1).to(image.device)

    changed = image * column(0.7, 1.4) + column(-0.4, 0.4)
    changed = changed + column(-0.2, 0.2) * changed.abs().clamp(max=3) * changed.sign()
    blurred = F.avg_pool2d(F.pad(changed, (1, 1, 1, 1), mode="replicate"), 3, 1)
    changed = torch.where(column(0, 1) < 0.5, blurred, changed)
    grain = torch.randn(image.shape, generator=noise).to(image.device)
    return changed + column(0, 0.15) * grain


def cut_mix(image: Tensor, targets: list[Tensor], noise: Generator) -> tuple[Tensor, list[Tensor]]:
    """Paste one box per image from its neighbour in the batch, at the same place, into image and targets alike.

    The place does not change, so neither do sides and levels.
    """
    count, _, height, width = image.shape
    box = torch.zeros(count, 1, height, width)
    for row in range(count):
        if torch.rand((), generator=noise) < 0.5:
            continue
        share = math.sqrt(float(_uniform(1, 0.1, 0.4, noise)))
        tall, wide = int(share * height), int(share * width)
        top = int(torch.randint(height - tall + 1, (), generator=noise))
        left = int(torch.randint(width - wide + 1, (), generator=noise))
        box[row, :, top : top + tall, left : left + wide] = 1
    inside = box.bool().to(image.device)

    def mixed(x: Tensor) -> Tensor:
        return torch.where(inside, x.roll(1, 0), x)

    return mixed(image), [mixed(target) for target in targets]
