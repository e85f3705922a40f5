"""Copy a folder of images, masks and captions into a label store."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from amvlm.errors import UserError
from amvlm.exchange.exporting import packed
from amvlm.exchange.layouts import Item, Layout, read_layout
from amvlm.imaging import Volume, read_volume
from amvlm.store import LabelStore, NewCase, Structure
from amvlm.store.names import remember_names
from amvlm.store.records import Laterality, Split
from amvlm.text import names_a_side, normalise_caption, to_patient_sides

Masks = Literal["labels", "reference", "ignore"]
_SPLITS: tuple[tuple[float, Split], ...] = ((0.15, "val"), (0.30, "test"), (1.0, "train"))


@dataclass
class ImportReport:
    """What an import did, in counts."""

    cases: int = 0
    masks: int = 0
    captions: int = 0
    without_caption: int = 0
    unused_captions: int = 0
    patients: int = 0
    already_there: int = 0
    structures: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    def sentence(self) -> str:
        parts = [f"{self.cases} cases, {self.masks} masks, {self.captions} captions"]
        if self.already_there:
            parts.append(f"{self.already_there} images were in the study already")
        if self.captions and self.without_caption:
            parts.append(f"{self.without_caption} cases have no caption")
        if self.unused_captions:
            parts.append(f"{self.unused_captions} rows of the caption table name no image here")
        if 0 < self.patients < self.cases:
            parts.append(f"{self.patients} patients, none in two splits")
        if self.refused:
            parts.append(f"{len(self.refused)} files were refused")
        return "; ".join(parts) + "."


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
        One unreadable file does not stop the others: it is named in ``refused``.
    """
    layout = read_layout(Path(source), structure, labels)
    into = Path(into)
    sides: Laterality = "image" if (laterality or layout.laterality) == "image" else "patient"
    _refuse_doubtful_names(layout, structure, sides)
    store = LabelStore.open_or_create(into)
    has_masks = any(item.mask is not None for item in layout.items)
    accepted = _chosen(layout.items, accept_fraction, seed)
    report = ImportReport(structures=list(layout.structures), unused_captions=layout.unused_captions)
    found: list[tuple[NewCase, Item]] = []
    for done, item in enumerate(layout.items):
        try:
            volume = item.read()
            mask_hashes = {} if masks == "ignore" else _masks_of(item, volume, layout, store)
            content, suffix = _clean_copy(item, volume)
        except UserError as error:
            report.refused.append(str(error))
            continue
        chosen: Split = (splits or {}).get(item.image.name) or (
            _hashed_split(item.patient or item.name, has_masks) if split == "auto" else split
        )
        is_label = masks == "labels" and chosen != "test" and (chosen == "val" or item.image in accepted)
        new = NewCase(
            item.patient, chosen, volume.modality or layout.modality, sides, store.images.add(content, suffix), suffix,
            volume.shape, rounded_affine(volume), volume.sides_known, volume.planar, _captions_of(item, layout, sides),
            mask_hashes, mask_hashes if is_label else {},
        )  # fmt: skip
        found.append((new, item))
        if progress is not None:
            progress(done + 1, len(layout.items))
    if not found:
        store.remove_if_empty()
        raise UserError(
            report.refused[0] if report.refused else "nothing was imported",
            remedy="" if report.refused else "Check it.",
        )
    structures = [
        Structure(name, (alias,) if alias else (), prompts=(name,)) for name, alias in layout.structures.items()
    ]
    added = store.add_import(structures, [new for new, _ in found])
    brought = [(case, new, item) for case, (new, item) in zip(added, found, strict=True) if case is not None]
    report.cases, report.already_there = len(brought), added.count(None)
    report.patients = len({case.group for case, _, _ in brought})
    report.captions = sum(len(new.captions) for _, new, _ in brought)
    report.masks = sum(bool(new.references) for _, new, _ in brought)
    report.without_caption = sum(not new.captions for _, new, _ in brought)
    remember_names(store.store_id, {case.case_id: item.name for case, _, item in brought})
    return report


def rounded_affine(volume: Volume) -> NDArray[np.float64]:
    """The affine after the one rounding to float32 that NIfTI brings; masks and image share it."""
    return volume.affine.astype(np.float32).astype(np.float64)


