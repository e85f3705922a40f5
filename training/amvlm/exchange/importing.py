"""Copy a folder of images, masks and captions into a label store."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from amvlm.errors import UserError, printable
from amvlm.exchange.accounts import ImportReport
from amvlm.exchange.arrivals import Arrivals, rounded_affine
from amvlm.exchange.layouts import Item, Layout, read_layout
from amvlm.exchange.masks import read_masks
from amvlm.imaging.copies import study_copy
from amvlm.store import Case, NewCase, Structure
from amvlm.store.names import remember_names
from amvlm.store.records import Laterality, Split
from amvlm.text import names_a_side, normalise_caption, to_patient_sides

Masks = Literal["labels", "reference", "ignore"]
_SPLITS: tuple[tuple[float, Split], ...] = ((0.15, "val"), (0.30, "test"), (1.0, "train"))
_VALIDATION = 5
"""Validation cases from which a training knows how good its model is."""


def import_study(
    source: str | Path,
    into: str | Path,
    *,
    masks: Masks = "labels",
    structure: str = "",
    labels: str = "",
    laterality: Literal["", "patient", "image"] = "",
    split: Split | Literal["auto"] = "auto",
    splits: dict[str, Split] | None = None,
    accept_fraction: float = 1.0,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> ImportReport:
    """Import a folder (MSD, LViT, DICOM or plain) or one image, in one transaction for the index.

    Parameters
    ----------
    source, into : path
        The folder; the study, which is created if it is not there.
    masks : {"labels", "reference", "ignore"}
        Whether masks are accepted labels, or kept aside to measure with and never trained on. Masks of the
        test split are always reference only.
    structure : str
        What single-structure masks outline.
    labels : str
        What the values of masks with several structures mean; see :func:`read_layout`.
    laterality : {"", "patient", "image"}
        Whose left and right the captions name; empty for the layout's usual.
    split : {"auto", "train", "val", "test"}
        "auto" fixes 70/15/15 % by a hash of the patient, as far as file names tell, or of the file's name (85/15/0 %
        where no image has a mask).
    splits : dict, optional
        Image base name → split, over ``split``.
    accept_fraction : float in [0, 1]
        Share of the training cases whose masks are accepted, chosen by ``seed``; the others keep a reference.
    progress : callable (done, total), optional

    Returns
    -------
    ImportReport
        One unreadable file does not stop the others; every file that was seen is accounted for.

    Raises
    ------
    UserError
        If nothing could be imported, or the study cannot be written. Nothing of the import remains then.
    """
    layout = read_layout(Path(source), structure, labels)
    _refuse_doubtful_names(layout, structure, laterality)
    has_masks = any(item.mask is not None for item in layout.items)
    choices = _Choices(
        masks, laterality, split, splits or {}, has_masks, _chosen(layout.items, accept_fraction, seed),
        _hashed_splits({_patient_of(item) for item in layout.items}, has_masks),
    )  # fmt: skip
    layout = _without_masks(layout) if masks == "ignore" else layout
    report = ImportReport(structures=list(layout.structures), unused_captions=layout.unused_captions)
    arrivals = Arrivals(Path(into))
    try:
        for done, item in enumerate(layout.items, 1):
            _bring_in(item, layout, choices, arrivals, report)
            if progress is not None:
                progress(done, len(layout.items))
        brought = arrivals.commit(
            Structure(name, (alias,) if alias else (), prompts=(name,)) for name, alias in layout.structures.items()
        )
    except BaseException:
        arrivals.withdraw()
        raise
    _settle(brought, arrivals, layout, choices, report)
    if brought:
        _remember(arrivals, brought, report)
    elif not report.already_there:
        raise _nothing(report)
    return report


@dataclass(frozen=True)
class _Choices:
    """What the person asked for, and what follows from the folder as a whole."""

    masks: Masks
    laterality: Literal["", "patient", "image"]
    split: Split | Literal["auto"]
    splits: Mapping[str, Split]
    has_masks: bool
    accepted: set[Path]
    hashed: Mapping[str, Split]

    def split_of(self, item: Item) -> Split:
        chosen = self.splits.get(item.image.name)
        if chosen is None:
            chosen = self.hashed[_patient_of(item)] if self.split == "auto" else self.split
        return chosen

    def are_labels(self, item: Item, split: Split) -> bool:
        """Whether the item's masks are accepted, or only kept to measure with."""
        return self.masks == "labels" and split != "test" and (split == "val" or item.image in self.accepted)

    def sides_of(self, item: Item) -> Laterality:
        return "image" if (self.laterality or item.laterality) == "image" else "patient"


