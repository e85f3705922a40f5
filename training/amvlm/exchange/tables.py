"""Tables of captions: read, and matched to images by mask name, then image name, then stem."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from amvlm.errors import UserError, printable
from amvlm.exchange.accounts import Accounts
from amvlm.exchange.matching import Placed, stem
from amvlm.exchange.spreadsheets import TABLE_SUFFIXES, read_rows
from amvlm.text import clauses_of

MAX_CAPTION = 10_000
_UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Control characters, and those that change the order in which the others are shown."""
_FILE_NAME = re.compile(r"\S+\.(png|jpe?g|webp|tiff?|bmp|nii(\.gz)?|dcm)", re.IGNORECASE)


def read_captions(table: Path) -> list[tuple[str, str]]:
    """Rows (image key, caption) of an xlsx, csv or json table with the columns Image and Description.

    Raises
    ------
    UserError
        If the columns are missing or occur twice, a caption is a file name, a formula or not printable, or is longer
        than ``MAX_CAPTION`` characters; and what :func:`read_rows` refuses.
    """
    rows = read_rows(table)
    header = [name.lower() for name in rows[0]] if rows else []
    counts = [header.count(name) for name in ("image", "description")]
    if min(counts) < 1 or max(counts) > 1:
        what = "a column occurs twice" if max(counts) > 1 else "it is not a table of captions"
        raise UserError(what, file=table, remedy="It needs the columns Image and Description, once each.")
    image, text = header.index("image"), header.index("description")
    found = [(row[image], " ".join(row[text].split())) for row in rows[1:] if row[image] and row[text]]
    for key, caption in found:
        check_caption(key, caption, table)
    return found


def check_caption(key: str, caption: str, table: Path | None) -> None:
    """Refuse a caption that is no caption; ``key`` says whose it is.

    Raises
    ------
    UserError
    """
    named = printable(key[:80])
    if key.startswith("=") or caption.startswith("="):
        raise UserError(f"the row of {named!r} holds a formula", file=table, remedy="Save the cells as plain text.")
    if len(caption) > MAX_CAPTION:
        raise UserError(f"the caption of {named!r} has {len(caption):,} characters", file=table,
                        remedy=f"Use at most {MAX_CAPTION:,}.")  # fmt: skip
    if _UNSEEN.search(caption):
        raise UserError(f"the caption of {named!r} holds characters that cannot be shown", file=table,
                        remedy="Put plain words into the column Description.")  # fmt: skip
    if _FILE_NAME.fullmatch(caption) or caption.lower() == key.lower():
        raise UserError(
            f"the caption of {named!r} is a file name, {caption[:80]!r}", file=table,
            remedy="Put the report's words into the column Description.",
        )  # fmt: skip


class Captions:
    """All tables of captions in a folder and its subfolders: those beside a scan, or at the top, may name it.

    A table at the top that cannot be read is an error; one further down is refused by name, and a description of one
    image (``scan.json`` beside ``scan.nii.gz``) is left out.

    Raises
    ------
    UserError
        If one image has two different captions.
    """

    def __init__(self, source: Path, files: Iterable[Path], scans: Sequence[Placed], accounts: Accounts) -> None:
        self._source = source
        self._names = Counter(stem(scan.path) for scan in scans)
        described = {(scan.path.parent, stem(scan.path)) for scan in scans}
        useful = {source, *(scan.path.parent for scan in scans), *(source.joinpath(*scan.unit) for scan in scans)}
        rows: dict[Path, list[tuple[str, str]]] = {}
        for table in files:
            if table.suffix.lower() not in TABLE_SUFFIXES or accounts.settled(table):
                continue
            if table.suffix.lower() == ".json" and (table.parent, table.stem.lower()) in described:
                accounts.leave_out(table, "it describes one image, and holds no captions")
            elif table.parent not in useful or table.name == "labels.json":
                accounts.leave_out(table, "no table of captions of a scan here")
            elif found := self._rows(table, accounts):
                rows.setdefault(table.parent, []).extend(found)
        self._tables = {folder: CaptionTable(found, folder) for folder, found in rows.items()}

    def _rows(self, table: Path, accounts: Accounts) -> list[tuple[str, str]]:
        try:
            found = read_captions(table)
        except UserError as error:
            if table.parent == self._source:
                raise
            accounts.leave_out(table, f"{error.what}. {error.remedy.rstrip('.')}", "refused")
            return []
        if found:
            accounts.settle("table", [table])
        else:
            accounts.leave_out(table, "it holds no row with an image and a caption")
        return found

    def __bool__(self) -> bool:
        return bool(self._tables)

    def of(self, scan: Placed, mask: Path | None) -> str:
        """The caption of a scan, "" without one."""
        found = set()
        for folder in {self._source, scan.path.parent, self._source.joinpath(*scan.unit)} & self._tables.keys():
            by_name = folder != self._source or self._names[stem(scan.path)] == 1
            found.add(self._tables[folder].of(scan.path, mask, scan.path.relative_to(folder).as_posix(), by_name))
        found.discard("")
        if len(found) > 1:
            raise ambiguous(scan.path.name, self._source)
        return next(iter(found), "")

    @property
    def unused(self) -> int:
        """Rows that name no image of the folder."""
        return sum(table.unused for table in self._tables.values())


class CaptionTable:
    """The rows of one folder's tables as one; remembers which rows found their image.

    Raises
    ------
    UserError
        If one image has two different captions.
    """

    def __init__(self, rows: Iterable[tuple[str, str]], folder: Path) -> None:
        self._folder = folder
        self._captions: dict[str, str] = {}
        self._used: set[str] = set()
        for key, text in rows:
            if self._captions.get(key.lower(), text) != text:
                raise ambiguous(key, folder)
            self._captions[key.lower()] = text

    def of(self, image: Path, mask: Path | None, place: str = "", by_name: bool = True) -> str:
        """The caption of an image, "" without one.

        Compared without case: its place in the folder (``P1/scan.nii.gz``); then, unless several images share a name,
        the mask's name, the image's, and their stems.
        """
        stem = image.stem.lower()
        keys = [place.lower()]
        if by_name:
            keys += [mask.name.lower(), mask.stem.lower()] if mask else []
            keys += [image.name.lower(), stem]
            keys += [f"{prefix}{stem}{suffix}" for prefix in ("mask_", "") for suffix in _ENDS]
        found = [key for key in dict.fromkeys(keys) if key in self._captions]
        if len({self._captions[key] for key in found}) > 1:
            raise ambiguous(image.name, self._folder)
        self._used.update(found)
        return self._captions[found[0]] if found else ""

    @property
    def unused(self) -> int:
        """Rows that name no image of the folder."""
        return len(self._captions.keys() - self._used)


def ambiguous(name: str, folder: Path) -> UserError:
    return UserError(
        f"the image {printable(name)[:80]!r} has two captions", file=folder, remedy="Keep one row for each image."
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
