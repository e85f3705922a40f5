"""How a planned student learns: plain steps on patches, and what it then says of whole cases."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from amvlm.errors import UserError
from amvlm.learning.patches import PatchBatch, PatchSampler, PreparedCase, augmented
from amvlm.learning.runtime import learning_rate_factor
from amvlm.losses import masked_dice_bce
from amvlm.losses.exclusive import exclusive_dice_ce
from amvlm.metrics import Overlap
from amvlm.models.planned import PlannedStudent

LEARNING_RATE, WEIGHT_DECAY, WARMUP = 1e-3, 1e-2, 0.03


def patch_loss(student: PlannedStudent, batch: PatchBatch) -> Tensor:
    """Dice + cross-entropy of one batch, exclusive or per structure as the plan says."""
    logits = student(batch.image)
    if student.plan.exclusive:
        return exclusive_dice_ce(logits, batch.labels[:, 0].long(), batch.known)
    return masked_dice_bce(logits, batch.labels, batch.known)


@dataclass(frozen=True)
class Phase:
    """One cosine of training: from which cases, in which shares, for how many steps."""

    number: int
    steps: int
    groups: Sequence[tuple[Sequence[PreparedCase], int]]
    learning_rate: float = LEARNING_RATE


def optimiser_of(student: PlannedStudent) -> torch.optim.Optimizer:
    """AdamW as every phase starts it."""
    return torch.optim.AdamW(student.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)


def drawn(
    samplers: Sequence[tuple[PatchSampler, int]],
    phase: Phase,
    student: PlannedStudent,
    seed: int,
    step: int,
    device: torch.device,
) -> PatchBatch:
    """The batch of a step; all chance is keyed by (seed, phase, step)."""
    rng = np.random.default_rng((seed, 30 + phase.number, step))
    parts = [sampler.draw(count, rng) for sampler, count in samplers]
    batch = PatchBatch(*(torch.cat(fields) for fields in zip(*parts, strict=True)))
    return augmented(batch.to(device), student.plan, rng)


def fit(
    student: PlannedStudent,
    phase: Phase,
    optimiser: torch.optim.Optimizer,
    seed: int,
    first: int = 0,
    bf16: bool = False,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[int, Tensor]]:
    """Steps ``first`` … of one phase; yields (step, loss) after each update.

    Where a GPU's memory does not hold a batch, it goes through in parts, their gradients summed.

    Raises
    ------
    UserError
        If it does not hold two patches.
    """
    device = next(student.parameters()).device
    samplers = [(PatchSampler(student.plan, cases), count) for cases, count in phase.groups]
    parts = 1
    for step in range(first, phase.steps):
        if stop():
            return
        student.train()
        batch = drawn(samplers, phase, student, seed, step, device)
        rate = phase.learning_rate * learning_rate_factor(step, phase.steps, WARMUP)
        for group in optimiser.param_groups:
            group["lr"] = rate
        while True:
            try:
                loss = _gradients(student, batch, optimiser, bf16, parts)
                break
            except torch.OutOfMemoryError as error:
                parts *= 2
                if len(batch.image) < 2 * parts:
                    raise UserError(
                        f"the GPU's memory does not hold {len(batch.image)} patches of {student.plan.patch}",
                        remedy="Choose --device cpu; the last checkpoint is kept.",
                    ) from error
                torch.cuda.empty_cache()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimiser.step()
        yield step, loss


def _gradients(
    student: PlannedStudent, batch: PatchBatch, optimiser: torch.optim.Optimizer, bf16: bool, parts: int
) -> Tensor:
    """Gradients of a batch, in so many parts; returns the mean loss."""
    optimiser.zero_grad()
    total = torch.zeros((), device=batch.image.device)
    for rows in torch.arange(len(batch.image)).chunk(parts):
        part = PatchBatch(*(field[rows[0] : rows[-1] + 1] for field in batch))
        with torch.autocast(batch.image.device.type, torch.bfloat16, enabled=bf16):
            loss = patch_loss(student, part) / parts
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.detach()
    return total


def case_dices(logits: Tensor, case: PreparedCase) -> list[float]:
    """Dice of each structure on the plan's grid; NaN where unjudged or empty."""
    found = []
    for structure, known in enumerate(case.known):
        truth = torch.from_numpy(case.mask(structure))
        found.append(Overlap.of(logits[structure] > 0, truth).dice if known else math.nan)
    return found


def answer(student: PlannedStudent, case: PreparedCase, accurate: bool = False) -> Tensor:
    """Logits (S, Z, H, W) of a prepared case."""
    planes = torch.from_numpy(np.array(case.image))
    return student.volume_logits(planes, case.spacing_mm, accurate)


def pseudo_labelled(
    student: PlannedStudent, case: PreparedCase, missing: NDArray[np.float32] | None = None
) -> PreparedCase:
    """The case with the student's own answer where nobody judged; what was judged stays as it is.

    Parameters
    ----------
    missing : ndarray, (S,), {0, 1}, optional
        Which structures may be learned from the answer; all by default. A rejected one may not.
    """
    logits = answer(student, case)
    judged = torch.from_numpy(case.known > 0)
    learned = np.ones_like(case.known) if missing is None else missing
    if student.plan.exclusive:
        margin, winner = logits.max(0)
        number = torch.where((margin > 0) & ~judged[winner], winner + 1, 0)
        own = torch.from_numpy(np.array(case.labels[:, 0])).long()
        labels = torch.where(own > 0, own, number)[:, None]
    else:
        own = torch.from_numpy(np.array(case.labels)).bool()
        labels = torch.where(judged.view(1, -1, 1, 1), own, (logits > 0).movedim(0, 1))
    known = np.maximum(case.known, learned).astype(np.float32)
    return PreparedCase(case.case_id, case.image, labels.to(torch.uint8).numpy(), known, case.spacing_mm)
