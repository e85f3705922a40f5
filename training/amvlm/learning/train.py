"""``amvlm train``: the text-guided teacher-student network (METHOD §4)."""

from __future__ import annotations

import datetime
from collections.abc import Iterator

import torch
from torch import Tensor

from amvlm.config import TrainSettings
from amvlm.events import AnyEvent, Finished, Note, Progress, Started, Validation
from amvlm.learning.augment import cut_mix, strong_intensity, weak_view
from amvlm.learning.batches import labelled_batch, mirror_some
from amvlm.learning.calibration import case_logits, enough, fit_text_weights, mean_dices
from amvlm.learning.checkpoint import load_checkpoint, save_checkpoint
from amvlm.learning.context import Context, flip_axis_of
from amvlm.learning.cross_fit import cross_fitted_weights
from amvlm.learning.ema import follow
from amvlm.learning.generator_loss import mask_supervision
from amvlm.learning.networks import Networks
from amvlm.learning.noise import CaseNoise
from amvlm.learning.runtime import Clock, Means, choose_precision, start_accelerator
from amvlm.learning.slices import SliceBank
from amvlm.learning.study import (
    LabelledCase,
    Study,
    load_labelled,
    open_study,
    sample_unlabelled,
    snapshot_of_run,
    with_controls,
)
from amvlm.learning.texts import TextTable
from amvlm.losses import confident_bce, consistency_weight, masked_dice_bce, soft_dice_bce
from amvlm.models import AmvlmModel, build_student
from amvlm.store import LabelStore
from amvlm.store.runs import RunFolder


def train(
    store: LabelStore, base: AmvlmModel, settings: TrainSettings, run: RunFolder, name: str, resume: bool = False
) -> Iterator[AnyEvent]:
    """Learn from accepted and absent revisions, and from the rest with their captions; save ``models/<name>``.

    The vision-language model of ``base`` is kept frozen. The generator starts from ``base`` only when that was
    pre-trained, never from an earlier retrain (which drifts); the student always starts afresh.

    Yields
    ------
    Event
        Started, Progress about once a second, Validation, and Finished. Stopping saves the teacher as it is.

    Raises
    ------
    UserError
        If no training case is labelled.
    """
    snapshot = snapshot_of_run(store, run) if resume else None
    study = open_study(store, wanted=settings.structures, snapshot=snapshot)
    study = with_controls(study, settings.captions, settings.seed)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    bank = SliceBank(store, base.image_size)
    for done in bank.prepare(list(study.cases.values())):
        if done % 50 == 0:
            yield Progress(stage="reading images", step=done, steps=len(study.cases))
    labelled = load_labelled(bank, study.names, study.training)
    held_out = load_labelled(bank, study.names, study.validation)
    probe = build_student(settings.student, len(study.names))
    precision = str(run.read_config()["precision"]) if resume else choose_precision(settings, probe, base.image_size)
    context = Context(study, bank, start_accelerator(settings, precision), run, flip_axis_of(study))
    if context.accelerator.is_main_process:
        run.write_config(_config(study, settings, name, base.card.name, precision))
    yield Started(
        job="train", labelled=len(labelled), unlabelled=len(study.unlabelled), validation=len(held_out),
        structures=study.names, steps=settings.steps, device=str(context.device), precision=precision,
    )  # fmt: skip
    yield from _notes(study, held_out, settings)
    table = TextTable(study)
    networks = Networks.fresh(base, settings, labelled, context, table)
    before = _before(context, base, held_out, study, table)
    if before:
        yield validation_event(0, before)
    clock = Clock(settings.steps)
    yield from _loop(context, networks, table, labelled, held_out, settings, resume)
    model = networks.as_model(base, study, settings, name, before, len(labelled))
    model.card = model.card.model_copy(update={"created": datetime.date.today().isoformat()})
    if context.accelerator.is_main_process:
        model.to("cpu").save(store.folder / "models" / name)
        store.record_consumed(run.name, study.snapshot)
    yield Finished(model=name, stopped_early=run.stop_asked(), seconds=clock.seconds)


