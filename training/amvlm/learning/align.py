"""The first stage of pre-training: images and captions meet (METHOD §2)."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from amvlm.config import PretrainSettings
from amvlm.events import AnyEvent, Note, Progress
from amvlm.learning.alignment import Alignment, Branch
from amvlm.learning.captioned import CaptionedImages
from amvlm.learning.checkpoint import checked_state, checkpoints, load_checkpoint, save_checkpoint
from amvlm.learning.context import Context
from amvlm.learning.ema import make_teacher, update_ema
from amvlm.learning.gathering import without_processes
from amvlm.learning.locked import LockedTowers
from amvlm.learning.pairs import draw_pairs, held_out_pairs
from amvlm.learning.pictures import similarity_picture
from amvlm.learning.runtime import Clock, FiniteWatch, Means, Prefetcher
from amvlm.models import VisionLanguageModel

HELD_OUT_BATCHES = 8
MOST_VALIDATIONS = 20
INERT = 0.02
MOST_AGREEMENT, LEAST_SPREAD = 0.8, 0.2
"""Spearman's correlation of D_s with 1 − S stays below the first, ‖σ‖/‖μ‖ above the second (METHOD §2)."""


def align(
    context: Context,
    vlm: VisionLanguageModel,
    captioned: CaptionedImages,
    held_out: CaptionedImages,
    settings: PretrainSettings,
    towers: LockedTowers | None = None,
) -> Iterator[AnyEvent]:
    """Train ``vlm`` in place, of locked ``towers`` its heads alone.

    The weights of the lowest validation loss are kept where captions can be validated.

    Yields Progress about once a second (losses are weighted as they enter the sum), the validation loss about once
    per epoch, and Notes. Stops early after ``settings.patience`` validations without a better loss.
    """
    alignment = Alignment(vlm, settings).to(context.device)
    momentum: nn.Module | None = make_teacher(alignment.online) if settings.icl_weight > 0 else None
    reading = set() if settings.locked else set(vlm.text_encoder.parameters())
    groups: list[dict[str, Any]] = [{"params": [p for p in alignment.parameters() if p not in reading]}]
    if reading:
        encoder = [*vlm.text_encoder.parameters()]
        groups.append({"params": encoder, "share": settings.text_learning_rate_share})
    optimiser = torch.optim.AdamW(groups, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True)
    network, optimiser = context.accelerator.prepare(alignment, optimiser)
    parts: dict[str, nn.Module] = {"alignment": alignment, "best": copy.deepcopy(alignment.online.vlm)}
    parts["best"].requires_grad_(False)
    parts |= {"momentum": momentum} if momentum is not None else {}
    state = {"best": math.inf, "waited": 0, "stopped": 0}
    folder, first = context.run.path / "align", 0
    if checkpoints(folder):
        first, state, doubt = load_checkpoint(folder, parts, optimiser)
        state = checked_state(state, ("best", "waited", "stopped"), folder)
        if doubt:
            yield Note(level="warning", text=doubt)
    clock, means, watch = Clock(settings.steps, first), Means(), FiniteWatch()
    marks: dict[str, float] = {}
    every = settings.validate_every or validation_interval(captioned.cases, settings)
    pairs_of = functools.partial(draw_pairs, context, vlm, captioned, settings, towers=towers)
    ahead = Prefetcher(pairs_of, range(first, settings.steps))
    for step, drawn in ahead:
        if context.stop_asked() or state["stopped"]:
            break
        pairs = drawn.to(context.device)
        alignment.train()
        with context.accelerator.autocast():
            losses, notes = network(pairs, momentum)
        watch.see(step, losses, pairs.case_ids)
        context.optimise(torch.stack(list(losses.values())).sum(), [network], optimiser, settings, step, settings.steps)
        if momentum is not None:
            update_ema(momentum, alignment.online, step, settings.momentum)
        means.add(losses | {name: value for name, value in notes.items() if value.ndim == 0})
        last = step + 1 == settings.steps
        if clock.due() or last:
            watch.check()
            reported = means.take() | {"waiting for data": round(ahead.waited / max(1e-9, clock.seconds), 4)}
            yield Progress(
                stage="aligning images and captions", step=step + 1, steps=settings.steps,
                losses=reported, seconds_left=clock.left(step + 1),
            )  # fmt: skip
        if held_out.contrast and ((step + 1) % every == 0 or last):
            watch.check()
            found = validation_loss(context, vlm, alignment, momentum, held_out, settings, towers)
            yield from _validated(found, alignment, parts["best"], settings, step + 1, state)
            marks = {name: value for name, value in found.items() if name != "validation"}
            if context.accelerator.is_main_process:
                similarity_picture(context.run.path, notes["similarity"], step + 1)
        if (step + 1) % settings.checkpoint_every == 0 or last or state["stopped"]:
            watch.check()
            if context.accelerator.is_main_process:
                save_checkpoint(folder, step + 1, parts, optimiser, state)
            yield from _warn_if_inert(notes, step + 1)
    yield from _marks_missed(marks)
    if math.isfinite(state["best"]):
        alignment.online.vlm.load_state_dict(parts["best"].state_dict())


