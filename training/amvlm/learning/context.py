"""What every step of a loop needs at hand."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from numpy.random import Generator as Rng
from torch import nn

from amvlm.config import LoopSettings
from amvlm.imaging.resample import SliceGrid
from amvlm.learning.runtime import learning_rate_factor
from amvlm.learning.slices import SliceBank
from amvlm.learning.study import Study
from amvlm.store.runs import RunFolder
from amvlm.text import names_a_side


@dataclass
class Context:
    """One run: its data, where it computes, and the folder that may ask it to stop."""

    study: Study
    bank: SliceBank
    accelerator: Accelerator
    run: RunFolder
    flip_axis: int | None

    @property
    def device(self) -> torch.device:
        device: torch.device = self.accelerator.device
        return device

    def chance(self, settings: LoopSettings, stage: int, step: int) -> tuple[Rng, torch.Generator]:
        """Chance keyed by (seed, stage, step, process): a resumed run draws what the unbroken one drew."""
        rng = np.random.default_rng((settings.seed, stage, step, self.accelerator.process_index))
        torch.manual_seed(int(rng.integers(2**62)))
        return rng, torch.Generator().manual_seed(int(rng.integers(2**62)))

    def optimise(
        self,
        loss: torch.Tensor,
        networks: list[nn.Module],
        optimiser: torch.optim.Optimizer,
        settings: LoopSettings,
        step: int,
        steps: int,
    ) -> None:
        """One update under warm-up and cosine, gradients clipped to norm 1."""
        for group in optimiser.param_groups:
            group["lr"] = settings.learning_rate * learning_rate_factor(step, steps, settings.warmup)
        optimiser.zero_grad()
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_([p for network in networks for p in network.parameters()], 1.0)
        optimiser.step()


def flip_axis_of(study: Study, texts: list[str]) -> int | None:
    """The network's array axis that runs left-right, or None where mirroring would make a text untrue."""
    if any(names_a_side(text) for text in [*texts, *study.names]) or not study.cases:
        return None
    case = next(iter(study.cases.values()))
    return None if SliceGrid.of(study.store.read_image(case), 16).axis == 0 else 2
