"""The rules that turn a fingerprint into a plan (METHOD §8; Isensee et al., Nature Methods 2021, and their v2).

Each rule is a function of numbers that also says, in a sentence, why it chose what it chose.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from amvlm.errors import UserError
from amvlm.planning.fingerprint import Fingerprint, StructureFacts
from amvlm.planning.plan import WIDTHS, Normalisation, Plan, Reason

FEWEST_PATCHES = 8_000
ENOUGH_PATCHES = 20_000
"""Below them a narrower network learns more (ACDC, 120 CPU-seconds: 16 channels 0.822, 24 channels 0.767)."""
FEWEST_STEPS = 60
STUDENT_SHARE = 0.7
"""Of the minutes; the rest is the text mask's, preparing, validating and measuring."""
_NARROWEST = 16
_AROUND = 1.5
_MULTIPLE = 16
_SMALLEST_PATCH = 64
_LARGEST_PATCH = {"cpu": 160, "cuda": 512, "mps": 320}
_MOST_OF_A_SLICE = 0.8
_GPU_WIDTHS = {2: (32, 64, 128, 256, 512, 512), 3: (32, 64, 128, 256, 320)}
_CPU_WIDTHS = {2: WIDTHS, 3: (16, 32, 64, 128)}
_COARSER = 3.0
_ALIKE = 2.0
_FEWEST_SLICES = 10
_COST = {("cpu", 2): 1.0, ("mps", 2): 1.0, ("cuda", 2): 4.0, ("cpu", 3): 6.0, ("mps", 3): 6.0, ("cuda", 3): 6.0}
"""Of the network that is chosen there against the half-resolution U-Net, per voxel of its input: DynUNet works at full
resolution."""
_DECODER_COST = 0.7
"""Of the summed decoder against the concatenating one that the machine is measured with."""
_ANY_ANGLE, _ALIKE_DEG = 0.2, 20.0
_FEW_PARTS_FROM = 3
_FEWEST_PIXELS = 8
_TWO_PHASES_FROM = 50_000
_SPREAD = 10.0
_OUTGROWN = 10
"""Times the patches that are enough for a new network: with so many, one of full width begins anew."""


@dataclass
class _Draft:
    """What the rules have settled so far."""

    facts: Fingerprint
    seconds: float
    spacing: tuple[float, float, float]
    dimensions: Literal[2, 3] = 2
    patch: tuple[int, int, int] = (1, 128, 128)
    whole: bool = False
    widths: tuple[int, ...] = WIDTHS
    batch: int = 8
    reasons: list[Reason] = field(default_factory=list)

    def say(self, choice: str, value: str, why: str, notable: bool = False) -> None:
        """Give a reason; one that came before for the same choice stays, as a part of the story."""
        self.reasons.append(Reason(choice=choice, value=value, why=why, notable=notable))

    @property
    def patches(self) -> float:
        """How many patches the minutes allow."""
        return self.seconds / seconds_per_patch(self.facts, self.patch, self.widths[0], self.dimensions)


def make_plan(facts: Fingerprint) -> Plan:
    """Fit the network to the study.

    Raises
    ------
    UserError
        If the minutes do not allow a training that is worth its name.
    """
    draft = _Draft(facts, facts.minutes * 60 * STUDENT_SHARE, facts.spacing_mm)
    _choose_dimensions(draft)
    _choose_grid(draft)
    _choose_patch(draft)
    _refine(draft)
    _fit_to_the_minutes(draft)
    _see_whether_structures_fit(draft)
    region = _region(draft)
    recipe = _recipe(draft)
    steps = int(draft.patches / draft.batch)
    if steps < FEWEST_STEPS:
        needed = math.ceil(facts.minutes * FEWEST_STEPS / max(1, steps))
        raise UserError(
            f"{facts.minutes:g} minutes are too few: they hold {steps} steps on this machine, not even enough to "
            "validate once",
            remedy=f"Give at least --minutes {needed}.",
        )
    draft.say("length", f"{steps:,} steps of {draft.batch}", _length(draft, steps))
    dynunet = draft.dimensions == 3 or facts.machine.device == "cuda"
    return Plan(
        dimensions=draft.dimensions, axis=facts.axis, spacing_mm=draft.spacing, patch=draft.patch,
        context=_context(draft), channels=facts.channels, region_mm=region, normalisation=_normalisation(draft),
        network="dynunet" if dynunet else "half_unet", widths=draft.widths, decoder="sum",
        strides=level_strides(draft.patch, _real_spacing(draft), len(draft.widths)) if dynunet else (),
        exclusive=_exclusive(draft), structures=tuple(s.name for s in facts.structures),
        largest_part=tuple(_one_part(draft, s) for s in facts.structures), any_angle=_any_angle(draft), recipe=recipe,
        batch_size=draft.batch, steps=steps, minutes=facts.minutes, reasons=tuple(draft.reasons),
    )  # fmt: skip


