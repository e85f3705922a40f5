"""NRRD: .nrrd, and .nhdr with its voxels in a file beside it. Of the header only the fields below are used."""

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

NRRD_SUFFIXES = (".nrrd", ".nhdr")
_TYPES = {
    "i1": "signed char, int8, int8_t", "u1": "uchar, unsigned char, uint8, uint8_t",
    "i2": "short, short int, signed short, signed short int, int16, int16_t",
    "u2": "ushort, unsigned short, unsigned short int, uint16, uint16_t",
    "i4": "int, signed int, int32, int32_t", "u4": "uint, unsigned int, uint32, uint32_t",
    "i8": "longlong, long long, long long int, signed long long, signed long long int, int64, int64_t",
    "u8": "ulonglong, unsigned long long, unsigned long long int, uint64, uint64_t",
    "f4": "float", "f8": "double",
}  # fmt: skip
_DTYPES = {name: np.dtype(code) for code, names in _TYPES.items() for name in names.split(", ")}
_SPACES = {"left-posterior-superior": "LPS", "right-anterior-superior": "RAS", "left-anterior-superior": "LAS"}
_VECTOR = re.compile(r"none|\([^()]*\)")
_DOMAIN = ("domain", "space", "time", "???", "none", "")


def read_nrrd(path: Path, volume_index: int | None) -> Volume:
    """Read one volume; an axis without a place in space counts volumes (or three 8-bit colours, stored first)."""
    with in_a_sentence(path, "this is not a readable NRRD image"):
        return read_raw_image(_parsed(path), path, volume_index)


def _parsed(path: Path) -> RawImage:
    fields, after = _fields(path)
    count = fields.get("dimension", "")
    if not count.isdecimal() or not 2 <= int(count) <= 5:
        raise UserError("its header's dimension is damaged", file=path, remedy=COPY_AGAIN)
    shape = sizes(fields.get("sizes", ""), int(count), path)
    dtype = _DTYPES.get(fields.get("type", "").lower())
    if dtype is None:
        raise UserError("voxels of this type are not supported", file=path, remedy="Convert it to a grey-scale image.")
    endian = fields.get("endian", "").lower()
    if dtype.itemsize > 1 and endian not in ("little", "big"):
        raise UserError("its header does not state the byte order", file=path, remedy=COPY_AGAIN)
    dtype = dtype.newbyteorder(">" if endian == "big" else "<")
    encoding = {"raw": "", "gzip": "gzip", "gz": "gzip"}.get(fields.get("encoding", "").lower())
    if encoding is None:
        raise UserError("its encoding is not supported", file=path, remedy="Save it with the encoding raw or gzip.")
    spatial, affine, known = _placed(fields, int(count), path)
    others = [axis for axis in range(int(count)) if axis not in spatial]
    if len(spatial) not in (2, 3) or len(others) > 1 or (others and others[0] not in (0, int(count) - 1)):
        raise UserError(f"its {count} dimensions do not form volumes", file=path, remedy="Export one 3-D volume.")
    name = fields.get("data file", fields.get("datafile"))
    voxels = path if name is None else beside(path, name)
    return RawImage(
        voxels, _offset(fields, 0 if name is not None else after, voxels, encoding, path), encoding, dtype,
        tuple(shape[axis] for axis in spatial), shape[others[0]] if others else 1, others == [0], affine, known,
        after if name is None else 0, "spacings" in fields or "space directions" in fields,
    )  # fmt: skip


def _fields(path: Path) -> tuple[dict[str, str], int]:
    """The header's fields, and where the voxels begin; key/value pairs and comments are not read."""
    with path.open("rb") as stream:
        head = stream.read(MAX_HEADER)
    end = re.search(rb"\r?\n\r?\n", head)
    if not re.match(rb"NRRD000[1-5]\r?\n", head) or (end is None and len(head) == MAX_HEADER):
        raise UserError("this is not an NRRD image", file=path, remedy=COPY_AGAIN)
    fields: dict[str, str] = {}
    for line in (head[: end.start()] if end else head).decode("utf-8", "replace").splitlines()[1:]:
        name, colon, value = line.partition(":")
        if line.startswith("#") or not colon or value.startswith("="):
            continue
        name = name.strip().lower()
        if fields.setdefault(name, value.strip()) != value.strip():
            raise UserError("its header states the same field twice", file=path, remedy=COPY_AGAIN)
    return fields, end.end() if end else len(head)


