"""How far to trust the text mask: α of the merged mask, fitted on cases that neither network trained on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from amvlm.learning.context import Context
from amvlm.learning.study import LabelledCase
from amvlm.learning.texts import TextTable
from amvlm.losses import merged_logits
from amvlm.metrics import Overlap
from amvlm.models.quality import ExpectedDice, QualityFeatures, judged_dice
from amvlm.models.student import Student

TEXT_WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
ENOUGH_CASES = 5


@dataclass(frozen=True)
class CaseLogits:
    """Teacher's and text mask's logits of one judged case, (S, Z, H, W) each, with its truth."""

    teacher: Tensor
    text: Tensor
    case: LabelledCase

    def dice(self, logits: Tensor, structure: int) -> float:
        """Dice at network resolution; NaN where unjudged or empty."""
        if not self.case.known[structure]:
            return math.nan
        return Overlap.of(logits[structure].cpu() > 0, self.truth(structure)).dice

    def truth(self, structure: int) -> Tensor:
        """The expert's mask, (Z, H, W), uint8."""
        return torch.from_numpy(np.array(self.case.masks[structure]))


@torch.no_grad()
def case_logits(
    context: Context,
    cases: Sequence[LabelledCase],
    teacher: nn.Module,
    generator: nn.Module,
    table: TextTable,
    embeddings: Tensor,
    batch_size: int = 32,
) -> Iterator[CaseLogits]:
    """Run both networks over every slice of some cases, each under its own text."""
    was_training = teacher.training, generator.training
    teacher.eval()
    generator.eval()
    blockwise = teacher if isinstance(teacher, Student) and teacher.settings.dimensions == 3 else None
    for case in cases:
        text = embeddings[table.rows([case.case_id], None)]
        of_teacher, of_text = [], []
        with context.accelerator.autocast():
            if blockwise is not None:
                of_teacher.append(blockwise.volume_logits(context.bank.planes(case.case_id).to(context.device)).cpu())
            for begin in range(0, case.depth, batch_size):
                wanted = [(case.case_id, z) for z in range(begin, min(case.depth, begin + batch_size))]
                image = context.bank.slabs(wanted).to(context.device)
                of_text.append(generator(image, text.expand(len(wanted), -1, -1)).float().movedim(1, 0).cpu())
                if blockwise is None:
                    of_teacher.append(teacher(image).float().movedim(1, 0).cpu())
        yield CaseLogits(torch.cat(of_teacher, 1), torch.cat(of_text, 1), case)
    teacher.train(was_training[0])
    generator.train(was_training[1])


def fit_text_weights(found: Sequence[CaseLogits], structures: int) -> list[float]:
    """The best α per structure by mean Dice; on a tie the one nearest ½, and ½ where nothing can be measured."""
    weights = []
    for s in range(structures):
        scores = {}
        for weight in TEXT_WEIGHTS:
            dices = [c.dice(merged_logits(c.teacher, c.text, weight), s) for c in found]
            dices = [dice for dice in dices if not math.isnan(dice)]
            scores[weight] = sum(dices) / len(dices) if dices else 0.0
        weights.append(max(TEXT_WEIGHTS, key=lambda weight: (round(scores[weight], 4), -abs(weight - 0.5))))
    return weights


def fit_expected_dice(found: Sequence[CaseLogits], text_weights: Sequence[float]) -> list[ExpectedDice | None]:
    """How the signs of a merged mask foretell its Dice, per structure (METHOD §5)."""
    fitted = []
    for s, weight in enumerate(text_weights):
        judged = [c for c in found if c.case.known[s]]
        signs = [QualityFeatures.of(c.teacher[s], c.text[s], weight) for c in judged]
        merged = [merged_logits(c.teacher[s], c.text[s], weight) > 0 for c in judged]
        dices = [judged_dice(mask, c.truth(s)) for mask, c in zip(merged, judged, strict=True)]
        fitted.append(ExpectedDice.fit(signs, dices))
    return fitted


def has_enough_cases(cases: Sequence[LabelledCase], structures: int) -> bool:
    """True when every structure was judged, and is there, in at least five of the cases."""
    return all(sum(bool(case.areas[s].any()) for case in cases) >= ENOUGH_CASES for s in range(structures))


def mean_dices(
    found: Sequence[CaseLogits], names: Sequence[str], text_weights: Sequence[float]
) -> dict[str, dict[str, float]]:
    """Mean Dice of student, text mask and merged mask by structure; a structure without a truth is left out."""
    weights = torch.tensor(text_weights)
    kinds = {
        "student": [c.teacher for c in found],
        "text_mask": [c.text for c in found],
        "merged": [merged_logits(c.teacher[None], c.text[None], weights)[0] for c in found],
    }
    result: dict[str, dict[str, float]] = {}
    for kind, logits in kinds.items():
        result[kind] = {}
        for s, name in enumerate(names):
            dices = [d for d in (c.dice(each, s) for c, each in zip(found, logits, strict=True)) if not math.isnan(d)]
            if dices:
                result[kind][name] = round(sum(dices) / len(dices), 4)
    return result
