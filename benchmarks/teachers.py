"""Semi-supervised losses that keep a teacher, as others publish them, on the plan's patches: compared with two phases.

``CutMix``: a mean teacher under CutMix (French et al., BMVC 2020; the loss of confident pixels as in Sohn et al.,
FixMatch, NeurIPS 2020). ``BidirectionalCopyPaste``: BCP (Bai et al., CVPR 2023), whose first part pastes labelled
patches into each other. Both take a batch of which the first half is labelled; sides are kept, since nothing is
mirrored. The teacher follows with a decay of 0.99, as in both papers.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor, nn

from amvlm.learning.ema import make_teacher, update_ema
from amvlm.learning.patches import PatchBatch
from amvlm.losses.exclusive import exclusive_dice_ce
from amvlm.models.planned import PlannedStudent

DECAY, CONFIDENT, RAMP = 0.99, 0.95, 0.3


class _Teacher:
    """A network that follows the student; the weight of what it says rises over the first part of the steps."""

    def __init__(self, steps: int, seed: int) -> None:
        self._steps, self._step = steps, 0
        self._network: nn.Module | None = None
        self._chance = torch.Generator().manual_seed(seed)

    def next(self, student: PlannedStudent) -> float:
        """Follow the student's last update; the weight of this step."""
        if self._network is None:
            self._network = make_teacher(student)
        update_ema(self._network, student, self._step, DECAY)
        self._step += 1
        return math.exp(-5 * (1 - min(1.0, self._step / (RAMP * self._steps))) ** 2)

    @torch.no_grad()
    def probs(self, image: Tensor) -> Tensor:
        """What the teacher says, (B, 1 + S, H, W)."""
        return self._network(image).float().softmax(1)

    def draw(self) -> float:
        return float(torch.rand((), generator=self._chance))

    def box(self, shape: torch.Size, share: float) -> Tensor:
        """A mask (B, 1, H, W), 1 in one rectangle of this share of the area per sample."""
        count, _, rows, columns = shape
        mask = torch.zeros(count, 1, rows, columns)
        for one in mask:
            tall = min(1.0, math.exp(self.draw() - 0.5) * math.sqrt(share))
            high, wide = round(tall * rows), round(min(1.0, share / tall) * columns)
            top, left = int(self.draw() * (rows - high + 1)), int(self.draw() * (columns - wide + 1))
            one[:, top : top + high, left : left + wide] = 1
        return mask


class CutMix(_Teacher):
    """Labelled patches as ever; of the others, mixtures against the same mixtures of the teacher's answers."""

    def __call__(self, student: PlannedStudent, batch: PatchBatch) -> Tensor:
        weight, half = self.next(student), len(batch.image) // 2
        others = batch.image[half:]
        probs = self.probs(others)
        box = self.box(others.shape, 0.5)
        mixed, target = (box * each + (1 - box) * each.roll(1, 0) for each in (others, probs))
        logits = student(torch.cat([batch.image[:half], mixed]))
        own = exclusive_dice_ce(logits[:half], batch.labels[:half, 0].long(), batch.known[:half])
        sure, label = target.max(1)
        entropy = F.cross_entropy(logits[half:].float(), label, reduction="none")
        return own + weight * (entropy * (sure > CONFIDENT)).mean()


class BidirectionalCopyPaste(_Teacher):
    """A labelled patch's middle in another's surroundings, and the other way round (the paper's α = 0.5, β = 2/3)."""

    alpha, beta = 0.5, 2 / 3

    def __init__(self, steps: int, seed: int, labelled_only: bool) -> None:
        super().__init__(steps, seed)
        self._labelled_only = labelled_only

    def __call__(self, student: PlannedStudent, batch: PatchBatch) -> Tensor:
        half = len(batch.image) // 2
        image, others = batch.image[:half], batch.image[half:]
        label = batch.labels[:half, 0].long()
        box = self.box(image.shape, self.beta**2) > 0
        if self._labelled_only:
            logits = student(torch.where(box, image, others))
            pasted = torch.where(box[:, 0], label, batch.labels[half:, 0].long())
            return exclusive_dice_ce(logits, pasted, batch.known[:half])
        self.next(student)
        said = largest_parts(self.probs(others).argmax(1))
        logits = student(torch.cat([torch.where(box, image, others), torch.where(box, others, image)]))
        total = logits.new_zeros((), dtype=torch.float32)
        for own, expert in ((logits[:half], box[:, 0]), (logits[half:], ~box[:, 0])):
            target = torch.where(expert, label, said)
            for where, weight in ((expert, 1.0), (~expert, self.alpha)):
                total = total + weight * dice_ce_inside(own, target, where)
        return total


def dice_ce_inside(logits: Tensor, target: Tensor, where: Tensor) -> Tensor:
    """Softmax Dice + cross-entropy of logits (B, 1 + S, H, W) against classes (B, H, W), on some pixels (B, H, W)."""
    inside, classes = where[:, None].float(), torch.arange(logits.shape[1]).view(1, -1, 1, 1)
    entropy = F.cross_entropy(logits.float(), target, reduction="none")
    probs, truth = logits.float().softmax(1) * inside, (target[:, None] == classes) * inside
    overlap, sizes = (probs * truth).sum((0, 2, 3)), (probs + truth).sum((0, 2, 3))
    dice = 1 - (2 * overlap[1:] + 1e-5) / (sizes[1:] + 1e-5)
    return (entropy * where).sum() / where.sum().clamp(min=1) + dice.mean()


def largest_parts(classes: Tensor) -> Tensor:
    """Classes (B, H, W) of which each keeps its largest part per image, as BCP does with what its teacher says."""
    kept = np.zeros(classes.shape, np.int64)
    for image, own in zip(classes.numpy(), kept, strict=True):
        for number in np.unique(image[image > 0]):
            parts, _ = ndimage.label(image == number)
            own[parts == 1 + np.bincount(parts.ravel())[1:].argmax()] = number
    return torch.from_numpy(kept)
