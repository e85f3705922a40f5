"""Locked towers: what frozen encoders say of a study's images and texts, computed once (METHOD §2)."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.random import Generator as Rng
from numpy.typing import NDArray
from torch import Tensor

from amvlm.learning.augment import strong_intensity, weak_view
from amvlm.learning.cache import keep_array, kept_array, weights_digest
from amvlm.learning.noise import CaseNoise
from amvlm.learning.slices import SliceBank
from amvlm.models.vlm import RawTokens, VisionLanguageModel
from amvlm.store import Case, LabelStore
from amvlm.text import caption_view

VIEWS = 4
"""Of each slice. The first is the slice itself; where captions name sides, every second one is mirrored."""
WORDINGS = 4
"""Of each caption, beside its own."""
_VERSION = 1
_SIDE = 7
_SLICES = 32


class LockedTowers:
    """Tokens of every image, from the study's cache, and of every text, kept in memory.

    An image is one float16 array (slices, views, 1 + N, width + 1): CLS and at most 7 × 7 patches (means of the
    encoder's own), whose last number is their importance. It lies in a folder named by the encoder's weights, the input
    size and how views are made, under the image's hash; what is cut or of another shape is made again.

    Parameters
    ----------
    store : LabelStore
    vlm : VisionLanguageModel
        Its encoders must not change any more.
    bank : SliceBank
        Ready slices of all cases.
    flip_axis : int, optional
        The network's axis that runs left-right; None where slices show no sides.
    any_orientation : bool
        Views are turned by quarters as well.
    """

    def __init__(
        self, store: LabelStore, vlm: VisionLanguageModel, bank: SliceBank, cases: Mapping[str, Case],
        flip_axis: int | None, any_orientation: bool,
    ) -> None:  # fmt: skip
        self._vlm, self._bank, self._cases = vlm, bank, cases
        self._flip_axis, self._any_orientation = flip_axis, any_orientation
        moves = f"flip{flip_axis or 0}{'-turned' if any_orientation else ''}"
        self._folder = store.cache_folder(
            f"tokens-v{_VERSION}-{bank.size}-{VIEWS}views-{moves}-{weights_digest(vlm.image_encoder)}"
        )
        self._tokens = functools.lru_cache(maxsize=1024)(self._kept)
        self._texts: dict[str, RawTokens] = {}
        self.patches = min(_SIDE, bank.size // vlm.patch) ** 2

    def prepare(self, case_ids: Sequence[str]) -> Iterator[int]:
        """Make what is missing; yields how many cases are ready."""
        for done, case_id in enumerate(case_ids):
            self._tokens(case_id)
            yield done + 1

    def two_views(self, mirrored: Sequence[bool], rng: Rng) -> list[tuple[int, int]]:
        """Two different views for each sample, both mirrored or both not."""
        step = 1 if self._flip_axis is None else 2
        pairs = []
        for turned in mirrored:
            allowed = np.arange(int(turned), VIEWS, step)
            one, other = rng.choice(allowed, 2, replace=False)
            pairs.append((int(one), int(other)))
        return pairs

    def wording(self, caption: str, rng: Rng) -> str:
        """One of the caption's wordings; there are few, so that each is encoded once."""
        number = int(rng.integers(WORDINGS))
        key = int.from_bytes(hashlib.blake2b(caption.encode(), digest_size=8).digest(), "big")
        return caption_view(caption, np.random.default_rng((key, number)))

    def images(self, places: Sequence[tuple[str, int]], views: Sequence[int]) -> RawTokens:
        """Tokens of (case, slice) pairs, each as its view shows it."""
        rows = np.stack([self._tokens(c)[z, v] for (c, z), v in zip(places, views, strict=True)])
        tokens = torch.from_numpy(rows.astype(np.float32))
        return RawTokens(tokens[:, 0, :-1], tokens[:, 1:, :-1], tokens[:, 1:, -1])

    def texts(self, texts: Sequence[str]) -> RawTokens:
        """Tokens of texts, padded to the longest of them; a text is encoded alone, whatever the batch."""
        every = [self._text(text) for text in texts]
        longest = max(len(raw.tokens) for raw in every)
        pad = [longest - len(raw.tokens) for raw in every]
        return RawTokens(
            torch.stack([raw.cls for raw in every]),
            torch.stack([F.pad(raw.tokens, (0, 0, 0, more)) for raw, more in zip(every, pad, strict=True)]),
            torch.stack([F.pad(raw.importance, (0, more)) for raw, more in zip(every, pad, strict=True)]),
        )

    @torch.no_grad()
    def _text(self, text: str) -> RawTokens:
        if text not in self._texts:
            device = next(self._vlm.parameters()).device
            raw = self._vlm.read_text(self._vlm.tokenise([text]).to(device))
            self._texts[text] = RawTokens(*(part[0].float().cpu() for part in raw))
        return self._texts[text]

    def _kept(self, case_id: str) -> NDArray[np.float16]:
        """Mapped from disk, made where it is missing."""
        case = self._cases[case_id]
        path = self._folder / f"{case.image_sha256}.npy"
        shape = (self._bank.depth(case_id), VIEWS, 1 + self.patches, self._vlm.image_width + 1)
        array = kept_array(path, np.float16, shape)
        if array is None:
            keep_array(path, self._made(case))
            array = np.load(path, mmap_mode="r")
        return array

    @torch.no_grad()
    def _made(self, case: Case) -> NDArray[np.float16]:
        slices = range(self._bank.depth(case.case_id))
        device = next(self._vlm.parameters()).device
        parts = []
        for begin in range(0, len(slices), _SLICES):
            some = slices[begin : begin + _SLICES]
            image = self._bank.slabs([(case.case_id, z) for z in some])
            names = [f"{case.image_sha256} {z}" for z in some]
            views = [self._seen(image, names, view) for view in range(VIEWS)]
            raw = self._vlm.read_image(torch.stack(views, 1).flatten(0, 1).to(device))
            parts.append(_packed(raw, self.patches).view(len(some), VIEWS, 1 + self.patches, -1).cpu().numpy())
        return np.concatenate(parts)

    def _seen(self, image: Tensor, names: list[str], view: int) -> Tensor:
        """A view: chance is keyed by the image alone, so that every run sees the same ones."""
        sided = self._flip_axis is not None
        mirrored = torch.full((len(image),), sided and view % 2 == 1)
        if view < (2 if sided else 1):
            return image.flip(self._flip_axis or 2) if sided and view else image
        noise = CaseNoise((_VERSION, view), names)
        moved, _ = weak_view(image, None, noise, mirrored, self._flip_axis or 2, self._any_orientation)
        return strong_intensity(moved, noise)


def _packed(raw: RawTokens, patches: int) -> Tensor:
    """CLS and pooled patches, each with its importance behind it: (B, 1 + N, width + 1), float16."""
    side, own = round(patches**0.5), round(raw.tokens.shape[1] ** 0.5)
    every = torch.cat([raw.tokens.float(), raw.importance.float()[..., None]], 2)
    grid = F.adaptive_avg_pool2d(every.transpose(1, 2).reshape(len(every), -1, own, own), side)
    cls = F.pad(raw.cls.float(), (0, 1))[:, None]
    return torch.cat([cls, grid.flatten(2).transpose(1, 2)], 1).half()
