"""Contrast of fine tokens: with the other modality's captions (L_local) and inside a modality (L_icl), METHOD §2."""

from __future__ import annotations

import torch
from torch import Tensor

_FEW = 3


def local_weights(own: Tensor, similarity: Tensor, other: Tensor, mask: Tensor) -> Tensor:
    """ω = relu(s_own − mean)/(sd + 0.05) over samples with other captions; mean 1 over a sample's tokens.

    Parameters
    ----------
    own : Tensor, (B, T)
        Similarity with the sample's own partner.
    similarity : Tensor, (B, T, G)
    other : Tensor, (B, G), bool
        Samples whose caption is another one.
    mask : Tensor, (B, T), bool

    Returns
    -------
    Tensor, (B, T), detached; uniform with fewer than three others, or where no token stands out; 0 on padding.
    """
    own, similarity, others = own.detach(), similarity.detach(), other.float()[:, None]
    count = others.sum(-1)
    mean = (similarity * others).sum(-1) / count.clamp(min=1)
    variance = ((similarity - mean[..., None]).square() * others).sum(-1) / count.clamp(min=1)
    weight = (own - mean).clamp(min=0) / (variance.sqrt() + 0.05) * mask
    tokens = mask.sum(1, keepdim=True)
    scaled = weight * tokens / weight.sum(1, keepdim=True).clamp(min=1e-12)
    uniform = (count < _FEW) | (weight.sum(1, keepdim=True) <= 1e-12)
    return torch.where(uniform, mask.float(), scaled)


def local_contrast(
    tokens: Tensor, mask: Tensor, partners: Tensor, positives: Tensor, own: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """One side of L_local: each token against the global embeddings of the other modality's whole batch.

    Parameters
    ----------
    tokens : Tensor, (B, T, D), L2-normalised
    mask : Tensor, (B, T), bool
    partners : Tensor, (G, D), L2-normalised; G ≥ B when gathered across processes
    positives : Tensor, (B, G), bool
    own : Tensor, (B,), int64
        Each sample's column in ``partners``.

    Returns
    -------
    per_sample : Tensor, (B,), float32
    counted : Tensor, (B,), bool
    """
    batch, length, _ = tokens.shape
    similarity = (tokens.float().flatten(0, 1) @ partners.float().T).view(batch, length, -1)
    own_similarity = similarity.gather(2, own[:, None, None].expand(-1, length, 1))[..., 0]
    weight = local_weights(own_similarity, similarity, ~positives, mask)
    share = positives.float() / positives.sum(1, keepdim=True).clamp(min=1)
    logits = similarity / temperature
    entropy = logits.logsumexp(-1) - (logits * share[:, None]).sum(-1)
    counted = mask.any(1) & positives.any(1) & ~positives.all(1)
    per_sample = (weight * entropy).sum(1) / mask.sum(1).clamp(min=1)
    return torch.where(counted, per_sample, 0.0), counted


def intra_modal_contrast(
    query_cls: Tensor,
    query_tokens: Tensor,
    query_mask: Tensor,
    key_cls: Tensor,
    key_tokens: Tensor,
    key_mask: Tensor,
    own: Tensor,
    negatives: Tensor,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """L_icl in one modality: coarse and fine tokens of one sample attract, those of other samples repel.

    The online CLS is contrasted with the momentum branch's tokens, the online tokens with its CLS. For each query and
    positive key: −log e^{pos/τ}/(e^{pos/τ} + Σ_neg e^{neg/τ}).

    Parameters
    ----------
    query_cls, query_tokens, query_mask : Tensor, (B, D), (B, T, D), (B, T)
        Online branch, L2-normalised samples z.
    key_cls, key_tokens, key_mask : Tensor, (G, D), (G, K, D), (G, K)
        Momentum branch; G ≥ B when gathered across processes.
    own : Tensor, (B,), int64
        Each sample's row among the keys.
    negatives : Tensor, (B, G), bool
        Samples with another caption.

    Returns
    -------
    per_sample : Tensor, (B,), float32
        Mean over positive keys, then over the two directions.
    counted : Tensor, (B,), bool
    """
    query_cls, query_tokens = query_cls.float(), query_tokens.float()
    lowest = torch.finfo(torch.float32).min
    width = key_tokens.shape[1]
    coarse = (query_cls @ key_tokens.float().flatten(0, 1).T / temperature).view(len(query_cls), -1, width)
    repelled = coarse.masked_fill(~(negatives[:, :, None] & key_mask[None]), lowest).flatten(1).logsumexp(1)
    positive = coarse[torch.arange(len(own), device=own.device), own]
    own_mask = key_mask[own]
    to_tokens = torch.nn.functional.softplus(repelled[:, None] - positive) * own_mask
    to_tokens = to_tokens.sum(1) / own_mask.sum(1).clamp(min=1)

    fine = query_tokens @ key_cls.float().T / temperature
    attracted = fine.gather(2, own[:, None, None].expand(-1, fine.shape[1], 1))[..., 0]
    pushed = fine.masked_fill(~negatives[:, None], lowest).logsumexp(2)
    to_cls = torch.nn.functional.softplus(pushed - attracted) * query_mask
    to_cls = to_cls.sum(1) / query_mask.sum(1).clamp(min=1)

    counted = negatives.any(1) & query_mask.any(1) & own_mask.any(1)
    return torch.where(counted, 0.5 * (to_tokens + to_cls), 0.0), counted
