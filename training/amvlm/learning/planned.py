"""``amvlm train --minutes``: a student that fits the study, by its plan (METHOD §8)."""

from __future__ import annotations

import copy
import dataclasses
import datetime
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from amvlm.config import GeneratorSettings, PlannedTextSettings, TrainSettings
from amvlm.events import AnyEvent, Finished, Note, Progress, Validation
from amvlm.learning.before import dices_before
from amvlm.learning.calibration import enough, fit_expected_dice, fit_text_weights, mean_dices
from amvlm.learning.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from amvlm.learning.fitting import Phase, answer, case_dices, fit, optimiser_of, pseudo_labelled
from amvlm.learning.patches import PreparedCase
from amvlm.learning.planned_opening import PlannedRun, open_planned
from amvlm.learning.planned_text import TEXT_SHARE, PlannedText, on_plan_grid, teach_text
from amvlm.learning.runtime import Clock, FiniteWatch, Means
from amvlm.learning.study import LabelledCase
from amvlm.models import AmvlmModel, build_generator
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
        If no training case is labelled, the minutes are too few, or the run began with another plan's version.
    """
    opened = yield from open_planned(store, base, settings, run, name, resume)
    context, plan = opened.context, opened.plan
    clock = Clock(plan.steps)
    before = dices_before(previous, context.study, plan, opened.held_out, context.device)
    if before:
        yield Validation(step=0, student=before["student"], text_mask=before["text_mask"], merged={})
    student = yield from _student(opened, resume)
    text = yield from _text(opened, base, resume)
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


def _student(opened: PlannedRun, resume: bool) -> Generator[AnyEvent, None, PlannedStudent | None]:
    """All phases of the student, from the newest checkpoint of a resumed run; None if no step was made."""
    plan, context = opened.plan, opened.context
    torch.manual_seed(opened.settings.seed)
    student = PlannedStudent(plan)
    student.to(context.device, memory_format=_memory(plan))  # type: ignore[call-overload]
    first = copy.deepcopy(student)
    optimiser = optimiser_of(student)
    folder, done = context.run.path / "student", 0
    if resume and checkpoints(folder):
        done, _, doubt = load_checkpoint(folder, {"student": student, "first": first}, optimiser)
        if doubt:
            yield Note(level="warning", text=doubt)
    lengths = _lengths(plan)
    for number, length in enumerate(lengths):
        before = sum(lengths[:number])
        step = max(0, done - before)
        if step >= length:
            continue
        if number > 0 and step == 0:
            first.load_state_dict(student.state_dict())
            optimiser = optimiser_of(student)
        if context.stop_asked():
            break
        groups = [(opened.labelled, plan.batch_size)]
        if number > 0:
            pseudo = yield from _pseudo(opened, first)
            half = round(PSEUDO_SHARE * plan.batch_size)
            groups = [(opened.labelled, plan.batch_size - half), (pseudo, half)]
        parts = {"student": student, "first": first}
        phase = Phase(number, length, groups)
        done = before + (yield from _run(opened, student, phase, optimiser, parts, step, before))
    return student.eval() if done else None


def _run(
    opened: PlannedRun, student: PlannedStudent, phase: Phase, optimiser: torch.optim.Optimizer,
    parts: dict[str, Any], first: int, before: int,
) -> Generator[AnyEvent, None, int]:  # fmt: skip
    """One phase: progress, a look at some validation cases now and then, checkpoints; returns its steps so far."""
    context, total = opened.context, opened.plan.steps
    broken = opened.plan.dimensions == 3 and context.device.type == "cpu"  # torch's bf16 gradients are wrong there
    bf16 = context.accelerator.mixed_precision == "bf16" and not broken
    clock, means, watch = Clock(total, before + first), Means(), FiniteWatch()
    look = max(1, phase.steps // _LOOKS)
    for step, loss in fit(student, phase, optimiser, opened.settings.seed, first, bf16, context.stop_asked):
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
            yield Validation(step=done, student=_dices(opened, student, cases), text_mask={}, merged={})
        if (step + 1) % opened.settings.checkpoint_every == 0 or last:
            watch.check()
            save_checkpoint(context.run.path / "student", done, parts, optimiser, {})
        first = step + 1
    return first


def _pseudo(opened: PlannedRun, first: PlannedStudent) -> Generator[AnyEvent, None, list[PreparedCase]]:
    """What the labelled-only network says of the unlabelled scans, judged structures kept as they are."""
    study, found = opened.context.study, []
    for done, case_id in enumerate(study.unlabelled):
        if opened.context.stop_asked():
            break
        case = opened.prepared.case(case_id, study.training.get(case_id, {}))
        missing = np.array([float(name in study.missing[case_id]) for name in study.names], np.float32)
        found.append(pseudo_labelled(first, case, missing))
        yield Progress(stage="labelling the other scans", step=done + 1, steps=len(study.unlabelled))
    return found or list(opened.labelled)


def _dices(opened: PlannedRun, student: PlannedStudent, cases: Sequence[PreparedCase]) -> dict[str, float]:
    table = np.array([case_dices(answer(student, case), case) for case in cases])
    means = {name: table[:, s][~np.isnan(table[:, s])] for s, name in enumerate(opened.plan.structures)}
    return {name: round(float(dices.mean()), 4) for name, dices in means.items() if len(dices)}


def _text(opened: PlannedRun, base: AmvlmModel, resume: bool) -> Generator[AnyEvent, None, PlannedText]:
    """The text mask, on the plan's grid like the student; the vision-language model reads the judged scans once."""
    context, study, settings = opened.context, opened.context.study, opened.settings
    torch.manual_seed(settings.seed)
    text = PlannedText.fresh(base, opened.plan, settings, study, opened.labelled, context.device)
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
    if not enough(judged, len(names)):
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
    if enough(judged, len(names)):
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


def _memory(plan: Plan) -> torch.memory_format:
    return torch.channels_last if plan.dimensions == 2 else torch.contiguous_format
