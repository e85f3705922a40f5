"""Text mask, prediction and merged mask against expert masks, on the voxel grid (METHOD §7)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from amvlm.errors import UserError
from amvlm.imaging import canonical_mask
from amvlm.inference.session import Session
from amvlm.metrics import Overlap, Summary, summarise
from amvlm.models import AmvlmModel
from amvlm.store import Case, LabelStore, Structure
from amvlm.store.records import Split

KINDS = ("text mask", "prediction", "merged")


@dataclass
class Evaluation:
    """Overlaps by (kind, structure), one per case in ``case_ids``; ``summaries`` adds means and pooled Dice."""

    model: str
    split: str
    case_ids: list[str] = field(default_factory=list)
    overlaps: dict[tuple[str, str], list[Overlap]] = field(default_factory=dict)

    def summaries(self) -> dict[tuple[str, str], Summary]:
        return {key: summarise(found) for key, found in self.overlaps.items()}

    def as_json(self) -> dict[str, Any]:
        """Figures as plain data: Dice and IoU in [0, 1], per-case means beside pooled Dice."""
        rows = [
            {"mask": kind, "structure": structure, **asdict(summary)}
            for (kind, structure), summary in self.summaries().items()
        ]
        cases = {
            f"{kind} / {structure}": [round(overlap.dice, 5) for overlap in found]
            for (kind, structure), found in self.overlaps.items()
        }
        return {
            "model": self.model,
            "split": self.split,
            "cases": self.case_ids,
            "summary": rows,
            "dice_by_case": cases,
        }


def evaluate(
    model: AmvlmModel,
    store: LabelStore,
    split: Split,
    progress: Callable[[int, int], None] | None = None,
    limit: int = 0,
) -> Evaluation:
    """Measure a model on one split, against references, or accepted labels where there is no reference.

    Each case's own caption is its prompt, without one the structure's; a session takes the patient's sides, so captions
    of an image's sides are swapped for it. A case that is neither is left out.

    Raises
    ------
    UserError
        If no case of the split has an expert mask.
    """
    references, captions = store.references(), store.captions()
    known = [structure.name for structure in model.card.structures]
    judged = {(r.case_id, r.structure): r for r in store.snapshot().revisions}
    names = [s for s in store.structures() if s.name in known] or store.structures()
    found = Evaluation(model.card.name, split)
    cases = [
        case
        for case in store.cases(split)
        if any((case.case_id, s.name) in references or (case.case_id, s.name) in judged for s in names)
    ]
    if not cases:
        raise UserError(f"no case of the split “{split}” has an expert mask", remedy="Choose another split.")
    cases = evenly_chosen(cases, limit)
    for done, case in enumerate(cases):
        session = Session(model, store.read_image(case), default_device())
        found.case_ids.append(case.case_id)
        for structure in names:
            truth = _truth(store, case, structure.name, references, judged)
            if truth is None:
                continue
            masks = session.segment_volume(prompt_of(case, structure, captions))
            for kind in KINDS if session.prediction_of(structure.prompt) else KINDS[:1]:
                overlap = Overlap.of(torch.from_numpy(masks[kind] > 127), torch.from_numpy(truth > 0))
                found.overlaps.setdefault((kind, structure.name), []).append(overlap)
        if progress is not None:
            progress(done + 1, len(cases))
    return found


def evenly_chosen(cases: list[Case], limit: int) -> list[Case]:
    """At most ``limit`` of the cases, spread over all of them; 0 for all."""
    if not limit:
        return cases
    return [cases[int(place)] for place in np.linspace(0, len(cases) - 1, min(limit, len(cases))).astype(int)]


def prompt_of(case: Case, structure: Structure, captions: dict[str, list[tuple[str | None, str]]]) -> str:
    """The case's own caption for a structure, in the patient's sides; without one the structure's prompt."""
    own = [text for s, text in captions.get(case.case_id, []) if s in (structure.name, None)]
    return own[0] if own else structure.prompt


def _truth(
    store: LabelStore, case: Case, structure: str, references: dict[tuple[str, str], str], judged: dict[Any, Any]
) -> np.ndarray[Any, np.dtype[Any]] | None:
    key = (case.case_id, structure)
    mask = store.read_reference(case, structure) if key in references else None
    if mask is None and key in judged:
        mask = store.read_mask(judged[key])
    if mask is None:
        return None
    return np.ascontiguousarray(canonical_mask(mask, store.read_image(case)))


def default_device() -> str:
    """The GPU when torch can use one, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"