def seconds_per_patch(facts: Fingerprint, patch: tuple[int, int, int], width: int, dimensions: Literal[2, 3]) -> float:
    """What one patch of a training step costs on this machine; the reference network is 32 channels wide."""
    megapixels = math.prod(patch) / 1e6
    narrower = math.pow(width / WIDTHS[0], 1.8)
    machine = facts.machine
    half = dimensions == 2 and machine.device != "cuda"
    cost = _COST[machine.device, dimensions] * (_DECODER_COST if half else 1.0)
    return megapixels * machine.seconds_per_megapixel * narrower * cost


def _choose_dimensions(draft: _Draft) -> None:
    facts = draft.facts
    ratio, slices = facts.spacing_mm[0] / max(facts.spacing_mm[1:]), facts.shape[0]
    if facts.planar or facts.channels == 3:
        draft.say("dimensions", "2-D", "the study holds pictures")
    elif slices < _FEWEST_SLICES:
        draft.say("dimensions", "2-D", f"a scan has {slices} slices: too few for a third dimension")
    elif ratio >= _COARSER and slices < 2 * _FEWEST_SLICES:
        draft.say("dimensions", "2-D", f"slices are {ratio:.1f} times as far apart as pixels, and only {slices}")
    else:
        draft.dimensions = 3
        _settle_sizes(draft)
        if draft.patches < FEWEST_PATCHES:
            draft.say(
                "dimensions", "2-D",
                f"{facts.minutes:g} minutes hold {draft.patches:,.0f} 3-D blocks here; fewer than {FEWEST_PATCHES:,}"
                " teach less than slices do",
            )  # fmt: skip
            draft.dimensions, draft.whole = 2, False
        else:
            draft.say("dimensions", "3-D", f"the minutes hold {draft.patches:,.0f} blocks on this {_device(facts)}")


def _choose_grid(draft: _Draft) -> None:
    facts = draft.facts
    median = facts.spacing_mm
    spacings = [case.spacing_mm for case in facts.cases]
    spread = max(max(s[a] for s in spacings) / min(s[a] for s in spacings) for a in range(3))
    warning = f"; spacings differ {spread:.0f}-fold between scans: check their headers" if spread >= _SPREAD else ""
    draft.spacing = median if draft.dimensions == 3 else (0.0, *median[1:])
    why = "the median of the study" + (", slices stay as they are" if draft.dimensions == 2 else "") + warning
    draft.say("grid", " × ".join(f"{mm:.3g}" for mm in draft.spacing if mm) + " mm", why, notable=bool(warning))


def _settle_sizes(draft: _Draft) -> None:
    """Patch, widths and batch before the minutes are looked at."""
    facts, three = draft.facts, draft.dimensions == 3
    device, on_gpu = facts.machine.device, facts.machine.device == "cuda"
    spacing = _real_spacing(draft)
    pixels = [max(1, round(facts.extent_mm[axis] / spacing[axis])) for axis in range(3)]
    wanted = [_AROUND * mm / own for mm, own in zip(_patch_mm(draft), spacing, strict=True)]
    draft.whole = facts.planar or all(wanted[axis] >= _MOST_OF_A_SLICE * pixels[axis] for axis in (1, 2))
    if draft.whole:
        sides = [_rounded(min(side, 2 * _LARGEST_PATCH[device])) for side in pixels]
    else:
        wanted = [max(side, _SMALLEST_PATCH) for side in wanted]
        sides = [_rounded(min(pixels[axis], _LARGEST_PATCH[device], wanted[axis])) for axis in range(3)]
    while three and math.prod(sides) > _largest_block(facts):
        sides[sides.index(max(sides))] -= _MULTIPLE
    draft.patch = (sides[0] if three else 1, sides[1], sides[2])
    draft.widths = _GPU_WIDTHS[draft.dimensions] if on_gpu else _CPU_WIDTHS[draft.dimensions]
    draft.batch = 2 if three else 16 if on_gpu else 8


