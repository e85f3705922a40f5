"""The second stage of pre-training: the text mask generator learns on frozen encoders (METHOD §3)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from amvlm.config import PretrainSettings
from amvlm.events import AnyEvent, Note, Progress, Validation
from amvlm.learning.augment import weak_view
from amvlm.learning.batches import labelled_batch, mirror_some
from amvlm.learning.captioned import BAG, CaptionedImage, CaptionedImages, positives_of
from amvlm.learning.checkpoint import checked_state, checkpoints, load_checkpoint, save_checkpoint
from amvlm.learning.context import Context
from amvlm.learning.ema import make_teacher, update_ema
from amvlm.learning.generator_loss import mask_supervision, text_grounding
from amvlm.learning.noise import CaseNoise
from amvlm.learning.pictures import mask_picture
from amvlm.learning.runtime import Clock, FiniteWatch, Means
from amvlm.learning.study import LabelledCase, priors
from amvlm.learning.texts import TextTable
from amvlm.metrics import Overlap
from amvlm.models import VisionLanguageModel
from amvlm.models.generator import FrozenLinear, TextMaskGenerator

_STAGE, _CAPTIONED = 1, 4
_VALIDATED = 64


def teach_generator(
    context: Context,
    vlm: VisionLanguageModel,
    generator: TextMaskGenerator,
    labelled: list[LabelledCase],
    held_out: list[LabelledCase],
    captioned: CaptionedImages,
    settings: PretrainSettings,
) -> Iterator[AnyEvent]:
    """Mask supervision on judged slices; for ``frozen_linear`` also L_tg on captioned ones, which needs no mask.

    The generator ends as the average of its weights, at the best validation Dice where validation cases are judged.
    """
    table = TextTable(context.study)
    embeddings = table.embedded(vlm)
    generator.fit_text(embeddings)
    foreground = torch.tensor(priors(labelled, len(context.study.names)), device=context.device)
    trainable = [parameter for parameter in generator.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(
        trainable, lr=settings.generator_learning_rate, weight_decay=settings.weight_decay, fused=True
    )
    teacher = make_teacher(generator)
    parts: dict[str, nn.Module] = {"generator": generator, "teacher": teacher, "best": make_teacher(generator)}
    network, optimiser = context.accelerator.prepare(generator, optimiser)
    folder, first, state = context.run.path / "teach", 0, {"best": -1.0}
    if checkpoints(folder):
        first, state, doubt = load_checkpoint(folder, parts | {"vlm": vlm}, optimiser)
        state = checked_state(state, ("best",), folder)
        if doubt:
            yield Note(level="warning", text=doubt)
    clock, means, watch = Clock(settings.generator_steps, first), Means(), FiniteWatch()
    every = settings.validate_every or max(1, settings.generator_steps // 5)
    for step in range(first, settings.generator_steps):
        if context.stop_asked():
            break
        generator.train()
        losses: dict[str, Tensor] = {}
        case_ids: list[str] = []
        if labelled and settings.mask_supervision:
            batch = labelled_batch(context, labelled, table, settings, _STAGE, step, settings.side_prompts)
            batch = batch.to(context.device)
            case_ids = batch.case_ids
            losses["L_mask"], _ = mask_supervision(
                network, batch.slab, embeddings[batch.text], batch.named, batch.known, foreground
            )
        if isinstance(generator, FrozenLinear) and captioned.contrast and settings.grounding_weight > 0:
            found, seen = _grounding(context, vlm, generator, captioned, settings, step, float(foreground.mean()))
            losses["L_tg"], case_ids = settings.grounding_weight * found, [*case_ids, *seen]
        watch.see(step, losses, case_ids)
        total = torch.stack(list(losses.values())).sum()
        context.optimise(
            total, [network], optimiser, settings, step, settings.generator_steps, settings.generator_learning_rate
        )
        update_ema(teacher, generator, step, 0.99)
        means.add(losses)
        last = step + 1 == settings.generator_steps
        if clock.due() or last:
            watch.check()
            yield Progress(
                stage="teaching the text mask", step=step + 1, steps=settings.generator_steps,
                losses=means.take(), seconds_left=clock.left(step + 1),
            )  # fmt: skip
        if held_out and ((step + 1) % every == 0 or last):
            yield _validate(context, teacher, parts["best"], embeddings, table, held_out, step + 1, state)
        if ((step + 1) % settings.checkpoint_every == 0 or last) and context.accelerator.is_main_process:
            watch.check()
            save_checkpoint(folder, step + 1, parts | {"vlm": vlm}, optimiser, state)
    kept = parts["best"] if state["best"] >= 0 else teacher
    generator.load_state_dict(kept.state_dict())


def _grounding(
    context: Context,
    vlm: VisionLanguageModel,
    generator: FrozenLinear,
    captioned: CaptionedImages,
    settings: PretrainSettings,
    step: int,
    prior: float,
) -> tuple[Tensor, list[str]]:
    """L_tg of a captioned batch; of a volume the slice that agrees most with its caption."""
    rng = context.step_rng(settings, _CAPTIONED, step)
    batch = captioned.batch(step, settings.batch_size, settings.seed, rng)
    noise = CaseNoise((settings.seed, _CAPTIONED, step), [item.case_id for item in batch])
    mirrored = mirror_some(context, noise)
    wanted = [(i.case_id, _heaviest(context, vlm, i) if i.slice_index is None else i.slice_index) for i in batch]
    batch = [item.mirrored() if turned else item for item, turned in zip(batch, mirrored.tolist(), strict=True)]
    image, _ = weak_view(
        context.bank.slabs(wanted), None, noise, mirrored, context.flip_axis or 2, context.any_orientation
    )
    with torch.no_grad():
        text = vlm.embed_text([item.caption for item in batch])
    with context.accelerator.autocast():
        features = generator.features(image.to(context.device))
    positives = positives_of(batch, settings.positives == "multi_positive").to(context.device)
    return text_grounding(generator, features, text, positives, prior), [item.case_id for item in batch]


@torch.no_grad()
def _heaviest(context: Context, vlm: VisionLanguageModel, item: CaptionedImage) -> int:
    """The slice of a volume that agrees most with its caption, among K evenly spread ones."""
    places = np.linspace(0, context.bank.depth(item.case_id) - 1, BAG + 2).astype(int)[1:-1]
    image = context.bank.slabs([(item.case_id, int(z)) for z in places]).to(context.device)
    return int(places[int((vlm.embed_image(image) @ vlm.embed_text([item.caption])[0]).argmax())])


def _validate(
    context: Context,
    teacher: nn.Module,
    best: nn.Module,
    embeddings: Tensor,
    table: TextTable,
    held_out: list[LabelledCase],
    step: int,
    state: dict[str, float],
) -> Validation:
    dices = text_mask_dice(context, teacher, embeddings, table, held_out, step)
    score = float(np.mean(list(dices.values()))) if dices else 0.0
    if score > state["best"]:
        state["best"] = score
        best.load_state_dict(teacher.state_dict())
    return Validation(step=step, student={}, text_mask=dices, merged={})


@torch.no_grad()
def text_mask_dice(
    context: Context,
    generator: nn.Module,
    embeddings: Tensor,
    table: TextTable,
    cases: Sequence[LabelledCase],
    step: int = 0,
) -> dict[str, float]:
    """Mean Dice per case by structure, at network resolution, on at most 64 evenly chosen cases."""
    generator.eval()
    chosen = cases[:: max(1, math.ceil(len(cases) / _VALIDATED))]
    places = [(case, z) for case in chosen for z in range(case.depth)]
    names = context.study.names
    sums = {(case.case_id, s): Overlap(0, 0, 0) for case in chosen for s in range(len(names))}
    for begin in range(0, len(places), 32):
        part = places[begin : begin + 32]
        image = context.bank.slabs([(case.case_id, z) for case, z in part]).to(context.device)
        text = embeddings[table.rows([case.case_id for case, _ in part], None)]
        with context.accelerator.autocast():
            logits = generator(image, text).float().cpu()
        for row, (case, z) in enumerate(part):
            for s in range(len(names)):
                truth = torch.from_numpy(np.array(case.masks[s][z]))
                sums[case.case_id, s] = sums[case.case_id, s] + Overlap.of(logits[row, s] > 0, truth)
        if begin == 0 and context.accelerator.is_main_process:
            masks = torch.from_numpy(np.stack([case.masks[0][z] for case, z in part[:8]]))
            mask_picture(context.run.path, image[:8], logits[:8, 0].sigmoid(), masks, step)
    found: dict[str, float] = {}
    for s, name in enumerate(names):
        dices = [sums[case.case_id, s].dice for case in chosen if case.known[s]]
        dices = [dice for dice in dices if not math.isnan(dice)]
        if dices:
            found[name] = round(float(np.mean(dices)), 4)
    return found
