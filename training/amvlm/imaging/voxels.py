"""From a stream to an array: each voxel is held once, whatever its byte order, scale or place among others."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from amvlm.errors import UserError
from amvlm.imaging.limits import COPY_AGAIN

MAX_NOT_FINITE = 0.1
_CHUNK = 2**22
_MAX_TRAILING = 2**26
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Stored:
    """How the voxels of one volume lie in a file.

    ``slope`` and ``inter`` turn them into float32 unless they are 1 and 0. Of ``of`` interleaved components the
    ``pick``-th is taken.
    """

    dtype: np.dtype[Any]
    count: int
    slope: float = 1.0
    inter: float = 0.0
    pick: int = 0
    of: int = 1

    @property
    def target(self) -> np.dtype[Any]:
        """The dtype in memory: native byte order, float32 where values are scaled."""
        return np.dtype(np.float32) if self.scaled else self.dtype.newbyteorder("=")

    @property
    def scaled(self) -> bool:
        return (self.slope, self.inter) != (1.0, 0.0)

    @property
    def plain(self) -> bool:
        """True where the bytes of the file are the bytes in memory, but for their order."""
        return not self.scaled and self.of == 1


def read_voxels(stream: BinaryIO, stored: Stored, path: Path) -> NDArray[Any]:
    """Read ``stored.count`` voxels, shape (count,); more than one chunk is never held beside the result.

    Raises
    ------
    UserError
        If the stream ends before.
    """
    voxels = np.empty(stored.count, stored.target)
    if stored.plain:
        _read_into(stream, voxels.view(np.uint8).data, path)
        return voxels if stored.dtype.isnative else voxels.byteswap(inplace=True)
    each = stored.dtype.itemsize * stored.of
    buffer = bytearray(max(1, _CHUNK // each) * each)
    for part in _parts(stored.count, max(1, _CHUNK // each)):
        held = memoryview(buffer)[: (part.stop - part.start) * each]
        _read_into(stream, held, path)
        voxels[part] = _scaled(np.frombuffer(held, stored.dtype)[stored.pick :: stored.of], stored)
    return voxels


def voxels_in(content: bytes | bytearray, offset: int, stored: Stored) -> NDArray[Any]:
    """The same from memory, shape (count,): a view of ``content`` where nothing has to change."""
    held: NDArray[Any] = np.frombuffer(content, stored.dtype, stored.count, offset)
    if stored.plain and stored.dtype.isnative:
        return held
    voxels = np.empty(stored.count, stored.target)
    for part in _parts(stored.count, _CHUNK):
        voxels[part] = _scaled(held[part], stored)
    return voxels


def _scaled(part: NDArray[Any], stored: Stored) -> NDArray[Any]:
    if not stored.scaled:
        return part
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is counted as not finite
        scaled: NDArray[Any] = part.astype(np.float32) * np.float32(stored.slope) + np.float32(stored.inter)
    return scaled


def _parts(count: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def _read_into(stream: BinaryIO, target: memoryview, path: Path) -> None:
    held = 0
    while held < len(target):
        count = stream.readinto(target[held : held + 2**24])  # type: ignore[attr-defined]
        if not count:
            raise UserError(
                f"the file is cut short: {len(target):,} bytes of voxels expected, {held:,} found", file=path,
                remedy=COPY_AGAIN,
            )  # fmt: skip
        held += count


def skip(stream: BinaryIO, count: int, path: Path) -> None:
    """Pass over bytes, reading them: a compressed stream is verified to its end."""
    while count > 0:
        chunk = stream.read(min(count, 2**20))
        if not chunk:
            raise UserError(f"the file is cut short: {count:,} more bytes expected", file=path, remedy=COPY_AGAIN)
        count -= len(chunk)


def read_to_end(stream: BinaryIO, path: Path) -> None:
    """Read what follows the voxels, so that length and checksum are verified; little may follow."""
    trailing = 0
    while chunk := stream.read(2**20):
        trailing += len(chunk)
        if trailing > _MAX_TRAILING:
            raise UserError("the file is far longer than its header says", file=path, remedy=COPY_AGAIN)


def finite(array: NDArray[Any], path: Path) -> tuple[NDArray[Any], tuple[str, ...]]:
    """Make sure that every voxel is a number that float32 holds.

    Up to a tenth of the voxels may be NaN, infinite or beyond ±3.4e38: they take the smallest of the other values, in
    place, and a note states how many. Above that the scan is refused.

    Returns
    -------
    array, notes
        The same array, or a copy where it is not writable and had to change.

    Raises
    ------
    UserError
    """
    if array.dtype.kind != "f":
        return array, ()
    flat = array.ravel(order="K")
    bad, lowest = 0, np.inf
    for part in _parts(flat.size, _CHUNK):
        good = np.abs(flat[part]) <= _LARGEST
        bad += good.size - int(np.count_nonzero(good))
        lowest = min(lowest, float(np.min(flat[part], where=good, initial=np.inf)))
    if not bad:
        return array, ()
    share = f"{bad:,} of {flat.size:,} voxels ({_percent(bad / flat.size)})"
    if bad > MAX_NOT_FINITE * flat.size:
        all_of_them = bad == flat.size
        raise UserError(
            "no voxel holds a finite number" if all_of_them else f"{share} hold no finite number", file=path,
            remedy="Export the scan again from its source.",
        )  # fmt: skip
    if not (array.flags.writeable and np.shares_memory(flat, array)):
        array = array.copy(order="K")
        flat = array.ravel(order="K")
    for part in _parts(flat.size, _CHUNK):
        flat[part][~(np.abs(flat[part]) <= _LARGEST)] = lowest
    return array, (f"{share} hold no finite number; they count as {lowest:g}, the smallest value.",)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.01 else "less than 1 %"


class Inflated(io.RawIOBase):
    """A zlib or gzip stream as a file; a stream that does not end well raises ``EOFError`` or ``zlib.error``."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._inflater = zlib.decompressobj(47)  # either header
        self._waiting = b""

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        """Fill part of ``target``; 0 at the end of the stream."""
        view = memoryview(target).cast("B")
        while len(view) and not self._inflater.eof:
            chunk = self._inflater.decompress(self._waiting, len(view))
            self._waiting = self._inflater.unconsumed_tail
            if chunk:
                view[: len(chunk)] = chunk
                return len(chunk)
            if not self._waiting and not self._inflater.eof:
                self._waiting = self._stream.read(2**16)
                if not self._waiting:
                    raise EOFError
        return 0
