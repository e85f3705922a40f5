"""What lies on disk: the MSD, LViT and plain folder layouts, read into one list of items."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from amvlm.errors import UserError
from amvlm.imaging.readers import is_image_name

_MASK_FOLDERS = ("masks", "labels", "labelsTr", "labelcol")


@dataclass(frozen=True)
class Item:
    """One image, its mask file if any, and its caption if any."""

    image: Path
    mask: Path | None = None
    caption: str = ""


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


def read_layout(source: Path, structure: str) -> Layout:
    """Recognise a folder (or one image file) and list its items, in order of their names.

    Parameters
    ----------
    source : Path
    structure : str
        What masks without names of their own outline; empty for the layout's usual one.

    Raises
    ------
    UserError
        If nothing is there, or names are ambiguous.
    """
    if not source.exists():
        raise UserError("there is no such folder", file=source, remedy="Check the name.")
    if source.is_file():
        return Layout("one image", [Item(source)])
    if (source / "dataset.json").is_file():
        return _msd(source)
    if (source / "img").is_dir() and (source / "labelcol").is_dir():
        return _lvit(source, structure or "target")
    return _plain(source, structure or "target")


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


def _lvit(source: Path, structure: str) -> Layout:
    tables = sorted(path for path in source.iterdir() if path.suffix.lower() in (".xlsx", ".csv", ".json"))
    captions = _unique_keys([row for table in tables for row in read_captions(table)], source)
    masks = _by_stem(source / "labelcol")
    items = []
    for path in _images(source / "img"):
        stem = path.stem.lower()
        mask = masks.get(f"mask_{stem}") or masks.get(stem)
        keys = ([mask.name.lower()] if mask else []) + [
            path.name.lower(),
            stem,
            f"{stem}.png",
            f"mask_{stem}.png",
        ]
        caption = next((captions[key] for key in keys if key in captions), "")
        items.append(Item(path, mask, caption))
    if not items:
        raise UserError("the folder img holds no image", file=source)
    return Layout("LViT", items, {structure: ""}, laterality="image")


def _plain(source: Path, structure: str) -> Layout:
    folder = next((source / name for name in ("images", "imagesTr") if (source / name).is_dir()), source)
    images = _images(folder)
    if not images:
        raise UserError("the folder holds no image", file=source, remedy="Choose the folder that holds the scans.")
    mask_folder = next((source / name for name in _MASK_FOLDERS if (source / name).is_dir()), None)
    masks = _by_stem(mask_folder) if mask_folder else {}
    items = [Item(path, masks.get(_stem(path))) for path in images]
    return Layout("folder", items, {structure: ""} if masks else {})


def read_captions(table: Path) -> list[tuple[str, str]]:
    """Rows (image key, caption) of an xlsx, csv or json table with the columns Image and Description."""
    try:
        if table.suffix.lower() == ".xlsx":
            import openpyxl

            book = openpyxl.load_workbook(table, read_only=True)
            rows = [list(row) for row in book.active.iter_rows(values_only=True)]
            book.close()
        elif table.suffix.lower() == ".csv":
            with table.open(newline="", encoding="utf-8-sig") as stream:
                rows = [list(row) for row in csv.reader(stream)]
        else:
            entries = json.loads(table.read_text("utf-8"))
            rows = [["Image", "Description"], *[[entry["Image"], entry["Description"]] for entry in entries]]
        header = [str(name).strip().lower() for name in rows[0]]
        image, text = header.index("image"), header.index("description")
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise UserError(
            "it is not a table of captions", file=table, remedy="It needs the columns Image and Description."
        ) from error
    return [(str(row[image]).strip(), str(row[text]).strip()) for row in rows[1:] if row[image] and row[text]]


def _unique_keys(rows: list[tuple[str, str]], source: Path) -> dict[str, str]:
    captions: dict[str, str] = {}
    for key, text in rows:
        if captions.get(key.lower(), text) != text:
            raise UserError(f"the image {key!r} has two captions", file=source, remedy="Keep one row for each image.")
        captions[key.lower()] = text
    return captions


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