def _bring_in(item: Item, layout: Layout, choices: _Choices, arrivals: Arrivals, report: ImportReport) -> None:
    """Read one image and its masks whole, and only then write; one that cannot be trusted is refused by name."""
    at_fault = item.files
    try:
        volume = item.read()
        content, suffix = study_copy(volume)
        if arrivals.has(content):
            arrivals.repeated.append(item)
            return
        at_fault = [item.mask] if item.mask else []
        masks = read_masks(item, volume, layout.structures, layout.values)
    except UserError as error:
        _refuse(item, at_fault, str(error) if error.file_name else f"{item.image.name}: {error}", layout)
        return
    except MemoryError:
        _refuse(item, at_fault, f"{printable(item.image.name)}: there is not enough memory to read it.", layout)
        return
    split, sides = choices.split_of(item), choices.sides_of(item)
    hashes = {name: arrivals.keep_mask(mask, volume) for name, mask in masks.items()}
    report.empty_masks += bool(masks) and not any(mask.any() for mask in masks.values())
    new = NewCase(
        item.patient, split, volume.modality or layout.modality, sides, arrivals.keep_image(content, suffix), suffix,
        volume.shape, rounded_affine(volume), volume.sides_known, volume.planar, _captions_of(item, layout, sides),
        hashes, hashes if choices.are_labels(item, split) else {},
    )  # fmt: skip
    report.notes += [f"{printable(item.name)}: {note}" for note in volume.notes]
    arrivals.add(new, item)


def _refuse(item: Item, at_fault: Sequence[Path], sentence: str, layout: Layout) -> None:
    folder = item.place.rpartition("/")[0]
    layout.accounts.settle("refused", at_fault, printable(f"{folder}/{sentence}" if folder else sentence))
    rest = [path for path in (*item.files, item.mask) if path is not None and path not in at_fault]
    why = "its mask was refused, and so is the case" if item.mask in at_fault else "its scan was refused"
    if rest:
        layout.accounts.settle("left out", rest, f"{layout.accounts.place(rest[0])}: {why}.")


def _settle(brought: Sequence[tuple[Case, NewCase, Item]], arrivals: Arrivals, layout: Layout, choices: _Choices,
            report: ImportReport) -> None:  # fmt: skip
    """Count what came in, and what became of every file."""
    accounts = layout.accounts
    for _, new, item in brought:
        accounts.settle("scan", item.files)
        accounts.settle("mask", [item.mask] if item.mask else [])
        if choices.has_masks and choices.masks != "ignore" and item.mask is None:
            report.without_mask.append(printable(item.name))
        report.captions += len(new.captions)
        report.masks += bool(new.references)
        report.without_caption += not new.captions
    for item in arrivals.repeated:
        accounts.settle("already there", item.files)
        if item.mask is not None and not accounts.settled(item.mask):
            accounts.leave_out(item.mask, "its scan is in the study already, so this mask was not taken")
    report.cases, report.already_there = len(brought), len(arrivals.repeated)
    report.patients = len({case.group for case, _, _ in brought})
    accounts.close(report)


