"""MetaImage: .mha, and .mhd with its voxels in a file beside it. Of the header only the fields below are used."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from amvlm.errors import UserError
from amvlm.imaging.limits import COPY_AGAIN, in_a_sentence
from amvlm.imaging.raw_images import (
    FLIPS,
    MAX_HEADER,
    RawImage,
    beside,
    lengths_in_mm,
    numbers,
    planar_affine,
    read_raw_image,
    sizes,
)
from amvlm.imaging.volume import Volume

META_SUFFIXES = (".mha", ".mhd")
_DTYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4",
    "MET_LONG": "i4", "MET_ULONG": "u4", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}  # fmt: skip


def read_metaimage(path: Path, volume_index: int | None) -> Volume:
    """Read one volume of a MetaImage of 2 to 4 dimensions."""
    with in_a_sentence(path, "this is not a readable MetaImage"):
        return read_raw_image(_parsed(path), path, volume_index)


def _parsed(path: Path) -> RawImage:
    fields, after = _fields(path)
    count = _whole(fields.get("ndims", ""), path)
    shape = sizes(fields.get("dimsize", ""), count, path)
    channels = _whole(fields.get("elementnumberofchannels", "1"), path)
    code = _DTYPES.get(fields.get("elementtype", ""))
    if not 2 <= count <= 4 or (count == 4 and channels > 1) or channels < 1:
        raise UserError(f"it has {count} dimensions", file=path, remedy="Export one 3-D volume.")
    if code is None:
        raise UserError("voxels of this type are not supported", file=path, remedy="Convert it to a grey-scale image.")
    if fields.get("binarydata", "True").lower() != "true":
        raise UserError("its voxels are written as text", file=path, remedy="Save it as a binary image.")
    most_first = _first(fields, "binarydatabyteordermsb", "elementbyteordermsb") or "False"
    dtype = np.dtype(code).newbyteorder(">" if most_first.lower() == "true" else "<")
    compression = "zlib" if fields.get("compresseddata", "False").lower() == "true" else ""
    name, stated = fields["elementdatafile"], fields.get("headersize", "0")
    inside_it = name.upper() == "LOCAL"
    if stated == "-1" and not compression:
        offset = -1
    elif stated.isdecimal() and not (inside_it and int(stated)):
        offset = after if inside_it else int(stated)
    else:
        raise UserError("its header does not say where the voxels begin", file=path, remedy=COPY_AGAIN)
    if name.upper().split(" ")[0] == "LIST":
        raise UserError("its voxels are spread over several files", file=path, remedy="Save the scan as one .mha file.")
    affine, known = _placed(fields, count, path)
    grid = shape[:3]
    return RawImage(
        path if inside_it else beside(path, name), offset, compression, dtype, grid,
        shape[3] if count == 4 else channels, count < 4, affine, known, after if inside_it else 0,
        bool(_first(fields, "elementspacing", "elementsize")),
    )  # fmt: skip


def _fields(path: Path) -> tuple[dict[str, str], int]:
    """The fields, their names in lower case, and where the line that names the voxels ends."""
    with path.open("rb") as stream:
        head = stream.read(MAX_HEADER)
    end = re.search(rb"^\s*ElementDataFile\s*=[^\n]*(\n|$)", head, re.MULTILINE)
    if end is None:
        raise UserError("this is not a MetaImage", file=path, remedy=COPY_AGAIN)
    fields: dict[str, str] = {}
    for line in head[: end.end()].decode("utf-8", "replace").splitlines():
        name, equals, value = line.partition("=")
        if equals and fields.setdefault(name.strip().lower(), value.strip()) != value.strip():
            raise UserError("its header states the same field twice", file=path, remedy=COPY_AGAIN)
    return fields, end.end()


def _first(fields: dict[str, str], *names: str) -> str:
    """The value of the first of several names that mean the same."""
    return next((fields[name] for name in names if name in fields), "")


def _whole(text: str, path: Path) -> int:
    if not text.isdecimal() or len(text) > 6:
        raise UserError("the header holds impossible dimensions", file=path, remedy=COPY_AGAIN)
    return int(text)


def _placed(fields: dict[str, str], count: int, path: Path) -> tuple[NDArray[np.float64], bool]:
    """Voxel → RAS mm, and whether the header states a direction."""
    ones, zeros = " ".join("1" * count), " ".join("0" * count)
    spacing = numbers(_first(fields, "elementspacing", "elementsize") or ones, count, path, "spacing")
    if not (np.isfinite(spacing).all() and (spacing > 0).all()):
        raise UserError("the header states a voxel size that is none", file=path,
                        remedy="Convert the scan again from its source.")  # fmt: skip
    unit = lengths_in_mm([fields.get("distanceunits", "").replace("?", "")], path)[0]
    if count == 2:
        return planar_affine((spacing * unit).tolist()), False
    stated = _first(fields, "transformmatrix", "rotation", "orientation")
    matrix = numbers(stated or " ".join(str(int(n)) for n in np.eye(count).ravel()), count**2, path, "orientation")
    axes = matrix.reshape(count, count)[:3, :3]
    if np.abs(np.linalg.norm(axes, axis=1) - 1).max() > 0.01:
        raise UserError("its orientation is damaged", file=path, remedy="Convert the scan again from its source.")
    affine = np.eye(4)
    affine[:3, :3] = axes.T * spacing[:3]
    affine[:3, 3] = numbers(_first(fields, "offset", "origin", "position") or zeros, count, path, "origin")[:3]
    affine[:3] *= unit * np.array([FLIPS["LPS"]]).T
    return affine, bool(stated)
