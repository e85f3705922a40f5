"""What lies on disk: the MSD, LViT, Kaggle and plain folder layouts, read into one list of items."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from amvlm.errors import UserError
from amvlm.exchange.tables import CaptionTable, split_by_structure
from amvlm.imaging import Volume, read_volume
from amvlm.imaging.dicom import read_series
from amvlm.imaging.dicom_headers import DicomSeries, find_series, is_dicom, series_of_file
from amvlm.imaging.readers import is_image_name

_IMAGE_FOLDERS = ("img", "images", "imgs", "imagestr")
_MASK_FOLDERS = ("labelcol", "ground-truths", "ground_truths", "groundtruths", "masks", "labels", "labelstr")
_IMAGE_SIDES = ("img/labelcol", "images/ground-truths")
"""Layouts of chest X-ray sets whose captions name the image's own left and right (LViT, QaTa-COV19)."""
_PATIENT = re.compile(r"(sub-[a-z0-9]+|(?:case|patient|pat|subject|volume|vol)[_-]?\d+)(?=[_.-])", re.IGNORECASE)
_SPINE = ("S", "L5", "L4", "L3", "L2", "L1", "T12", "T11", "T10", "T9")
MRSPINESEG = {
    **{value: (f"{'sacrum' if name == 'S' else f'{name} vertebra'}", name) for value, name in enumerate(_SPINE, 1)},
    **{
        value: (f"{upper}/{lower} disc", f"{upper}/{lower}")
        for value, (lower, upper) in enumerate(itertools.pairwise(_SPINE), 11)
    },
}
"""Values of the MRSpineSeg masks: ten vertebrae (S to T9), then nine discs (L5/S to T9/T10), with their short names."""


@dataclass(frozen=True)
class Item:
    """One image, its mask file if any, and its captions if any.

    ``caption`` speaks of the whole image; ``by_structure`` holds one caption per structure instead. ``patient`` is what
    DICOM says, or the part of the file name that several images of one patient share; "" where nothing tells. Of a
    DICOM series ``image`` is the folder.
    """

    image: Path
    mask: Path | None = None
    caption: str = ""
    by_structure: Mapping[str, str] = field(default_factory=dict)
    series: DicomSeries | None = None

    def read(self) -> Volume:
        """The image; see :func:`amvlm.imaging.read_volume` for what is refused."""
        return read_volume(self.image) if self.series is None else read_series(self.series)

    @property
    def name(self) -> str:
        """How the person knows this image."""
        return self.image.name + ("" if self.series is None else f" (series {self.series.number})")

    @property
    def patient(self) -> str:
        if self.series is not None and self.series.patient:
            return self.series.patient
        found = _PATIENT.match(self.image.name)
        return found.group(1).lower() if found else ""


@dataclass(frozen=True)
class Layout:
    """A recognised folder: its items and what its mask values mean (value → structure).

    ``values`` is empty for masks that hold one structure, wherever they are above 0.
    """

    kind: str
    items: list[Item]
    structures: dict[str, str] = field(default_factory=dict)
    values: dict[int, str] = field(default_factory=dict)
    laterality: str = "patient"
    modality: str = ""
    unused_captions: int = 0


def read_layout(source: Path, structure: str, labels: str = "") -> Layout:
    """Recognise a folder (or one image file) and list its items, in order of their names.

    Parameters
    ----------
    source : Path
    structure : str
        What masks without names of their own outline; empty for the layout's usual one.
    labels : str
        What the masks' values mean: a JSON file {"1": "name", …}, or "mrspineseg". Empty: ``labels.json`` in the
        folder if there is one, else a mask holds one structure.

    Raises
    ------
    UserError
        If nothing is there, or names are ambiguous.
    """
    if not source.exists():
        raise UserError("there is no such folder", file=source, remedy="Check the name.")
    if source.is_file():
        if not is_image_name(source.name) and is_dicom(source):
            return Layout("DICOM", [Item(source.parent, series=series_of_file(source))])
        return Layout("one image", [Item(source)])
    if (source / "dataset.json").is_file():
        return _msd(source)
    if items := _dicom_items(source):
        return Layout("DICOM", items)
    return _pictures(source, structure or "target", labels)


def _dicom_items(source: Path) -> list[Item]:
    """Every series in a folder and its subfolders, where the folder itself holds no other kind of image."""
    if _images(source) or _subfolder(source, _IMAGE_FOLDERS):
        return []
    folders = [source, *sorted(path for path in source.rglob("*") if path.is_dir() and not path.name.startswith("."))]
    return [Item(folder, series=series) for folder in folders for series in find_series(folder)]


