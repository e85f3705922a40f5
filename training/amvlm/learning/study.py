"""What a run learns from: a snapshot of labels, the texts of each case, and slices of both."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.random import Generator as Rng
from numpy.typing import NDArray
from torch import Tensor

from amvlm.config import Captions
from amvlm.errors import UserError
from amvlm.learning.slices import SliceBank, slices_from
from amvlm.store import Case, LabelStore, Revision, Snapshot, Structure
from amvlm.store.runs import RunFolder
from amvlm.text import class_derangement, normalise_caption


@dataclass
class LabelledCase:
    """One judged case: a mask (Z, H, W) uint8 per structure, read from disk as needed, and which were judged, (S,)."""

    case_id: str
    masks: Sequence[NDArray[np.uint8]]
    known: NDArray[np.float32]

    @functools.cached_property
    def areas(self) -> NDArray[np.int64]:
        """Pixels of each structure in each slice, (S, Z)."""
        return np.stack([mask.sum((1, 2), dtype=np.int64) for mask in self.masks])

    @property
    def depth(self) -> int:
        """Number of slices."""
        return int(self.masks[0].shape[0])

    @property
    def slices_with_structure(self) -> NDArray[np.intp]:
        return np.flatnonzero(self.areas.any(axis=0))


@dataclass
class Study:
    """A store as one run sees it; later edits do not reach it."""

    store: LabelStore
    snapshot: Snapshot
    structures: list[Structure]
    training: dict[str, dict[str, Revision]]
    validation: dict[str, dict[str, Revision]]
    cases: dict[str, Case]
    missing: dict[str, frozenset[str]]
    captions: dict[tuple[str, str], str]

    @functools.cached_property
    def unlabelled(self) -> list[str]:
        """Training cases that still miss a judgement."""
        return list(self.missing)

    @property
    def names(self) -> list[str]:
        return [structure.name for structure in self.structures]

    @property
    def modality(self) -> str:
        """The one modality of all cases, or ""."""
        found = {case.modality for case in self.cases.values()}
        return found.pop() if len(found) == 1 else ""

    @property
    def planar(self) -> bool:
        return all(case.planar for case in self.cases.values())

    @property
    def fingerprint(self) -> str:
        """One hash for what was learned from: images, revisions and their masks."""
        parts = [f"{r.revision_id}:{r.case_id}:{r.structure}:{r.mask_sha256}" for r in self.snapshot.revisions]
        images = [self.cases[case_id].image_sha256 for case_id in sorted(self.cases)]
        return hashlib.sha256("\n".join([*parts, *images]).encode()).hexdigest()[:16]

    def text(self, case_id: str, structure: str) -> str:
        """The case's caption for a structure, or the structure's prompt."""
        prompt = next(s.prompt for s in self.structures if s.name == structure)
        return self.captions.get((case_id, structure), normalise_caption(prompt))


def open_study(
    store: LabelStore, *, wanted: Sequence[str] = (), snapshot: Snapshot | None = None, need_labels: bool = True
) -> Study:
    """Take a snapshot and sort the cases: train and labelled, validation, unlabelled.

    Raises
    ------
    UserError
        If nothing is labelled yet, or a wanted structure has no label.
    """
    snapshot = snapshot or store.snapshot()
    cases = {case.case_id: case for case in store.cases() if case.split != "test"}
    by_case = {case_id: found for case_id, found in snapshot.by_case().items() if case_id in cases}
    labelled_names = {r.structure for found in by_case.values() for r in found.values() if r.kind == "accepted"}
    eligible = set(wanted) or (labelled_names if need_labels else {s.name for s in store.structures()})
    structures = [s for s in store.structures() if s.name in eligible]
    unlearnable = [name for name in wanted if name not in labelled_names]
    if unlearnable and need_labels:
        raise UserError(f"nothing is accepted for {', '.join(unlearnable)}", remedy="Accept it in a few cases first.")
    training = {c: found for c, found in by_case.items() if cases[c].split == "train"}
    if need_labels and not any(r.kind == "accepted" for found in training.values() for r in found.values()):
        raise UserError(
            "no training case is labelled yet",
            remedy="Outline a structure in at least one case of the training split and accept it, then train.",
        )
    states = store.states()
    names = [s.name for s in structures]
    missing = {
        c: frozenset(n for n in names if n not in training.get(c, {}) and states.get((c, n)) != "rejected")
        for c, case in cases.items()
        if case.split == "train"
    }
    return Study(
        store, snapshot, structures, training,
        {c: found for c, found in by_case.items() if cases[c].split == "val"},
        cases, {c: found for c, found in missing.items() if found}, _captions(store, names, set(cases)),
    )  # fmt: skip


def with_controls(study: Study, captions: Captions, seed: int) -> Study:
    """The study with its captions as a control has them: a derangement over caption classes, or empty (METHOD §7)."""
    if captions == "true":
        return study
    swap = class_derangement(list(study.captions.values()), seed) if captions == "shuffled" else {}
    changed = {key: swap.get(text, text) if captions == "shuffled" else "" for key, text in study.captions.items()}
    return dataclasses.replace(study, captions=changed)


def snapshot_of_run(store: LabelStore, run: RunFolder) -> Snapshot:
    """The labels that a resumed run began with.

    Raises
    ------
    UserError
        If some of them are not in the study any more.
    """
    wanted = set(run.read_config().revisions)
    pairs = {(case.case_id, s.name) for case in store.cases() for s in store.structures()}
    found = [r for case_id, name in sorted(pairs) for r in store.history(case_id, name) if r.revision_id in wanted]
    if len(found) != len(wanted):
        raise UserError("revisions of this run are missing from the study", file=run.path, remedy="Start a new run.")
    return Snapshot(store.store_id, tuple(found))


def _captions(store: LabelStore, names: list[str], wanted: set[str]) -> dict[tuple[str, str], str]:
    found: dict[tuple[str, str], str] = {}
    for case_id, captions in store.captions().items():
        for structure, text in captions if case_id in wanted else []:
            for name in [structure] if structure else names:
                found.setdefault((case_id, name), text)
    return found


def load_labelled(bank: SliceBank, names: list[str], by_case: dict[str, dict[str, Revision]]) -> list[LabelledCase]:
    """Judged cases; their masks stay on disk at network resolution."""
    loaded = []
    for case_id, revisions in by_case.items():
        if not any(name in revisions for name in names):
            continue
        nothing = np.broadcast_to(np.uint8(0), (bank.depth(case_id), bank.size, bank.size))
        masks = [bank.mask(revisions[name]) if name in revisions else nothing for name in names]
        known = np.array([float(name in revisions) for name in names], np.float32)
        loaded.append(LabelledCase(case_id, masks, known))
    return loaded


def sample_labelled(
    labelled: list[LabelledCase], count: int, rng: Rng, planes: int = 0
) -> tuple[list[tuple[str, int]], Tensor, Tensor]:
    """Slices of judged cases, at most a third without any structure (slices rule d), or blocks around such slices.

    Returns
    -------
    pairs : list of (case id, slice, or first slice of the block)
    masks : Tensor, (B, S, H, W), or (B, S, planes, H, W), float32
    known : Tensor, (B, S), float32
    """
    pairs, masks, known = [], [], []
    for _ in range(count):
        case = labelled[int(rng.integers(len(labelled)))]
        filled = case.slices_with_structure
        depth = case.depth
        empty = len(filled) == 0 or (len(filled) < depth and rng.random() < 1 / 3)
        choices = np.setdiff1d(np.arange(depth), filled) if empty else filled
        z = int(rng.choice(choices))
        if planes:
            z = min(max(0, z - int(rng.integers(planes))), max(0, depth - planes))
        wanted: NDArray[np.intp] | int = slices_from(z, planes, depth) if planes else z
        pairs.append((case.case_id, z))
        masks.append(np.stack([mask[wanted] for mask in case.masks]))
        known.append(case.known)
    return pairs, torch.from_numpy(np.stack(masks)).float(), torch.from_numpy(np.stack(known))


def sample_unlabelled(
    study: Study, bank: SliceBank, count: int, rng: Rng, planes: int = 0
) -> tuple[list[tuple[str, int]], Tensor]:
    """Slices or blocks of cases that still miss a judgement, and which structures they miss: pairs, (B, S)."""
    pairs = []
    wanted = torch.zeros(count, len(study.structures))
    for row in range(count):
        case_id = study.unlabelled[int(rng.integers(len(study.unlabelled)))]
        depth = bank.depth(case_id)
        pairs.append((case_id, int(rng.integers(max(1, depth - planes + 1) if planes else depth))))
        wanted[row] = torch.tensor([float(name in study.missing[case_id]) for name in study.names])
    return pairs, wanted


def priors(labelled: list[LabelledCase], structures: int) -> list[float]:
    """Foreground fraction of each structure over all judged slices."""
    found = []
    for s in range(structures):
        cases = [case for case in labelled if case.known[s]]
        filled = sum(float(case.areas[s].sum()) for case in cases)
        total = sum(case.masks[s].size for case in cases)
        found.append(min(0.9, max(1e-3, filled / total)) if total else 0.05)
    return found
