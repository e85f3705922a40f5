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
        log_probs = _with_unknown_as_background(log_probs, known)
    cross_entropy = -log_probs.gather(1, labels[:, None])
    probs = log_probs[:, 1:].exp()
    numbers = torch.arange(1, logits.shape[1], device=labels.device).view(1, -1, *(1,) * (labels.ndim - 1))
    target = (labels[:, None] == numbers).float()
    dice = _dice_loss(probs, target, _over_voxels(known.float(), probs), total)
    return _mean(cross_entropy, torch.ones_like(cross_entropy), total) + dice


def _with_unknown_as_background(log_probs: Tensor, known: Tensor) -> Tensor:
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
