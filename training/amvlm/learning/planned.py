"""``amvlm train --minutes``: a student that fits the study, by its plan (METHOD §8)."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Generator, Iterator, Sequence

import numpy as np
import torch

from amvlm.config import GeneratorSettings, PlannedTextSettings, TrainSettings
from amvlm.errors import UserError
from amvlm.events import AnyEvent, Finished, Note, Progress, Validation
from amvlm.learning.before import dices_before
from amvlm.learning.calibration import fit_expected_dice, fit_text_weights, has_enough_cases, mean_dices
from amvlm.learning.fitting import Learner, Phase, answer, case_dices, pseudo_labelled
from amvlm.learning.going_on import known_text, start_student
from amvlm.learning.patches import PreparedCase
from amvlm.learning.planned_opening import PlannedRun, open_planned
from amvlm.learning.planned_text import TEXT_SHARE, PlannedText, on_plan_grid, teach_text
from amvlm.learning.runtime import Clock, FiniteWatch, Means
from amvlm.learning.study import LabelledCase
from amvlm.learning.two_stage import soft_phase
from amvlm.models import AmvlmModel, build_generator
from amvlm.models.half_unet import HalfUNet
from amvlm.models.planned import PlannedStudent
from amvlm.planning import Plan
from amvlm.store import LabelStore
from amvlm.store.folders import model_target
from amvlm.store.runs import RunFolder

FIRST_PHASE = 0.4
PSEUDO_SHARE = 0.5
_LOOKS = 5
_LOOKED_AT = 8


def train_planned(
    store: LabelStore,
    base: AmvlmModel,
    settings: TrainSettings,
    run: RunFolder,
    name: str,
    resume: bool = False,
    previous: AmvlmModel | None = None,
) -> Generator[AnyEvent, None, None]:
    """Fingerprint, plan, student, text mask; save ``models/<name>``.

    Yields
    ------
    Event
        Started after the plan, Progress, Validation on the plan's grid, and Finished.

    Raises
    ------
    UserError
        If no training case is labelled, the minutes are too few, the run began with another plan's version, or a GPU's
        memory does not hold a stage.
    """
    try:
        yield from _trained(store, base, settings, run, name, resume, previous)
    except torch.OutOfMemoryError as error:
        raise UserError(
            "the GPU's memory does not hold this training", file=run.path,
            remedy="Choose --device cpu, or end what else runs on the GPU; go on with --resume.",
        ) from error  # fmt: skip


def _trained(
    store: LabelStore, base: AmvlmModel, settings: TrainSettings, run: RunFolder, name: str, resume: bool,
    previous: AmvlmModel | None,
) -> Iterator[AnyEvent]:  # fmt: skip
    opened = yield from open_planned(store, base, settings, run, name, resume)
    context, plan = opened.context, opened.plan
    clock = Clock(plan.steps)
    before = dices_before(previous, context.study, plan, opened.held_out, context.device)
    if before:
        yield Validation(step=0, student=before["student"], text_mask=before["text_mask"], merged={})
    student, text = yield from _student(opened, base, resume)
    if text is None:
        text = yield from _text(opened, base, student, resume)
    if student is None:
        yield Note(level="warning", text=f"Stopped before the first step: {name} makes no prediction.")
    else:
        yield from _calibrate(opened, text, student)
    model = text.as_model(context.study, settings, name, before, len(opened.labelled))
    card = model.card.model_copy(update={"created": datetime.date.today().isoformat()})
    if student is None:
        model = _without_steps(base, model)
    else:
        model = dataclasses.replace(model, student=student, plan=plan)
    model = dataclasses.replace(model, card=card)
    model.to("cpu").save(model_target(store.folder, name))
    store.record_consumed(run.name, context.study.snapshot)
    yield Finished(model=name, stopped_early=run.stop_asked(), seconds=clock.seconds)


def _student(
    opened: PlannedRun, base: AmvlmModel, resume: bool
) -> Generator[AnyEvent, None, tuple[PlannedStudent | None, PlannedText | None]]:
    """All phases of the student, from the newest checkpoint of a resumed run; None if no step was made.

    In two stages the text mask is taught between them, and comes along.
    """
    plan, context = opened.plan, opened.context
    mixed = str(context.accelerator.mixed_precision)
    broken = plan.dimensions == 3 and context.device.type == "cpu"  # torch's bf16 gradients are wrong there
    precision = "fp32" if mixed == "no" or broken else mixed
    learner, done = Learner(plan, context.device, precision, opened.settings.seed, context.run.path / "student"), 0
    restored = learner.load() if resume else None
    if restored is None and start_student(learner.student, base, opened.settings):
        yield Note(text=f"Training goes on from {base.card.name}.")
    if restored is not None:
        done = restored.step
        if restored.doubt:
            yield Note(level="warning", text=restored.doubt)
    lengths, text = _lengths(plan), None
    for number, length in enumerate(lengths):
        before = sum(lengths[:number])
        step = max(0, done - before)
        if step >= length:
            continue
        if number > 0 and step == 0:
            learner.next_phase()
        if context.stop_asked():
            break
        phase: Phase | None = Phase(number, length, [(opened.labelled, plan.batch_size)])
        if number > 0 and opened.settings.mode == "two_stage":
            text = yield from _text(opened, base, learner.first, resume)
            phase = yield from soft_phase(opened, text, learner.first, length)
        elif number > 0:
            phase = None
        if phase is None:
            pseudo = yield from _pseudo(opened, learner.first)
            half = round(PSEUDO_SHARE * plan.batch_size)
            phase = Phase(number, length, [(opened.labelled, plan.batch_size - half), (pseudo, half)])
        done = before + (yield from _run(opened, learner, phase, step, before))
    return (learner.student.eval() if done else None), text


def _run(
    opened: PlannedRun, learner: Learner, phase: Phase, first: int, before: int
) -> Generator[AnyEvent, None, int]:
    """One phase: progress, a look at some validation cases now and then, checkpoints; returns its steps so far."""
    context, total = opened.context, opened.plan.steps
    clock, means, watch = Clock(total, before + first), Means(), FiniteWatch()
    look = max(1, phase.steps // _LOOKS)
    for step, loss in learner.fit(phase, first, context.stop_asked):
        done, last = before + step + 1, step + 1 == phase.steps
        losses = {"Dice + CE": loss}
        watch.see(step, losses, [])
        means.add(losses)
        if clock.due() or last:
            watch.check()
            yield Progress(
                stage="training" if phase.number == 0 else "training on all scans", step=done, steps=total,
                losses=means.take(), seconds_left=_left(clock, done, opened.plan),
            )  # fmt: skip
        if opened.held_out and ((step + 1) % look == 0 or last):
            cases = opened.held_out if last else opened.held_out[:: max(1, len(opened.held_out) // _LOOKED_AT)]
            yield Validation(step=done, student=_dices(opened, learner.student, cases), text_mask={}, merged={})
        if (step + 1) % opened.settings.checkpoint_every == 0 or last:
            watch.check()
            learner.save(done)
        first = step + 1
    return first


def _pseudo(opened: PlannedRun, first: PlannedStudent) -> Generator[AnyEvent, None, list[PreparedCase]]:
    """What the labelled-only network says of the unlabelled scans, judged structures kept as they are."""
    study, found = opened.context.study, []
    for done, case_id in enumerate(study.unlabelled):
        if opened.context.stop_asked():
            break
        found.append(pseudo_labelled(first, *opened.unjudged(case_id)))
        yield Progress(stage="labelling the other scans", step=done + 1, steps=len(study.unlabelled))
    return found or list(opened.labelled)


def _dices(opened: PlannedRun, student: PlannedStudent, cases: Sequence[PreparedCase]) -> dict[str, float]:
    table = np.array([case_dices(answer(student, case), case) for case in cases])
    means = {name: table[:, s][~np.isnan(table[:, s])] for s, name in enumerate(opened.plan.structures)}
    return {name: round(float(dices.mean()), 4) for name, dices in means.items() if len(dices)}


def _text(
    opened: PlannedRun, base: AmvlmModel, student: PlannedStudent | None, resume: bool
) -> Generator[AnyEvent, None, PlannedText]:
    """The text mask, on the plan's grid like the student, and from what the student knows of images; the
    vision-language model reads the judged scans once."""
    context, study, settings = opened.context, opened.context.study, opened.settings
    torch.manual_seed(settings.seed)
    text = PlannedText.fresh(base, opened.plan, settings, study, opened.labelled, context.device)
    if (known := known_text(base, text.network, settings)) is not None:
        text.network.load_state_dict(known.state_dict())
    elif student is not None and isinstance(student.network, HalfUNet):
        text.network.start_from(student.network)
    if text.network.reads_patches:
        judged = [case.case_id for case in (*opened.labelled, *opened.held_out)]
        for done in text.patches.prepare(judged):
            if context.stop_asked():
                break
            if done % 10 == 0:
                yield Progress(stage="reading images for the text mask", step=done, steps=len(judged))
    yield from teach_text(context, text, opened.labelled, settings, opened.generator_steps, resume)
    return text


def _without_steps(base: AmvlmModel, model: AmvlmModel) -> AmvlmModel:
    """What is left of a run that made no step: the base's text mask, on the encoder's square."""
    generator, form = base.generator, base.generator_settings
    if isinstance(form, PlannedTextSettings):  # it would need the base's plan, and its prediction with it
        form = GeneratorSettings()
        generator = build_generator(form, model.vlm, model.prior)
    return dataclasses.replace(model, generator=generator, generator_settings=form, plan=None)


def _calibrate(opened: PlannedRun, text: PlannedText, student: PlannedStudent) -> Iterator[AnyEvent]:
    """α and what the signs of quality foretell, on validation cases; where those are fewer than five both are unknown,
    and the merged mask is the prediction alone: a text mask that nobody measured must not hurt."""
    names = opened.context.study.names
    judged = [
        LabelledCase(case.case_id, [case.mask(s).astype(np.uint8) for s in range(len(names))], case.known)
        for case in opened.held_out
    ]
    if not has_enough_cases(judged, len(names)):
        yield Note(
            level="warning",
            text="Fewer than five validation cases are labelled: quality is unknown, and the merged mask is the "
            "prediction alone. Accept a few cases of the validation split.",
        )
    if not judged:
        return
    found = []
    for done, (case, own) in enumerate(zip(opened.held_out, judged, strict=True)):
        found.append(on_plan_grid(text, student, case, own))
        yield Progress(stage="measuring", step=done + 1, steps=len(judged))
    if has_enough_cases(judged, len(names)):
        text.calibration = "validation cases"
        if opened.settings.merge == "gated":
            text.text_weights = fit_text_weights(found, len(names))
        else:
            text.text_weights = [0.5] * len(names)
        text.expected_dice = fit_expected_dice(found, text.text_weights)
    dices = text.dices = mean_dices(found, names, text.text_weights)
    yield Validation(
        step=opened.plan.steps, student=dices["student"], text_mask=dices["text_mask"], merged=dices["merged"]
    )


def _left(clock: Clock, done: int, plan: Plan) -> float | None:
    """Seconds to the end of the run: the student's, and the text mask's share after it."""
    student = clock.left(done)
    return None if student is None else student + 60 * TEXT_SHARE * plan.minutes


def _lengths(plan: Plan) -> list[int]:
    if plan.recipe == "labelled":
        return [plan.steps]
    first = round(FIRST_PHASE * plan.steps)
    return [first, plan.steps - first]

