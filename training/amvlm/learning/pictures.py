"""Pictures for TensorBoard: which captions a model tells apart, and where it sees them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from amvlm.curves import Curves


def similarity_picture(run_folder: Path, similarity: Tensor, step: int) -> None:
    """A batch's image × text similarities, (B, B), as a grey picture from their lowest to their highest."""
    grey = similarity.float().cpu()
    grey = (grey - grey.min()) / (grey.max() - grey.min()).clamp(min=1e-6)
    picture = grey[None].repeat_interleave(8, 1).repeat_interleave(8, 2)
    _write(run_folder, "similarity", picture, step)


def training_picture(run_folder: Path, image: Tensor, targets: Sequence[Tensor], step: int) -> None:
    """Rows of image, teacher, text mask and merged mask, first structure and middle slice: probabilities (B, S, …)."""
    middle = image.shape[1] // 2
    planes = [target[:, 0] if target.ndim == 4 else target[:, 0, middle] for target in targets]
    _write(run_folder, "teacher, text mask, merged", _rows([_grey(image[:, middle]), *planes]), step)


def mask_picture(run_folder: Path, image: Tensor, probs: Tensor, masks: Tensor, step: int) -> None:
    """Rows of image, text mask and the expert's mask: (B, 3, H, W), (B, H, W), (B, H, W)."""
    _write(run_folder, "text mask", _rows([_grey(image[:, 1]), probs, masks]), step)


def _grey(image: Tensor) -> Tensor:
    """(B, H, W), each picture from its darkest to its brightest."""
    low, high = image.amin((1, 2), keepdim=True), image.amax((1, 2), keepdim=True)
    return (image - low) / (high - low).clamp(min=1e-6)


def _rows(columns: Sequence[Tensor]) -> Tensor:
    """Pictures (B, H, W) side by side, one sequence below the other: (1, n·H, B·W)."""
    # network squares lie as (x, y) with y upwards; a person looks at (rows, columns)
    shown = [torch.cat(list(c.float().cpu().flip(1, 2).transpose(1, 2)), dim=1) for c in columns]
    return torch.cat(shown, dim=0)[None]


def _write(run_folder: Path, name: str, picture: Tensor, step: int) -> None:
    Curves(run_folder).add_image(name, picture, step)
