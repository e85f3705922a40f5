"""Dice + cross-entropy for structures that exclude each other, also where only some of them were judged."""

from __future__ import annotations

import torch
from torch import Tensor

from amvlm.losses.segmentation import Total, _dice_loss, _mean, _over_voxels, _own


def exclusive_dice_ce(logits: Tensor, labels: Tensor, known: Tensor, total: Total = _own) -> Tensor:
    """Softmax over background and structures, Dice + cross-entropy.

    A structure that was not judged in a case is *unknown*, never background: its probability counts as background's
    there (the marginal loss of Shi et al., Medical Image Analysis 2021), and it has no Dice term.

    Parameters
    ----------
    logits : Tensor, (B, 1 + S, ...), unbounded; channel 0 is the background
    labels : Tensor, (B, ...), int64 in 0..S; 0 where no judged structure is
    known : Tensor, (B, S), {0, 1}
    total : callable
        Sums over processes; by default over this one alone.

    Returns
    -------
    Tensor, scalar, float32
    """
    log_probs = logits.float().log_softmax(1)
    if not bool(known.all()):
        log_probs = with_unknown_as_background(log_probs, known)
    cross_entropy = -log_probs.gather(1, labels[:, None])
    probs = log_probs[:, 1:].exp()
    numbers = torch.arange(1, logits.shape[1], device=labels.device).view(1, -1, *(1,) * (labels.ndim - 1))
    target = (labels[:, None] == numbers).float()
    dice = _dice_loss(probs, target, _over_voxels(known.float(), probs), total)
    return _mean(cross_entropy, torch.ones_like(cross_entropy), total) + dice


def soft_exclusive_dice_ce(logits: Tensor, target_probs: Tensor, known: Tensor) -> Tensor:
    """Softmax over background and structures, Dice + cross-entropy against probabilities.

    What the structures leave of 1 is the background's; where they exceed 1 together, they share the place. An unknown
    structure is treated as in :func:`exclusive_dice_ce`.

    Parameters
    ----------
    logits : Tensor, (B, 1 + S, ...), unbounded; channel 0 is the background
    target_probs : Tensor, (B, S, ...), [0, 1]
    known : Tensor, (B, S), {0, 1}

    Returns
    -------
    Tensor, scalar, float32
    """
    log_probs = with_unknown_as_background(logits.float().log_softmax(1), known)
    weight = _over_voxels(known.float(), logits)
    target = target_probs.float() * weight
    target = target / target.sum(1, keepdim=True).clamp(min=1)
    whole = torch.cat([1 - target.sum(1, keepdim=True), target], 1)
    cross_entropy = -torch.where(whole > 0, whole * log_probs, 0.0).sum(1, keepdim=True)
    probs = log_probs[:, 1:].exp()
    return cross_entropy.mean() + _dice_loss(probs, target, weight.expand_as(target), _own)


def with_unknown_as_background(log_probs: Tensor, known: Tensor) -> Tensor:
    unknown = torch.cat([torch.ones_like(known[:, :1]), 1 - known], 1).bool()
    unknown = unknown.view(*unknown.shape, *(1,) * (log_probs.ndim - 2))
    background = log_probs.masked_fill(~unknown, -torch.inf).logsumexp(1, keepdim=True)
    return torch.cat([background, log_probs[:, 1:]], 1)


def structure_logits(logits: Tensor, exclusive: bool) -> Tensor:
    """One logit per structure, (B, S, ...), positive exactly where the structure wins.

    Of exclusive structures it is the margin over the best other class, so that a threshold at ½ is the argmax.
    """
    if not exclusive:
        return logits.float()
    logits = logits.float()
    best = logits.topk(2, dim=1).values
    others = torch.where(logits == best[:, :1], best[:, 1:2], best[:, :1])
    return (logits - others)[:, 1:]
