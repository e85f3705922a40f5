"""One process's part of a batch of images and captions, with its views and its noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from numpy.random import Generator as Rng
from torch import Tensor

from amvlm.config import PretrainSettings
from amvlm.learning.augment import strong_intensity, weak_view
from amvlm.learning.batches import mirror_some
from amvlm.learning.captioned import CaptionedImage, CaptionedImages, negatives_of, places_of, positives_of
from amvlm.learning.context import Context
from amvlm.learning.locked import LockedTowers
from amvlm.learning.noise import CaseNoise
from amvlm.models.encoders import TokenisedTexts, sent
from amvlm.models.vlm import RawTokens, VisionLanguageModel
from amvlm.text import caption_view

Places = list[list[tuple[str, int]]]
"""(case, slice) of the slabs of each sample."""
_STAGE, _HELD_OUT = 0, 8


@dataclass(frozen=True)
class Pairs:
    """B images with captions; ``own`` are their rows in the global batch of G.

    ``image`` (B, K, 3, H, W) and ``other_view`` the same slabs seen otherwise; ``present`` (B, K); ``text`` holds each
    different text once and ``text_row`` (B,) says whose is whose, likewise ``other_text``; ``noise`` are ε for query
    and key, (2, B, 1+T, D), of images and of texts; ``positives`` and ``negatives`` (B, G).

    Of locked towers ``image`` and ``other_view`` are the slabs' tokens, (B·K, …), and ``read_text`` and
    ``read_other_text`` those of the texts.
    """

    image: Tensor | RawTokens
    other_view: Tensor | RawTokens
    present: Tensor
    text: TokenisedTexts
    text_row: Tensor
    other_text: TokenisedTexts
    other_row: Tensor
    image_noise: Tensor
    text_noise: Tensor
    positives: Tensor
    negatives: Tensor
    own: Tensor
    case_ids: list[str]
    read_text: RawTokens | None = None
    read_other_text: RawTokens | None = None

    def to(self, device: torch.device) -> Pairs:
        """Everything on the run's device."""
        moved: dict[str, Any] = {}
        for name, value in vars(self).items():
            if isinstance(value, TokenisedTexts):
                moved[name] = value.to(device)
            elif isinstance(value, RawTokens):
                moved[name] = RawTokens(*(sent(part, device) for part in value))
            else:
                moved[name] = sent(value, device) if isinstance(value, Tensor) else value
        return Pairs(**moved)


def draw_pairs(
    context: Context, vlm: VisionLanguageModel, captioned: CaptionedImages, settings: PretrainSettings, step: int,
    towers: LockedTowers | None = None,
) -> Pairs:  # fmt: skip
    """The batch of a step: mirrored images come with swapped captions, the other view with another wording.

    Every process draws the same global batch and loads its own rows only. Of locked towers views and wordings are
    those that were computed beforehand.
    """
    rng = context.step_rng(settings, _STAGE, step)
    batch = captioned.batch(step, settings.batch_size, settings.seed, rng)
    mirrored = mirror_some(context, CaseNoise((settings.seed, _STAGE, step), [item.case_id for item in batch]))
    batch = [item.mirrored() if turned else item for item, turned in zip(batch, mirrored.tolist(), strict=True)]
    word = caption_view if towers is None else towers.wording
    views = [word(item.caption, rng) for item in batch]
    return _pairs(context, vlm, batch, views, mirrored, settings, (_STAGE, step), True, towers)


def held_out_pairs(
    context: Context, vlm: VisionLanguageModel, captioned: CaptionedImages, settings: PretrainSettings, number: int,
    towers: LockedTowers | None = None,
) -> Pairs:  # fmt: skip
    """Batch ``number`` for the validation loss: fixed slices and noise, no augmentation."""
    rng = context.step_rng(settings.model_copy(update={"seed": 0}), _HELD_OUT, number)
    batch = captioned.batch(number, min(settings.batch_size, captioned.cases), 0, rng)
    nothing = torch.zeros(len(batch), dtype=torch.bool)
    captions = [item.caption for item in batch]
    return _pairs(context, vlm, batch, captions, nothing, settings, (_HELD_OUT, number), False, towers)


