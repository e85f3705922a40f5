"""The text mask of a planned run: learned on the encoder's square, answered on the plan's grid."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from amvlm.config import TrainSettings
from amvlm.events import AnyEvent, Note, Progress
from amvlm.imaging.regrid import resampled
from amvlm.imaging.resample import SliceGrid
from amvlm.learning.batches import labelled_batch
from amvlm.learning.calibration import CaseLogits
from amvlm.learning.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from amvlm.learning.context import Context
from amvlm.learning.ema import follow
from amvlm.learning.generator_loss import mask_supervision
from amvlm.learning.networks import Networks
from amvlm.learning.patches import PreparedCase
from amvlm.learning.prepared import grid_of
from amvlm.learning.runtime import Clock, FiniteWatch, Means
from amvlm.learning.study import LabelledCase
from amvlm.learning.texts import TextTable
from amvlm.models import AmvlmModel
from amvlm.planning import Plan

TEXT_SHARE = 0.12
"""Of the minutes."""
_STAGE, _SLICES = 31, 32
_FEWEST, _MOST = 20, 3000


def text_steps(context: Context, base: AmvlmModel, settings: TrainSettings) -> int:
    """How many steps of the generator its share of the minutes holds here."""
    generator = base.generator.to(context.device).train()
    image = torch.randn(settings.batch_size, 3, context.bank.size, context.bank.size, device=context.device)
    with torch.no_grad():
        text = base.vlm.to(context.device).embed_prompt(["one"]).expand(settings.batch_size, -1)[:, None]
    parameters = [p for p in generator.parameters() if p.requires_grad]
    best = float("inf")
    for _ in range(3):
        began = time.perf_counter()
        with context.accelerator.autocast():
            loss = generator(image, text).float().square().mean()
        torch.autograd.grad(loss, parameters, allow_unused=True)
        best = min(best, time.perf_counter() - began)
    base.eval()
    return min(_MOST, max(_FEWEST, int(TEXT_SHARE * 60 * settings.minutes / (1.3 * best))))


def teach_text(
    context: Context,
    networks: Networks,
    table: TextTable,
    labelled: list[LabelledCase],
    settings: TrainSettings,
    steps: int,
    resume: bool,
) -> Iterator[AnyEvent]:
    """Mask supervision of the generator; it ends as the average of its weights."""
    parameters = [p for p in networks.generator.parameters() if p.requires_grad]
    optimiser: torch.optim.Optimizer = torch.optim.AdamW(
        parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
    )
    generator, optimiser = context.accelerator.prepare(networks.generator, optimiser)
    parts = {"generator": networks.generator, "teacher": networks.generator_teacher}
    folder, first = context.run.path / "text", 0
    if resume and checkpoints(folder):
        first, _, doubt = load_checkpoint(folder, parts, optimiser)
        if doubt:
            yield Note(level="warning", text=doubt)
    clock, means, watch = Clock(steps, first), Means(), FiniteWatch()
    for step in range(first, steps):
        if context.stop_asked():
            break
        torch.manual_seed(int(context.chance(settings, _STAGE + 1, step).integers(2**62)))  # dropout
        batch = labelled_batch(
            context, labelled, table, settings, _STAGE, step, settings.side_prompts, networks.mirror
        ).to(context.device)
        generator.train()
        text = networks.embeddings[batch.text]
        loss, _ = mask_supervision(generator, batch.slab, text, batch.named, batch.known, networks.foreground)
        context.optimise(loss, [generator], optimiser, settings, step, steps)
        follow(networks.generator_teacher, networks.generator, step, settings.ema_decay)
        losses = {"L_text_generator": loss}
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
            save_checkpoint(folder, step + 1, parts, optimiser, {})
    torch.clear_autocast_cache()


@torch.no_grad()
def on_plan_grid(
    context: Context,
    networks: Networks,
    table: TextTable,
    plan: Plan,
    case: PreparedCase,
    judged: LabelledCase,
    student_logits: Tensor,
) -> CaseLogits:
    """Student's and text mask's logits of one judged case, both on the plan's grid."""
    networks.generator_teacher.eval()
    text = networks.embeddings[table.rows([case.case_id], None)]
    squares = []
    for begin in range(0, context.bank.depth(case.case_id), _SLICES):
        stop = min(context.bank.depth(case.case_id), begin + _SLICES)
        image = context.bank.slabs([(case.case_id, z) for z in range(begin, stop)]).to(context.device)
        with context.accelerator.autocast():
            logits = networks.generator_teacher(image, text.expand(len(image), -1, -1)).float()
        squares.append(_sized(logits, context.bank.size).cpu())
    grid = SliceGrid.of(grid_of(context.study.cases[case.case_id]), context.bank.size, plan.axis)
    fitted = resampled(grid.from_square(torch.cat(squares), case.shape[1:]), case.shape)
    return CaseLogits(student_logits, fitted.movedim(1, 0), judged)


def _sized(logits: Tensor, size: int) -> Tensor:
    if logits.shape[-1] == size:
        return logits
    return F.interpolate(logits, (size, size), mode="bilinear", align_corners=False)
