"""The teacher: an exponential moving average of the student, buffers included."""

from __future__ import annotations

import copy

import torch
from torch import nn


def make_teacher(student: nn.Module) -> nn.Module:
    """A frozen copy in eval mode."""
    teacher = copy.deepcopy(student).eval()
    return teacher.requires_grad_(False)


@torch.no_grad()
def update_ema(teacher: nn.Module, student: nn.Module, step: int, decay: float) -> None:
    """teacher ← d·teacher + (1−d)·student with d = min(1−1/(k+1), ``decay``); integer buffers are copied."""
    decay = min(1 - 1 / (step + 1), decay)
    old, new = teacher.state_dict(), student.state_dict()
    floating = [name for name, tensor in old.items() if tensor.is_floating_point()]
    torch._foreach_lerp_([old[n] for n in floating], [new[n] for n in floating], 1 - decay)
    for name in old.keys() - set(floating):
        old[name].copy_(new[name])
