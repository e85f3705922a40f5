"""Losses and fusion: pure functions of tensors."""

from amvlm.losses.contrastive import (
    attended_bag,
    bag_similarity,
    extended_info_nce,
    multi_positive_info_nce,
    positive_pairs,
)
from amvlm.losses.distribution import (
    Scales,
    UncertaintyForm,
    attended,
    distance_agreement,
    gain_spread,
    mean_distances,
    on_one_scale,
    pairwise_wasserstein,
    similarity_gain,
    similarity_supervision,
    standard_deviation_divergence,
    token_weights,
    two_way_cross_entropy,
)
from amvlm.losses.fusion import consistency_weight, merged_logits
from amvlm.losses.multiplicity import intra_modal_contrast, local_contrast
from amvlm.losses.segmentation import confident_bce, masked_dice_bce, soft_dice_bce

__all__ = [
    "Scales",
    "UncertaintyForm",
    "attended",
    "attended_bag",
    "bag_similarity",
    "confident_bce",
    "consistency_weight",
    "distance_agreement",
    "extended_info_nce",
    "gain_spread",
    "intra_modal_contrast",
    "local_contrast",
    "masked_dice_bce",
    "mean_distances",
    "merged_logits",
    "multi_positive_info_nce",
    "on_one_scale",
    "pairwise_wasserstein",
    "positive_pairs",
    "similarity_gain",
    "similarity_supervision",
    "soft_dice_bce",
    "standard_deviation_divergence",
    "token_weights",
    "two_way_cross_entropy",
]
