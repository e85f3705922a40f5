"""What the Train panel says in numbers and words: labels, time left, before and after. No window is needed here."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Collection
from dataclasses import dataclass

from amvlm.events import Validation
from amvlm.store import LabelStore
from napari_amvlm.wording import printable


def unchanged_validation_labels(store: LabelStore) -> int:
    """How many validation labels a model drew and nobody corrected."""
    validation = {case.case_id for case in store.cases("val")}
    return sum(
        r.case_id in validation and r.kind == "accepted" and bool(r.model_fingerprint) and r.edited_voxels == 0
        for r in store.snapshot().revisions
    )


def count_labels(store: LabelStore) -> tuple[tuple[int, int, int], list[str]]:
    """(labelled, validation, unlabelled training cases), and a line per structure."""
    splits = {case.case_id: case.split for case in store.cases()}
    by_case = store.snapshot().by_case()
    labelled = [case_id for case_id in by_case if splits.get(case_id) == "train"]
    validation = [case_id for case_id in by_case if splits.get(case_id) == "val"]
    unlabelled = sum(split == "train" for split in splits.values()) - len(labelled)
    rows = []
    for structure in store.structures():
        kinds = [found[structure.name].kind for found in by_case.values() if structure.name in found]
        absent = f", {kinds.count('absent')} absent" if "absent" in kinds else ""
        rows.append(f"{printable(structure.name)}: {kinds.count('accepted')} accepted{absent}")
    return (len(labelled), len(validation), unlabelled), rows


def kind_name(kind: str) -> str:
    """What the window calls a kind of mask in a run's events."""
    return {"student": "prediction", "merged": "merged mask"}.get(kind, kind.replace("_", " "))


def comparison(before: Validation | None, after: Validation | None) -> list[tuple[str, str, str]]:
    """Rows (mask and structure, Dice before, Dice after); a dash where nothing was measured."""
    if after is None:
        return []
    rows = []
    for kind in ("text_mask", "student", "merged"):
        for structure, dice in getattr(after, kind).items():
            old = getattr(before, kind).get(structure) if before is not None else None
            rows.append((f"{kind_name(kind)}, {structure}", "–" if old is None else f"{old:.3f}", f"{dice:.3f}"))
    return rows


EQUAL = 0.01
"""Dice by which two models have to differ to be told apart."""
ENOUGH = 5
"""Validation cases from which a difference is taken seriously."""


@dataclass(frozen=True)
class Verdict:
    """How a new model compares with the one in use, and whether it is worse."""

    sentence: str
    worse: bool = False


def verdict(before: Validation | None, after: Validation | None, cases: int) -> Verdict:
    """Better, equal or worse, on how many validation cases.

    Compared is the mean Dice, over the structures that both models know, of what a label starts from: the merged mask,
    or the prediction where there is none.
    """
    if after is None or not cases:
        return Verdict("No validation case is labelled: how good the model is, is not yet known.")
    new = after.merged or after.student
    old = (before.merged or before.student) if before is not None else {}
    both = [name for name in new if name in old]
    on = f"on {cases} validation case{'s' * (cases != 1)}"
    if not both:
        dice = sum(new.values()) / max(1, len(new))
        return Verdict(f"Dice {dice:.2f} {on}." if cases >= ENOUGH else f"Dice {dice:.2f} {on}: too few to rely on.")
    was, now = (sum(scores[name] for name in both) / len(both) for scores in (old, new))
    figures = f"Dice {was:.2f} before, {now:.2f} now, {on}"
    if now < was - EQUAL:
        return Verdict(f"The new model is worse: {figures}. The model in use stays.", worse=True)
    if cases < ENOUGH:
        return Verdict(f"{figures}: too few cases to tell; label {ENOUGH} of them.")
    return Verdict(f"The new model is {'better' if now > was + EQUAL else 'as good as the one in use'}: {figures}.")


def model_name(typed: str, taken: Collection[str]) -> str:
    """A name for a new model that a folder can have: what was typed, or "model"; numbered where it is taken."""
    cleaned = re.sub(r"[^\w -]+", "-", typed).strip("-_ ")[:40].strip() or "model-1"
    stem, _, number = cleaned.rpartition("-")
    if not (stem and number.isdigit()):
        stem, number = cleaned, "1"
    names = itertools.chain([cleaned], (f"{stem}-{n}" for n in itertools.count(int(number) + 1)))
    lower = {name.lower() for name in taken}
    return next(name for name in names if name.lower() not in lower)


def time_left(seconds: float) -> str:
    """Seconds as a person says them."""
    minutes = min(max(seconds, 0.0), 99 * 3600) / 60 if math.isfinite(seconds) else 0.0
    if minutes >= 90:
        return f"About {minutes / 60:.1f} hours left"
    if minutes >= 1.5:
        return f"About {round(minutes)} minutes left"
    return "About a minute left" if minutes > 0.5 else "Less than a minute left"


def clock_time(seconds: float) -> str:
    seconds = min(max(seconds, 0), 99 * 3600) if math.isfinite(seconds) else 0
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d} min"
