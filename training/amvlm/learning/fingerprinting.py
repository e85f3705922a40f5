"""A study's fingerprint, and the plan that a run keeps to."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Generator
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from amvlm.events import AnyEvent, Progress
from amvlm.imaging.orientation import evenly_spread, slice_axis, to_canonical
from amvlm.learning.fitting import patch_loss
from amvlm.learning.patches import PatchBatch
from amvlm.learning.prepared import grid_of
from amvlm.learning.runtime import autocast_to
from amvlm.learning.study import Study
from amvlm.models.planned import PlannedStudent
from amvlm.models.scan import stack_of
from amvlm.planning import (
    OTHER,
    CaseFacts,
    Fingerprint,
    Machine,
    MaskFacts,
    Plan,
    foreground_sample,
    intensities,
    looks_like_hounsfield,
    mask_facts,
    overlap,
    structure_facts,
    turn_deg,
)

_MEASURED_SIDE, _MEASURED_BATCH = 128, 4


def fingerprint_of(study: Study, minutes: float, machine: Machine) -> Generator[AnyEvent, None, Fingerprint]:
    """Read every accepted mask of the training cases once, with its image."""
    axis = _axis_of(study)
    by_case: list[dict[str, MaskFacts]] = []
    together: list[MaskFacts] = []
    samples: list[NDArray[np.float64]] = []
    exclusive, channels = True, 1
    modalities: dict[str, str] = {}
    for done, (case_id, revisions) in enumerate(study.training.items()):
        volume = study.store.read_image(study.cases[case_id])
        stack, spacing = stack_of(volume, axis)
        channels = max(channels, 3 if stack.ndim == 4 else 1)
        masks: dict[str, NDArray[Any]] = {}
        own: dict[str, MaskFacts] = {}
        for name in study.names:
            if name in revisions and revisions[name].kind == "accepted":
                mask = study.store.read_mask(revisions[name])
                masks[name] = stack_of(volume.with_array(mask), axis)[0]
                facts = mask_facts(masks[name], spacing)
                own |= {name: facts} if facts is not None else {}
        by_case.append(own)
        if masks:
            union = np.any([mask > 0 for mask in masks.values()], axis=0)
            together += [facts for facts in [mask_facts(union, spacing)] if facts is not None]
            exclusive = exclusive and not overlap(list(masks.values()))
            if not volume.modality and stack.ndim == 3 and looks_like_hounsfield(evenly_spread(stack)):
                modalities[case_id] = "CT"
            elif not volume.modality and not bool(stack.min() < 0):
                modalities[case_id] = OTHER
            if modalities.get(case_id, volume.modality) == "CT":
                samples.append(foreground_sample(stack, union))
        if done % 10 == 9:
            yield Progress(stage="measuring the study", step=done + 1, steps=len(study.training))
    if "CT" not in {*modalities.values(), *(case.modality for case in study.cases.values())}:
        modalities = {}  # where nothing is a CT, what is none needs no name
    return Fingerprint(
        cases=tuple(_case_facts(study, case_id, axis, modalities) for case_id in study.cases), axis=axis,
        channels=3 if channels == 3 else 1, planar=study.planar,
        structures=tuple(
            structure_facts(name, [own[name] for own in by_case if name in own]) for name in study.names
        ),
        turn_deg=turn_deg(by_case),
        exclusive=exclusive, foreground=intensities(samples), region_mm=structure_facts("all", together).extent_mm,
        labelled=len(together), unlabelled=len(study.unlabelled), minutes=minutes, machine=machine,
    )  # fmt: skip


def measured_machine(device: torch.device, precision: str) -> Machine:
    """Time a training step of the reference network here: about two seconds on a slow CPU."""
    plan = Plan(
        spacing_mm=(0.0, 1.0, 1.0), patch=(1, _MEASURED_SIDE, _MEASURED_SIDE), structures=("one",),
        largest_part=(False,), steps=1, minutes=1,
    )  # fmt: skip
    student = PlannedStudent(plan)
    student.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    image = torch.randn(_MEASURED_BATCH, 1, _MEASURED_SIDE, _MEASURED_SIDE, device=device)
    batch = PatchBatch(image, (image > 1).float(), torch.ones(_MEASURED_BATCH, 1, device=device))
    best = float("inf")
    for _ in range(4):
        _wait(device)
        began = time.perf_counter()
        with autocast_to(device, precision):
            loss = patch_loss(student, batch)
        torch.autograd.grad(loss, list(student.parameters()))
        _wait(device)
        best = min(best, time.perf_counter() - began)
    memory = torch.cuda.get_device_properties(device).total_memory / 2**30 if device.type == "cuda" else 0.0
    kind = "cuda" if device.type == "cuda" else "mps" if device.type == "mps" else "cpu"
    return Machine(
        device=kind, memory_gib=round(memory, 1),
        seconds_per_megapixel=round(1.1 * best / (_MEASURED_BATCH * _MEASURED_SIDE**2 / 1e6), 5),
    )  # fmt: skip


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _axis_of(study: Study) -> Literal[0, 1, 2]:
    """The slice axis of most scans; on a tie the axial one."""
    votes = Counter(
        slice_axis(to_canonical(grid_of(case)).spacing_mm, case.planar)
        for case in study.cases.values()
    )
    axes: tuple[Literal[0, 1, 2], ...] = (0, 1, 2)
    return max(axes, key=lambda axis: (votes[axis], axis))


def _case_facts(study: Study, case_id: str, axis: int, modalities: dict[str, str]) -> CaseFacts:
    case = study.cases[case_id]
    stack, spacing = stack_of(grid_of(case), axis)
    shape = (stack.shape[0], stack.shape[1], stack.shape[2])
    return CaseFacts(shape=shape, spacing_mm=spacing, modality=modalities.get(case_id, case.modality))
