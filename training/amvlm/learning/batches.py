"""Batches of judged and of unjudged slices or blocks, as the networks see them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from amvlm.config import LoopSettings, TrainSettings
from amvlm.learning.augment import cut_mix_boxes, mixed, strong_intensity, weak_view
from amvlm.learning.context import Context
from amvlm.learning.noise import CaseNoise
from amvlm.learning.study import LabelledCase, sample_labelled, sample_unlabelled
from amvlm.learning.texts import TextTable
from amvlm.models.encoders import sent
from amvlm.text import Side

_STRONG_SHARE = 0.25
"""Of the judged images: changing the intensities of all of them cost 1.7 points of validation Dice in 1,200 steps."""


class LabelledBatch(NamedTuple):
    """Augmented views of judged cases, as the networks read them.

    ``image`` is (B, 3, H, W) with ``masks`` (B, S, H, W), or for a 3-D student blocks (B, planes, H, W) with masks
    (B, S, planes, H, W). The text mask generator reads ``slab`` (B, 3, H, W) under ``text``, rows of the text table
    (B, S), and learns ``named`` (B, S, H, W), what that text names. ``known`` is (B, S), {0, 1}.
    """

    case_ids: list[str]
    image: Tensor
    masks: Tensor
    known: Tensor
    slab: Tensor
    named: Tensor
    text: Tensor

    def part(self, rows: slice) -> LabelledBatch:
        """Some of the samples."""
        return LabelledBatch(self.case_ids[rows], *(field[rows] for field in self[1:]))

    def to(self, device: torch.device) -> LabelledBatch:
        return LabelledBatch(self.case_ids, *(sent(field, device) for field in self[1:]))


class UnlabelledBatch(NamedTuple):
    """Two views of cases that still miss a judgement.

    ``weak`` and ``strong`` are (B, 3 or planes, H, W), ``strong`` mixed by CutMix; ``box`` (B, 1, H, W), bool, says
    where. ``text`` are rows of the text table, (B, S); ``wanted`` (B, S) says which structures to learn.
    """

    weak: Tensor
    strong: Tensor
    box: Tensor
    text: Tensor
    wanted: Tensor

    def part(self, rows: slice) -> UnlabelledBatch:
        """Some of the samples."""
        return UnlabelledBatch(*(field[rows] for field in self))

    def to(self, device: torch.device) -> UnlabelledBatch:
        return UnlabelledBatch(*(sent(field, device) for field in self))


def labelled_batch(
    context: Context,
    labelled: list[LabelledCase],
    table: TextTable,
    settings: LoopSettings,
    stage: int,
    step: int,
    side_prompts: float = 0.0,
    mirror: bool = True,
    planes: int = 0,
) -> LabelledBatch:
    """Draw a batch; a mirrored image gets the text with its sides swapped, some samples a foreign word.

    Parameters
    ----------
    side_prompts : float in [0, 1]
        Share of the findings on both sides whose text becomes a one-sided prompt with that half of the mask.
    mirror : bool
        False where an output stands for one side of the body (a structure called "left …").
    planes : int
        Slices of a block for a 3-D student; 0 draws single slices.
    """
    rng = context.step_rng(settings, stage, step)
    count = block_count(settings.batch_size, planes, context.processes)
    mine = context.share(count)
    places, masks, known = sample_labelled(labelled, count, rng, planes)
    case_ids = [case_id for case_id, _ in places]
    named = masks.clone()
    sides: list[Side | None] = [None] * count
    if not planes:
        named, sides = table.halves(case_ids, masks, rng, side_prompts if context.flip_axis is not None else 0.0)
    mirrored = mirror_some(context, CaseNoise((settings.seed, stage, step), case_ids), mirror)
    text, named = table.with_foreign(table.rows(case_ids, rng, mirrored.tolist(), sides), named, rng)
    text = text[mine]
    noise = CaseNoise((settings.seed, stage, step, 1), case_ids, mine)
    image = context.bank.blocks(places[mine], planes) if planes else context.bank.slabs(places[mine])
    both = torch.cat([masks, named], 1)[mine]
    image, moved = weak_view(
        image, both.flatten(1, -3), noise, mirrored[mine], context.flip_axis or 2, context.any_orientation
    )
    changed = (noise.uniform(0, 1) < _STRONG_SHARE).view(-1, 1, 1, 1)
    image = torch.where(changed, strong_intensity(image, noise), image)
    masks, named = moved.reshape(both.shape).chunk(2, 1)
    slab = image
    if planes:
        slab, named = _one_slab(image, named, noise)
    return LabelledBatch(case_ids[mine], image, masks, known[mine], slab, named, text)


def unlabelled_batch(
    context: Context, table: TextTable, settings: TrainSettings, stage: int, step: int, mirror: bool
) -> UnlabelledBatch:
    """Draw cases independently of the labelled ones; the strong view is the weak one changed and mixed."""
    planes = settings.student.block
    rng = context.step_rng(settings, stage, step)
    count = block_count(settings.batch_size, planes, context.processes)
    mine = context.share(count)
    places, wanted = sample_unlabelled(context.study, context.bank, count, rng, planes)
    case_ids = [case_id for case_id, _ in places]
    mirrored = mirror_some(context, CaseNoise((settings.seed, stage, step), case_ids), mirror)
    text = table.rows(case_ids, rng if settings.plain_prompts else None, mirrored.tolist(), wordings=False)[mine]
    noise = CaseNoise((settings.seed, stage, step, 1), case_ids, mine)
    image = context.bank.blocks(places[mine], planes) if planes else context.bank.slabs(places[mine])
    weak, _ = weak_view(image, None, noise, mirrored[mine], context.flip_axis or 2, context.any_orientation)
    strong = strong_intensity(weak, noise)
    box = cut_mix_boxes(noise, weak.shape[2], weak.shape[3], settings.cut_mix)
    return UnlabelledBatch(weak, mixed(strong, box), box, text, wanted[mine])


def block_count(batch_size: int, planes: int, processes: int) -> int:
    """How many samples a batch of so many slices holds: as many, or at least two blocks per process."""
    return batch_size if not planes else processes * max(2, round(batch_size / planes / processes))


def slabs_of(blocks: Tensor) -> Tensor:
    """Each slice of (B, planes, H, W) with its neighbours, edges repeated: (B·planes, 3, H, W)."""
    ends = torch.cat([blocks[:, :1], blocks, blocks[:, -1:]], 1)
    return torch.stack([ends[:, :-2], ends[:, 1:-1], ends[:, 2:]], 2).flatten(0, 1)


def _one_slab(blocks: Tensor, masks: Tensor, noise: CaseNoise) -> tuple[Tensor, Tensor]:
    """One slice of each block, with its neighbours and its masks: (B, 3, H, W), (B, S, H, W)."""
    count, planes = blocks.shape[:2]
    chosen = noise.uniform(0, planes).long()
    rows = torch.arange(count)
    return slabs_of(blocks)[rows * planes + chosen], masks.movedim(2, 1)[rows, chosen]


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
