"""Several processes as one: tensors of all of them, and means over all of them."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_alone = contextvars.ContextVar("alone", default=False)


def _processes() -> int:
    if _alone.get() or not dist.is_available() or not dist.is_initialized():
        return 1
    return dist.get_world_size()


@contextlib.contextmanager
def without_processes() -> Iterator[None]:
    """Inside, each process computes for itself: validation, which all do alike."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


class _Gather(torch.autograd.Function):
    """All processes' rows; backward sums all processes' gradients and takes its own rows."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        whole = gradients[0].contiguous()
        dist.all_reduce(whole)
        return whole.chunk(dist.get_world_size())[dist.get_rank()]


def gathered(tensor: Tensor) -> Tensor:
    """All processes' rows in order of rank, (B, …) → (G, …); the gradient goes back to where each row came from."""
    if _processes() == 1:
        return tensor
    found: Tensor = _Gather.apply(tensor)  # type: ignore[no-untyped-call]
    return found


class _Sum(torch.autograd.Function):
    """A sum over processes; backward sums their gradients."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        whole = gradients[0].clone()
        dist.all_reduce(whole)
        return whole


def summed(tensor: Tensor) -> Tensor:
    """The sum over all processes of a part that each of them holds, with its gradient.

    Losses made of such sums are the same in every process, and the average that data-parallel training takes of their
    gradients is the gradient of the loss of the whole batch.
    """
    if _processes() == 1:
        return tensor
    found: Tensor = _Sum.apply(tensor)  # type: ignore[no-untyped-call]
    return found


def mean_over(values: Tensor, counted: Tensor) -> Tensor:
    """Mean of the counted samples (B,) of all processes; 0 where there is none.

    Each process returns its share times the number of processes: their average, which is what data-parallel
    training takes of losses and gradients, is the mean over all samples.
    """
    count = counted.sum().float()
    if _processes() > 1:
        dist.all_reduce(count)
    return (values * counted).sum() * _processes() / count.clamp(min=1)
