"""Batches as the networks see them."""

from __future__ import annotations

import torch
from numpy.random import Generator as Rng
from torch import Tensor

from amvlm.learning.augment import strong_intensity, weak_view
from amvlm.learning.context import Context
from amvlm.learning.study import LabelledCase, sample_labelled


def labelled_batch(
    context: Context, labelled: list[LabelledCase], count: int, rng: Rng, noise: torch.Generator
) -> tuple[list[str], Tensor, Tensor, Tensor]:
    """Augmented slices of judged cases, on the run's device.

    Returns
    -------
    case_ids : list of str
    image : Tensor, (B, 3, H, W)
    masks : Tensor, (B, S, H, W), {0, 1}
    known : Tensor, (B, S), {0, 1}
    """
    places, masks, known = sample_labelled(labelled, count, rng)
    image, masks = weak_view(context.bank.slabs(places), masks, context.flip_axis, noise)
    image = strong_intensity(image, noise)
    return (
        [case_id for case_id, _ in places],
        image.to(context.device),
        masks.to(context.device),
        known.to(context.device),
    )
