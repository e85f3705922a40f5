"""``amvlm pretrain``: align slices with captions (L_ita), then teach the text mask generator."""

from __future__ import annotations

import copy
import datetime
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from amvlm.config import PretrainSettings, StudentSettings, TrainSettings
from amvlm.errors import UserError
from amvlm.events import AnyEvent, Finished, Note, Progress, Started
from amvlm.learning.augment import strong_intensity, weak_view
from amvlm.learning.batches import labelled_batch
from amvlm.learning.captioned import BAG, CaptionedImage, CaptionedImages, bags, positives_of
from amvlm.learning.context import Context, flip_axis_of
from amvlm.learning.ema import follow, make_teacher
from amvlm.learning.generator_loss import mask_supervision, text_grounding
from amvlm.learning.runtime import Clock, Means, choose_precision, start_accelerator
from amvlm.learning.slices import SliceBank
from amvlm.learning.study import LabelledCase, Study, TextTable, load_labelled, open_study, priors
from amvlm.losses import bag_similarity, multi_positive_info_nce
from amvlm.models import AmvlmModel, KnownStructure, ModelCard, VisionLanguageModel, build_generator, build_student
from amvlm.models.generator import FrozenLinear, TextMaskGenerator
from amvlm.store import LabelStore
from amvlm.store.runs import RunFolder


def pretrain(store: LabelStore, settings: PretrainSettings, run: RunFolder, name: str) -> Iterator[AnyEvent]:
    """Pre-train on a store and save ``models/<name>``; yields typed events.

    Captions of validation cases serve the validation loss alone, those of test cases nothing.

    Raises
    ------
    UserError
        If the store holds neither a caption nor a labelled case.
    """
    study = open_study(store, need_labels=False)
    torch.manual_seed(settings.seed)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    vlm = VisionLanguageModel(settings.encoders)
    bank = SliceBank(store, vlm.settings.image_size)
    for done in bank.prepare(list(study.cases.values())):
        if done % 50 == 0:
            yield Progress(stage="reading images", step=done, steps=len(study.cases))
    labelled = load_labelled(bank, study.names, study.training)
    captioned = CaptionedImages(study, labelled, "train", bank)
    if not captioned.items and not labelled:
        raise UserError(
            "the study holds neither captions nor labels", remedy="Import reports, or accept a label in a few cases."
        )
    prior = float(np.mean(priors(labelled, len(study.names)))) if labelled else 0.05
    generator = build_generator(settings.generator, vlm, prior)
    precision = choose_precision(settings, build_student(StudentSettings(), 1), vlm.settings.image_size)
    texts = [*(item.caption for item in captioned.items), *(s.prompt for s in study.structures)]
    context = Context(study, bank, start_accelerator(settings, precision), run, flip_axis_of(study, texts))
    whole = Clock(settings.steps + settings.generator_steps)
    run.write_config({"job": "pretrain", "settings": settings.model_dump(mode="json"), "precision": precision})
    yield Started(
        job="pretrain", labelled=len(labelled), unlabelled=len(study.cases) - len(labelled), structures=study.names,
        steps=settings.steps + settings.generator_steps, device=str(context.device), precision=precision,
    )  # fmt: skip
    vlm.to(context.device)
    generator.to(context.device)
    if settings.steps and captioned.contrast:
        held_out = CaptionedImages(study, load_labelled(bank, study.names, study.validation), "val", bank)
        yield from _align(context, vlm, captioned, held_out, settings)
    elif settings.steps:
        yield Note(level="warning", text="No two captions differ, so images and texts are not aligned.")
    vlm.eval().requires_grad_(False)
    teacher = make_teacher(generator)
    if settings.generator_steps and (labelled or (captioned.contrast and isinstance(generator, FrozenLinear))):
        yield from _teach_generator(context, vlm, generator, teacher, labelled, captioned, settings)
    generator.load_state_dict(teacher.state_dict())
    model = AmvlmModel(vlm, generator, settings.generator, None, None, _card(study, labelled, settings, name), prior)
    model.to("cpu").save(store.folder / "models" / name)
    yield Finished(model=name, seconds=whole.seconds, stopped_early=run.stop_asked())


def _card(study: Study, labelled: list[LabelledCase], settings: PretrainSettings, name: str) -> ModelCard:
    foreground = priors(labelled, len(study.names))
    return ModelCard(
        name=name,
        kind="pretrained",
        created=datetime.date.today().isoformat(),
        modality=study.modality,
        laterality=study.laterality,
        planar=study.planar,
        structures=tuple(
            KnownStructure(name=s.name, aliases=s.aliases, prompts=s.prompts or (s.name,), prior=p)
            for index, (s, p) in enumerate(zip(study.structures, foreground, strict=True))
            if any(case.masks[index].any() for case in labelled)
        ),
        free_captions=bool(study.captions),
        store_id=study.store.store_id,
        data_fingerprint=study.fingerprint,
        revisions=tuple(r.revision_id for r in study.snapshot.revisions),
        labelled_cases=len(labelled),
        unlabelled_cases=len(study.cases) - len(labelled),
        settings=settings.model_dump(mode="json"),
    )


