"""α with too few validation cases: each half of the labelled cases is measured by networks trained on the other."""

from __future__ import annotations

import copy
from collections.abc import Generator

import torch

from amvlm.config import TrainSettings
from amvlm.events import AnyEvent, Progress
from amvlm.learning.batches import labelled_batch
from amvlm.learning.calibration import CaseLogits, case_logits, fit_expected_dice, fit_text_weights
from amvlm.learning.context import Context
from amvlm.learning.ema import update_ema
from amvlm.learning.gathering import summed
from amvlm.learning.generator_loss import mask_supervision
from amvlm.learning.networks import Networks
from amvlm.learning.runtime import Clock
from amvlm.learning.study import LabelledCase
from amvlm.learning.texts import TextTable
from amvlm.losses import masked_dice_bce

SHARE_OF_STEPS = 0.2


def cross_fitted(
    context: Context, networks: Networks, table: TextTable, labelled: list[LabelledCase], settings: TrainSettings
) -> Generator[AnyEvent, None, None]:
    """Two-fold cross-fit by patient on the labelled cases: α (for ``gated``) and what the signs of quality foretell.

    With a single patient nothing can be fitted: α stays ½, "uncalibrated".
    """
    groups = sorted({context.study.cases[case.case_id].group for case in labelled})
    halves = [set(groups[0::2]), set(groups[1::2])]
    if len(groups) < 2:
        return
    found: list[CaseLogits] = []
    for fold, half in enumerate(halves):
        inside = [case for case in labelled if context.study.cases[case.case_id].group in half]
        outside = [case for case in labelled if context.study.cases[case.case_id].group not in half]
        scratch = copy.deepcopy(networks)
        yield from _fit(context, scratch, table, inside, settings, fold)
        if context.stop_asked():
            return
        found += case_logits(context, outside, scratch.teacher, scratch.generator_teacher, table, networks.embeddings)
    networks.calibration = "cross-fit"
    if settings.merge == "gated":
        networks.text_weights = fit_text_weights(found, len(context.study.names))
    networks.expected_dice = fit_expected_dice(found, networks.text_weights)


def _fit(
    context: Context,
    networks: Networks,
    table: TextTable,
    labelled: list[LabelledCase],
    settings: TrainSettings,
    fold: int,
) -> Generator[AnyEvent, None, None]:
    """A short labelled-only training of student and generator."""
    steps = max(1, round(SHARE_OF_STEPS * settings.steps))
    student, generator, optimiser = networks.prepare(context, settings)
    clock = Clock(steps)
    for step in range(steps):
        if context.stop_asked():
            return
        torch.manual_seed(int(context.step_rng(settings, 12 + fold, step).integers(2**62)))  # dropout
        batch = labelled_batch(
            context,
            labelled,
            table,
            settings,
            10 + fold,
            step,
            settings.side_prompts,
            networks.mirror,
            settings.student.block,
        ).to(context.device)
        text = networks.embeddings[batch.text]
        student.train()
        generator.train()
        loss, _ = mask_supervision(generator, batch.slab, text, batch.named, batch.known, networks.foreground)
        loss = loss + masked_dice_bce(student(batch.image), batch.masks, batch.known, summed)
        context.optimise(loss, [student, generator], optimiser, settings, step, steps)
        update_ema(networks.teacher, networks.student, step, settings.ema_decay)
        update_ema(networks.generator_teacher, networks.generator, step, settings.ema_decay)
        if clock.due():
            yield Progress(
                stage=f"calibrating the text mask ({fold + 1} of 2)", step=step + 1, steps=steps,
                seconds_left=clock.left(step + 1),
            )  # fmt: skip
    torch.clear_autocast_cache()
