"""The text mask of a run by minutes: learned and answered on the plan's grid."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.random import Generator as Rng
from torch import Tensor

from amvlm.config import TrainSettings
from amvlm.errors import UserError
from amvlm.events import AnyEvent, Note, Progress
from amvlm.learning.calibration import CaseLogits
from amvlm.learning.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from amvlm.learning.context import Context
from amvlm.learning.fitting import answer
from amvlm.learning.networks import Calibration, Learned, trained_card
from amvlm.learning.patch_features import PatchFeatureStore
from amvlm.learning.patches import PatchBatch, PatchSampler, Place, PreparedCase, affine_moves, changed, moved
from amvlm.learning.runtime import Clock, FiniteWatch, Means
from amvlm.learning.study import LabelledCase, Study
from amvlm.learning.texts import TextTable
from amvlm.losses import masked_dice_bce
from amvlm.models import AmvlmModel, VisionLanguageModel
from amvlm.models.planned import PlannedStudent
from amvlm.models.planned_text import PatchFeatures, PlannedFilmUNet, composed, planned_film_unet
from amvlm.models.quality import ExpectedDice
from amvlm.models.text_volume import VolumeTextMask
from amvlm.planning import Plan
from amvlm.text import Side

TEXT_SHARE = 0.22
"""Of the minutes."""
_STAGE = 40
_FEWEST, _MOST = 20, 20_000


@dataclass
class PlannedText:
    """The text side of a run: the frozen vision-language model, what it says of the study, and the network that learns
    to read it. ``text_weights`` holds α per structure, ``foreground`` each structure's share of the judged voxels."""

    vlm: VisionLanguageModel
    network: PlannedFilmUNet
    table: TextTable
    embeddings: Tensor
    patches: PatchFeatureStore
    foreground: list[float]
    text_weights: list[float]
    calibration: Calibration = "uncalibrated"
    expected_dice: list[ExpectedDice | None] = field(default_factory=list)
    dices: dict[str, dict[str, float]] = field(default_factory=dict)
    batch_parts: int = 1

    @classmethod
    def fresh(
        cls, base: AmvlmModel, plan: Plan, settings: TrainSettings, study: Study, labelled: Sequence[PreparedCase],
        device: torch.device,
    ) -> PlannedText:  # fmt: skip
        """Start the network on a frozen copy of the base's vision-language model."""
        vlm = copy.deepcopy(base.vlm).to(device).eval().requires_grad_(False)
        table = TextTable(study)
        embeddings = table.embedded(vlm)
        network = planned_film_unet(settings.text_mask, plan, vlm, _foreground_inside(labelled, plan))
        network.fit_text(embeddings.cpu())
        network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        patches = PatchFeatureStore(study.store, vlm, plan.axis, study.cases)
        foreground = [_share(labelled, s) for s in range(len(study.names))]
        return cls(vlm, network, table, embeddings, patches, foreground, [0.0] * len(foreground))

    def as_model(
        self,
        study: Study,
        settings: TrainSettings,
        name: str,
        before: dict[str, dict[str, float]],
        labelled: int,
    ) -> AmvlmModel:
        """The model to keep; student and plan are still missing."""
        validation = {f"after {kind}": dices for kind, dices in self.dices.items()}
        validation |= {f"before {kind}": dices for kind, dices in before.items()}
        expected = self.expected_dice or [None] * len(self.foreground)
        learned = [Learned(*parts) for parts in zip(self.foreground, self.text_weights, expected, strict=True)]
        card = trained_card(self.vlm, study, settings, name, learned, self.calibration, validation, labelled)
        prior = sum(self.foreground) / len(self.foreground)
        return AmvlmModel(self.vlm, self.network, settings.text_mask, None, None, card, prior)