def _choose_patch(draft: _Draft) -> None:
    _settle_sizes(draft)
    largest = _largest_mm(draft.facts)
    if draft.whole:
        why = "whole slices: the structures fill most of them"
    else:
        own = _patch_mm(draft)
        around = "largest structure" if own == largest else "box around all structures"
        why = f"about {_AROUND:g} times the {around} ({own[1]:.0f} × {own[2]:.0f} mm)"
    sides = draft.patch if draft.dimensions == 3 else draft.patch[1:]
    draft.say("patch", " × ".join(map(str, sides)) + " px", why)


def _refine(draft: _Draft) -> None:
    """Twice as fine where a patch holds 64 px or fewer: the half-resolution network would see half of them.

    Measured on the sample study, 5 labelled hippocampi, equal time: 0.829 / 0.812 against 0.817 / 0.798.
    """
    facts = draft.facts
    if draft.dimensions == 3 or facts.machine.device == "cuda" or max(draft.patch[1:]) > _SMALLEST_PATCH:
        return
    spacing, patch, whole = draft.spacing, draft.patch, draft.whole
    draft.spacing = (0.0, spacing[1] / 2, spacing[2] / 2)
    _settle_sizes(draft)
    if draft.seconds / seconds_per_patch(facts, draft.patch, _NARROWEST, 2) < FEWEST_PATCHES:
        draft.spacing, draft.patch, draft.whole = spacing, patch, whole
        return
    shown = " × ".join(f"{mm:.3g}" for mm in draft.spacing[1:])
    draft.say("grid", f"{shown} mm", f"twice as fine: a patch would hold {patch[1]} × {patch[2]} px")
    draft.say("patch", f"{draft.patch[1]} × {draft.patch[2]} px", "the same extent on the finer grid")


def _largest_mm(facts: Fingerprint) -> list[float]:
    """Median extent of the largest structure along each axis."""
    return [max((s.extent_mm[axis] for s in facts.structures), default=facts.extent_mm[axis]) for axis in range(3)]


def _patch_mm(draft: _Draft) -> list[float]:
    """What a patch is made for: all structures together where a patch may be so large, else the largest of them."""
    facts, spacing = draft.facts, _real_spacing(draft)
    sides = [_AROUND * facts.region_mm[axis] / spacing[axis] for axis in range(3 - draft.dimensions, 3)]
    if max(sides) <= _LARGEST_PATCH[facts.machine.device]:
        return list(facts.region_mm)
    return _largest_mm(facts)


def _largest_block(facts: Fingerprint) -> float:
    """Voxels of a 3-D patch: nnU-Net's 128³ for two on a GPU of 11 GiB, in proportion."""
    if facts.machine.device != "cuda":
        return 64**3
    return min(160**3, 128**3 * max(2.0, facts.machine.memory_gib or 11.0) / 11)


