"""How a training run begins: its snapshot, its slices, where it computes, and what is missing."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass

import torch

from amvlm.config import StudentSettings, TrainSettings
from amvlm.errors import UserError
from amvlm.events import AnyEvent, Note, Progress, Started
from amvlm.learning.context import Context, flip_axis_of
from amvlm.learning.runtime import choose_compute, start_accelerator
from amvlm.learning.slices import SliceBank
from amvlm.learning.study import (
    LabelledCase,
    Study,
    load_labelled,
    open_study,
    snapshot_of_run,
    with_controls,
)
from amvlm.models import AmvlmModel, build_student
from amvlm.store import LabelStore
from amvlm.store.folders import model_target
from amvlm.store.runs import RunFolder


@dataclass(frozen=True)
class RunSetup:
    """A run ready to train; ``settings`` are complete (the student's slice spacing measured)."""

    settings: TrainSettings
    context: Context
    labelled: list[LabelledCase]
    held_out: list[LabelledCase]


def open_run(
    store: LabelStore, base: AmvlmModel, settings: TrainSettings, run: RunFolder, name: str, resume: bool
) -> Generator[AnyEvent, None, RunSetup]:
    """Take the snapshot (a resumed run: its own), make slices, choose precision and threads, write the run's config."""
    model_target(store.folder, name)
    snapshot = snapshot_of_run(store, run) if resume else None
    study = open_study(store, wanted=settings.structures, snapshot=snapshot)
    study = with_controls(study, settings.captions, settings.seed)
    torch.manual_seed(settings.seed)
    bank = SliceBank(store, base.image_size)
    for done in bank.prepare(list(study.cases.values())):
        run.check_not_stopped()
        if done % 50 == 0:
            yield Progress(stage="reading images", step=done, steps=len(study.cases))
    chosen = {"student": _fitted(settings.student, study, bank), "mode": _mode(settings, study)}
    settings = settings.model_copy(update=chosen)
    labelled = load_labelled(bank, study.names, study.training)
    held_out = load_labelled(bank, study.names, study.validation)
    if resume:
        known = run.read_config()
        if known.base_fingerprint not in ("", base.fingerprint):
            raise UserError(
                f"this run began with another model than this {base.card.name!r}",
                file=run.path,
                remedy="Name the one that it began with: --model FOLDER",
            )
        precision, threads = str(known.precision), known.threads or torch.get_num_threads()
    else:
        precision, threads = choose_compute(settings, build_student(settings.student, len(study.names)), bank.size)
    torch.set_num_threads(threads)
    context = Context(study, bank, start_accelerator(settings, precision), run, flip_axis_of(study))
    if context.accelerator.is_main_process:
        run.write_config(
            {
                "job": "train", "model": name, "base": base.card.name, "base_fingerprint": base.fingerprint,
                "settings": settings.for_the_record().model_dump(mode="json"),
                "precision": precision, "threads": threads, "data_fingerprint": study.fingerprint,
                "revisions": [revision.revision_id for revision in study.snapshot.revisions],
            }
        )  # fmt: skip
    yield Started(
        job="train", labelled=len(labelled), unlabelled=len(study.unlabelled), validation=len(held_out),
        structures=study.names, steps=settings.steps, device=str(context.device), precision=precision,
    )  # fmt: skip
    yield from _notes(study, held_out, settings)
    return RunSetup(settings, context, labelled, held_out)


def _mode(settings: TrainSettings, study: Study) -> str:
    """What "auto" means here: without a caption the text says nothing of a case."""
    if settings.mode != "auto":
        return settings.mode
    return "text_guided" if study.captions else "image_only"


def _fitted(student: StudentSettings, study: Study, bank: SliceBank) -> StudentSettings:
    """A 3-D student for this study: the median slice spacing, unless given.

    Raises
    ------
    UserError
        If the images are no volumes.
    """
    if student.dimensions == 2:
        return student
    if study.planar or any(bank.coloured(case_id) for case_id in study.cases):
        raise UserError("a 3-D student needs grey volumes; this study holds pictures", remedy="Choose 2 dimensions.")
    if student.slice_ratio:
        return student
    ratios = sorted(bank.slice_ratio(case_id) for case_id in list(study.cases)[:: max(1, len(study.cases) // 32)])
    return student.model_copy(update={"slice_ratio": round(ratios[len(ratios) // 2], 3)})


def _notes(study: Study, held_out: list[LabelledCase], settings: TrainSettings) -> Iterator[Note]:
    if not study.captions and settings.mode == "text_guided":
        yield Note(text="No captions: each structure's own prompt is used as the text of every case.")
    elif not study.captions and settings.mode == "image_only":
        yield Note(text="No captions: unlabelled cases are learned from by their images alone (image-only).")
    if not held_out:
        yield Note(
            level="warning",
            text="No validation case is labelled, so the last weights are kept and quality is not measured. "
            "Accept a few cases of the validation split.",
        )
    if not study.unlabelled and settings.mode != "labelled_only":
        yield Note(text="Every training case is labelled: there is nothing left to learn from without labels.")
