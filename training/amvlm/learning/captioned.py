"""Which captions are true of which slices, for contrastive learning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.random import Generator as Rng
from torch import Tensor

from amvlm.learning.slices import SliceBank
from amvlm.learning.study import LabelledCase, Study
from amvlm.losses import positive_pairs
from amvlm.text import slice_caption

BAG = 4


@dataclass(frozen=True)
class CaptionedImage:
    """A caption and where it is true: one slice, or (``slice_index`` None) somewhere in the volume."""

    case_id: str
    slice_index: int | None
    caption: str
    all_captions: frozenset[str]


class CaptionedImages:
    """The captioned images of a split, drawn case by case.

    Volume captions come from reports; captions of slices are written from accepted masks alone ("structure, level
    third, size"), never for unlabelled cases (that would leak the answer).
    """

    def __init__(self, study: Study, labelled: Sequence[LabelledCase], split: str, bank: SliceBank) -> None:
        self.items: list[CaptionedImage] = []
        for case_id, case in study.cases.items():
            if case.split != split:
                continue
            own = frozenset(text for (owner, _), text in study.captions.items() if owner == case_id)
            place = 0 if bank.depth(case_id) == 1 else None
            self.items += [CaptionedImage(case_id, place, text, own) for text in sorted(own)]
        for judged in labelled:
            if judged.masks.shape[1] > 1:
                self.items += _written(judged, study.names)
        self._by_case: dict[str, list[CaptionedImage]] = {}
        for item in self.items:
            self._by_case.setdefault(item.case_id, []).append(item)

    @property
    def contrast(self) -> bool:
        """False when all captions are equal: nothing to tell apart."""
        return len({item.caption for item in self.items}) > 1

    def draw(self, count: int, rng: Rng) -> list[CaptionedImage]:
        """Cases uniformly, then one caption of each."""
        case_ids = list(self._by_case)
        chosen = [self._by_case[case_ids[int(rng.integers(len(case_ids)))]] for _ in range(count)]
        return [own[int(rng.integers(len(own)))] for own in chosen]


def _written(judged: LabelledCase, names: list[str]) -> list[CaptionedImage]:
    areas = judged.masks.sum((2, 3), dtype=np.int64)
    found = []
    for z in judged.slices_with_structure:
        captions = {
            slice_caption(name, int(z), areas.shape[1], int(areas[s, z]), int(areas[s].max()))
            for s, name in enumerate(names)
            if areas[s, z]
        }
        found += [CaptionedImage(judged.case_id, int(z), text, frozenset(captions)) for text in sorted(captions)]
    return found


def positives_of(batch: Sequence[CaptionedImage], shared: bool = True) -> Tensor:
    """(B, B) bool; the diagonal alone unless ``shared``."""
    if not shared:
        return torch.eye(len(batch), dtype=torch.bool)
    return positive_pairs([item.caption for item in batch], [item.all_captions for item in batch])


def bags(bank: SliceBank, batch: Sequence[CaptionedImage], rng: Rng) -> tuple[Tensor, Tensor]:
    """Slabs (B·K, 3, H, W) and which are present (B, K): the caption's slice, or K stratified slices of its volume."""
    places = [[item.slice_index] if item.slice_index is not None else _stratified(bank, item, rng) for item in batch]
    widest = max(len(place) for place in places)
    present = torch.tensor([[k < len(place) for k in range(widest)] for place in places])
    wanted = [
        (item.case_id, place[min(k, len(place) - 1)])
        for item, place in zip(batch, places, strict=True)
        for k in range(widest)
    ]
    return bank.slabs(wanted), present


def _stratified(bank: SliceBank, item: CaptionedImage, rng: Rng) -> list[int]:
    depth = bank.depth(item.case_id)
    edges = np.linspace(0, depth, BAG + 1)
    return sorted({min(int(rng.uniform(edges[k], edges[k + 1])), depth - 1) for k in range(BAG)})
