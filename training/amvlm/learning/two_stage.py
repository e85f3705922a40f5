"""From a text network to a student that reads nothing: soft masks of captioned scans (METHOD §4, ``two_stage``)."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from amvlm.events import AnyEvent, Progress
from amvlm.learning.fitting import Phase
from amvlm.learning.patches import PatchBatch, PreparedCase
from amvlm.learning.planned_opening import PlannedRun
from amvlm.learning.planned_text import PlannedText
from amvlm.losses import masked_dice_bce
from amvlm.models.planned import PlannedStudent
from amvlm.models.text_volume import VolumeTextMask

SOFT_SHARE = 0.75
"""Of a batch: 12 of 16."""
_FULL = 255


@dataclass(frozen=True)
class SoftCase(PreparedCase):
    """A case whose ``labels`` (Z, S, H, W) are probabilities, 0 to 255."""

    def mask(self, structure: int) -> NDArray[np.bool_]:
        """Where a structure is more likely than not, (Z, H, W)."""
        mask: NDArray[np.bool_] = np.asarray(self.labels)[:, structure] > _FULL // 2
        return mask

    @classmethod
    def of(cls, case: PreparedCase, labels: NDArray[np.uint8], known: NDArray[np.float32]) -> SoftCase:
        return cls(case.case_id, case.image, labels, known, case.spacing_mm)

    def hardened(self) -> PreparedCase:
        """The same case with its masks, one channel per structure, {0, 1}; regions are found in it."""
        labels = (np.asarray(self.labels) > _FULL // 2).astype(np.uint8)
        return PreparedCase(self.case_id, self.image, labels, self.known, self.spacing_mm)


def as_soft(case: PreparedCase) -> SoftCase:
    """A judged case, its masks as probabilities of 0 and 1."""
    masks = np.stack([case.mask(structure) for structure in range(len(case.known))], 1)
    return SoftCase.of(case, masks.astype(np.uint8) * np.uint8(_FULL), case.known)


def soft_loss(student: PlannedStudent, batch: PatchBatch) -> Tensor:
    """Dice + cross-entropy of the student against probabilities, known structures alone.

    Of structures that exclude each other the student's are those of its softmax, and what they leave of 1 is the
    background's; otherwise each structure has its own sigmoid.
    """
    logits, target = student(batch.image).float(), batch.labels / _FULL
    if not student.plan.exclusive:
        return masked_dice_bce(logits, target, batch.known)
    return _exclusive_soft(logits, target, batch.known)


def _exclusive_soft(logits: Tensor, target: Tensor, known: Tensor) -> Tensor:
    """Logits (B, 1 + S, …), background first; targets (B, S, …); an unjudged structure has no say."""
    weight = known.view(*known.shape, *(1,) * (logits.ndim - 2))
    share = target * weight
    share = share / share.sum(1, keepdim=True).clamp(min=1)  # where text masks overlap, they share the place
    background = 1 - share.sum(1, keepdim=True)
    hidden = F.pad(weight, (0, 0) * (logits.ndim - 2) + (1, 0), value=1.0) > 0
    logs = logits.masked_fill(~hidden, torch.finfo(logits.dtype).min).log_softmax(1)
    entropy = -(torch.cat([background, share], 1) * logs.masked_fill(~hidden, 0.0)).sum(1).mean()
    probs, dims = logs[:, 1:].exp() * weight, (0, *range(2, logits.ndim))
    overlap, both = (probs * share).sum(dims), (probs + share).sum(dims)
    present = share.sum(dims) > 0
    dice = ((2 * overlap + 1) / (both + 1) * present).sum() / present.sum().clamp(min=1)
    return entropy + present.any() - dice


@torch.no_grad()
def soft_labelled(
    text: PlannedText, student: PlannedStudent, case: PreparedCase, missing: NDArray[np.float32]
) -> SoftCase:
    """The case with the text network's probabilities where nobody judged; what was judged stays as it is.

    Parameters
    ----------
    missing : ndarray, (S,), {0, 1}
        Which structures may be learned from the answer.
    """
    planes = torch.from_numpy(np.array(case.image))
    region = student.region(planes, case.spacing_mm)

    def patches(z: int) -> Tensor:
        return text.patches.slice(case.case_id, z, len(planes))

    reader = VolumeTextMask(text.network.eval(), planes, patches, text.patches.frame(case.case_id))
    own = text.embeddings[text.table.rows([case.case_id], None)[0]]
    every, soft = list(range(len(planes))), np.array(as_soft(case).labels)
    for structure in np.flatnonzero((missing > 0) & (case.known == 0)).tolist():
        probs = reader.logits(every, own[structure], region).sigmoid()
        soft[:, structure] = (probs * _FULL).round().to(torch.uint8).numpy()
    return SoftCase.of(case, soft, np.maximum(case.known, missing).astype(np.float32))


def soft_phase(
    opened: PlannedRun, text: PlannedText, first: PlannedStudent, steps: int
) -> Generator[AnyEvent, None, Phase | None]:
    """The student's second phase: expert masks and the frozen text network's soft masks of all captioned scans.

    None where no unjudged training case has a caption.
    """
    study, soft = opened.context.study, []
    captioned = {case_id for case_id, _ in study.captions}
    case_ids = [case_id for case_id in study.unlabelled if case_id in captioned]
    for done, case_id in enumerate(case_ids):
        if opened.context.stop_asked():
            break
        case = opened.prepared.case(case_id, study.training.get(case_id, {}))
        missing = np.array([float(name in study.missing[case_id]) for name in study.names], np.float32)
        soft.append(soft_labelled(text, first, case, missing))
        yield Progress(stage="reading captions of the other scans", step=done + 1, steps=len(case_ids))
    if not soft:
        return None
    count = min(opened.plan.batch_size - 1, max(1, round(SOFT_SHARE * opened.plan.batch_size)))
    groups: list[tuple[Sequence[PreparedCase], int]] = [
        ([as_soft(case) for case in opened.labelled], opened.plan.batch_size - count), (soft, count),
    ]  # fmt: skip
    return Phase(1, steps, groups, loss=soft_loss)
