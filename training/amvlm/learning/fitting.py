"""How a planned student learns: plain steps on patches, and what it then says of whole cases."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from amvlm.errors import UserError
from amvlm.learning.checkpoint import Checkpoint, checked_state, checkpoints, load_checkpoint, save_checkpoint
from amvlm.learning.patches import PatchBatch, PatchSampler, PreparedCase, augmented
from amvlm.learning.runtime import Prefetcher, autocast_to, learning_rate_factor
from amvlm.losses import masked_dice_bce
from amvlm.losses.exclusive import exclusive_dice_ce
from amvlm.metrics import Overlap
from amvlm.models.planned import PlannedStudent
from amvlm.planning import Plan

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
    loss: Callable[[PlannedStudent, PatchBatch], Tensor] = patch_loss


def optimiser_of(student: PlannedStudent) -> torch.optim.Optimizer:
    """AdamW as every phase starts it."""
    return torch.optim.AdamW(student.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)


def drawn(
    samplers: Sequence[tuple[PatchSampler, int]], phase: Phase, seed: int, step: int
) -> tuple[PatchBatch, np.random.Generator]:
    """Crops of a step, and the chance left for their augmentation; all of it is keyed by (seed, phase, step)."""
    rng = np.random.default_rng((seed, 30 + phase.number, step))
    parts = [sampler.draw(count, rng) for sampler, count in samplers]
    return PatchBatch(*(torch.cat(fields) for fields in zip(*parts, strict=True))), rng


def batches(
    student: PlannedStudent, phase: Phase, seed: int, first: int, ahead: bool
) -> Iterator[tuple[int, PatchBatch]]:
    """(step, augmented batch on the student's device); ``ahead`` cuts the next crops in a thread meanwhile."""
    samplers = [(PatchSampler(student.plan, cases), count) for cases, count in phase.groups]
    device = next(student.parameters()).device

    def make(step: int) -> tuple[PatchBatch, np.random.Generator]:
        return drawn(samplers, phase, seed, step)

    steps = range(first, phase.steps)
    for step, (crops, rng) in Prefetcher(make, steps) if ahead else ((step, make(step)) for step in steps):
        yield step, augmented(crops.to(device), student.plan, rng)


def gradient_scaler(device: torch.device, precision: str) -> torch.amp.GradScaler:
    """What keeps small gradients of fp16 from vanishing; without effect in other precisions."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


def fit(
    student: PlannedStudent,
    phase: Phase,
    optimiser: torch.optim.Optimizer,
    seed: int,
    first: int = 0,
    precision: str = "fp32",
    stop: Callable[[], bool] = lambda: False,
    scaler: torch.amp.GradScaler | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Steps ``first`` … of one phase; yields (step, loss) after each update.

    Where a GPU's memory does not hold a batch, it goes through in parts, their gradients summed.

    Raises
    ------
    UserError
        If it does not hold two patches.
    """
    device = next(student.parameters()).device
    scaler = gradient_scaler(device, precision) if scaler is None else scaler
    parts = 1
    for step, batch in batches(student, phase, seed, first, ahead=device.type != "cpu"):
        if stop():
            return
        student.train()
        rate = phase.learning_rate * learning_rate_factor(step, phase.steps, WARMUP)
        for group in optimiser.param_groups:
            group["lr"] = rate
        while True:
            try:
                loss = _gradients(student, batch, phase.loss, optimiser, precision, scaler, parts)
                break
            except torch.OutOfMemoryError as error:
                parts *= 2
                if len(batch.image) < 2 * parts:
                    raise UserError(
                        f"the GPU's memory does not hold {len(batch.image)} patches of {student.plan.patch}",
                        remedy="Choose --device cpu; the last checkpoint is kept.",
                    ) from error
                torch.cuda.empty_cache()
        scaler.unscale_(optimiser)
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        scaler.step(optimiser)
        scaler.update()
        yield step, loss


class Learner:
    """What training changes, and its checkpoints: the network, its copy of the phase before, optimiser and scaler.

    Parameters
    ----------
    precision : {"fp32", "bf16", "fp16"}
    folder : Path
        Where checkpoints lie.
    """

    def __init__(self, plan: Plan, device: torch.device, precision: str, seed: int, folder: Path) -> None:
        self._precision, self._seed, self._folder = precision, seed, folder
        torch.manual_seed(seed)
        memory = torch.channels_last if plan.dimensions == 2 else torch.contiguous_format
        self.student = PlannedStudent(plan)
        self.student.to(device, memory_format=memory)  # type: ignore[call-overload]
        self.first = copy.deepcopy(self.student)
        self._optimiser = optimiser_of(self.student)
        self._scaler = gradient_scaler(device, precision)

    def next_phase(self) -> None:
        """Keep the network so far, which labels the other scans; training goes on with a new optimiser."""
        self.first.load_state_dict(self.student.state_dict())
        self._optimiser = optimiser_of(self.student)

    def fit(self, phase: Phase, first: int, stop: Callable[[], bool] = lambda: False) -> Iterator[tuple[int, Tensor]]:
        """As :func:`fit`."""
        return fit(self.student, phase, self._optimiser, self._seed, first, self._precision, stop, self._scaler)

    def save(self, step: int) -> None:
        """Write a checkpoint of this many steps over all phases."""
        networks = {"student": self.student, "first": self.first}
        save_checkpoint(self._folder, step, networks, self._optimiser, self._scaler.state_dict())

    def load(self) -> Checkpoint | None:
        """Restore the newest checkpoint; None if there is none yet."""
        if not checkpoints(self._folder):
            return None
        found = load_checkpoint(self._folder, {"student": self.student, "first": self.first}, self._optimiser)
        if self._scaler.is_enabled():
            names = tuple(self._scaler.state_dict())
            self._scaler.load_state_dict(checked_state(found.notes, names, self._folder))
        return found


def _gradients(
    student: PlannedStudent,
    batch: PatchBatch,
    loss_of: Callable[[PlannedStudent, PatchBatch], Tensor],
    optimiser: torch.optim.Optimizer,
    precision: str,
    scaler: torch.amp.GradScaler,
    parts: int,
) -> Tensor:
    """Gradients of a batch, in so many parts; returns the mean loss."""
    optimiser.zero_grad()
    total = torch.zeros((), device=batch.image.device)
    for rows in torch.arange(len(batch.image)).chunk(parts):
        part = PatchBatch(*(field[rows[0] : rows[-1] + 1] for field in batch))
        with autocast_to(batch.image.device, precision):
            loss = loss_of(student, part) / parts
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
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

    Raises
    ------
    ValueError
        If every structure was judged: nothing would be learned from the answer, and all from the labels.
    """
    if case.known.all():
        raise ValueError(f"{case.case_id} is judged; pseudo-labels are for cases that are not")
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
