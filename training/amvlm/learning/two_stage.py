"""From a text network to a student that reads nothing: soft masks of captioned scans (METHOD §4, ``two_stage``)."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from amvlm.events import AnyEvent, Progress
from amvlm.learning.fitting import Phase
from amvlm.learning.patches import PatchBatch, PreparedCase
from amvlm.learning.planned_opening import PlannedRun
from amvlm.learning.planned_text import PlannedText, text_logits
from amvlm.losses import masked_dice_bce
from amvlm.losses.exclusive import soft_exclusive_dice_ce
from amvlm.models.planned import PlannedStudent
from amvlm.planning import Plan

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

    def region(self, plan: Plan) -> tuple[slice, slice, slice]:
        """As of its masks: what is merely not impossible draws no crops."""
        masks = (np.asarray(self.labels) > _FULL // 2).astype(np.uint8)
        return PreparedCase(self.case_id, self.image, masks, self.known, self.spacing_mm).region(plan)


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
    return soft_exclusive_dice_ce(logits, target, batch.known)


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
    soft = np.array(as_soft(case).labels)
    wanted = np.flatnonzero((missing > 0) & (case.known == 0)).tolist()
    for structure, logits in zip(wanted, text_logits(text, student, case, wanted), strict=True):
        soft[:, structure] = (logits.sigmoid() * _FULL).round().to(torch.uint8).numpy()
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
        soft.append(soft_labelled(text, first, *opened.unjudged(case_id)))
        yield Progress(stage="reading captions of the other scans", step=done + 1, steps=len(case_ids))
    if not soft:
        return None
    count = min(opened.plan.batch_size - 1, max(1, round(SOFT_SHARE * opened.plan.batch_size)))
    groups: list[tuple[Sequence[PreparedCase], int]] = [
        ([as_soft(case) for case in opened.labelled], opened.plan.batch_size - count), (soft, count),
    ]  # fmt: skip
    return Phase(1, steps, groups, loss=soft_loss)