def text_steps(context: Context, base: AmvlmModel, plan: Plan, settings: TrainSettings) -> int:
    """How many steps of the text mask its share of the minutes holds here."""
    network = planned_film_unet(settings.text_mask, plan, base.vlm, 0.05)
    network.to(context.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    count, (_, rows, columns) = settings.batch_size, network.plan.patch
    image = torch.randn(count, network.plan.inputs, rows, columns, device=context.device)
    side = base.image_size // base.vlm.patch
    grid = torch.randn(count, network.embedding_size, side, side)
    seen = PatchFeatures(grid, torch.eye(2, 3).expand(count, -1, -1)).to(context.device)
    text = torch.randn(count, base.vlm.prompt_size, device=context.device)
    best = float("inf")
    for _ in range(4):
        began = time.perf_counter()
        with context.accelerator.autocast():
            loss = network(image, seen, text).float().square().mean()
        loss.backward()
        float(loss)
        best = min(best, time.perf_counter() - began)
    return min(_MOST, max(_FEWEST, int(TEXT_SHARE * 60 * settings.minutes / (1.15 * best))))


def teach_text(
    context: Context, text: PlannedText, labelled: Sequence[PreparedCase], settings: TrainSettings, steps: int,
    resume: bool,
) -> Iterator[AnyEvent]:  # fmt: skip
    """Mask supervision of the text network; it ends as its last weights, the learning rate at zero."""
    network = text.network
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
    )
    folder, first = context.run.path / "text", 0
    if resume and checkpoints(folder):
        first, _, doubt = load_checkpoint(folder, {"text": network}, optimiser)
        if doubt:
            yield Note(level="warning", text=doubt)
    sampler = PatchSampler(network.plan, labelled)
    clock, means, watch = Clock(steps, first), Means(), FiniteWatch()
    for step in range(first, steps):
        if context.stop_asked():
            break
        batch = drawn(context, text, sampler, settings, step)
        network.train()
        losses = {"L_text_generator": _gradients(context, text, batch, optimiser)}
        context.update([network], optimiser, settings, step, steps)
        watch.see(step, losses, batch.case_ids)
        means.add(losses)
        last = step + 1 == steps
        if clock.due() or last:
            watch.check()
            yield Progress(
                stage="teaching the text mask", step=step + 1, steps=steps, losses=means.take(),
                seconds_left=clock.left(step + 1),
            )  # fmt: skip
        if (step + 1) % settings.checkpoint_every == 0 or last:
            save_checkpoint(folder, step + 1, {"text": network}, optimiser, {})
        first = step + 1
    torch.clear_autocast_cache()
    network.eval()
    if not first:
        yield Note(level="warning", text="Stopped before the text mask learned anything: do not use it.")


def _gradients(context: Context, text: PlannedText, batch: TextBatch, optimiser: torch.optim.Optimizer) -> Tensor:
    """Gradients of a batch; returns its loss. Where a GPU's memory does not hold it, it goes through in parts.

    Raises
    ------
    UserError
        If the memory does not hold a single patch.
    """
    while True:
        try:
            optimiser.zero_grad()
            return _summed_gradients(context, text, batch)
        except torch.OutOfMemoryError as error:
            if len(batch.image) < 2 * text.batch_parts:
                raise UserError(
                    "the GPU's memory does not hold one patch of the text mask's network",
                    remedy="Choose --device cpu, or end what else runs on the GPU; go on with --resume.",
                ) from error
            text.batch_parts *= 2
            torch.cuda.empty_cache()


def _summed_gradients(context: Context, text: PlannedText, batch: TextBatch) -> Tensor:
    total = torch.zeros((), device=batch.image.device)
    rows = torch.arange(len(batch.image)).chunk(text.batch_parts)
    for own in rows:
        part = batch.part(slice(int(own[0]), int(own[-1]) + 1))
        with context.accelerator.autocast():
            logits = text.network(part.image, part.patches, text.embeddings[part.text])
        loss = masked_dice_bce(logits, part.masks, torch.ones_like(part.masks[:, :, 0, 0])) / len(rows)
        context.accelerator.backward(loss)
        total += loss.detach()
    return total


class TextBatch(NamedTuple):
    """Patches, each with a text and what it names: ``image`` (B, inputs, H, W), ``masks`` (B, 1, H, W), ``text`` (B,),
    rows of the text table."""

    case_ids: list[str]
    image: Tensor
    masks: Tensor
    patches: PatchFeatures | None
    text: Tensor

    def part(self, rows: slice) -> TextBatch:
        """Some of the samples."""
        patches = None if self.patches is None else PatchFeatures(*(field[rows] for field in self.patches))
        return TextBatch(self.case_ids[rows], self.image[rows], self.masks[rows], patches, self.text[rows])


