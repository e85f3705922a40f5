"""Every text of a run, embedded once by the frozen text encoder.

Captions and their variants (mirrored, one side, without counts), each structure in many wordings, and foreign words,
whose target is empty.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.random import Generator as Rng
from torch import Tensor

from amvlm.imaging.halves import half
from amvlm.learning.study import Study
from amvlm.models import VisionLanguageModel
from amvlm.text import LOW_SIDE, Side, medical_words, normalise_caption, one_sided, swap_sides, without_count
from amvlm.text.wordings import taught, taught_foreign

PLAIN_PROMPT_SHARE = 0.2
OWN_WORDING_SHARE = 0.7
"""Of the prompts; the others are drawn from all wordings of the structure. At 0.4 exact names cost three points."""
FOREIGN_SHARE = 0.125
"""Of a batch."""
_MOST_WORDINGS, _FEWEST_WORDINGS, _MOST_FOREIGN = 2048, 16, 256
WITHOUT_COUNT_SHARE = 0.25
_SIDES: tuple[Side, Side] = ("left", "right")
_FEWEST_CASES = 5
_WORD, _PLAIN = re.compile(r"[a-z]+"), re.compile(r"[a-z ,;-]+")


def shared_words(captions: Mapping[tuple[str, str], str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What a model's card may keep of the reports it was trained on: words, and captions made of them alone.

    Only words of our own medical list, and only what stands in the reports of five cases or more: a card travels, and
    reports may name people.

    Parameters
    ----------
    captions : mapping
        (case id, structure) → text.
    """
    by_case: dict[str, set[str]] = {}
    for (case_id, _), text in captions.items():
        by_case.setdefault(case_id, set()).add(normalise_caption(text))
    medical = medical_words()
    words = Counter(word for own in by_case.values() for word in {w for text in own for w in _WORD.findall(text)})
    kept = sorted(word for word, cases in words.items() if cases >= _FEWEST_CASES and word in medical)
    texts = Counter(text for own in by_case.values() for text in own)
    known = set(kept)
    shared = [text for text, cases in texts.items() if cases >= _FEWEST_CASES and _PLAIN.fullmatch(text)]
    return tuple(kept), tuple(sorted(text for text in shared if known.issuperset(_WORD.findall(text))))


class TextTable:
    """The run's texts and their variants: without counts, sides swapped, one side only.

    Parameters
    ----------
    study : Study
    wordings : bool
        Teach every structure in many wordings, and foreign words with an empty target. Off, it is its prompt alone: a
        control.
    """

    def __init__(self, study: Study, wordings: bool = True) -> None:
        self._study = study
        self._prompts = [normalise_caption(s.prompt) for s in study.structures]
        self._wordings = [[prompt] for prompt in self._prompts]
        self.foreign: list[str] = []
        if wordings:
            most = max(_FEWEST_WORDINGS, min(64, _MOST_WORDINGS // max(1, len(study.structures))))
            self._wordings = [taught(s, study.structures, most) for s in study.structures]
            self.foreign = taught_foreign(study.structures, _MOST_FOREIGN)
        variants = [v for text in dict.fromkeys(study.captions.values()) for v in _variants(text)]
        names = [*self._prompts, *(text for own in self._wordings for text in own), *self.foreign]
        found = dict.fromkeys([*names, *study.captions.values(), *variants])
        self.texts = list(dict.fromkeys([*found, *map(swap_sides, found)]))
        self._row = {text: row for row, text in enumerate(self.texts)}

    def embedded(self, vlm: VisionLanguageModel) -> Tensor:
        """``vlm.embed_prompt`` of all texts, (T, D + width), without gradient; a bounded number at a time."""
        with torch.no_grad():
            return torch.cat([vlm.embed_prompt(self.texts[n : n + 64]) for n in range(0, len(self.texts), 64)])

    @property
    def names(self) -> list[str]:
        """The study's structures."""
        return self._study.names

    def caption(self, case_id: str, structure: str) -> str | None:
        return self._study.captions.get((case_id, structure))

    def rows(
        self,
        case_ids: Sequence[str],
        rng: Rng | None,
        mirrored: Sequence[bool] | None = None,
        sides: Sequence[Side | None] | None = None,
        wordings: bool = True,
    ) -> Tensor:
        """Rows of the embedding table, (B, S), int64.

        With ``rng``, a fifth of the captions give way to the structure alone, in one of its ``wordings`` or in its
        prompt, and a quarter lose their count. ``mirrored`` samples get their sides swapped, those with a side the
        text of it.
        """
        rows = torch.empty(len(case_ids), len(self._prompts), dtype=torch.int64)
        for b, case_id in enumerate(case_ids):
            for s, structure in enumerate(self._study.names):
                text, caption = self._wording(s, rng if wordings else None), self.caption(case_id, structure)
                side = sides[b] if sides is not None else None
                if caption is not None and side is not None:
                    text = one_sided(caption, side) or caption
                elif caption is not None and (rng is None or rng.random() >= PLAIN_PROMPT_SHARE):
                    drop = rng is not None and rng.random() < WITHOUT_COUNT_SHARE
                    text = without_count(caption) if drop else caption
                rows[b, s] = self._row[swap_sides(text) if mirrored is not None and mirrored[b] else text]
        return rows

    def _wording(self, structure: int, rng: Rng | None) -> str:
        """A structure's prompt; with ``rng`` often one of its other wordings."""
        own = self._wordings[structure]
        if rng is None or len(own) == 1 or rng.random() < OWN_WORDING_SHARE:
            return self._prompts[structure]
        return own[int(rng.integers(len(own)))]

    def with_foreign(self, rows: Tensor, masks: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        """An eighth of the samples get a foreign word and an empty target; both arguments stay as they are.

        Parameters
        ----------
        rows : Tensor, (B,) or (B, S), int64
        masks : Tensor, rows' shape and further axes
        """
        if not self.foreign:
            return rows, masks
        rows, masks = rows.clone(), masks.clone()
        for place in np.ndindex(*rows.shape):
            if rng.random() < FOREIGN_SHARE:
                rows[place] = self._row[self.foreign[int(rng.integers(len(self.foreign)))]]
                masks[place] = 0
        return rows, masks

    def halves(
        self, case_ids: Sequence[str], masks: Tensor, rng: Rng, share: float
    ) -> tuple[Tensor, list[Side | None]]:
        """Turn some findings on both sides into one side's: the connected parts whose centre lies there.

        Only with a single structure, whose caption says itself that the image holds both sides.
        """
        sides: list[Side | None] = [None] * len(case_ids)
        if share == 0 or len(self._prompts) != 1:
            return masks, sides
        masks = masks.clone()
        for b, case_id in enumerate(case_ids):
            caption = self.caption(case_id, self._study.names[0])
            if caption is None or rng.random() >= share:
                continue
            side = _SIDES[int(rng.integers(2))]
            if one_sided(caption, side) is not None:
                sides[b] = side
                masks[b, 0] = torch.from_numpy(half(masks[b, 0].numpy(), side == LOW_SIDE))
        return masks, sides


def _variants(caption: str) -> list[str]:
    found = [without_count(caption), *(one_sided(caption, side) for side in _SIDES)]
    return [text for text in found if text]
