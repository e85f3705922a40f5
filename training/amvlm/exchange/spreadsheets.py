"""Rows of an xlsx, csv or json table that a stranger wrote, within bounds."""

from __future__ import annotations

import csv
import io
import warnings
import zipfile
from pathlib import Path

from amvlm.errors import UserError
from amvlm.outside import read_bytes, read_json, read_text

TABLE_SUFFIXES = (".xlsx", ".csv", ".json")
MAX_ROWS = 200_000
MAX_COLUMNS = 64
MAX_UNFOLDED = 64 * 2**20
"""An xlsx is a zip: what its parts say that they unfold to, together. ``zipfile`` reads no part further than that."""
_MAX_PARTS = 1000
MAX_TAGS = 1_000_000
"""Of the XML in an xlsx: openpyxl takes seconds for a million, whether their cells hold anything or not."""


def read_rows(table: Path) -> list[list[str]]:
    """The rows of a table as text, its header first; blank rows are left away and short ones filled up.

    Raises
    ------
    UserError
        If it is no table, or has more than ``MAX_ROWS`` rows; of an xlsx also, if it would unfold to more than
        ``MAX_UNFOLDED`` bytes.
    """
    readers = {".xlsx": _xlsx_rows, ".csv": _csv_rows, ".json": _json_rows}
    found = readers[table.suffix.lower()](table)
    if len(found) > MAX_ROWS:
        raise UserError(f"it has more than {MAX_ROWS:,} rows", file=table, remedy="Split the table.")
    rows = [["" if cell is None else str(cell).strip() for cell in row] for row in found]
    rows = [row for row in rows if any(row)]
    width = max(map(len, rows), default=0)
    return [row + [""] * (width - len(row)) for row in rows]


def _xlsx_rows(table: Path) -> list[list[object]]:
    import openpyxl

    content = io.BytesIO(read_bytes(table))
    try:
        with zipfile.ZipFile(content) as archive:
            parts = archive.infolist()
            if len(parts) > _MAX_PARTS or sum(part.file_size for part in parts) > MAX_UNFOLDED:
                raise UserError(
                    f"it would unfold to more than {MAX_UNFOLDED / 2**20:.0f} MB", file=table, remedy="Save it as csv."
                )
            if sum(archive.read(part).count(b"<") for part in parts if part.filename.endswith(".xml")) > MAX_TAGS:
                raise UserError("it holds too many cells to be read as xlsx", file=table, remedy="Save it as csv.")
        with warnings.catch_warnings(action="ignore"):  # styles and extensions that openpyxl does not keep
            book = openpyxl.load_workbook(content, read_only=True, keep_links=False)
            rows = book.active.iter_rows(max_row=MAX_ROWS + 2, max_col=MAX_COLUMNS, values_only=True)
            return [list(row) for row in rows]
    except UserError:
        raise
    except Exception as error:  # broken zips and XML make zipfile, expat and openpyxl raise nearly anything
        raise UserError("it is not a readable xlsx table", file=table, remedy="Save it again, or as csv.") from error


def _csv_rows(table: Path) -> list[list[object]]:
    text = read_text(table)
    delimiter = ";" if ";" in text.partition("\n")[0] else ","
    rows: list[list[object]] = []
    try:
        for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True):
            rows.append(list(row))
            if len(row) > MAX_COLUMNS or len(rows) > MAX_ROWS:
                break
    except csv.Error as error:
        raise UserError(f"it is not a readable csv table ({error})", file=table, remedy="Save it again.") from error
    if rows and len(rows[-1]) > MAX_COLUMNS:
        raise UserError(f"row {len(rows)} has more than {MAX_COLUMNS} columns", file=table,
                        remedy="Keep the columns Image and Description.")  # fmt: skip
    return rows


def _json_rows(table: Path) -> list[list[object]]:
    entries = read_json(table)
    try:
        pairs = entries.items() if isinstance(entries, dict) else [(e["Image"], e["Description"]) for e in entries]
    except (KeyError, TypeError, IndexError) as error:
        raise UserError("it is not a table of captions", file=table,
                        remedy="It needs Image and Description.") from error  # fmt: skip
    if any(not isinstance(cell, str) for pair in pairs for cell in pair):
        raise UserError("it is not a table of captions", file=table, remedy='It needs {"image": "caption", …}.')
    return [["Image", "Description"], *map(list, pairs)]
