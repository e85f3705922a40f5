"""NRRD and MetaImage have one form: a text header, then voxels, in the same file or in one beside it."""

from __future__ import annotations

import contextlib
import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amvlm.errors import UserError, choose_index, printable, volume_names
from amvlm.imaging.limits import COPY_AGAIN, check_held, check_size, in_a_sentence
from amvlm.imaging.volume import Volume
from amvlm.imaging.voxels import Inflated, Stored, finite, read_to_end, read_voxels, skip
from amvlm.paths import check_regular, inside

MAX_HEADER = 2**20
FLIPS = {"LPS": (-1.0, -1.0, 1.0), "RAS": (1.0, 1.0, 1.0), "LAS": (-1.0, 1.0, 1.0)}
"""From a space's axes to RAS."""
MM = {"mm": 1.0, "cm": 10.0, "m": 1e3, "um": 1e-3, "µm": 1e-3, "micron": 1e-3, "microns": 1e-3, "": 1.0, "???": 1.0}


@dataclass(frozen=True)
class RawImage:
    """What a header states.

    Parameters
    ----------
    voxels : Path
        The file that holds them.
    offset : int
        Bytes before them in that file; −1 where they are its last bytes.
    header_bytes : int
        Bytes of that file that belong to the header.
    compression : {"", "gzip", "zlib"}
    dtype : numpy dtype
        With byte order.
    grid : tuple of int
        Two or three sizes, fastest first.
    volumes : int
    interleaved : bool
        True where the volumes (or colours) vary fastest, False where they vary slowest.
    affine : ndarray, (4, 4)
        Voxel → RAS mm.
    sides_known : bool
    sized : bool
        False where the header states no voxel size.
    """

    voxels: Path
    offset: int
    compression: str
    dtype: np.dtype[Any]
    grid: tuple[int, ...]
    volumes: int
    interleaved: bool
    affine: NDArray[np.float64]
    sides_known: bool
    header_bytes: int = 0
    sized: bool = True

    @property
    def colour(self) -> bool:
        return self.interleaved and self.volumes == 3 and self.dtype == np.uint8


def read_raw_image(image: RawImage, path: Path, volume_index: int | None) -> Volume:
    """Read one volume of it; ``path`` is the header's file, for messages."""
    shape = (*image.grid, 1)[:3]
    planar = len(image.grid) == 2
    count = int(np.prod(shape, dtype=object))
    check_size(count * image.dtype.itemsize * (3 if image.colour else 1), shape, path)
    number = 0 if image.colour else choose_index(volume_index, volume_names(image.volumes), "volume", path)
    try:
        Volume(np.empty((1, 1, 1), np.uint8), image.affine)
    except UserError as error:
        raise UserError(error.what, file=path, remedy=error.remedy) from error
    voxels, notes = finite(_read(image, count, number, path), path)
    if not image.sized:
        notes = (*notes, "The file states no voxel size: lengths and volumes are not in mm and ml.")
    array = voxels.reshape((3, *shape) if image.colour else shape, order="F")
    array = np.moveaxis(array, 0, -1) if image.colour else array
    return Volume(array, image.affine, image.sides_known and not planar, planar, notes=notes)


def _read(image: RawImage, count: int, number: int, path: Path) -> NDArray[Any]:
    total = count * image.volumes * image.dtype.itemsize
    size = image.voxels.stat().st_size
    offset = size - total if image.offset == -1 else image.offset
    check_held(total, size - max(offset, image.header_bytes), path, bool(image.compression))
    with in_a_sentence(path), contextlib.ExitStack() as stack:
        file: Any = stack.enter_context(image.voxels.open("rb"))
        file.seek(offset)
        if image.compression == "gzip":
            file = stack.enter_context(gzip.GzipFile(fileobj=file))
        elif image.compression:
            file = Inflated(file)
        if image.colour:
            voxels = read_voxels(file, Stored(image.dtype, count * 3), path)
        elif image.interleaved:
            voxels = read_voxels(file, Stored(image.dtype, count, pick=number, of=image.volumes), path)
        else:
            each = count * image.dtype.itemsize
            skip(file, number * each, path)
            voxels = read_voxels(file, Stored(image.dtype, count), path)
            skip(file, (image.volumes - 1 - number) * each, path)
        if image.compression:
            read_to_end(file, path)
        return voxels


def beside(header: Path, name: str) -> Path:
    """The file of voxels that a header names: one plain file in the header's own folder, and nothing else.

    Raises
    ------
    UserError
        For a list or a pattern of files, a path, or a link that leaves the folder.
    """
    remedy = "Save the scan as one file (.nrrd or .mha)."
    if not name or name != Path(name).name or any(character in name for character in "/\\\0%*?:|"):
        raise UserError(
            f"its voxels are in {printable(name)[:80]!r}, which is not one plain file beside it", file=header,
            remedy=remedy,
        )  # fmt: skip
    found = inside(header.parent, name)
    check_regular(found)
    if not found.is_file() or found.samefile(header):
        raise UserError("the file it names for its voxels holds none", file=header, remedy=remedy)
    return found


def numbers(text: str, count: int, path: Path, what: str) -> NDArray[np.float64]:
    """``count`` numbers of a field, (count,).

    Raises
    ------
    UserError
    """
    try:
        values = np.array([float(word) for word in text.split()])
    except ValueError:
        values = np.empty(0)
    if len(values) != count:
        raise UserError(f"its header's {what} is damaged", file=path, remedy=COPY_AGAIN)
    return values


def sizes(text: str, count: int, path: Path) -> tuple[int, ...]:
    """``count`` sizes of at least 1."""
    words = text.split()
    if len(words) != count or not all(word.isdecimal() and len(word) < 19 and int(word) > 0 for word in words):
        raise UserError("the header holds impossible dimensions", file=path, remedy=COPY_AGAIN)
    return tuple(int(word) for word in words)


def lengths_in_mm(units: Sequence[str], path: Path) -> list[float]:
    """Millimetres in each unit."""
    try:
        return [MM[unit.strip().strip('"').lower()] for unit in units]
    except KeyError as error:
        raise UserError("the header's unit of length is not known", file=path,
                        remedy="Convert the scan to millimetres.") from error  # fmt: skip


def planar_affine(spacing: Sequence[float]) -> NDArray[np.float64]:
    """A picture's place: columns run to the right of the screen, rows down, sides not known."""
    return np.diag([-spacing[0], -spacing[1], 1.0, 1.0])
