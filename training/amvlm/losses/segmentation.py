"""Supervised and pseudo-supervised losses on logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def _dice_loss(probs: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """1 − Dice per structure, summed over the batch, smooth 1; a structure with an empty target is skipped."""
    dims = (0, 2, 3)
    weight = weight[..., None, None]
    overlap = (weight * probs * target).sum(dims)
    total = (weight * (probs + target)).sum(dims)
    present = (weight * target).sum(dims) > 0
    dice = (2 * overlap + 1) / (total + 1)
    return ((1 - dice) * present).sum() / present.sum().clamp(min=1)


def masked_dice_bce(logits: Tensor, target: Tensor, known: Tensor) -> Tensor:
    """Dice + BCE where a structure was judged (L_sup).

    Parameters
    ----------
    logits : Tensor, (B, S, H, W), unbounded
    target : Tensor, (B, S, H, W), {0, 1}
    known : Tensor, (B, S), {0, 1}: an unjudged structure is unknown, never background

    Returns
    -------
    Tensor, scalar, float32
    """
    logits, target, known = logits.float(), target.float(), known.float()
    bce = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean((2, 3))
    bce = (bce * known).sum() / known.sum().clamp(min=1)
    return bce + _dice_loss(logits.sigmoid(), target, known)


def soft_dice_bce(logits: Tensor, target_probs: Tensor, known: Tensor | None = None) -> Tensor:
    """Dice + BCE against soft targets on all voxels (L_text, L_merged); arguments as :func:`masked_dice_bce`."""
    if known is None:
        known = torch.ones(logits.shape[:2], device=logits.device)
    return masked_dice_bce(logits, target_probs, known)


def confident_bce(logits: Tensor, pseudo_label_probs: Tensor, confidence: float, known: Tensor) -> Tensor:
    """Dice + BCE against the hard pseudo-label where the teacher is sure: max(p, 1−p) ≥ ``confidence`` (L_pseudo).

    Parameters
    ----------
    logits, pseudo_label_probs : Tensor, (B, S, H, W)
    known : Tensor, (B, S): which structures to learn here

    Returns
    -------
    Tensor, scalar; 0 when the teacher is sure of nothing.
    """
    logits, probs = logits.float(), pseudo_label_probs.float()
    hard = (probs > 0.5).float()
    sure = (torch.maximum(probs, 1 - probs) >= confidence).float() * known.float()[..., None, None]
    bce = F.binary_cross_entropy_with_logits(logits, hard, reduction="none")
    bce = (bce * sure).sum() / sure.sum().clamp(min=1)
    predicted = logits.sigmoid() * sure
    return bce + _dice_loss(predicted, hard * sure, torch.ones_like(known, dtype=torch.float32))
