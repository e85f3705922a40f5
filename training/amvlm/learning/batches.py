"""Batches of judged slices as the networks see them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from amvlm.config import LoopSettings
from amvlm.learning.augment import strong_intensity, weak_view
from amvlm.learning.context import Context
from amvlm.learning.noise import CaseNoise
from amvlm.learning.study import LabelledCase, sample_labelled
from amvlm.learning.texts import TextTable


class LabelledBatch(NamedTuple):
    """Augmented slices of judged cases, on the run's device.

    ``case_ids`` list of B; ``text`` rows of the text table (B, S); ``image`` (B, 3, H, W); ``masks`` (B, S, H, W),
    {0, 1}; ``known`` (B, S), {0, 1}.
    """

    case_ids: list[str]
    text: Tensor
    image: Tensor
    masks: Tensor
    known: Tensor


def labelled_batch(
    context: Context,
    labelled: list[LabelledCase],
    table: TextTable,
    settings: LoopSettings,
    stage: int,
    step: int,
    side_prompts: float = 0.0,
    mirror: bool = True,
) -> LabelledBatch:
    """Draw a batch; a mirrored image gets the text with its sides swapped.

    Parameters
    ----------
    side_prompts : float in [0, 1]
        Share of the findings on both sides that become a one-sided prompt with that half of the mask.
    mirror : bool
        False where an output stands for one side of the body (a structure called "left …").
    """
    rng = context.chance(settings, stage, step)
    mine = context.share(settings.batch_size)
    places, masks, known = sample_labelled(labelled, settings.batch_size, rng)
    case_ids = [case_id for case_id, _ in places]
    masks, sides = table.halves(case_ids, masks, rng, side_prompts if context.flip_axis is not None else 0.0)
    everyone = CaseNoise((settings.seed, stage, step), case_ids)
    mirrored = mirror_some(context, everyone, mirror)
    text = table.rows(case_ids, rng, mirrored.tolist(), sides)[mine]
    noise = CaseNoise((settings.seed, stage, step, 1), case_ids, mine)
    image, masks = weak_view(
        context.bank.slabs(places[mine]), masks[mine], noise, mirrored[mine], context.flip_axis or 2,
        context.any_orientation,
    )  # fmt: skip
    image = strong_intensity(image, noise)
    device = context.device
    return LabelledBatch(case_ids[mine], text.to(device), image.to(device), masks.to(device), known[mine].to(device))


def mirror_some(context: Context, noise: CaseNoise, allowed: bool = True) -> Tensor:
    """Half of the samples where slices show left and right, (B,) bool."""
    if context.flip_axis is None or not allowed:
        return torch.zeros(len(noise), dtype=torch.bool)
    return noise.uniform(0, 1) < 0.5


def shuffled_order(count: int, wanted: int, seed: int, first: int) -> list[int]:
    """Places ``first`` to ``first + wanted`` of an endless series of permutations of ``count``; no state is kept."""
    places = [divmod(index, count) for index in range(first, first + wanted)]
    orders = {epoch: np.random.default_rng((seed, 77, epoch)).permutation(count) for epoch in {e for e, _ in places}}
    return [int(orders[epoch][place]) for epoch, place in places]
