"""Pictures for TensorBoard: which captions a model tells apart, and where it sees them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor


def similarity_picture(run_folder: Path, similarity: Tensor, step: int) -> None:
    """A batch's image × text similarities, (B, B), as a grey picture from their lowest to their highest."""
    grey = similarity.float().cpu()
    grey = (grey - grey.min()) / (grey.max() - grey.min()).clamp(min=1e-6)
    picture = grey[None].repeat_interleave(8, 1).repeat_interleave(8, 2)
    _write(run_folder, "similarity", picture, step)


def mask_picture(run_folder: Path, image: Tensor, probs: Tensor, masks: Tensor, step: int) -> None:
    """Rows of image, text mask and the expert's mask: (B, 3, H, W), (B, H, W), (B, H, W)."""
    grey = image[:, 1].float().cpu()
    low, high = grey.amin((1, 2), keepdim=True), grey.amax((1, 2), keepdim=True)
    columns = [(grey - low) / (high - low).clamp(min=1e-6), probs.float().cpu(), masks.float().cpu()]
    # network squares lie as (x, y) with y upwards; a person looks at (rows, columns)
    shown = [torch.cat(list(column.flip(1, 2).transpose(1, 2)), dim=1) for column in columns]
    _write(run_folder, "text mask", torch.cat(shown, dim=0)[None], step)


def _write(run_folder: Path, name: str, picture: Tensor, step: int) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(run_folder / "tensorboard"), filename_suffix=".pictures") as writer:
        writer.add_image(name, picture, step)