def _loop(
    context: Context,
    networks: Networks,
    table: TextTable,
    labelled: list[LabelledCase],
    held_out: list[LabelledCase],
    settings: TrainSettings,
    resume: bool,
) -> Iterator[AnyEvent]:
    """The training loop: one step is a labelled and an unlabelled batch, drawn independently."""
    gated = settings.merge == "gated" and settings.mode == "text_guided"
    if gated and not resume and not enough(held_out, len(context.study.names)):
        networks.calibration, networks.text_weights = yield from cross_fitted_weights(
            context, networks, table, labelled, settings
        )
    student, generator, optimiser = networks.prepare(context, settings)
    first = 0
    if resume:
        first, notes = load_checkpoint(context.run.path, networks.parts(), optimiser)
        networks.restore(notes)
    clock, means = Clock(settings.steps, first), Means()
    for step in range(first, settings.steps):
        if context.stop_asked():
            break
        torch.manual_seed(int(context.chance(settings, 9, step).integers(2**62)))  # dropout
        batch = labelled_batch(context, labelled, table, settings, 2, step, mirror=networks.mirror)
        text, image, masks, known = networks.embeddings[batch.text], batch.image, batch.masks, batch.known
        student.train()
        generator.train()
        losses: dict[str, Tensor] = {}
        losses["L_text_generator"], _ = mask_supervision(generator, image, text, masks, known, networks.foreground)
        if settings.mode == "labelled_only" or not context.study.unlabelled:
            losses["L_sup"] = masked_dice_bce(student(image), masks, known)
        else:
            rng = context.chance(settings, 3, step)
            pairs, wanted = sample_unlabelled(context.study, context.bank, settings.batch_size, rng)
            mine = context.share(settings.batch_size)
            case_ids, wanted = [case_id for case_id, _ in pairs], wanted[mine]
            mirrored = mirror_some(context, CaseNoise((settings.seed, 3, step), case_ids), networks.mirror)
            seen = networks.embeddings[table.rows(case_ids, rng, mirrored.tolist())[mine]]
            noise = CaseNoise((settings.seed, 3, step, 1), case_ids, mine)
            slabs = context.bank.slabs(pairs[mine]).to(context.device)
            weak, _ = weak_view(slabs, None, noise, mirrored[mine], context.flip_axis or 2)
            targets = networks.targets(context, weak, seen)
            strong, targets = cut_mix(strong_intensity(weak, noise), targets, noise)
            on_labelled, on_unlabelled = student(torch.cat([image, strong])).split([len(image), len(strong)])
            losses["L_sup"] = masked_dice_bce(on_labelled, masks, known)
            trust = consistency_weight(step, settings.steps, settings.ramp_up)
            losses |= _consistency(on_unlabelled, targets, wanted.to(context.device), settings, trust)
        total = torch.stack(list(losses.values())).sum()
        context.optimise(total, [student, generator], optimiser, settings, step, settings.steps)
        follow(networks.teacher, networks.student, step, settings.ema_decay)
        follow(networks.generator_teacher, networks.generator, step, settings.ema_decay)
        means.add(losses)
        if clock.due() or step + 1 == settings.steps:
            yield Progress(
                stage="training",
                step=step + 1,
                steps=settings.steps,
                losses=means.take(),
                seconds_left=clock.left(step + 1),
            )
        if held_out and ((step + 1) % settings.validate_every == 0 or step + 1 == settings.steps):
            yield _validate(context, networks, table, held_out, settings, step + 1)
        if (step + 1) % settings.checkpoint_every == 0 and context.accelerator.is_main_process:
            save_checkpoint(context.run.path, step + 1, networks.parts(), optimiser, networks.notes())


def _consistency(
    logits: Tensor, targets: list[Tensor], wanted: Tensor, settings: TrainSettings, trust: float
) -> dict[str, Tensor]:
    """r(k)·⅓·(L_pseudo + L_text + L_merged); without text the pseudo-label alone carries the weight."""
    teacher_probs, text_probs, merged_probs = targets
    pseudo = confident_bce(logits, teacher_probs, settings.confidence, wanted)
    if settings.mode == "image_only":
        return {"L_pseudo": trust * pseudo}
    return {
        "L_pseudo": trust / 3 * pseudo,
        "L_text": trust / 3 * soft_dice_bce(logits, text_probs, wanted),
        "L_merged": trust / 3 * soft_dice_bce(logits, merged_probs, wanted),
    }


def _validate(
    context: Context,
    networks: Networks,
    table: TextTable,
    held_out: list[LabelledCase],
    settings: TrainSettings,
    step: int,
) -> Validation:
    """Dice on cases no network trained on; refits α there when they are enough, and keeps the best weights."""
    found = list(
        case_logits(context, held_out, networks.teacher, networks.generator_teacher, table, networks.embeddings)
    )
    if settings.merge == "gated" and enough(held_out, len(context.study.names)):
        networks.calibration = "validation cases"
        networks.text_weights = fit_text_weights(found, len(context.study.names))
    dices = mean_dices(found, context.study.names, networks.text_weights)
    networks.keep_if_best(dices)
    return validation_event(step, dices)


def validation_event(step: int, dices: dict[str, dict[str, float]]) -> Validation:
    """Mean Dice by kind of mask as an event."""
    return Validation(step=step, student=dices["student"], text_mask=dices["text_mask"], merged=dices["merged"])


def _before(
    context: Context, base: AmvlmModel, held_out: list[LabelledCase], study: Study, table: TextTable
) -> dict[str, dict[str, float]]:
    """The base model's Dice on the validation cases, where it knows the same structures."""
    known = [structure.name for structure in base.card.structures]
    if base.student is None or known != study.names or not held_out:
        return {}
    base.to(context.device).eval()
    with torch.no_grad():
        embeddings = base.vlm.embed_prompt(table.texts)
    found = list(case_logits(context, held_out, base.student, base.generator, table, embeddings))
    return mean_dices(found, study.names, [structure.text_weight for structure in base.card.structures])


def _notes(study: Study, held_out: list[LabelledCase], settings: TrainSettings) -> Iterator[Note]:
    if not study.captions and settings.mode == "text_guided":
        yield Note(text="No reports: each structure's own prompt is used as the text of every case.")
    if not held_out:
        yield Note(
            level="warning",
            text="No validation case is labelled, so the last weights are kept and quality is not measured. "
            "Accept a few cases of the validation split.",
        )
    if not study.unlabelled and settings.mode != "labelled_only":
        yield Note(text="Every training case is labelled: there is nothing left to learn from without labels.")


def _config(study: Study, settings: TrainSettings, name: str, base: str, precision: str) -> dict[str, object]:
    return {
        "job": "train",
        "model": name,
        "base": base,
        "settings": settings.model_dump(mode="json"),
        "precision": precision,
        "revisions": [revision.revision_id for revision in study.snapshot.revisions],
        "data_fingerprint": study.fingerprint,
    }
