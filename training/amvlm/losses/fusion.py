"""How text mask and pseudo-label become one, and when the student starts to believe them (METHOD §4)."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def merged_logits(teacher_logits: Tensor, text_mask_logits: Tensor, text_weight: Tensor | float) -> Tensor:
    """(1−α)·ℓ_teacher + α·ℓ_text. Logits in, logits out: the one sigmoid is the caller's, in a named place.

    Parameters
    ----------
    teacher_logits, text_mask_logits : Tensor, (B, S, H, W) or (B, S, planes, H, W), unbounded
    text_weight : Tensor (S,) or float, α in [0, 1]
    """
    if isinstance(text_weight, Tensor):
        text_weight = text_weight.to(teacher_logits).reshape(-1, *(1,) * (teacher_logits.ndim - 2))
    return torch.lerp(
        teacher_logits.float(),
        text_mask_logits.float(),
        torch.as_tensor(text_weight, device=teacher_logits.device).float(),
    )


def consistency_weight(step: int, steps: int, ramp_up: float) -> float:
    """r(k) = exp(−5(1−k/(ρK))²), then 1; ρ is the share of steps in which trust grows."""
    progress = min(1.0, step / (ramp_up * steps))
    return math.exp(-5.0 * (1.0 - progress) ** 2)
