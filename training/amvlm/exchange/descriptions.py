"""JSON that says what a folder's files and mask values are: MSD's ``dataset.json`` and our ``labels.json``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amvlm.errors import UserError, printable
from amvlm.outside import read_json
from amvlm.paths import inside

MAX_STRUCTURES = 1000
MAX_NAME = 100
_NUMBER = re.compile(r"\d{1,9}")
_MODALITY = re.compile(r"[A-Za-z0-9][A-Za-z0-9 .+-]{0,15}")


@dataclass(frozen=True)
class MsdEntry:
    """An image and its mask ("" without one) as ``dataset.json`` names them: words of a stranger."""

    image: str
    mask: str

    def paths(self, source: Path) -> tuple[Path, Path | None]:
        """Both below the source.

        Raises
        ------
        UserError
            If one of them leads elsewhere.
        """
        return inside(source, self.image), inside(source, self.mask) if self.mask else None


@dataclass(frozen=True)
class MsdDescription:
    """What a ``dataset.json`` says: value → structure, the images, the modality and the whole set's name."""

    names: dict[int, str]
    entries: list[MsdEntry]
    modality: str
    organ: str

    def full_name(self, label: str) -> str:
        """ "Anterior" of "Hippocampus" is the *anterior hippocampus*: Task04 names its labels by the part alone."""
        part = self.organ == "hippocampus" and label in ("anterior", "posterior")
        return f"{label} {self.organ}" if part else label


def read_msd(path: Path) -> MsdDescription:
    """Read a ``dataset.json`` of the Medical Segmentation Decathlon.

    Raises
    ------
    UserError
        If it is none, or a value or a structure's name cannot be used.
    """
    description = read_json(path)
    try:
        labels, training = description["labels"], description["training"]
        entries = [MsdEntry(entry["image"], entry.get("label") or "") for entry in training]
        modality = next(iter(dict(description.get("modality") or {}).values()), "")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise _not_msd(path) from error
    if not all(isinstance(word, str) and word for entry in entries for word in (entry.image, entry.mask or "-")):
        raise _not_msd(path)
    modality = {"MRI": "MR"}.get(str(modality), str(modality))
    return MsdDescription(
        _names(labels, path), entries, modality if _MODALITY.fullmatch(modality) else "",
        str(description.get("name", "")).strip().lower(),
    )  # fmt: skip


def _not_msd(path: Path) -> UserError:
    return UserError(
        "it is not a Medical Segmentation Decathlon description", file=path, remedy="It needs 'labels' and 'training'."
    )


def read_label_names(path: Path) -> dict[int, str]:
    """Mask value → structure, from {"1": "name", …}; 0 is the background and is left away.

    Raises
    ------
    UserError
        If it is no such file, or a value or a structure's name cannot be used.
    """
    return _names(read_json(path), path)


def _names(entries: Any, path: Path) -> dict[int, str]:
    if not isinstance(entries, Mapping):
        raise _unclear(path)
    found: dict[int, str] = {}
    for value, name in entries.items():
        if not _NUMBER.fullmatch(value) or not isinstance(name, str):
            raise _unclear(path)
        if int(value) in found:
            raise UserError(f"the value {int(value)} has two names", file=path, remedy="Keep one of them.")
        found[int(value)] = structure_name(name, path)
    if len(found) > MAX_STRUCTURES:
        raise UserError(f"it names {len(found):,} structures", file=path, remedy=f"Use at most {MAX_STRUCTURES:,}.")
    found.pop(0, None)
    return found


def structure_name(text: str, path: Path) -> str:
    """A structure's name as the study keeps it: lower case, single spaces.

    Raises
    ------
    UserError
        If it is empty, longer than ``MAX_NAME`` characters, or holds characters that cannot be shown.
    """
    name = " ".join(text.lower().split())
    if not name or len(name) > MAX_NAME or not name.isprintable():
        raise UserError(
            f"{printable(name[:40])!r} cannot be a structure's name", file=path,
            remedy=f"Use 1 to {MAX_NAME} printable characters.",
        )  # fmt: skip
    return name


def _unclear(path: Path) -> UserError:
    return UserError("it does not say what the masks' values mean", file=path, remedy='It needs {"1": "name", …}.')
