"""How a run by minutes begins: machine, fingerprint, plan, and the study on the plan's grid."""

from __future__ import annotations

import os
from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from amvlm.config import StudentSettings, TrainSettings
from amvlm.errors import UserError
from amvlm.events import AnyEvent, Note, Progress, Started
from amvlm.learning.context import Context, flip_axis_of
from amvlm.learning.fingerprinting import fingerprint_of, measured_machine
from amvlm.learning.going_on import widths_to_keep
from amvlm.learning.patches import PreparedCase
from amvlm.learning.planned_text import text_steps
from amvlm.learning.prepared import PreparedStudy
from amvlm.learning.runtime import chosen_device, fastest, gpu_precision, start_accelerator
from amvlm.learning.slices import SliceBank
from amvlm.learning.study import Study, open_study, snapshot_of_run, with_controls
from amvlm.models import AmvlmModel
from amvlm.models.half_unet import HalfUNet
from amvlm.models.planned import read_plan
from amvlm.planning import Fingerprint, Plan, make_plan
from amvlm.store import LabelStore, Revision
from amvlm.store.runs import RunConfig, RunFolder, process_rank


@dataclass(frozen=True)
class PlannedRun:
    """A planned run ready to train."""

    settings: TrainSettings
    plan: Plan
    context: Context
    prepared: PreparedStudy
    labelled: list[PreparedCase]
    held_out: list[PreparedCase]
    generator_steps: int

    def unjudged(self, case_id: str) -> tuple[PreparedCase, NDArray[np.float32]]:
        """A case of which not every structure is judged, and which of them (S,) may be learned from a network."""
        study = self.context.study
        missing = np.array([float(name in study.missing[case_id]) for name in study.names], np.float32)
        return self.prepared.case(case_id, study.training.get(case_id, {})), missing


def open_planned(
    store: LabelStore, base: AmvlmModel, settings: TrainSettings, run: RunFolder, name: str, resume: bool
) -> Generator[AnyEvent, None, PlannedRun]:
    if process_rank() > 0 or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("a training by minutes runs in one process", remedy="Leave torchrun out, or give --steps.")
    known = run.read_config() if resume else None
    if known is not None and known.base_fingerprint not in ("", base.fingerprint):
        raise UserError(
            f"this run began with another model than this {base.card.name!r}", file=run.path,
            remedy="Name the one that it began with: --model FOLDER",
        )  # fmt: skip
    study = open_study(store, wanted=settings.structures, snapshot=snapshot_of_run(store, run) if resume else None)
    study = with_controls(study, settings.captions, settings.seed)
    torch.manual_seed(settings.seed)
    precision, threads = _compute(settings) if known is None else (str(known.precision), known.threads)
    torch.set_num_threads(threads or torch.get_num_threads())
    accelerator = start_accelerator(settings, precision)
    plan: Plan = yield from _plan_of(known, run, study, base, settings, accelerator.device, precision)
    bank = SliceBank(store, base.image_size, plan.axis)
    prepared = PreparedStudy(store, plan)
    for done in prepared.prepare(list(study.cases.values())):
        if done % 10 == 0:
            yield Progress(stage="reading images", step=done, steps=len(study.cases))
    context = Context(study, bank, accelerator, run, flip_axis_of(study))
    generator_steps = text_steps(context, base, plan, settings) if known is None else known.generator_steps
    if known is None:
        run.write_config(
            {
                "job": "train", "model": name, "base": base.card.name, "base_fingerprint": base.fingerprint,
                "settings": settings.for_the_record().model_dump(mode="json"), "plan": plan.model_dump(mode="json"),
                "generator_steps": generator_steps, "precision": precision, "threads": threads,
                "data_fingerprint": study.fingerprint,
                "revisions": [revision.revision_id for revision in study.snapshot.revisions],
            }
        )  # fmt: skip
    opened = PlannedRun(
        settings, plan, context, prepared, _judged(prepared, study, study.training),
        _judged(prepared, study, study.validation), generator_steps,
    )  # fmt: skip
    yield Started(
        job="train", labelled=len(opened.labelled), unlabelled=len(study.unlabelled),
        validation=len(opened.held_out), structures=study.names, steps=plan.steps, device=str(context.device),
        precision=precision, minutes=plan.minutes,
    )  # fmt: skip
    yield Note(text=f"The plan: {plan.sentence()}.")
    for reason in plan.reasons:
        if reason.notable:
            yield Note(level="warning", text=f"{reason.choice.capitalize()}: {reason.value} ({reason.why}).")
    if settings.student != StudentSettings():
        yield Note(level="warning", text="The plan chooses the network: what was set for the student is not used.")
    return opened


def fingerprint_of_store(store: LabelStore, settings: TrainSettings) -> Fingerprint:
    """The study and this machine in numbers, as a run would measure them now."""
    precision, threads = _compute(settings)
    torch.set_num_threads(threads)
    device = chosen_device(settings)
    study = open_study(store, wanted=settings.structures)
    steps = fingerprint_of(study, settings.minutes, measured_machine(device, precision))
    while True:
        try:
            next(steps)
        except StopIteration as end:
            facts: Fingerprint = end.value
            return facts


def planned(
    study: Study, base: AmvlmModel, settings: TrainSettings, device: torch.device, precision: str
) -> Generator[AnyEvent, None, Plan]:
    """The study's plan on this machine."""
    facts = yield from fingerprint_of(study, settings.minutes, measured_machine(device, precision))
    known = widths_to_keep(base, study.names, settings)
    return plan_for(facts.model_copy(update={"known_widths": known}), settings)


def plan_for(facts: Fingerprint, settings: TrainSettings) -> Plan:
    """The plan, less what the settings leave out."""
    plan = make_plan(facts)
    if settings.mode == "two_stage" and facts.unlabelled:
        return plan.model_copy(update={"recipe": "two_phase"})
    return plan.model_copy(update={"recipe": "labelled"}) if settings.mode == "labelled_only" else plan


def _judged(prepared: PreparedStudy, study: Study, by_case: dict[str, dict[str, Revision]]) -> list[PreparedCase]:
    return [prepared.case(c, own) for c, own in by_case.items() if any(name in own for name in study.names)]


def _plan_of(
    known: RunConfig | None,
    run: RunFolder,
    study: Study,
    base: AmvlmModel,
    settings: TrainSettings,
    device: torch.device,
    precision: str,
) -> Generator[AnyEvent, None, Plan]:
    """A new plan, or the one that a resumed run began with."""
    if known is None:
        return (yield from planned(study, base, settings, device, precision))
    if known.plan is None:
        raise UserError("this run has no plan to go on with", file=run.path, remedy="Start a new run.")
    plan = read_plan(known.plan, run.path)
    if list(plan.structures) != study.names:
        raise UserError("this run's plan names other structures", file=run.path, remedy="Start a new run.")
    return plan


def _compute(settings: TrainSettings) -> tuple[str, int]:
    """Precision and CPU threads: what the settings say, else measured on a CPU, bf16 or fp16 on a GPU."""
    threads = settings.threads or torch.get_num_threads()
    device = chosen_device(settings)
    if device.type != "cpu":
        return gpu_precision(settings, device), threads
    precisions: list[str] = ["fp32", "bf16"] if settings.precision == "auto" else [settings.precision]
    counts = [threads] if settings.threads or threads == 1 else [threads, 1]
    if len(precisions) * len(counts) == 1:
        return precisions[0], counts[0]
    network = HalfUNet(1, 2).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return fastest(network, torch.randn(2, 1, 64, 64), precisions, counts)
