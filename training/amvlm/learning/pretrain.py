"""``amvlm pretrain``: align images with captions, then teach the text mask generator."""

from __future__ import annotations

import datetime
from collections.abc import Generator, Iterator

import numpy as np
import torch

from amvlm.config import PretrainSettings, StudentSettings
from amvlm.errors import UserError
from amvlm.events import AnyEvent, Finished, Note, Progress, Started
from amvlm.learning.align import align
from amvlm.learning.captioned import CaptionedImages
from amvlm.learning.context import Context, flip_axis_of
from amvlm.learning.locked import LockedTowers
from amvlm.learning.runtime import Clock, choose_compute, start_accelerator
from amvlm.learning.slices import SliceBank
from amvlm.learning.study import (
    LabelledCase,
    Study,
    load_labelled,
    open_study,
    priors,
    snapshot_of_run,
    with_controls,
)
from amvlm.learning.teach import teach_generator
from amvlm.learning.texts import shared_words
from amvlm.models import AmvlmModel, KnownStructure, ModelCard, VisionLanguageModel, build_generator, build_student
from amvlm.models.generator import FrozenLinear
from amvlm.store import LabelStore
from amvlm.store.folders import model_target
from amvlm.store.runs import RunFolder
from amvlm.text import names_a_place


def pretrain(
    store: LabelStore,
    settings: PretrainSettings,
    run: RunFolder,
    name: str,
    resume: bool = False,
    base: AmvlmModel | None = None,
) -> Iterator[AnyEvent]:
    """Pre-train on a store and save ``models/<name>``; yields typed events.

    With ``base`` the vision-language model starts from it; with 0 contrastive steps only the generator is taught anew,
    as after more labels. Captions of validation cases serve the validation loss alone, those of test cases nothing.

    Raises
    ------
    UserError
        If the store holds neither a caption nor a labelled case; if a loss becomes NaN (the last checkpoint is kept).
    """
    target = model_target(store.folder, name)
    if base is not None:
        settings = settings.model_copy(update={"encoders": base.vlm.settings})
    study = open_study(store, snapshot=snapshot_of_run(store, run) if resume else None, need_labels=False)
    study = with_controls(study, settings.captions, settings.seed)
    if settings.any_orientation:
        _refuse_places(study)
    torch.manual_seed(settings.seed)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    vlm = VisionLanguageModel(settings.encoders) if base is None else base.vlm.requires_grad_(True)
    bank = SliceBank(store, vlm.settings.image_size)
    for done in bank.prepare(list(study.cases.values())):
        run.check_not_stopped()
        if done % 50 == 0:
            yield Progress(stage="reading images", step=done, steps=len(study.cases))
    labelled = load_labelled(bank, study.names, study.training)
    judged = load_labelled(bank, study.names, study.validation)
    captioned = CaptionedImages(study, labelled, "train", bank, settings.both_sides)
    if not captioned.items and not labelled:
        raise UserError(
            "the study holds neither captions nor labels", remedy="Import reports, or accept a label in a few cases."
        )
    prior = float(np.mean(priors(labelled, len(study.names)))) if labelled else 0.05
    chosen = settings.generator if labelled else settings.generator.model_copy(update={"form": "frozen_linear"})
    generator = build_generator(chosen, vlm, prior)
    precision = (
        run.read_config().precision
        if resume
        else choose_compute(settings, build_student(StudentSettings(), 1), bank.size)[0]
    )
    context = Context(study, bank, start_accelerator(settings, precision), run, flip_axis_of(study))
    context.any_orientation = settings.any_orientation
    if context.accelerator.is_main_process:
        run.write_config(_config(study, settings, name, precision, base))
    yield Started(
        job="pretrain", labelled=len(labelled), unlabelled=len(study.cases) - len(labelled) - len(judged),
        validation=len(judged),
        structures=study.names, steps=settings.steps + settings.generator_steps, device=str(context.device),
        precision=precision,
    )  # fmt: skip
    yield from _notes(captioned, settings)
    if chosen != settings.generator:
        yield Note(text="No mask is accepted, so the text mask is learned from captions alone (frozen_linear).")
    clock = Clock(settings.steps + settings.generator_steps)
    vlm.to(context.device)
    generator.to(context.device)
    if settings.steps and captioned.contrast:
        held_out = CaptionedImages(study, judged, "val", bank, settings.both_sides)
        towers = yield from _locked(context, vlm, settings)
        if not run.stop_asked():
            yield from align(context, vlm, captioned, held_out, settings, towers)
    vlm.eval().requires_grad_(False)
    by_captions = captioned.contrast and isinstance(generator, FrozenLinear)
    if settings.generator_steps and ((labelled and settings.mask_supervision) or by_captions):
        yield from teach_generator(context, vlm, generator, labelled, judged, captioned, settings)
    model = AmvlmModel(vlm, generator, chosen, None, None, _card(study, vlm, labelled, settings, name), prior)
    if context.accelerator.is_main_process:
        model.to("cpu").save(target)
    yield Finished(model=name, seconds=clock.seconds, stopped_early=run.stop_asked())