def _captions_of(item: Item, layout: Layout, sides: Laterality) -> tuple[tuple[str | None, str], ...]:
    """(structure or None, text) of an item, normalised and in the patient's sides."""
    only = next(iter(layout.structures), None) if len(layout.structures) == 1 else None
    texts = [(only, item.caption), *item.by_structure.items()]
    return tuple((name, to_patient_sides(normalise_caption(text), sides)) for name, text in texts if text)


def _refuse_doubtful_names(layout: Layout, structure: str, sides: Laterality) -> None:
    """Names in a source of the image's sides: whose left they mean cannot be known (a name typed here: the patient's).

    Raises
    ------
    UserError
    """
    doubtful = [name for name in layout.structures if name != structure and names_a_side(name)]
    captioned = any(item.caption or item.by_structure for item in layout.items)
    if sides == "image" and captioned and doubtful:
        raise UserError(
            f"its captions name the image's left and right, so whose left “{doubtful[0]}” means cannot be known",
            remedy="Name the structures by the patient's sides, swap the captions' sides to the patient's, and import "
            "with --laterality patient.",
        )


def _chosen(items: Sequence[Item], fraction: float, seed: int) -> set[Path]:
    with_mask = [item.image for item in items if item.mask is not None]
    order = np.random.default_rng(seed).permutation(len(with_mask))
    return {with_mask[int(index)] for index in order[: round(fraction * len(with_mask))]}


def _hashed_split(name: str, has_masks: bool) -> Split:
    """By a hash of a name; without expert masks there is nothing to test on, so nothing is kept for it."""
    draw = int(hashlib.sha256(f"split {name}".encode()).hexdigest()[:8], 16) / 2**32
    found = next(split for bound, split in _SPLITS if draw < bound)
    return found if has_masks or found != "test" else "train"


def _clean_copy(item: Item, volume: Volume) -> tuple[bytes, str]:
    """Bytes for the study: a volume as NIfTI of our own header, a picture as it came unless it carries words."""
    if not volume.planar:
        return packed(volume), ".nii.gz"
    if item.image.suffix.lower() in (".png", ".webp"):
        with Image.open(item.image) as picture:
            silent = {"loop", "background", "timestamp", "duration", "dpi", "gamma", "transparency"}
            if picture.format in ("PNG", "WEBP") and set(picture.info) <= silent:
                return item.image.read_bytes(), item.image.suffix.lower()
    pixels = volume.array[:, :, 0].swapaxes(0, 1)
    stream = io.BytesIO()
    if pixels.dtype not in (np.uint8, np.uint16):
        Image.fromarray(np.ascontiguousarray(pixels, dtype=np.float32)).save(stream, "TIFF")
        return stream.getvalue(), ".tif"
    Image.fromarray(np.ascontiguousarray(pixels)).save(stream, "PNG")
    return stream.getvalue(), ".png"


def _masks_of(item: Item, volume: Volume, layout: Layout, store: LabelStore) -> dict[str, str]:
    """Keep the item's masks; structure → hash."""
    if item.mask is None:
        return {}
    mask = read_volume(item.mask)
    if mask.array.ndim != 3:
        raise UserError("a mask must be grey-scale", file=item.mask, remedy="Save it with one value per structure.")
    same = mask.shape == volume.shape if volume.planar else mask.same_grid(volume)
    if not same:
        raise UserError(
            f"the mask's grid {mask.shape} is not its image's {volume.shape}",
            file=item.mask,
            remedy="Resample the mask onto its image, or draw it again.",
        )
    grid = Volume(volume.array if volume.array.ndim == 3 else volume.array[..., 0],
                  rounded_affine(volume), volume.sides_known, volume.planar)  # fmt: skip
    if not layout.values:
        (name,) = layout.structures
        return {name: store.masks.add((mask.array > 0).astype(np.uint8), grid)}
    unknown = set(np.unique(mask.array).tolist()) - {0, *layout.values}
    if unknown:
        raise UserError(f"the mask holds values without a name: {sorted(unknown)[:5]}", file=item.mask,
                        remedy="Name every value in dataset.json.")  # fmt: skip
    return {name: store.masks.add(_of_value(mask.array, value), grid) for value, name in layout.values.items()}


def _of_value(array: NDArray[np.generic], value: int) -> NDArray[np.uint8]:
    equal: NDArray[np.uint8] = (array == value).astype(np.uint8)
    return equal