def validation_interval(cases: int, settings: PretrainSettings) -> int:
    """Steps between validations: an epoch, or a twentieth of the run where an epoch is shorter.

    ``patience`` counts validations: with an epoch of one step it would end a run within its warm-up.
    """
    return max(1, cases // settings.batch_size, -(-settings.steps // MOST_VALIDATIONS))


def _validated(
    found: dict[str, float], alignment: Alignment, best: nn.Module, settings: PretrainSettings, step: int,
    state: dict[str, float],
) -> Iterator[AnyEvent]:  # fmt: skip
    reported = {name: round(value, 5) for name, value in found.items()}
    yield Progress(stage="aligning images and captions", step=step, steps=settings.steps, losses=reported)
    if found["validation"] < state["best"]:
        state |= {"best": found["validation"], "waited": 0}
        best.load_state_dict(alignment.online.vlm.state_dict())
    else:
        state["waited"] += 1
    if state["waited"] >= settings.patience and step < settings.steps:
        state["stopped"] = 1
        yield Note(text=f"Stopped after {step} steps: the validation loss no longer falls.")


@torch.no_grad()
def validation_loss(
    context: Context,
    vlm: VisionLanguageModel,
    alignment: Alignment,
    momentum: nn.Module | None,
    held_out: CaptionedImages,
    settings: PretrainSettings,
    towers: LockedTowers | None = None,
) -> dict[str, float]:
    """The training loss on captions of validation cases, same slices and noise each time; every process does all.

    Beside ``validation`` what the Gaussians say: their agreement with the cosine, ‖σ‖/‖μ‖, and the spread of log g.
    """
    alignment.eval()
    batches = min(HELD_OUT_BATCHES, max(1, held_out.cases // settings.batch_size))
    means = Means()
    with without_processes():
        for number in range(batches):
            pairs = held_out_pairs(context, vlm, held_out, settings, number, towers).to(context.device)
            with context.accelerator.autocast():
                branch = momentum if isinstance(momentum, Branch) else None
                losses, notes = alignment(pairs, branch)
            marks = {name: value for name, value in notes.items() if value.ndim == 0}
            means.add({"validation": torch.stack(list(losses.values())).sum()} | marks)
    return {name: float(value) for name, value in means.mean().items()}


def _warn_if_inert(notes: dict[str, torch.Tensor], step: int) -> Iterator[AnyEvent]:
    for name in ("sd_log_g_words", "sd_log_g_patches"):
        if name in notes and float(notes[name]) < INERT:
            text = f"{name} is {float(notes[name]):.3f} after {step} steps: g is nearly constant there, L_css inert."
            yield Note(level="warning", text=text)


def _marks_missed(marks: dict[str, float]) -> Iterator[AnyEvent]:
    """Where the Gaussians say nothing that the cosine does not, or are too narrow to say anything."""
    missed = [name for name, value in marks.items() if name.startswith("spearman") and value >= MOST_AGREEMENT]
    missed += [name for name, value in marks.items() if name.startswith("sd_to_mean") and value < LEAST_SPREAD]
    if missed:
        figures = ", ".join(f"{name} {marks[name]:.2f}" for name in missed)
        yield Note(level="warning", text=f"The uncertainty of L_css says little that the cosine does not: {figures}.")
