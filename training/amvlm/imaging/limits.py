"""Bounds on what reading may cost, and the one boundary where a decoder's error becomes a sentence."""

from __future__ import annotations

import contextlib
import gzip
import logging
import os
import warnings
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from amvlm.errors import UserError

COPY_AGAIN = "Copy the file again from its source; the transfer or the disk damaged it."
MEMORY_VARIABLE = "AMVLM_MEMORY_LIMIT_GB"
MAX_DEFLATE_RATIO = 1032
"""No deflate stream unfolds to more than 1,032 times its length (zlib's technical notes)."""
_UNKNOWN_MEMORY = 16 * 2**30
_CGROUPS = Path("/sys/fs/cgroup")


def memory_limit() -> int:
    """Bytes that one image may take: half of the memory of this machine or container.

    The environment variable ``AMVLM_MEMORY_LIMIT_GB`` sets another limit, in GiB. Where the system does not state
    its memory, 8 GiB.
    """
    try:
        chosen = float(os.environ[MEMORY_VARIABLE]) * 2**30
        return int(chosen) if chosen > 0 else _installed() // 2
    except (KeyError, ValueError, OverflowError):
        return _installed() // 2


def _installed() -> int:
    """Bytes of memory that this process may use at most: the machine's, or its control group's."""
    try:
        bounds = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        bounds = [_UNKNOWN_MEMORY]
    files = [_CGROUPS / "memory" / "memory.limit_in_bytes"]
    with contextlib.suppress(OSError):
        own = Path("/proc/self/cgroup").read_text("utf-8").rpartition("0::/")[2].strip()
        group = _CGROUPS / own
        files += [folder / "memory.max" for folder in (group, *group.parents) if folder.is_relative_to(_CGROUPS)]
    for file in files:
        with contextlib.suppress(OSError, ValueError):  # no such group, or "max"
            bounds.append(int(file.read_text("utf-8")))
    return min(bound for bound in bounds if bound > 0)


def check_size(wanted: int, shape: Sequence[int], path: Path) -> None:
    """Refuse an image of ``wanted`` bytes in memory when that is above :func:`memory_limit`.

    Raises
    ------
    UserError
    """
    limit = memory_limit()
    if wanted > limit:
        raise UserError(
            f"the header asks for {_gib(wanted)} of voxels ({' × '.join(map(str, shape))}), more than the limit of "
            f"{_gib(limit)}", file=path,
            remedy=f"Crop the scan, or set {MEMORY_VARIABLE}; if the size is wrong, the file is damaged.",
        )  # fmt: skip


def check_held(wanted: int, held: int, path: Path, compressed: bool = False) -> None:
    """Refuse a header that asks for more bytes than ``held`` bytes of the file can give.

    Raises
    ------
    UserError
    """
    if wanted > (held * MAX_DEFLATE_RATIO if compressed else held):
        raise UserError(
            f"the file is cut short: {wanted:,} bytes expected, {held:,} found{' (compressed)' * compressed}",
            file=path, remedy=COPY_AGAIN,
        )  # fmt: skip


def _gib(size: int) -> str:
    return f"{size / 2**30:,.0f} GiB" if size >= 10 * 2**30 else f"{size / 2**30:.2g} GiB"


@contextlib.contextmanager
def in_a_sentence(path: Path, what: str = "the file is damaged") -> Iterator[None]:
    """Turn whatever a decoder raises into a ``UserError``; keep its warnings and logs, which may name a patient, quiet.

    nibabel, pydicom, Pillow and SimpleITK may raise anything on hostile bytes, so this boundary, and only this one,
    catches every exception of a reader.
    """
    try:
        with quietly():
            yield
    except UserError:
        raise
    except MemoryError as error:
        raise UserError(
            "there is not enough free memory to read it", file=path,
            remedy="Close other programs, or crop the scan.",
        ) from error  # fmt: skip
    except PermissionError as error:
        raise UserError("the file may not be read", file=path, remedy="Ask for permission to read it.") from error
    except EOFError as error:
        raise UserError("the file is cut short", file=path, remedy=COPY_AGAIN) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        kind = "the checksum is wrong" if "CRC" in str(error) else "the compressed stream is damaged"
        raise UserError(kind, file=path, remedy=COPY_AGAIN) from error
    except Exception as error:  # see above
        raise UserError(what, file=path, remedy=COPY_AGAIN) from error


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Decoders repeat odd header values in warnings and logs: they may name a patient."""
    loggers = [logging.getLogger(name) for name in ("pydicom", "nibabel", "nibabel.global", "PIL")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def bounded_gunzip(stream: BinaryIO, limit: int, path: Path) -> bytearray:
    """Decompress a gzip stream to its end, verifying length and checksum, and never beyond ``limit`` bytes.

    Parameters
    ----------
    stream : binary file
    limit : int
        Bytes, at most.
    path : Path
        For messages.

    Raises
    ------
    UserError
        If the stream is damaged, cut short, or longer.
    """
    content = bytearray()
    with in_a_sentence(path), gzip.GzipFile(fileobj=stream) as unfolded:
        while chunk := unfolded.read(min(2**20, limit + 1 - len(content))):
            content += chunk
            if len(content) > limit:
                raise UserError(f"the file unfolds to more than {limit:,} bytes", file=path, remedy=COPY_AGAIN)
    return content
