"""``amvlm train``: the text-guided teacher-student network (METHOD §4)."""

from __future__ import annotations

import datetime
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import NamedTuple

import torch
from torch import Tensor, nn

from amvlm.config import GeneratorSettings, TrainSettings
from amvlm.errors import UserError
from amvlm.events import AnyEvent, Finished, Note, Progress, Validation
from amvlm.learning.augment import mixed
from amvlm.learning.batches import LabelledBatch, UnlabelledBatch, labelled_batch, unlabelled_batch
from amvlm.learning.calibration import case_logits, fit_expected_dice, fit_text_weights, has_enough_cases, mean_dices
from amvlm.learning.checkpoint import load_checkpoint, save_checkpoint
from amvlm.learning.context import Context
from amvlm.learning.countdown import counted_down
from amvlm.learning.cross_fit import cross_fitted
from amvlm.learning.ema import update_ema
from amvlm.learning.gathering import summed
from amvlm.learning.generator_loss import mask_supervision
from amvlm.learning.networks import Networks
from amvlm.learning.opening import RunSetup, open_run
from amvlm.learning.pictures import training_picture
from amvlm.learning.planned import train_planned
from amvlm.learning.runtime import Clock, FiniteWatch, Means, Prefetcher
from amvlm.learning.study import LabelledCase
from amvlm.learning.texts import TextTable
from amvlm.losses import confident_bce, consistency_weight, masked_dice_bce, soft_dice_bce
from amvlm.models import AmvlmModel
from amvlm.models.student import Student
from amvlm.store import LabelStore
from amvlm.store.folders import model_target
from amvlm.store.runs import RunFolder

_LABELLED, _UNLABELLED, _DROPOUT = 2, 3, 9


def train(
    store: LabelStore,
    base: AmvlmModel,
    settings: TrainSettings,
    run: RunFolder,
    name: str,
    resume: bool = False,
    previous: AmvlmModel | None = None,
) -> Iterator[AnyEvent]:
    """Learn from accepted and absent revisions, and from the rest with their captions; save ``models/<name>``.

    The vision-language model of ``base`` is kept frozen. The generator starts from ``base`` only when that was
    pre-trained, never from an earlier retrain (which drifts); the student always starts afresh. ``previous`` is the
    model in use so far: it is measured on the same validation cases as the new one.

    Yields
    ------
    Event
        Started, Progress about once a second, Validation, and Finished. Stopping saves the teacher as it is.

    Raises
    ------
    UserError
        If no training case is labelled, or the student cannot read these images.
    """
    if settings.by_minutes:
        planned = train_planned(store, base, settings, run, name, resume, previous)
        with closing(planned):
            yield from counted_down(planned, settings.minutes)
        return
    side = base.image_size
    yield Note(
        text=f"By steps: slices are scaled to {side}×{side} px, the size of the model {base.card.name}. "
        "A training by minutes keeps the scans' own resolution."
    )
    opened = yield from open_run(store, base, settings, run, name, resume)
    settings, context = opened.settings, opened.context
    table = TextTable(context.study)
    networks = Networks.fresh(base, settings, opened.labelled, context, table, resume)
    before: dict[str, dict[str, float]] = {}
    for model in (previous, base):
        before = before or _before(context, model, opened.held_out, table)
    if before:
        yield validation_event(0, before)
    clock = Clock(settings.steps)
    steps = yield from _loop(opened, networks, table, resume)
    model = networks.as_model(base, context.study, settings, name, before, len(opened.labelled))
    if not steps:
        model.student = model.student_settings = None
        own = "a text mask that learned nothing"
        if isinstance(base.generator_settings, GeneratorSettings):  # one on a plan's grid would need the plan
            model.generator, model.generator_settings = base.generator, base.generator_settings
            own = f"the text mask of {base.card.name}"
        yield Note(level="warning", text=f"Stopped before the first step: {name} has {own}, and no prediction.")
    model.card = model.card.model_copy(update={"created": datetime.date.today().isoformat()})
    if context.accelerator.is_main_process:
        model.to("cpu").save(model_target(store.folder, name))
        store.record_consumed(run.name, context.study.snapshot)
    yield Finished(model=name, stopped_early=run.stop_asked(), seconds=clock.seconds)


class _Batch(NamedTuple):
    labelled: LabelledBatch
    unlabelled: UnlabelledBatch | None