def _msd(source: Path) -> Layout:
    path = source / "dataset.json"
    try:
        description: dict[str, Any] = json.loads(path.read_text("utf-8"))
        names = {int(value): str(name) for value, name in description["labels"].items() if int(value) > 0}
        training = description["training"]
        items = [Item(source / entry["image"], source / entry["label"]) for entry in training]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            "it is not a Medical Segmentation Decathlon description",
            file=path,
            remedy="It needs 'labels' and 'training'.",
        ) from error
    modality = str(next(iter(dict(description.get("modality", {})).values()), ""))
    whole = str(description.get("name", "")).strip().lower()
    structures = {name: _full_name(name, whole) for name in names.values()}
    return Layout(
        "MSD",
        sorted(items, key=lambda item: item.image.name),
        {full: short for short, full in structures.items()},
        {value: structures[name] for value, name in names.items()},
        modality={"MRI": "MR"}.get(modality, modality),
    )


def _full_name(label: str, organ: str) -> str:
    """ "Anterior" of "Hippocampus" is the *anterior hippocampus*: Task04 names its labels by the part alone."""
    label = label.lower()
    return f"{label} {organ}" if organ == "hippocampus" and label in ("anterior", "posterior") else label


def _pictures(source: Path, structure: str, labels: str) -> Layout:
    """A folder of images, or one with a folder of images, one of masks and tables of captions."""
    folder = _subfolder(source, _IMAGE_FOLDERS) or source
    mask_folder = _subfolder(source, _MASK_FOLDERS)
    images = _images(folder)
    if not images:
        raise UserError("the folder holds no image", file=folder, remedy="Choose the folder that holds the scans.")
    names = [_stem(path) for path in images]
    twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
    masks = _by_stem(mask_folder) if mask_folder else {}
    tables = [path for path in sorted(source.iterdir()) if path.suffix.lower() in (".xlsx", ".csv", ".json")]
    captions = CaptionTable([path for path in tables if path.name != "labels.json"], source)
    if twice is not None and (masks or tables):
        raise UserError(f"two images are called {twice!r}", file=folder, remedy="Keep one of them, or rename it.")
    values = _values(source, labels)
    structures = dict(values.values()) if values else {structure: ""} if masks or tables else {}
    aliases = {name: [short] if short else [] for name, short in structures.items()}
    items = []
    for path in images:
        mask = masks.get(f"mask_{_stem(path)}") or masks.get(_stem(path))
        caption = captions.of(path, mask)
        parts = split_by_structure(caption, aliases) if values and caption else None
        items.append(Item(path, mask, "" if parts is not None else caption, parts or {}))
    known = mask_folder is not None and f"{folder.name}/{mask_folder.name}".lower() in _IMAGE_SIDES
    return Layout(
        "pictures" if mask_folder else "folder", items, structures,
        {value: name for value, (name, _) in values.items()},
        laterality="image" if known else "patient", unused_captions=captions.unused,
    )  # fmt: skip


def _subfolder(source: Path, names: tuple[str, ...]) -> Path | None:
    there = {path.name.lower(): path for path in source.iterdir() if path.is_dir()}
    return next((there[name] for name in names if name in there), None)


def _values(source: Path, labels: str) -> dict[int, tuple[str, str]]:
    """Mask value → (structure, its short name)."""
    if labels.lower() == "mrspineseg":
        return MRSPINESEG
    path = Path(labels) if labels else source / "labels.json"
    if not labels and not path.is_file():
        return {}
    try:
        entries = json.loads(path.read_text("utf-8"))
        return {int(value): (str(name).strip().lower(), "") for value, name in entries.items() if int(value) > 0}
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            "it does not say what the masks' values mean", file=path, remedy='It needs {"1": "name", …}.'
        ) from error


def _stem(path: Path) -> str:
    name = path.name.lower()
    return name.removesuffix(".nii.gz") if name.endswith(".nii.gz") else path.stem.lower()


def _images(folder: Path) -> list[Path]:
    found = (path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return sorted(path for path in found if is_image_name(path.name))


def _by_stem(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in _images(folder):
        if _stem(path) in found:
            raise UserError(f"two masks are called {_stem(path)!r}", file=folder, remedy="Keep one of them.")
        found[_stem(path)] = path
    return found