def _align(
    context: Context,
    vlm: VisionLanguageModel,
    captioned: CaptionedImages,
    held_out: CaptionedImages,
    settings: PretrainSettings,
) -> Iterator[AnyEvent]:
    """L_ita with shared positives; the weights of the lowest validation loss are kept, where there is one."""
    optimiser = torch.optim.AdamW(
        vlm.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
    )
    optimiser = context.accelerator.prepare(optimiser)
    clock, means = Clock(settings.steps), Means()
    best, best_weights = float("inf"), None
    for step in range(settings.steps):
        if context.run.stop_asked():
            break
        rng, noise = context.chance(settings, 0, step)
        batch = captioned.draw(settings.batch_size, rng)
        slabs, present = bags(context.bank, batch, rng)
        image, _ = weak_view(slabs.to(context.device), None, context.flip_axis, noise)
        vlm.train()
        loss = _alignment_loss(context, vlm, strong_intensity(image, noise), present, batch, settings)
        context.optimise(loss, [vlm], optimiser, settings, step, settings.steps)
        means.add({"L_ita": loss})
        if clock.due() or step + 1 == settings.steps:
            yield Progress(
                stage="aligning images and captions", step=step + 1, steps=settings.steps,
                losses=means.take(), seconds_left=clock.left(step + 1),
            )  # fmt: skip
        if held_out.contrast and (step + 1) % settings.validate_every == 0:
            found = _validation_loss(context, vlm, held_out, settings)
            if found < best:
                best, best_weights = found, copy.deepcopy(vlm.state_dict())
    if best_weights is not None:
        vlm.load_state_dict(best_weights)


def _alignment_loss(
    context: Context,
    vlm: VisionLanguageModel,
    image: Tensor,
    present: Tensor,
    batch: list[CaptionedImage],
    settings: PretrainSettings,
) -> Tensor:
    with context.accelerator.autocast():
        slab_embeddings = vlm.embed_image(image).reshape(*present.shape, -1)
        text = vlm.embed_text([item.caption for item in batch])
    similarity = bag_similarity(slab_embeddings, present.to(image.device), text, settings.temperature)
    positives = positives_of(batch, shared=settings.positives == "multi_positive")
    return multi_positive_info_nce(similarity, positives.to(image.device), settings.temperature)


@torch.no_grad()
def _validation_loss(
    context: Context, vlm: VisionLanguageModel, held_out: CaptionedImages, settings: PretrainSettings
) -> float:
    vlm.eval()
    rng = np.random.default_rng(settings.seed)
    order = rng.permutation(len(held_out.items))[: 8 * settings.batch_size]
    losses = []
    for begin in range(0, len(order), settings.batch_size):
        batch = [held_out.items[int(index)] for index in order[begin : begin + settings.batch_size]]
        image, present = bags(context.bank, batch, rng)
        losses.append(float(_alignment_loss(context, vlm, image.to(context.device), present, batch, settings)))
    return float(np.mean(losses))


def _teach_generator(
    context: Context,
    vlm: VisionLanguageModel,
    generator: TextMaskGenerator,
    teacher: torch.nn.Module,
    labelled: list[LabelledCase],
    captioned: CaptionedImages,
    settings: PretrainSettings,
) -> Iterator[AnyEvent]:
    """Mask supervision on judged slices; for ``frozen_linear`` also L_tg on captioned ones. ``teacher`` is its EMA."""
    study = context.study
    table = TextTable(study, TrainSettings(seed=settings.seed))
    with torch.no_grad():
        embeddings = vlm.embed_text(table.texts)
    generator.fit_text(embeddings)
    foreground = torch.tensor(priors(labelled, len(study.names)), device=context.device)
    trainable = [parameter for parameter in generator.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trainable, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True)
    network, optimiser = context.accelerator.prepare(generator, optimiser)
    clock, means = Clock(settings.generator_steps), Means()
    for step in range(settings.generator_steps):
        if context.run.stop_asked():
            break
        rng, noise = context.chance(settings, 1, step)
        generator.train()
        losses: dict[str, Tensor] = {}
        if labelled:
            places, image, masks, known = labelled_batch(context, labelled, settings.batch_size, rng, noise)
            text = embeddings[table.rows(places, rng)]
            losses["L_mask"], _ = mask_supervision(network, image, text, masks, known, foreground)
        if isinstance(generator, FrozenLinear) and captioned.contrast:
            batch = captioned.draw(settings.batch_size, rng)
            losses["L_tg"] = _grounding(context, vlm, generator, batch, noise, float(foreground.mean()))
        context.optimise(
            torch.stack(list(losses.values())).sum(), [network], optimiser, settings, step, settings.generator_steps
        )
        follow(teacher, generator, step, 0.99)
        means.add(losses)
        if clock.due() or step + 1 == settings.generator_steps:
            yield Progress(
                stage="teaching the text mask", step=step + 1, steps=settings.generator_steps,
                losses=means.take(), seconds_left=clock.left(step + 1),
            )  # fmt: skip


def _grounding(
    context: Context,
    vlm: VisionLanguageModel,
    generator: FrozenLinear,
    batch: list[CaptionedImage],
    noise: torch.Generator,
    prior: float,
) -> Tensor:
    wanted = [(i.case_id, _heaviest(context, vlm, i) if i.slice_index is None else i.slice_index) for i in batch]
    image, _ = weak_view(context.bank.slabs(wanted).to(context.device), None, context.flip_axis, noise)
    with torch.no_grad():
        text = vlm.embed_text([item.caption for item in batch])
    with context.accelerator.autocast():
        features = generator.features(image)
    return text_grounding(generator, features, text, positives_of(batch).to(image.device), prior)


@torch.no_grad()
def _heaviest(context: Context, vlm: VisionLanguageModel, item: CaptionedImage) -> int:
    """The slice of a volume that agrees most with its caption, among K evenly spread ones."""
    places = np.linspace(0, context.bank.depth(item.case_id) - 1, BAG + 2).astype(int)[1:-1]
    image = context.bank.slabs([(item.case_id, int(z)) for z in places]).to(context.device)
    return int(places[int((vlm.embed_image(image) @ vlm.embed_text([item.caption])[0]).argmax())])
