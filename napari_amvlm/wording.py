"""Words for a person: text from outside made harmless, and errors as sentences.

A file name, a caption, a structure, an event of a run or an error may hold anything. Qt and napari guess whether a
text is HTML; nothing from outside may be rendered, load a file or turn the line around.
"""

from __future__ import annotations

import errno
import logging
import re
import traceback
from collections.abc import Mapping
from pathlib import Path

from amvlm.errors import UserError
from amvlm.errors import printable as printable

LONGEST = 1500
_SHOW_LOGS = "The details are under Help ▸ Show logs."
_LOG = logging.getLogger("napari_amvlm")
_DISK = {
    errno.ENOSPC: ("the disk is full", "Free some space and try again."),
    errno.EDQUOT: ("your share of the disk is used up", "Free some space and try again."),
    errno.EROFS: ("the disk is read-only", "Choose another folder."),
    errno.EACCES: ("this is not permitted here", "Choose another folder, or change its permissions."),
    errno.EPERM: ("this is not permitted here", "Choose another folder, or change its permissions."),
    errno.ENOENT: ("it is not there any more", "Was it moved, renamed or deleted? Open it again where it is now."),
    errno.ENOTDIR: ("it is not a folder", "Choose a folder."),
    errno.EISDIR: ("it is a folder", "Choose a file."),
    errno.EEXIST: ("it is there already", "Choose another name."),
    errno.ENAMETOOLONG: ("its name is too long", "Choose a shorter one."),
    errno.EIO: ("the disk reported an error", "Copy your data to another disk."),
    errno.EMFILE: ("too many files are open", "Close other windows and try again."),
    errno.ENOMEM: ("there is not enough memory", "Close other programs, or use a smaller scan."),
}  # fmt: skip


def plain(text: object) -> str:
    """Text as lines that any widget can show as they are: control characters replaced, absurd lengths cut."""
    shown = "\n".join(printable(line) for line in str(text)[: LONGEST + 1].split("\n"))
    return shown if len(shown) <= LONGEST else f"{shown[: LONGEST - 1]}…"


def unmarked(text: object) -> str:
    """The same for places that guess whether a text is HTML (tooltips, napari's messages and layer names)."""
    return plain(text).replace("&lt;", "‹").replace("<", "‹")


def breakable(text: str) -> str:
    """Let a word that is wider than a panel go on in the next line."""
    return re.sub(r"\S{40}(?=\S)", "\\g<0>\u200b", text.replace("\u200b", ""))


def named(text: str, titles: Mapping[str, str]) -> str:
    """A sentence in which cases have the names of their files, where this machine knows them, and no ids."""
    return re.sub(r"case-\d{5,9}", lambda found: titles.get(found[0], found[0]), text)


def sentence(error: BaseException) -> str:
    """What happened and what to do. Of a mistake of ours the place alone, in the log too: messages may hold names."""
    if isinstance(error, UserError):
        return str(error)
    if _out_of_memory(error):
        return "There is not enough memory for this. Close other programs, or use a smaller scan."
    if isinstance(error, OSError) and error.errno in _DISK:
        what, remedy = _DISK[error.errno]
        name = error.filename if isinstance(error.filename, str | Path) else None
        text = str(UserError(what, file=name, remedy=remedy))
        return text[:1].upper() + text[1:] if name is None else text
    frames = traceback.extract_tb(error.__traceback__)
    calls = [f"{Path(frame.filename).name}, line {frame.lineno}" for frame in frames]
    kind = type(error).__name__
    _LOG.error("%s", unmarked(f"{kind}: {' › '.join(calls)}"))
    return f"Something went wrong inside the plugin ({kind} in {calls[-1] if calls else 'Qt'}). {_SHOW_LOGS}"


def _out_of_memory(error: BaseException) -> bool:
    """Python's and numpy's error, and the two that torch has for it."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or (
        isinstance(error, RuntimeError) and "allocate memory" in str(error)
    )  # fmt: skip
