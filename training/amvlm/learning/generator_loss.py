"""What teaches the text mask generator (METHOD §3), in pre-training and beside the student."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from amvlm.learning.gathering import summed
from amvlm.losses import extended_info_nce, masked_dice_bce
from amvlm.models.generator import FrozenLinear, TextMaskGenerator, text_product


def mask_supervision(
    generator: TextMaskGenerator | torch.nn.Module,
    image: Tensor,
    text: Tensor,
    masks: Tensor,
    known: Tensor,
    prior: Tensor,
) -> tuple[Tensor, Tensor]:
    """BCE + Dice on the own text's logits where an expert judged; also returns the logits.

    Parameters
    ----------
    image : Tensor, (B, 3, H, W)
    text : Tensor, (B, S, D)
    masks : Tensor, (B, S, H, W)
    known : Tensor, (B, S)
    prior : Tensor, (S,)
        Expected foreground fraction; only ``frozen_linear`` is held to it.
    """
    logits = generator(image, text)
    loss = masked_dice_bce(logits, masks, known, summed)
    if isinstance(generator, FrozenLinear):
        loss = loss + (logits.sigmoid().mean((0, 2, 3)) - prior).square().sum()
    return loss, logits


def text_grounding(generator: FrozenLinear, features: Tensor, text: Tensor, positives: Tensor, prior: float) -> Tensor:
    """L_tg without masks: ExtendedInfoNCE over the batch's B×B text masks, and the area prior.

    Parameters
    ----------
    features : Tensor, (B, 2D, h, w)
        ``generator.features`` of the batch; the loss itself is computed in fp32, outside autocast.
    text : Tensor, (B, D)
    positives : Tensor, (B, B), bool
    """
    features = features.float()
    generator.observe(features, text[:, None])
    mask_probs = text_product(features, *generator.text_weights(text)).sigmoid()
    size = generator.embedding_size
    contrast = extended_info_nce(
        F.normalize(features[:, :size], dim=1), mask_probs, text, positives, generator.contrast.exp()
    )
    own = mask_probs[torch.arange(len(text)), torch.arange(len(text))]
    return contrast + (own.mean() - prior).square()
