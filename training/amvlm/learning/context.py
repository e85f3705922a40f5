"""What every step of a loop needs at hand."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator
from numpy.random import Generator as Rng
from torch import nn

from amvlm.config import LoopSettings
from amvlm.imaging.resample import SliceGrid
from amvlm.learning.runtime import learning_rate_factor
from amvlm.learning.slices import SliceBank
from amvlm.learning.study import Study
from amvlm.store.runs import RunFolder


@dataclass
class Context:
    """One run: its data, where it computes, and the folder that may ask it to stop."""

    study: Study
    bank: SliceBank
    accelerator: Accelerator
    run: RunFolder
    flip_axis: int | None
    any_orientation: bool = False

    @property
    def device(self) -> torch.device:
        device: torch.device = self.accelerator.device
        return device

    def step_rng(self, settings: LoopSettings, stage: int, step: int) -> Rng:
        """Chance keyed by (seed, stage, step), the same in every process and in a resumed run."""
        return np.random.default_rng((settings.seed, stage, step))

    def stop_asked(self) -> bool:
        """Whether the person asked for an end; all processes stop at the same step."""
        asked = self.run.stop_asked()
        if self.processes == 1:
            return asked
        first = torch.tensor(float(asked), device=self.device)
        dist.broadcast(first, 0)
        return bool(first)

    @property
    def processes(self) -> int:
        count: int = self.accelerator.num_processes
        return count

    def share(self, count: int) -> slice:
        """The rows of a global batch of ``count`` that this process computes."""
        each = count // self.processes
        begin = each * int(self.accelerator.process_index)
        return slice(begin, begin + each)

    def optimise(
        self,
        loss: torch.Tensor,
        networks: list[nn.Module],
        optimiser: torch.optim.Optimizer,
        settings: LoopSettings,
        step: int,
        steps: int,
        learning_rate: float = 0.0,
    ) -> None:
        """One update under warm-up and cosine, gradients clipped to norm 1; ``learning_rate`` 0 is the settings'."""
        optimiser.zero_grad()
        self.accelerator.backward(loss)
        self.update(networks, optimiser, settings, step, steps, learning_rate)

    def update(
        self,
        networks: list[nn.Module],
        optimiser: torch.optim.Optimizer,
        settings: LoopSettings,
        step: int,
        steps: int,
        learning_rate: float = 0.0,
    ) -> None:
        """Follow the gradients that were gathered."""
        for group in optimiser.param_groups:
            group["lr"] = (
                group.get("share", 1.0)
                * (learning_rate or settings.learning_rate)
                * learning_rate_factor(step, steps, settings.warmup)
            )
        self.accelerator.clip_grad_norm_([p for network in networks for p in network.parameters()], 1.0)
        optimiser.step()


def flip_axis_of(study: Study) -> int | None:
    """The network's array axis that runs left-right, or None where slices show no left and right."""
    if not study.cases:
        return None
    case = next(iter(study.cases.values()))
    return None if SliceGrid.of(study.store.read_image(case), 16).axis == 0 else 2