def _loop(opened: RunSetup, networks: Networks, table: TextTable, resume: bool) -> Generator[AnyEvent, None, int]:
    """The training loop: one step is a labelled and an unlabelled batch, drawn independently; returns how many."""
    context, settings, held_out = opened.context, opened.settings, opened.held_out
    if not resume and not has_enough_cases(held_out, len(context.study.names)):
        yield from cross_fitted(context, networks, table, opened.labelled, settings)
    student, generator, optimiser = networks.prepare(context, settings)
    first = 0
    if resume:
        first, notes, doubt = load_checkpoint(context.run.path, networks.parts(), optimiser)
        networks.restore(notes, context.run.path)
        if doubt:
            yield Note(level="warning", text=doubt)
    alone = settings.mode == "labelled_only" or not context.study.unlabelled

    def draw(step: int) -> _Batch:
        return _Batch(
            labelled_batch(
                context, opened.labelled, table, settings, _LABELLED, step,
                side_prompts=settings.side_prompts, mirror=networks.mirror, planes=settings.student.block,
            ),
            None if alone else unlabelled_batch(context, table, settings, _UNLABELLED, step, networks.mirror),
        )  # fmt: skip

    clock, means, watch, done = Clock(settings.steps, first), Means(), FiniteWatch(), first
    ahead = Prefetcher(draw, range(first, settings.steps))
    for step, drawn in ahead:
        if context.stop_asked() or networks.waited >= settings.patience:
            break
        losses = yield from _learn(context, networks, student, generator, optimiser, drawn, settings, step)
        update_ema(networks.teacher, networks.student, step, settings.ema_decay)
        update_ema(networks.generator_teacher, networks.generator, step, settings.ema_decay)
        watch.see(step, losses, drawn.labelled.case_ids)
        means.add(losses)
        done = step + 1
        last = done == settings.steps
        if clock.due() or last:
            watch.check()
            found = means.take() | {"waiting for data": round(ahead.waited / max(1e-9, clock.seconds), 4)}
            yield Progress(
                stage="training", step=step + 1, steps=settings.steps, losses=found, seconds_left=clock.left(step + 1)
            )
        if held_out and ((step + 1) % settings.validate_every == 0 or last):
            yield from _validate(context, networks, table, held_out, settings, step + 1)
            if context.accelerator.is_main_process:
                _picture(context, networks, drawn, step + 1)
        if (step + 1) % settings.checkpoint_every == 0 and context.accelerator.is_main_process:
            watch.check()
            save_checkpoint(context.run.path, step + 1, networks.parts(), optimiser, networks.notes())
    return done


def _learn(
    context: Context,
    networks: Networks,
    student: nn.Module,
    generator: nn.Module,
    optimiser: torch.optim.Optimizer,
    drawn: _Batch,
    settings: TrainSettings,
    step: int,
) -> Generator[AnyEvent, None, dict[str, Tensor]]:
    """One update. Where a GPU's memory does not hold the batch it goes through in parts, their gradients summed."""
    while True:
        try:
            optimiser.zero_grad()
            found = _accumulate(context, networks, student, generator, drawn, settings, step)
            break
        except torch.OutOfMemoryError as error:
            size = len(drawn.labelled.image) // networks.batch_parts
            if size < 2 or context.processes > 1:
                raise UserError(
                    f"the GPU's memory does not hold a batch of {size}",
                    remedy="Choose a smaller batch or network, or --device cpu; the last checkpoint is kept.",
                ) from error
            networks.batch_parts *= 2
            torch.cuda.empty_cache()
            yield Note(
                level="warning",
                text=f"The GPU's memory does not hold a batch of {size}: it goes through in halves of {size // 2} from "
                "here on; the effective batch stays the same.",
            )
    context.update([student, generator], optimiser, settings, step, settings.steps)
    return found