def _fit_to_the_minutes(draft: _Draft) -> None:
    """Width shrinks for 20,000 patches, or for two phases where other scans are at hand; below 8,000 the patch shrinks,
    then the spacing doubles."""
    facts = draft.facts
    enough = _TWO_PHASES_FROM if _has_others(facts) else ENOUGH_PATCHES
    if draft.dimensions == 3 or _keeps_widths(draft) or draft.patches >= enough:
        return
    while draft.patches < enough and draft.widths[0] > _NARROWEST:
        narrower = draft.widths[0] - 8
        draft.widths = tuple(width * narrower // draft.widths[0] for width in draft.widths)
    why = f"so that {facts.minutes:g} minutes hold {draft.patches:,.0f} patches on this {_device(facts)}"
    draft.say("width", f"{draft.widths[0]}–{draft.widths[-1]}", why)
    _shrink_patch(draft)
    _coarsen(draft)


def _keeps_widths(draft: _Draft) -> bool:
    """Whether the network is the one that the run goes on from: it needs fewer patches than a new one."""
    own, before = draft.facts.known_widths, draft.widths
    if not own or draft.facts.machine.device == "cuda" or own[0] > before[0]:
        return False
    draft.widths = own
    if draft.patches < FEWEST_PATCHES or (own[0] < before[0] and draft.patches > _OUTGROWN * ENOUGH_PATCHES):
        draft.widths = before
        return False
    draft.say("width", f"{own[0]}–{own[-1]}", "as in the model that the training goes on from")
    return True


def _see_whether_structures_fit(draft: _Draft) -> None:
    largest, spacing = _largest_mm(draft.facts), _real_spacing(draft)
    if any(largest[axis] / spacing[axis] > draft.patch[axis] for axis in (1, 2)):
        draft.say("patch", " × ".join(str(side) for side in draft.patch[1:]) + " px",
                  "the largest structure does not fit into a patch, overlapping windows put it together",
                  notable=True)  # fmt: skip


def _shrink_patch(draft: _Draft) -> None:
    before = draft.patch
    while not draft.whole and draft.patches < FEWEST_PATCHES and max(draft.patch) > _SMALLEST_PATCH:
        rows, columns = (max(min(side, _SMALLEST_PATCH), side - _MULTIPLE) for side in draft.patch[1:])
        draft.patch = (1, rows, columns)
    if draft.patch != before:
        draft.say("patch", f"{draft.patch[1]} × {draft.patch[2]} px", "smaller, for the same reason")


def _coarsen(draft: _Draft) -> None:
    """Double the spacing, as long as the smallest structure keeps eight pixels."""
    smallest = min((min(s.extent_mm[1:]) for s in draft.facts.structures if s.cases), default=math.inf)
    before = draft.spacing
    while (
        draft.patches < FEWEST_PATCHES
        and min(draft.patch[1:]) >= _SMALLEST_PATCH
        and smallest / (2 * max(draft.spacing[1:])) >= _FEWEST_PIXELS
    ):
        draft.spacing = (0.0, 2 * draft.spacing[1], 2 * draft.spacing[2])
        draft.patch = (1, _rounded(draft.patch[1] / 2), _rounded(draft.patch[2] / 2))
    if draft.spacing != before:
        times = round(draft.spacing[1] / before[1])
        shown = " × ".join(f"{mm:.3g}" for mm in draft.spacing[1:])
        draft.say("grid", f"{shown} mm", f"{times} times the median, for the same reason")
        draft.say("patch", f"{draft.patch[1]} × {draft.patch[2]} px", "the same extent on the coarser grid")


def _region(draft: _Draft) -> tuple[float, float, float] | None:
    facts = draft.facts
    box = tuple(_AROUND * mm for mm in facts.region_mm)
    if facts.planar or all(side >= whole for side, whole in zip(box, facts.extent_mm, strict=True)):
        draft.say("region", "everywhere", "the structures fill most of a scan")
        return None
    why = f"{_AROUND:g} times the box around all structures: patches are drawn there, a coarse pass finds it"
    draft.say("region", " × ".join(f"{mm:.0f}" for mm in box) + " mm", why)
    return box[0], box[1], box[2]


def _normalisation(draft: _Draft) -> Normalisation:
    facts = draft.facts
    if "CT" in facts.modalities and facts.foreground is not None:
        found = facts.foreground
        why = "CT: clipped to the foreground's 0.5–99.5 %, then its mean and sd"
        if several := len(facts.modalities) > 1:
            why += f"; {', '.join(m for m in facts.modalities if m != 'CT')} in the same study: z-score of each scan"
        draft.say("intensities", f"{found.low:.0f} to {found.high:.0f} HU", why, notable=several)
        return Normalisation(modalities=facts.modalities, foreground=found)
    draft.say("intensities", "z-score of each scan", "no CT, whose units would mean the same in every scan")
    return Normalisation(modalities=facts.modalities)


def _exclusive(draft: _Draft) -> bool:
    several = len(draft.facts.structures) > 1
    if draft.facts.exclusive and several:
        draft.say("structures", "softmax", "they never overlap in the accepted masks")
    elif several:
        draft.say("structures", "a sigmoid each", "some overlap in the accepted masks")
    return draft.facts.exclusive


def _one_part(draft: _Draft, structure: StructureFacts) -> bool:
    one = structure.parts == 1 and structure.cases >= _FEW_PARTS_FROM and not draft.facts.planar
    if one:
        draft.say("largest part", structure.name, f"it is one piece in all {structure.cases} accepted masks")
    return one


def _context(draft: _Draft) -> int:
    """Neighbouring slices help where they look alike, and mislead where they lie far apart."""
    facts = draft.facts
    if draft.dimensions == 3 or facts.planar or facts.spacing_mm[0] > _ALIKE * max(draft.spacing[1:]):
        return 0
    draft.say("neighbours", "one slice on each side", "slices lie as close together as pixels, almost")
    return 1


def _any_angle(draft: _Draft) -> float:
    """Where scans are turned further than every training turns them, some patches are turned by any angle."""
    turn = draft.facts.turn_deg
    if draft.facts.planar or (turn is not None and turn <= _ALIKE_DEG):
        return 0.0
    turned = f"some labelled scans lie turned by {turn:.0f}°" if turn is not None else "how scans are turned is unknown"
    draft.say("turned patches", f"{_ANY_ANGLE:.0%} by any angle", turned)
    return _ANY_ANGLE


def _recipe(draft: _Draft) -> Literal["labelled", "two_phase"]:
    facts = draft.facts
    if not _has_others(facts):
        return "labelled"
    if draft.patches < _TWO_PHASES_FROM:
        draft.say("unlabelled scans", "not used", f"from {_TWO_PHASES_FROM:,} patches on they are worth their time")
        return "labelled"
    draft.say("unlabelled scans", "two phases",
              f"a first network labels the {facts.unlabelled} others, a second learns from all")  # fmt: skip
    return "two_phase"


def _has_others(facts: Fingerprint) -> bool:
    """Whether there are unlabelled scans enough to learn from."""
    return facts.unlabelled >= max(5, facts.labelled)


def level_strides(
    patch: tuple[int, int, int], spacing_mm: tuple[float, float, float], levels: int
) -> tuple[tuple[int, int, int], ...]:
    """Steps between levels: an axis is halved only while it is long enough, and once it is as fine as the others."""
    sides, spacing, found = list(patch), list(spacing_mm), []
    for _ in range(levels - 1):
        finest = min(mm for mm, side in zip(spacing, sides, strict=True) if side >= 8) if max(sides) >= 8 else 0.0
        step = [
            2 if side >= 8 and side % 2 == 0 and mm < 2 * finest else 1
            for side, mm in zip(sides, spacing, strict=True)
        ]
        sides = [side // by for side, by in zip(sides, step, strict=True)]
        spacing = [mm * by for mm, by in zip(spacing, step, strict=True)]
        found.append((step[0], step[1], step[2]))
    return tuple(found)


def _real_spacing(draft: _Draft) -> tuple[float, float, float]:
    return draft.spacing[0] or draft.facts.spacing_mm[0], draft.spacing[1], draft.spacing[2]


def _length(draft: _Draft, steps: int) -> str:
    patches = steps * draft.batch
    few = "" if patches >= FEWEST_PATCHES else f"; fewer than the {FEWEST_PATCHES:,} that a network needs"
    return f"{patches:,} patches in {STUDENT_SHARE:.0%} of {draft.facts.minutes:g} minutes{few}"


def _rounded(side: float) -> int:
    return _MULTIPLE * math.ceil(side / _MULTIPLE)


def _device(facts: Fingerprint) -> str:
    return "CPU" if facts.machine.device == "cpu" else "GPU"