def drawn(
    context: Context, text: PlannedText, sampler: PatchSampler, settings: TrainSettings, step: int
) -> TextBatch:
    """The batch of a step: patches as the student draws them, each with the text of one judged structure, or with a
    foreign word and an empty target.

    The vision-language model's patches are sampled where the moved patch lies. Where a patch is mirrored, its text's
    sides are swapped.
    """
    plan, rng = text.network.plan, context.step_rng(settings, _STAGE, step)
    places = sampler.places(settings.batch_size, rng)
    structures = [int(rng.choice(np.flatnonzero(place.case.known))) for place in places]
    share = settings.side_prompts if context.flip_axis is not None else 0.0
    sided = [_one_sided(text.table, place, structures[row], rng, share) for row, place in enumerate(places)]
    places, case_ids = [place for place, _ in sided], [place.case.case_id for place, _ in sided]
    moves = affine_moves(len(places), sampler.crop, plan, rng)
    turned_over = moves[:, 0, 0] * moves[:, 1, 1] < moves[:, 0, 1] * moves[:, 1, 0]  # a turn keeps the sides
    mirrored = turned_over & (context.flip_axis is not None)
    rows = text.table.rows(case_ids, rng, mirrored.tolist(), [side for _, side in sided])
    own = rows[torch.arange(len(places)), torch.tensor(structures)]
    crops = _of_structures(sampler.cut(places), structures, plan.exclusive)
    own, named = text.table.with_foreign(own, crops.labels, rng)
    crops = crops._replace(labels=named)
    ready = changed(moved(crops.to(context.device), plan, moves), rng)
    seen = _patch_features(text, sampler, places, moves).to(context.device) if text.network.reads_patches else None
    return TextBatch(case_ids, ready.image, ready.labels, seen, own.to(context.device))


def _of_structures(batch: PatchBatch, structures: list[int], exclusive: bool) -> PatchBatch:
    """The same patches with the mask of one structure each, (B, 1, H, W)."""
    chosen = torch.tensor(structures)
    if exclusive:
        own = (batch.labels == 1 + chosen.view(-1, 1, 1, 1)).float()
    else:
        own = batch.labels[torch.arange(len(chosen)), chosen][:, None]
    return PatchBatch(batch.image, own, batch.known)


def _one_sided(
    table: TextTable, place: Place, structure: int, rng: Rng, share: float
) -> tuple[Place, Side | None]:
    """Some findings on both sides become one side's, see :meth:`TextTable.halves`; of the whole slice, not the crop."""
    case, z = place.case, place.centre[0]
    if share == 0 or table.caption(case.case_id, table.names[structure]) is None:
        return place, None
    mask = torch.from_numpy(case.mask(structure)[z]).float()[None, None]
    half, (side,) = table.halves([case.case_id], mask, rng, share)
    if side is None:
        return place, None
    labels = np.zeros(case.labels.shape, np.uint8)
    labels[z, 0] = half[0, 0].numpy()
    return place._replace(case=dataclasses.replace(case, labels=labels)), side


def _patch_features(text: PlannedText, sampler: PatchSampler, places: list[Place], moves: Tensor) -> PatchFeatures:
    grids, corners = [], []
    for place in places:
        case, z = place.case, place.centre[0]
        grids.append(text.patches.slice(case.case_id, z, case.shape[0]))
        frame = text.patches.frame(case.case_id)
        corners.append(frame.place(case.shape[1:], sampler.corner(place), sampler.crop))
    return PatchFeatures(torch.stack(grids), composed(torch.stack(corners), moves))


@torch.no_grad()
def text_logits(
    text: PlannedText, student: PlannedStudent, case: PreparedCase, structures: Iterable[int]
) -> Iterator[Tensor]:
    """The text mask's logits (Z, H, W) of some structures on the plan's grid, as a session answers them."""
    planes = torch.from_numpy(np.array(case.image))
    region = student.region(planes, case.spacing_mm)

    def patches(z: int) -> Tensor:
        return text.patches.slice(case.case_id, z, len(planes))

    reader = VolumeTextMask(text.network.eval(), planes, patches, text.patches.frame(case.case_id))
    every = list(range(len(planes)))
    own = text.embeddings[text.table.rows([case.case_id], None)[0]]
    for structure in structures:
        yield reader.logits(every, own[structure], region)


def on_plan_grid(
    text: PlannedText, student: PlannedStudent, case: PreparedCase, judged: LabelledCase
) -> CaseLogits:
    """Student's and text mask's logits of one judged case, both on the plan's grid."""
    own = torch.stack(list(text_logits(text, student, case, range(len(case.known)))))
    return CaseLogits(answer(student, case), own, judged)


def _share(cases: Sequence[PreparedCase], structure: int) -> float:
    """A structure's share of the judged voxels."""
    masks = [case.mask(structure) for case in cases if case.known[structure]]
    total = sum(mask.size for mask in masks)
    return min(0.9, max(1e-3, sum(int(mask.sum()) for mask in masks) / total)) if total else 0.05


def _foreground_inside(cases: Sequence[PreparedCase], plan: Plan) -> float:
    """The mean share of a structure where patches are drawn; where the logits start."""
    shares = [
        float(case.mask(s)[case.region(plan)].mean()) for case in cases for s in np.flatnonzero(case.known).tolist()
    ]
    return float(np.mean(shares)) if shares else 0.05