def _accumulate(
    context: Context,
    networks: Networks,
    student: nn.Module,
    generator: nn.Module,
    drawn: _Batch,
    settings: TrainSettings,
    step: int,
) -> dict[str, Tensor]:
    """Gradients of one batch, part by part; the mean of each loss."""
    student.train()
    generator.train()
    parts, sums = networks.batch_parts, Means()
    each = -(-len(drawn.labelled.image) // parts)
    targets = None if drawn.unlabelled is None else mixed_targets(networks, drawn.unlabelled, settings, context)
    for part in range(parts):
        torch.manual_seed(int(context.step_rng(settings, _DROPOUT + 100 * part, step).integers(2**62)))  # dropout
        rows = slice(part * each, (part + 1) * each)
        labelled = drawn.labelled.part(rows).to(context.device)
        unlabelled = None if drawn.unlabelled is None else drawn.unlabelled.part(rows).to(context.device)
        own = [target[rows] for target in targets or []]
        losses = step_losses(networks, student, generator, labelled, unlabelled, own, settings, step)
        context.accelerator.backward(torch.stack(list(losses.values())).sum() / parts)
        sums.add(losses)
    return sums.mean()


def mixed_targets(
    networks: Networks, unlabelled: UnlabelledBatch, settings: TrainSettings, context: Context
) -> list[Tensor]:
    """Targets of a whole batch, mixed with the same boxes and neighbours as its strong views.

    They are computed in as many parts as memory asks for; a neighbour may lie in another part.
    """
    parts = []
    for rows in torch.arange(len(unlabelled.weak)).chunk(networks.batch_parts):
        part = unlabelled.part(slice(int(rows[0]), int(rows[-1]) + 1)).to(context.device)
        text = networks.embeddings[part.text] if settings.mode == "text_guided" else None
        parts.append(networks.targets(context, part.weak, text))
    box = unlabelled.box.to(context.device)
    return [mixed(torch.cat(kind), box) for kind in zip(*parts, strict=True)]


def step_losses(
    networks: Networks,
    student: nn.Module,
    generator: nn.Module,
    labelled: LabelledBatch,
    unlabelled: UnlabelledBatch | None,
    targets: list[Tensor],
    settings: TrainSettings,
    step: int,
) -> dict[str, Tensor]:
    """L_sup + what the unlabelled cases teach + the generator's loss, term by term.

    ``targets`` are those of :func:`mixed_targets` for the samples of ``unlabelled``.
    """
    text = networks.embeddings[labelled.text]
    losses: dict[str, Tensor] = {}
    if settings.mask_supervision:
        losses["L_text_generator"], _ = mask_supervision(
            generator, labelled.slab, text, labelled.named, labelled.known, networks.foreground
        )
    if unlabelled is None:
        return losses | {"L_sup": masked_dice_bce(student(labelled.image), labelled.masks, labelled.known, summed)}
    count = len(labelled.image), len(unlabelled.strong)
    on_labelled, on_unlabelled = student(torch.cat([labelled.image, unlabelled.strong])).split(count)
    losses["L_sup"] = masked_dice_bce(on_labelled, labelled.masks, labelled.known, summed)
    trust = settings.unlabelled_weight * consistency_weight(step, settings.steps, settings.ramp_up)
    return losses | _consistency(on_unlabelled, targets, unlabelled.wanted, settings, trust)


def _consistency(
    logits: Tensor, targets: list[Tensor], wanted: Tensor, settings: TrainSettings, trust: float
) -> dict[str, Tensor]:
    """r(k)·L_merged on hard labels, or METHOD's r(k)·⅓·(L_pseudo + L_text + L_merged).

    Without text the teacher's pseudo-label alone carries the weight.
    """
    if settings.targets == "merged":
        hard = (targets[-1] > 0.5).float()  # of teacher, text mask, merge; without text of the teacher
        name = "L_merged" if settings.mode == "text_guided" else "L_pseudo"
        return {name: trust * masked_dice_bce(logits, hard, wanted, summed)}
    pseudo = confident_bce(logits, targets[0], settings.confidence, wanted, summed)
    if settings.mode == "image_only":
        return {"L_pseudo": trust * pseudo}
    _, text_probs, merged_probs = targets
    return {
        "L_pseudo": trust / 3 * pseudo,
        "L_text": trust / 3 * soft_dice_bce(logits, text_probs, wanted, summed),
        "L_merged": trust / 3 * soft_dice_bce(logits, merged_probs, wanted, summed),
    }


def _validate(
    context: Context,
    networks: Networks,
    table: TextTable,
    held_out: list[LabelledCase],
    settings: TrainSettings,
    step: int,
) -> Iterator[AnyEvent]:
    """Dice on cases no network trained on; refits α there when they are enough, and keeps the best weights."""
    found = list(
        case_logits(context, held_out, networks.teacher, networks.generator_teacher, table, networks.embeddings)
    )
    if has_enough_cases(held_out, len(context.study.names)):
        networks.calibration = "validation cases"
        if settings.merge == "gated":
            networks.text_weights = fit_text_weights(found, len(context.study.names))
        networks.expected_dice = fit_expected_dice(found, networks.text_weights)
    dices = mean_dices(found, context.study.names, networks.text_weights)
    networks.keep_if_best(dices)
    yield validation_event(step, dices)
    if networks.waited >= settings.patience and step < settings.steps:
        yield Note(text=f"Stopped after {step} steps: the validation Dice no longer rises.")


def validation_event(step: int, dices: dict[str, dict[str, float]]) -> Validation:
    """Mean Dice by kind of mask as an event."""
    return Validation(step=step, student=dices["student"], text_mask=dices["text_mask"], merged=dices["merged"])


def _before(
    context: Context, model: AmvlmModel | None, held_out: list[LabelledCase], table: TextTable
) -> dict[str, dict[str, float]]:
    """An earlier model's Dice on the validation cases, where it has the same structures and the same image size."""
    names = context.study.names
    if model is None or not isinstance(model.student, Student) or not held_out or model.image_size != context.bank.size:
        return {}
    if [structure.name for structure in model.card.structures] != names:
        return {}
    model.to(context.device).eval()
    embeddings = table.embedded(model.vlm)
    found = list(case_logits(context, held_out, model.student, model.generator, table, embeddings))
    return mean_dices(found, names, [structure.text_weight for structure in model.card.structures])


def _picture(context: Context, networks: Networks, drawn: _Batch, step: int) -> None:
    """What teacher, text mask and their merge say of the batch at hand, as the student is to learn it."""
    if drawn.unlabelled is None:
        return
    shown = drawn.unlabelled.part(slice(0, 8)).to(context.device)
    targets = networks.targets(context, shown.weak, networks.embeddings[shown.text])
    training_picture(context.run.path, shown.weak, targets, step)
