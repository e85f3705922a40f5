"""Which captions are true of which slices, and batches of them for contrastive learning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.random import Generator as Rng
from numpy.typing import NDArray
from skimage.measure import label
from torch import Tensor

from amvlm.learning.batches import shuffled_order
from amvlm.learning.slices import SliceBank
from amvlm.learning.study import LabelledCase, Study
from amvlm.losses import positive_pairs
from amvlm.text import LOW_SIDE, Side, normalise_caption, swap_sides, view_key, written_caption

BAG = 4
_SMALL, _LARGE = 0.02, 0.10
"""Shares of a picture's area: below the first a finding is "small", from the second on "large"."""


@dataclass(frozen=True)
class CaptionedImage:
    """A caption and where it is true: one slice, or (``slice_index`` None) somewhere in the volume."""

    case_id: str
    slice_index: int | None
    caption: str
    all_captions: frozenset[str]

    def mirrored(self) -> CaptionedImage:
        """The same pair with left and right exchanged: the caption of the mirrored image."""
        return replace(
            self, caption=swap_sides(self.caption), all_captions=frozenset(map(swap_sides, self.all_captions))
        )


class CaptionedImages:
    """The captioned images of a split, drawn case by case.

    Volume captions come from reports; captions of slices are written from accepted masks alone, never for unlabelled
    cases (that would leak the answer). A case without either gets its structures' templates when others are told
    apart by captions; ``without_caption`` counts them.
    """

    def __init__(
        self, study: Study, labelled: Sequence[LabelledCase], split: str, bank: SliceBank, both_sides: bool = False
    ) -> None:
        self.items: list[CaptionedImage] = []
        self.without_caption = 0
        reported = {case_id for case_id, _ in study.captions}
        judged = {case.case_id: case for case in labelled}
        for case_id, case in study.cases.items():
            if case.split != split:
                continue
            own = frozenset(text for (owner, _), text in study.captions.items() if owner == case_id)
            place = 0 if bank.depth(case_id) == 1 else None
            if case_id in judged and (place is None or not own):
                low = LOW_SIDE if both_sides else None
                self.items += _written(judged[case_id], study.names, low)
            elif not own and reported:
                own = frozenset(normalise_caption(structure.prompt) for structure in study.structures)
                self.without_caption += 1
            self.items += [CaptionedImage(case_id, place, text, own) for text in sorted(own)]
        self._by_case: dict[str, list[CaptionedImage]] = {}
        for item in self.items:
            self._by_case.setdefault(item.case_id, []).append(item)
        self._case_ids = list(self._by_case)

    @property
    def contrast(self) -> bool:
        """False when all captions are equal: nothing to tell apart."""
        return len({view_key(item.caption) for item in self.items}) > 1

    @property
    def cases(self) -> int:
        return len(self._case_ids)

    def batch(self, step: int, size: int, seed: int, rng: Rng) -> list[CaptionedImage]:
        """Batch number ``step``: cases in shuffled epochs, then one caption of each."""
        order = shuffled_order(len(self._case_ids), size, seed, step * size)
        chosen = [self._by_case[self._case_ids[index]] for index in order]
        return [own[int(rng.integers(len(own)))] for own in chosen]


def _written(judged: LabelledCase, names: list[str], lower: Side | None) -> Iterator[CaptionedImage]:
    """Captions of every slice that shows a structure; ``lower`` is whose side lies low on the first axis."""
    for z in judged.slices_with_structure:
        captions = {_describe(name, judged, s, int(z), lower) for s, name in enumerate(names) if judged.areas[s, z]}
        for text in sorted(captions):
            yield CaptionedImage(judged.case_id, int(z), text, frozenset(captions))


def _describe(name: str, judged: LabelledCase, structure: int, z: int, lower: Side | None) -> str:
    """Level is the slice's place in its volume, or the finding's place in a picture; size is relative to the
    structure's largest slice, or to a picture's area."""
    mask: NDArray[np.uint8] = np.asarray(judged.masks[structure][z])
    area, slices = int(judged.areas[structure, z]), judged.depth
    rows, columns = np.nonzero(mask)
    if slices == 1:
        third, share = int(3 * columns.mean() / mask.shape[1]), area / mask.size
        size = "small" if share < _SMALL else "large" if share >= _LARGE else "medium"
    else:
        third, share = 3 * z // slices, area / (int(judged.areas[structure].max()) + 1)
        size = ("small", "medium", "large")[min(2, int(3 * share))]
    level = ("lower", "middle", "upper")[min(2, third)]
    side: Side | None = None
    if lower is not None:
        low = rows.mean() < (mask.shape[0] - 1) / 2
        side = lower if low else "right" if lower == "left" else "left"
    return written_caption(name, count=int(label(mask, return_num=True)[1]), level=level, size=size, side=side)


def positives_of(batch: Sequence[CaptionedImage], shared: bool = True) -> Tensor:
    """(B, B) bool: caption j is true of image i; the diagonal alone unless ``shared``."""
    if not shared:
        return torch.eye(len(batch), dtype=torch.bool)
    return positive_pairs([item.caption for item in batch], [item.all_captions for item in batch])


def negatives_of(batch: Sequence[CaptionedImage], shared: bool = True) -> Tensor:
    """(B, B) bool: image j tells another story than image i, whatever the views of their captions dropped."""
    if not shared:
        return ~torch.eye(len(batch), dtype=torch.bool)
    stories = [{view_key(text) for text in item.all_captions} for item in batch]
    return torch.tensor([[not (own & other) for other in stories] for own in stories])


def places_of(bank: SliceBank, batch: Sequence[CaptionedImage], rng: Rng) -> tuple[list[list[tuple[str, int]]], Tensor]:
    """(case, slice) of K slabs per pair, and which of them are not mere padding, (B, K).

    The caption's own slice, or four stratified slices of its volume (slices rule c).
    """
    places = [[item.slice_index] if item.slice_index is not None else _stratified(bank, item, rng) for item in batch]
    widest = max(len(place) for place in places)
    present = torch.tensor([[k < len(place) for k in range(widest)] for place in places])
    wanted = [
        [(item.case_id, place[min(k, len(place) - 1)]) for k in range(widest)]
        for item, place in zip(batch, places, strict=True)
    ]
    return wanted, present


def _stratified(bank: SliceBank, item: CaptionedImage, rng: Rng) -> list[int]:
    depth = bank.depth(item.case_id)
    edges = np.linspace(0, depth, BAG + 1)
    return sorted({min(int(rng.uniform(edges[k], edges[k + 1])), depth - 1) for k in range(BAG)})
