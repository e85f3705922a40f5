"""Attention written out, for where that is faster or the weights are wanted."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Multi-head attention, (B, H, T, d) → (B, T, H, d), under a boolean mask (B, 1, 1, T)."""
    if query.device.type == "cpu" and query.dtype == torch.bfloat16:
        return plain_attention(query, key, value, mask, query.shape[-1] ** -0.5)[0]
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)


def attention_scores(query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """query·keyᵀ·scaling, (B, H, Q, K); ``mask`` is bool (True: attend) or added."""
    scores = query @ key.transpose(-1, -2) * scaling
    if mask is None:
        return scores
    mask = mask[..., : scores.shape[-2], :]
    return scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask


def plain_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float
) -> tuple[Tensor, Tensor]:
    """Written out: in bf16 on a CPU the fused kernel's backward takes three times as long (197 tokens, torch 2.13)."""
    with torch.autocast(query.device.type, enabled=False):
        weights = attention_scores(query, key, mask, scaling).softmax(-1)
        return (weights @ value).transpose(1, 2).contiguous(), weights[:, :, :1].detach()