def _offset(fields: dict[str, str], start: int, voxels: Path, encoding: str, path: Path) -> int:
    """Bytes of the file before the voxels."""
    lines, skipped = (fields.get(f"{unit} skip", fields.get(f"{unit}skip", "0")) for unit in ("line", "byte"))
    if skipped == "-1" and not encoding:
        return -1
    if not (lines.isdecimal() and skipped.isdecimal()) or int(lines) > 10_000 or (encoding and skipped != "0"):
        raise UserError("its header does not say where the voxels begin", file=path, remedy=COPY_AGAIN)
    with voxels.open("rb") as stream:
        stream.seek(start)
        for _ in range(int(lines)):
            stream.readline(MAX_HEADER)
        return stream.tell() + int(skipped)


def _placed(fields: dict[str, str], count: int, path: Path) -> tuple[list[int], NDArray[np.float64], bool]:
    """Which axes lie in space, voxel → RAS mm, and whether the sides are known."""
    if "space directions" not in fields:
        return _spaced(fields, count, path)
    vectors = _VECTOR.findall(fields["space directions"])
    if len(vectors) != count:
        raise UserError("its header's space directions are damaged", file=path, remedy=COPY_AGAIN)
    spatial = [axis for axis in range(count) if vectors[axis] != "none"]
    length = len(vectors[spatial[0]].split(",")) if spatial else 0
    columns = [_vector(vectors[axis], length, path) for axis in spatial]
    origin = _vector(fields.get("space origin", ",".join("0" * length)), length, path)
    units = re.findall(r'"[^"]*"', fields.get("space units", "")) or [""] * length
    space = fields.get("space", "").lower().removesuffix("-time")
    axes = _SPACES.get(space, space.upper() if space.upper() in FLIPS else "")
    if len(spatial) == 4 and length == 4:  # the last is time
        spatial, columns = spatial[:3], columns[:3]
    if len(spatial) == 2:
        return spatial, planar_affine([float(np.linalg.norm(column)) for column in columns]), False
    if len(spatial) != 3 or length < 3:
        raise UserError("its axes do not form a volume", file=path, remedy="Export one 3-D volume.")
    affine = np.eye(4)
    affine[:3, :3] = np.stack([column[:3] for column in columns], axis=1)
    affine[:3, 3] = origin[:3]
    affine[:3] *= np.array([lengths_in_mm(units[:3], path)]).T
    affine[:3] *= np.array([FLIPS[axes or "LPS"]]).T
    return spatial, affine, bool(axes)


def _vector(text: str, length: int, path: Path) -> NDArray[np.float64]:
    return numbers(text.strip("() ").replace(",", " "), length, path, "place in space")


def _spaced(fields: dict[str, str], count: int, path: Path) -> tuple[list[int], NDArray[np.float64], bool]:
    """A header with spacings alone: SimpleITK takes LPS, and the sides are not known."""
    kinds = fields.get("kinds", "").lower().split() or [""] * count
    spatial = [axis for axis in range(count) if kinds[axis : axis + 1] and kinds[axis] in _DOMAIN][:3]
    spacing = numbers(fields.get("spacings", " ".join("1" * count)), count, path, "spacings")[spatial]
    units = re.findall(r'"[^"]*"', fields.get("units", "")) or [""] * count
    spacing = spacing * lengths_in_mm([units[axis] if axis < len(units) else "" for axis in spatial], path)
    if not (np.isfinite(spacing).all() and (spacing > 0).all()):
        raise UserError("the header states no voxel size", file=path, remedy="Convert the scan again from its source.")
    if len(spatial) != 3:
        return spatial, planar_affine([*spacing.tolist(), 1.0, 1.0][:2]), False
    return spatial, np.diag([*(spacing * FLIPS["LPS"]), 1.0]), False
