"""Pixel-adaptive mask refinement (Araslanov & Roth, CVPR 2020): masks follow the image's edges."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_NEIGHBOURS = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))


def _shifted(x: Tensor, dilation: int) -> Tensor:
    """The eight neighbours at a distance, edges repeated: (B, C, H, W) → (B, C, 8, H, W)."""
    height, width = x.shape[-2:]
    padded = F.pad(x, (dilation,) * 4, mode="replicate")
    return torch.stack(
        [
            padded[
                ...,
                dilation * (1 + dy) : dilation * (1 + dy) + height,
                dilation * (1 + dx) : dilation * (1 + dx) + width,
            ]
            for dy, dx in _NEIGHBOURS
        ],
        dim=2,
    )


def pamr_affinity(image: Tensor, dilations: tuple[int, ...]) -> Tensor:
    """Softmax over all neighbours of −|x−x_n|/(0.1·σ), averaged over channels: (B, C, H, W) → (B, 1, 8·len, H, W)."""
    neighbours = torch.cat([_shifted(image, d) for d in dilations], 2)
    local_sd = neighbours.std(2, keepdim=True)
    difference = -(neighbours - image[:, :, None]).abs() / (1e-8 + 0.1 * local_sd)
    return difference.mean(1, keepdim=True).softmax(2)


def pamr(probs: Tensor, image: Tensor, iterations: int = 10, dilations: tuple[int, ...] = (1, 2, 4)) -> Tensor:
    """Refine masks by repeated averaging over similar neighbours.

    Parameters
    ----------
    probs : Tensor, (B, S, H, W), in [0, 1]
    image : Tensor, (B, C, H, W), area-averaged to the masks' size
    dilations : tuple of int
        Kept to at most an eighth of the side.

    Returns
    -------
    Tensor, (B, S, H, W), in [0, 1]; the input for 0 iterations.
    """
    if iterations == 0:
        return probs
    side = min(probs.shape[-2:])
    usable = tuple(d for d in dilations if d <= max(1, side // 8))
    affinity = pamr_affinity(image.float(), usable)
    refined = probs.float()
    for _ in range(iterations):
        neighbours = torch.cat([_shifted(refined, d) for d in usable], 2)
        refined = (neighbours * affinity).sum(2)
    return refined
