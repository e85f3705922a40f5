"""Tables of captions: read, and matched to images by mask name, then image name, then stem."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from amvlm.errors import UserError
from amvlm.text import clauses_of

_FILE_NAME = re.compile(r"\S+\.(png|jpe?g|webp|tiff?|bmp|nii(\.gz)?|dcm)", re.IGNORECASE)


def read_captions(table: Path) -> list[tuple[str, str]]:
    """Rows (image key, caption) of an xlsx, csv or json table with the columns Image and Description.

    Raises
    ------
    UserError
        If the columns are missing, or a caption is a file name.
    """
    try:
        rows = _rows(table)
        header = [str(name).strip().lower() for name in rows[0]]
        image, text = header.index("image"), header.index("description")
        found = [(str(row[image]).strip(), str(row[text]).strip()) for row in rows[1:] if row[image] and row[text]]
    except (OSError, ValueError, KeyError, IndexError, TypeError, csv.Error) as error:
        raise UserError(
            "it is not a table of captions", file=table, remedy="It needs the columns Image and Description."
        ) from error
    for key, caption in found:
        if _FILE_NAME.fullmatch(caption) or caption.lower() == key.lower():
            raise UserError(
                f"the caption of {key!r} is a file name, {caption!r}", file=table,
                remedy="Put the report's words into the column Description.",
            )  # fmt: skip
    return found


def _rows(table: Path) -> list[list[object]]:
    if table.suffix.lower() == ".xlsx":
        import openpyxl

        book = openpyxl.load_workbook(table, read_only=True)
        rows: list[list[object]] = [list(row) for row in book.active.iter_rows(values_only=True)]
        book.close()
        return rows
    if table.suffix.lower() == ".csv":
        with table.open(newline="", encoding="utf-8-sig") as stream:
            delimiter = ";" if ";" in stream.readline() else ","
            stream.seek(0)
            return [list(row) for row in csv.reader(stream, delimiter=delimiter)]
    entries = json.loads(table.read_text("utf-8"))
    pairs = entries.items() if isinstance(entries, dict) else [(e["Image"], e["Description"]) for e in entries]
    return [["Image", "Description"], *map(list, pairs)]


class CaptionTable:
    """All tables of a folder as one; remembers which rows found their image.

    Raises
    ------
    UserError
        If one image has two different captions.
    """

    def __init__(self, tables: Iterable[Path], source: Path) -> None:
        self._source = source
        self._captions: dict[str, str] = {}
        self._used: set[str] = set()
        for key, text in (row for table in tables for row in read_captions(table)):
            if self._captions.get(key.lower(), text) != text:
                raise self._ambiguous(key)
            self._captions[key.lower()] = text

    def of(self, image: Path, mask: Path | None) -> str:
        """The caption of an image, "" without one; compared without case: mask's name, image's name, their stems."""
        stem = image.stem.lower()
        keys = [mask.name.lower(), mask.stem.lower()] if mask else []
        keys += [image.name.lower(), stem, *(f"{prefix}{stem}{suffix}" for prefix in ("mask_", "") for suffix in _ENDS)]
        found = [key for key in dict.fromkeys(keys) if key in self._captions]
        if len({self._captions[key] for key in found}) > 1:
            raise self._ambiguous(image.name)
        self._used.update(found)
        return self._captions[found[0]] if found else ""

    @property
    def unused(self) -> int:
        """Rows that name no image of the folder."""
        return len(self._captions.keys() - self._used)

    def _ambiguous(self, name: str) -> UserError:
        return UserError(
            f"the image {name!r} has two captions", file=self._source, remedy="Keep one row for each image."
        )


_ENDS = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff")


def split_by_structure(caption: str, aliases: Mapping[str, Iterable[str]]) -> dict[str, str] | None:
    """Split a comma list such as "T9 none, T10 spinous" into one caption per structure.

    Parameters
    ----------
    aliases : mapping
        Structure → the words that may stand for it at a clause's start.

    Returns
    -------
    dict or None
        Structure → its clauses; "" where the list says "none". None unless every clause names a structure.
    """
    by_name = {name.lower(): structure for structure, names in aliases.items() for name in (structure, *names)}
    found: dict[str, list[str]] = {}
    for clause in clauses_of(caption):
        matching = [name for name in by_name if clause == name or clause.startswith(f"{name} ")]
        if not matching:
            return None
        name = max(matching, key=len)
        found.setdefault(by_name[name], []).append(clause)
    return {
        structure: "" if all(re.search(r"\bnone$", clause) for clause in own) else ", ".join(own)
        for structure, own in found.items()
    }
