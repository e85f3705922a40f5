"""The one door for names: every word from a person, a file, a row or a card that becomes part of a path passes here.

A name is one plain component of a path; every path made from one is checked to lie inside its folder after links are
resolved (DESIGN §9).
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import unicodedata
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from amvlm.errors import UserError, printable

MAX_NAME_BYTES = 120
"""Room is left below the 255 bytes of most file systems for prefixes, suffixes and a temporary name."""
_ALLOWED = re.compile(r"[^\W_](?:[\w .+,()-]*[\w+)-])?")
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_HEX_ID = re.compile(r"[0-9a-f]{32}")


def check_name(name: str, what: str = "name") -> str:
    """Return ``name`` when it is safe as one component of a path, on every system.

    Letters and digits of any script, spaces and ``_ . + , ( ) -`` are allowed; a letter or digit comes first, and
    neither a dot nor a space comes last.

    Parameters
    ----------
    name : str
    what : str
        What the name is for, in the message: "model name", "run name", …

    Raises
    ------
    UserError
        If the name is empty, too long, reserved on Windows, or holds a separator or any other character.
    """
    remedy = "Use letters, digits, spaces and _ . + , ( ) - only, beginning with a letter or a digit."
    if not name or not _ALLOWED.fullmatch(name) or ".." in name:
        raise UserError(f"{printable(name)!r} cannot be used as a {what}", remedy=remedy)
    if len(name.encode()) > MAX_NAME_BYTES:
        raise UserError(f"the {what} has {len(name.encode())} bytes", remedy=f"Use at most {MAX_NAME_BYTES}.")
    if _RESERVED.fullmatch(name) or unicodedata.normalize("NFC", name) != name:
        raise UserError(f"{printable(name)!r} cannot be used as a {what}", remedy="Choose another name.")
    return name


def _valid(name: str) -> str:
    try:
        return check_name(name)
    except UserError as error:
        raise ValueError(error.what) from None


Slug = Annotated[str, AfterValidator(_valid)]
"""A pydantic field that holds one plain component of a path; see :func:`check_name`."""


def slug(text: str) -> str:
    """Turn any text into a name that :func:`check_name` accepts; different texts give different names.

    "L5/S disc" becomes "L5-S-disc-3f2a9c": where characters had to go, part of a hash keeps the names apart.
    """
    plain = "-".join(re.findall(r"[A-Za-z0-9]+", unicodedata.normalize("NFKD", text)))[:60]
    if plain and plain.replace("-", " ") == text and not _RESERVED.fullmatch(plain):
        return plain
    mark = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:6]
    return f"{plain or 'name'}-{mark}"


def check_sha256(text: str) -> str:
    """Return a hash that names a file of ours, or raise :class:`UserError`."""
    if not isinstance(text, str) or not _SHA256.fullmatch(text):
        raise UserError("the index holds a hash that is none", remedy="The study was changed by another program.")
    return text


def check_store_id(text: str) -> str:
    """Return the identifier of a study, or raise :class:`UserError`."""
    if not isinstance(text, str) or not _HEX_ID.fullmatch(text):
        raise UserError("the study's identifier is not valid", remedy="The study was changed by another program.")
    return text


def inside(folder: Path, *parts: str | Path) -> Path:
    """Join a path and make sure that, links resolved, it lies inside ``folder``.

    Raises
    ------
    UserError
        If it lies elsewhere: the parts climb out, are absolute, or follow a link out of the folder.
    """
    joined = folder.joinpath(*parts)
    try:
        home, resolved = folder.resolve(), joined.resolve()
        if resolved != home and resolved.is_relative_to(home):
            return joined
    except (OSError, RuntimeError, ValueError):  # a loop of links, an embedded NUL
        pass
    raise UserError(
        "a name points outside its folder", file=joined, remedy="Only files inside the folder you chose are used."
    )


def check_regular(path: Path) -> Path:
    """Refuse what is neither a file nor a folder: reading a pipe or a device may never end.

    Raises
    ------
    UserError
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise UserError("there is no such file", file=path, remedy="Check the name and the folder.") from error
    except (OSError, ValueError) as error:
        raise UserError("the file cannot be opened", file=path, remedy="Check its name and its permissions.") from error
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise UserError("this is neither a file nor a folder", file=path, remedy="Copy its content into a file.")
    return path


def check_encodable(path: Path) -> Path:
    """Refuse a path whose bytes are not UTF-8: most programs cannot open it.

    Raises
    ------
    UserError
    """
    try:
        os.fspath(path).encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError("its name is not valid UTF-8", file=path, remedy="Rename the file.") from error
    return path