def _pairs(
    context: Context,
    vlm: VisionLanguageModel,
    batch: list[CaptionedImage],
    views: list[str],
    mirrored: Tensor,
    settings: PretrainSettings,
    key: tuple[int, int],
    augmented: bool,
    towers: LockedTowers | None,
) -> Pairs:
    rng = context.step_rng(settings, 20 + key[0], key[1])
    places, present = places_of(context.bank, batch, rng)
    shared = settings.positives == "multi_positive"
    mine = context.share(len(batch)) if augmented else slice(0, len(batch))
    text, text_row = _unique(vlm, [item.caption for item in batch])
    other_text, other_row = _unique(vlm, views)
    if towers is None:
        patches = (context.bank.size // vlm.patch) ** 2
        rows = mine if augmented else None
        seen: tuple[Tensor | RawTokens, Tensor | RawTokens] = _images(context, places, mirrored, settings, key, rows)
        read: tuple[RawTokens | None, ...] = (None, None)
    else:
        patches = towers.patches
        seen = _read_images(towers, places, mirrored, mine, rng if augmented else None)
        read = (towers.texts([*dict.fromkeys(i.caption for i in batch)]), towers.texts([*dict.fromkeys(views)]))
    noise = CaseNoise((settings.seed, *key, 3), [item.case_id for item in batch], mine)
    width, words = vlm.settings.embedding_size, max(text.words.shape[1], other_text.words.shape[1])
    needed = settings.icl_weight > 0
    return Pairs(
        image=seen[0], other_view=seen[1], present=present[mine],
        text=text, text_row=text_row[mine], other_text=other_text, other_row=other_row[mine],
        image_noise=noise.normal(2, 1 + patches if needed else 0, width).movedim(1, 0),
        text_noise=noise.normal(2, 1 + words if needed else 0, width).movedim(1, 0),
        positives=positives_of(batch, shared)[mine], negatives=negatives_of(batch, shared)[mine],
        own=torch.arange(len(batch))[mine], case_ids=[item.case_id for item in batch],
        read_text=read[0], read_other_text=read[1],
    )  # fmt: skip


def _images(
    context: Context, places: Places, mirrored: Tensor, settings: PretrainSettings, key: tuple[int, int],
    augmented: slice | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Two views (B, K, 3, H, W) of a batch's slabs, of some rows; without ``augmented`` all of them as they are."""
    slabs, mine = len(places[0]), augmented or slice(0, len(places))
    image = context.bank.slabs([place for own in places[mine] for place in own])
    seen = [image, image]
    if augmented:
        turned = mirrored[mine].repeat_interleave(slabs)
        names = [f"{case_id} {k}" for own in places for k, (case_id, _) in enumerate(own)]
        rows = slice(mine.start * slabs, mine.stop * slabs)
        seen = [_view(context, image, CaseNoise((settings.seed, *key, view), names, rows), turned) for view in (1, 2)]
    one, other = (each.view(-1, slabs, *image.shape[1:]) for each in seen)
    return one, other


def _read_images(
    towers: LockedTowers, places: Places, mirrored: Tensor, mine: slice, rng: Rng | None
) -> tuple[RawTokens, RawTokens]:
    """Tokens (B·K, …) of two views of each slab; without chance of the slab itself."""
    slabs, flat = len(places[0]), [place for own in places[mine] for place in own]
    views = [(0, 0)] * len(places) if rng is None else towers.two_views(mirrored.tolist(), rng)
    one, other = ([pair[which] for pair in views[mine] for _ in range(slabs)] for which in (0, 1))
    return towers.images(flat, one), towers.images(flat, other)


def _view(context: Context, image: Tensor, noise: CaseNoise, mirrored: Tensor) -> Tensor:
    moved, _ = weak_view(image, None, noise, mirrored, context.flip_axis or 2, context.any_orientation)
    return strong_intensity(moved, noise)


def _unique(vlm: VisionLanguageModel, texts: list[str]) -> tuple[TokenisedTexts, Tensor]:
    """Each different text of the global batch once, and each sample's row: padding is the same in every process."""
    rows = {text: row for row, text in enumerate(dict.fromkeys(texts))}
    return vlm.tokenise(list(rows)), torch.tensor([rows[text] for text in texts])
