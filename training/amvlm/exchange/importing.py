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
from amvlm.imaging import Volume, read_volume, write_bytes_atomically
from amvlm.store import Case, LabelStore
from amvlm.store.names import remember_names
from amvlm.store.records import Split
from amvlm.store.store import sha256_of
from amvlm.text import normalise_caption

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
    store = LabelStore(into) if (into / "store.sqlite").is_file() else LabelStore.create(into)
    for name, alias in layout.structures.items():
        store.add_structure(name, [alias] if alias else [], [name])
    has_masks = any(item.mask is not None for item in layout.items)
    accepted = _chosen(layout.items, accept_fraction, seed)
    known = {case.image_sha256 for case in store.cases()}
    first = 1 + max((int(case.case_id.removeprefix("case-")) for case in store.cases()), default=0)
    report = ImportReport(structures=list(layout.structures), unused_captions=layout.unused_captions)
    patients: dict[str, str] = {}
    cases: list[Case] = []
    names: dict[str, str] = {}
    found: list[tuple[Case, Item, dict[str, str]]] = []
    for done, item in enumerate(layout.items):
        try:
            volume = item.read()
            mask_hashes = {} if masks == "ignore" else _masks_of(item, volume, layout, store)
            content, suffix = _clean_copy(item, volume)
        except UserError as error:
            report.refused.append(str(error))
            continue
        sha256 = sha256_of(content)
        if sha256 in known:
            report.already_there += 1
            continue
        known.add(sha256)
        case_id = f"case-{first + len(cases):05d}"
        chosen: Split = (splits or {}).get(item.image.name) or (
            _hashed_split(item.patient or item.name, has_masks) if split == "auto" else split
        )
        case = Case(
            case_id, patients.setdefault(item.patient or case_id, case_id), chosen,
            volume.modality or layout.modality,
            "image" if (laterality or layout.laterality) == "image" else "patient", sha256, f"images/{case_id}{suffix}",
            volume.shape, rounded_affine(volume), volume.sides_known, volume.planar,
        )  # fmt: skip
        write_bytes_atomically(into / case.image_file, content)
        cases.append(case)
        names[case_id] = item.name
        found.append((case, item, mask_hashes))
        if progress is not None:
            progress(done + 1, len(layout.items))
    if not cases and not report.already_there:
        raise UserError(
            report.refused[0] if report.refused else "nothing was imported",
            remedy="" if report.refused else "Check it.",
        )
    report.patients = len(patients)
    _write_index(store, found, masks, accepted, layout, report)
    remember_names(store.store_id, names)
    return report


def rounded_affine(volume: Volume) -> NDArray[np.float64]:
    """The affine after the one rounding to float32 that NIfTI brings; masks and image share it."""
    return volume.affine.astype(np.float32).astype(np.float64)


def _write_index(
    store: LabelStore,
    found: list[tuple[Case, Item, dict[str, str]]],
    masks: Masks,
    accepted: set[Path],
    layout: Layout,
    report: ImportReport,
) -> None:
    only = next(iter(layout.structures), None) if len(layout.structures) == 1 else None
    captions = [(case.case_id, only, normalise_caption(item.caption)) for case, item, _ in found if item.caption]
    captions += [
        (case.case_id, name, text) for case, item, _ in found for name, text in item.by_structure.items() if text
    ]
    references = [(case.case_id, name, sha256) for case, _, hashes in found for name, sha256 in hashes.items()]
    labels = [
        (case.case_id, name, sha256)
        for case, item, hashes in found
        for name, sha256 in hashes.items()
        if masks == "labels" and case.split != "test" and (case.split == "val" or item.image in accepted)
    ]
    store.add_import([case for case, _, _ in found], captions, references, labels)
    report.cases, report.captions, report.masks = len(found), len(captions), sum(bool(h) for _, _, h in found)
    report.without_caption = sum(not item.caption and not item.by_structure for _, item, _ in found)


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