def _remember(arrivals: Arrivals, brought: Sequence[tuple[Case, NewCase, Item]], report: ImportReport) -> None:
    """Keep the files' names for the window; the scans are in the study even where that fails."""
    try:
        remember_names(arrivals.store.store_id, {case.case_id: item.name for case, _, item in brought})
    except UserError as error:
        report.notes.append(str(error))


class NothingImported(UserError):  # noqa: N818 - what happened, in the past tense
    """No file of a folder could be imported; ``lines`` says of each why, as the report of an import does."""

    lines: Sequence[str] = ()


def _nothing(report: ImportReport) -> NothingImported:
    """Why nothing came in: the first refusals in full, the rest as counts."""
    more = len(report.refused) - 5
    counted = [f"{more} more files were refused"] * (more > 0)
    counted += [f"{len(report.left_out)} files were left out"] * bool(report.left_out)
    first = " ".join(report.refused[:5]) or "nothing was imported"
    error = NothingImported(first, remedy=f"{'; '.join(counted)}." if counted else "")
    error.lines = report.lines()
    return error


def _without_masks(layout: Layout) -> Layout:
    for item in layout.items:
        if item.mask is not None:
            layout.accounts.leave_out(item.mask, "masks are ignored, as asked for")
    return replace(layout, items=[replace(item, mask=None) for item in layout.items])


def _captions_of(item: Item, layout: Layout, sides: Laterality) -> tuple[tuple[str | None, str], ...]:
    """(structure or None, text) of an item, normalised and in the patient's sides."""
    only = next(iter(layout.structures), None) if len(layout.structures) == 1 else None
    texts = [(only, item.caption), *item.by_structure.items()]
    return tuple((name, to_patient_sides(normalise_caption(text), sides)) for name, text in texts if text)


def _refuse_doubtful_names(layout: Layout, structure: str, laterality: str) -> None:
    """Names in a source of the image's sides: whose left they mean cannot be known (a name typed here: the patient's).

    Raises
    ------
    UserError
    """
    doubtful = [name for name in layout.structures if name != structure and names_a_side(name)]
    captioned = [item for item in layout.items if item.caption or item.by_structure]
    if doubtful and any((laterality or item.laterality) == "image" for item in captioned):
        raise UserError(
            f"its captions name the image's left and right, so whose left “{doubtful[0]}” means cannot be known",
            remedy="Name the structures by the patient's sides, swap the captions' sides to the patient's, and import "
            "with --laterality patient.",
        )


def _chosen(items: Sequence[Item], fraction: float, seed: int) -> set[Path]:
    with_mask = [item.image for item in items if item.mask is not None]
    order = np.random.default_rng(seed).permutation(len(with_mask))
    return {with_mask[int(index)] for index in order[: round(fraction * len(with_mask))]}


def _patient_of(item: Item) -> str:
    """What a split keeps together."""
    return item.patient or item.name


def _hashed_splits(patients: Collection[str], has_masks: bool) -> dict[str, Split]:
    """Patient → split, by a hash of the name, so that the same patient falls into the same split again.

    Without expert masks there is nothing to test on, so nothing is kept for it. The hash alone would leave a small
    study without validation, or without training: then the patients next in line change over, so that a quarter
    (at most ``_VALIDATION`` patients) validates and at most half does.
    """
    draws = {name: int(hashlib.sha256(f"split {name}".encode()).hexdigest()[:8], 16) / 2**32 for name in patients}
    splits: dict[str, Split] = {}
    for name, draw in draws.items():
        split = next(split for bound, split in _SPLITS if draw < bound)
        splits[name] = split if has_masks or split != "test" else "train"
    in_line = sorted(draws, key=lambda name: draws[name])
    validation = sum(split == "val" for split in splits.values())
    for name in in_line[validation : min(_VALIDATION, len(in_line) // 4)]:
        splits[name] = "val"
    for name in in_line[len(in_line) // 2 : validation]:
        splits[name] = "train"
    return splits
