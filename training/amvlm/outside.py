"""Text and JSON that strangers wrote, read within bounds: the size is looked at before the content."""

from __future__ import annotations

import json
import os
import stat
from collections import Counter
from pathlib import Path
from typing import Any

from amvlm.errors import UserError
from amvlm.paths import check_regular

MAX_JSON_BYTES = 64 * 2**20


def read_bytes(path: Path, limit: int = MAX_JSON_BYTES) -> bytes:
    """The content of a file of at most ``limit`` bytes.

    Raises
    ------
    UserError
        If it is longer, no plain file (a folder, a pipe, a device), or may not be read.
    """
    if check_regular(path).is_dir():
        raise UserError("this is a folder, not a file", file=path, remedy="Check the name.")
    try:
        too_long = path.stat().st_size > limit
        with path.open("rb") as stream:
            content = b"" if too_long else stream.read(limit + 1)
    except OSError as error:
        raise UserError(
            f"the file cannot be read ({error.strerror})", file=path, remedy="Check the disk and its permissions."
        ) from error
    if too_long or len(content) > limit:
        raise UserError(
            f"the file is larger than {limit / 2**20:,.0f} MB", file=path, remedy="Such a file is hardly a description."
        )
    return content


def read_small(path: Path, longest: int) -> bytes:
    """The content of a plain file of a bounded size; no link is followed, no pipe waited for.

    Raises
    ------
    OSError
        If it is not there, is something else, or is longer.
    """
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    with open(os.open(path, flags), "rb") as stream:
        known = os.fstat(stream.fileno())
        if not stat.S_ISREG(known.st_mode):
            raise OSError("it is not a file")
        if known.st_size > longest:
            raise OSError(f"it has {known.st_size:,} bytes")
        return stream.read(known.st_size)  # never the bound: so much would be allocated


def read_text(path: Path, limit: int = MAX_JSON_BYTES) -> str:
    """UTF-8 text of at most ``limit`` bytes, without its byte order mark; see :func:`read_bytes`."""
    try:
        return read_bytes(path, limit).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError("the text is not UTF-8", file=path, remedy="Save it again as UTF-8.") from error


def read_json(path: Path, limit: int = MAX_JSON_BYTES) -> Any:
    """JSON of at most ``limit`` bytes.

    Raises
    ------
    UserError
        What :func:`read_bytes` refuses; not JSON, nested too deeply, NaN or Infinity, a key that occurs twice (one of
        the two would be lost), or text that no file can hold (half of a surrogate pair).
    """
    try:
        content = json.loads(read_text(path, limit), parse_constant=_no_number, object_pairs_hook=_no_key_twice)
        json.dumps(content, ensure_ascii=False).encode("utf-8")  # half a surrogate pair fails here, not in the index
    except RecursionError as error:
        raise UserError("its brackets are nested too deeply", file=path, remedy="Check what wrote the file.") from error
    except ValueError as error:
        why = str(error) if isinstance(error, _RefusedError) else "this is not valid JSON"
        raise UserError(why, file=path, remedy="Check what wrote the file.") from error
    return content


class _RefusedError(ValueError):
    """A reason that a person can read."""


def _no_number(word: str) -> float:
    raise _RefusedError(f"it holds {word}, which is no number")


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise _RefusedError(f"the key {twice[:80]!r} occurs twice")
    return found
