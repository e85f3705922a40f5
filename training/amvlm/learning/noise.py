"""Chance that belongs to a case, not to its place in a batch: several processes draw what one would."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Generator, Tensor


class CaseNoise:
    """One generator per sample, keyed by (seed, stage, step, case, occurrence in the batch).

    Parameters
    ----------
    key : tuple of int
        What the whole batch shares.
    names : sequence of str
        The samples, of the *global* batch; a repeated name is told apart by its occurrence.
    mine : slice, optional
        Which of them this process holds.
    """

    def __init__(self, key: tuple[int, ...], names: Sequence[str], mine: slice = slice(None)) -> None:
        seen: Counter[str] = Counter()
        keys = []
        for name in names:
            keys.append(f"{key} {name} {seen[name]}")
            seen[name] += 1
        self._generators = [Generator().manual_seed(_seed(text)) for text in keys[mine]]

    def __len__(self) -> int:
        return len(self._generators)

    def uniform(self, low: float, high: float) -> Tensor:
        """(B,), float32, in [low, high)."""
        return low + (high - low) * torch.cat([torch.rand(1, generator=g) for g in self._generators])

    def normal(self, *shape: int) -> Tensor:
        """(B, *shape), float32, mean 0 and sd 1."""
        return torch.stack([torch.randn(shape, generator=g) for g in self._generators])


def _seed(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 2
