"""Losses and fusion: pure functions of tensors."""

from amvlm.losses.contrastive import bag_similarity, extended_info_nce, multi_positive_info_nce, positive_pairs
from amvlm.losses.fusion import consistency_weight, merged_logits
from amvlm.losses.segmentation import confident_bce, masked_dice_bce, soft_dice_bce

__all__ = [
    "bag_similarity",
    "confident_bce",
    "consistency_weight",
    "extended_info_nce",
    "masked_dice_bce",
    "merged_logits",
    "multi_positive_info_nce",
    "positive_pairs",
    "soft_dice_bce",
]
