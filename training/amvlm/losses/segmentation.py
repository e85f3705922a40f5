"""Supervised and pseudo-supervised losses on logits."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Total = Callable[[Tensor], Tensor]
"""Makes a sum over this process's samples one over those of all processes."""


def _own(part: Tensor) -> Tensor:
    return part


def _dice_loss(probs: Tensor, target: Tensor, weight: Tensor, total: Total) -> Tensor:
    """1 − Dice per structure, summed over the batch, smooth 1; a structure with an empty target is skipped."""
    dims = (0, *range(2, probs.ndim))
    overlap = (weight * probs * target).sum(dims)
    both = (weight * (probs + target)).sum(dims)
    overlap, both, there = total(torch.stack([overlap, both, (weight * target).sum(dims)])).unbind()
    present = there > 0
    dice = (2 * overlap + 1) / (both + 1)
    loss: Tensor = ((1 - dice) * present).sum() / present.sum().clamp(min=1)
    return loss


def _mean(values: Tensor, weight: Tensor, total: Total) -> Tensor:
    """Weighted mean; 0 where no weight is."""
    over, under = total(torch.stack([(values * weight).sum(), weight.sum()])).unbind()
    return over / under.clamp(min=1)


def masked_dice_bce(logits: Tensor, target: Tensor, known: Tensor, total: Total = _own) -> Tensor:
    """Dice + BCE where a structure was judged (L_sup).

    Parameters
    ----------
    logits : Tensor, (B, S, H, W) or (B, S, planes, H, W), unbounded
    target : Tensor, of that shape, [0, 1]
    known : Tensor, (B, S), {0, 1}: an unjudged structure is unknown, never background
    total : callable
        Sums over processes; by default over this one alone.

    Returns
    -------
    Tensor, scalar, float32
    """
    logits, target, known = logits.float(), target.float(), known.float()
    bce = F.binary_cross_entropy_with_logits(logits, target, reduction="none").flatten(2).mean(2)
    return _mean(bce, known, total) + _dice_loss(logits.sigmoid(), target, _over_voxels(known, logits), total)


def soft_dice_bce(logits: Tensor, target_probs: Tensor, known: Tensor | None = None, total: Total = _own) -> Tensor:
    """Dice + BCE against soft targets on all voxels (L_text, L_merged); arguments as :func:`masked_dice_bce`."""
    if known is None:
        known = torch.ones(logits.shape[:2], device=logits.device)
    return masked_dice_bce(logits, target_probs, known, total)


def confident_bce(
    logits: Tensor, pseudo_label_probs: Tensor, confidence: float, known: Tensor, total: Total = _own
) -> Tensor:
    """Dice + BCE against the hard pseudo-label where the teacher is sure: max(p, 1−p) ≥ ``confidence`` (L_pseudo).

    Parameters
    ----------
    logits, pseudo_label_probs : Tensor, (B, S, H, W) or (B, S, planes, H, W)
    known : Tensor, (B, S): which structures to learn here
    total : callable
        Sums over processes; by default over this one alone.

    Returns
    -------
    Tensor, scalar; 0 when the teacher is sure of nothing.
    """
    logits, probs = logits.float(), pseudo_label_probs.float()
    hard = (probs > 0.5).float()
    sure = (torch.maximum(probs, 1 - probs) >= confidence).float() * _over_voxels(known.float(), logits)
    bce = F.binary_cross_entropy_with_logits(logits, hard, reduction="none")
    predicted = logits.sigmoid() * sure
    return _mean(bce, sure, total) + _dice_loss(predicted, hard * sure, torch.ones_like(sure), total)


def _over_voxels(known: Tensor, like: Tensor) -> Tensor:
    """(B, S) as (B, S, 1, 1[, 1])."""
    return known.reshape(*known.shape, *(1,) * (like.ndim - 2))