def _locked(
    context: Context, vlm: VisionLanguageModel, settings: PretrainSettings
) -> Generator[AnyEvent, None, LockedTowers | None]:
    """What the frozen encoders say of all images; None where the encoders learn."""
    if not settings.locked:
        return None
    study, cases = context.study, [c for c, case in context.study.cases.items() if case.split in ("train", "val")]
    for encoder in (vlm.image_encoder, vlm.text_encoder):
        encoder.eval().requires_grad_(False)
    towers = LockedTowers(study.store, vlm, context.bank, study.cases, context.flip_axis, context.any_orientation)
    for done in towers.prepare(cases):
        if context.stop_asked():
            break
        if done % 10 == 0:
            yield Progress(stage="reading images with the encoder", step=done, steps=len(cases))
    return towers


def _refuse_places(study: Study) -> None:
    texts = [*study.captions.values(), *(structure.prompt for structure in study.structures)]
    named = next((text for text in texts if names_a_place(text)), None)
    if named is not None:
        raise UserError(
            f"images cannot be turned: a text names a side or a level, “{named}”",
            remedy="Leave out --any-orientation.",
        )


def _notes(captioned: CaptionedImages, settings: PretrainSettings) -> Iterator[Note]:
    if settings.steps and not captioned.contrast:
        yield Note(level="warning", text="No two captions differ, so images and texts are not aligned.")
    if settings.steps and settings.batch_size == 1:
        yield Note(level="warning", text="A batch of one image holds nothing to tell apart: the contrast is 0.")
    if captioned.without_caption:
        yield Note(text=f"{captioned.without_caption} cases have no caption; their structures' prompts stand in.")


def _config(
    study: Study, settings: PretrainSettings, name: str, precision: str, base: AmvlmModel | None
) -> dict[str, object]:
    return {
        "job": "pretrain",
        "model": name,
        "base": base.card.name if base is not None else "",
        "settings": settings.for_the_record().model_dump(mode="json"),
        "precision": precision,
        "revisions": [revision.revision_id for revision in study.snapshot.revisions],
        "data_fingerprint": study.fingerprint,
    }


def _card(
    study: Study, vlm: VisionLanguageModel, labelled: list[LabelledCase], settings: PretrainSettings, name: str
) -> ModelCard:
    foreground = priors(labelled, len(study.names))
    words, captions = shared_words(study.captions)
    return ModelCard(
        name=name,
        kind="pretrained",
        created=datetime.date.today().isoformat(),
        modality=study.modality,
        laterality=vlm.card_laterality,
        unswapped=vlm.unswapped,
        planar=study.planar,
        structures=tuple(
            KnownStructure(name=s.name, aliases=s.aliases, prompts=s.prompts or (s.name,), prior=p)
            for index, (s, p) in enumerate(zip(study.structures, foreground, strict=True))
            if any(case.areas[index].any() for case in labelled)
        ),
        free_captions=bool(study.captions),
        words=words,
        captions=captions,
        store_id=study.store.store_id,
        data_fingerprint=study.fingerprint,
        revisions=tuple(r.revision_id for r in study.snapshot.revisions),
        labelled_cases=len(labelled),
        unlabelled_cases=len(study.cases) - len(labelled),
        settings=settings.for_the_record().model_dump(mode="json"),
    )
