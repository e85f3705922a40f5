"""NIfTI-1 and NIfTI-2 in single files. Only geometry, size and scale of the header are used; its texts are not read."""

from __future__ import annotations

import contextlib
import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import nibabel
import numpy as np
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from amvlm.errors import UserError, choose_index, volume_names
from amvlm.imaging.limits import COPY_AGAIN, check_held, check_size, in_a_sentence
from amvlm.imaging.volume import Volume
from amvlm.imaging.voxels import Stored, finite, read_to_end, read_voxels, skip, voxels_in

NIFTI_SUFFIXES = (".nii", ".nii.gz")
_HEAD = 544
_MAX_OFFSET = 64 * 2**20
_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
"""Millimetres in the header's unit: not stated (taken as mm), metres, mm, micrometres."""
_CONVERT = "Convert the scan again from its source."


@dataclass(frozen=True)
class _Header:
    """What the header states, checked; ``shape`` has three axes and the number of volumes."""

    raw: Any
    shape: tuple[int, int, int, int]
    stored: Stored
    offset: int

    @property
    def volume_bytes(self) -> int:
        return self.stored.count * self.stored.dtype.itemsize

    @property
    def expected(self) -> int:
        """Bytes of the uncompressed file, at least."""
        return self.offset + self.volume_bytes * self.shape[3]


def read_nifti(path: Path, volume_index: int | None) -> Volume:
    """Read one volume; what the header asks for is compared with the file's size before memory is taken.

    The whole file is read, so that length and checksum are verified; only the chosen volume is held.
    """
    compressed = path.name.lower().endswith(".gz")
    with in_a_sentence(path, "this is not a readable NIfTI image"), contextlib.ExitStack() as stack:
        file: BinaryIO = stack.enter_context(path.open("rb"))
        stream: Any = stack.enter_context(gzip.GzipFile(fileobj=file)) if compressed else file
        header = _parsed(stream.read(_HEAD), path)
        check_held(header.expected, path.stat().st_size, path, compressed)
        number = _number(header, path, volume_index)
        stream.seek(header.offset)
        skip(stream, number * header.volume_bytes, path)
        voxels = read_voxels(stream, header.stored, path)
        skip(stream, (header.shape[3] - 1 - number) * header.volume_bytes, path)
        read_to_end(stream, path)
        return _volume(header, voxels, path)


def volume_from_nifti(content: bytes | bytearray, path: Path, volume_index: int | None = None) -> Volume:
    """Decode the bytes of an uncompressed NIfTI file; ``path`` is only for messages.

    The array is a view of ``content`` where nothing has to be scaled; see :func:`amvlm.imaging.read_volume` for what
    is refused.
    """
    with in_a_sentence(path, "this is not a readable NIfTI image"):
        header = _parsed(bytes(content[:_HEAD]), path)
        check_held(header.expected, len(content), path)
        number = _number(header, path, volume_index)
        voxels = voxels_in(content, header.offset + number * header.volume_bytes, header.stored)
        return _volume(header, voxels, path)


def _parsed(head: bytes, path: Path) -> _Header:
    second = head[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c")
    kind = nibabel.Nifti2Header if second else nibabel.Nifti1Header
    if len(head) < kind.template_dtype.itemsize:
        raise UserError("the file is too short to be a NIfTI image", file=path, remedy=COPY_AGAIN)
    try:
        raw = kind(head[: kind.template_dtype.itemsize], check=False)  # extensions are not read
        shape = tuple(int(n) for n in raw["dim"][1 : 1 + int(raw["dim"][0])])
        dtype, offset = np.dtype(raw.get_data_dtype()), float(raw["vox_offset"])
    except (HeaderDataError, ValueError, KeyError, IndexError, OverflowError) as error:
        raise UserError("this is not a NIfTI image", file=path, remedy="Check what wrote the file.") from error
    if bytes(raw["magic"])[:3] not in (b"n+1", b"n+2"):
        raise UserError("this is not a single-file NIfTI image", file=path, remedy="Check what wrote the file.")
    if not 1 <= len(shape) <= 7 or min(shape) < 1 or dtype.itemsize < 1:
        raise UserError("the header holds impossible dimensions", file=path, remedy=COPY_AGAIN)
    if not (544 if second else 352) <= offset <= _MAX_OFFSET or offset % 1:
        raise UserError("the header does not say where the voxels begin", file=path, remedy=_CONVERT)
    if dtype.fields is not None or dtype.kind not in "iuf":
        raise UserError(f"voxels of type {dtype} are not supported", file=path,
                        remedy="Convert it to a grey-scale image.")  # fmt: skip
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) > 4:
        raise UserError(f"it has {len(shape)} dimensions", file=path, remedy="Export one 3-D volume.")
    x, y, z, volumes = shape + (1,) * (4 - len(shape))
    slope, inter = _scale(raw, path)
    return _Header(raw, (x, y, z, volumes), Stored(dtype, x * y * z, slope, inter), int(offset))


def _scale(raw: Any, path: Path) -> tuple[float, float]:
    """A slope of 0 or NaN means that nothing is scaled, as the standard and nibabel have it."""
    slope, inter = float(raw["scl_slope"]), float(raw["scl_inter"])
    if slope == 0 or np.isnan(slope):
        return 1.0, 0.0
    if not np.isfinite([slope, inter]).all():
        raise UserError("the scale of its values is damaged", file=path, remedy=_CONVERT)
    return slope, inter


def _number(header: _Header, path: Path, volume_index: int | None) -> int:
    check_size(header.stored.count * header.stored.target.itemsize, header.shape[:3], path)
    return choose_index(volume_index, volume_names(header.shape[3]), "volume", path)


def _volume(header: _Header, voxels: NDArray[Any], path: Path) -> Volume:
    voxels, notes = finite(voxels, path)
    affine, known, notes_on_place = _placed(header, path)
    return Volume(voxels.reshape(header.shape[:3], order="F"), affine, known, notes=(*notes, *notes_on_place))


# -- geometry -----------------------------------------------------------------------------------------------------


def _placed(header: _Header, path: Path) -> tuple[NDArray[np.float64], bool, tuple[str, ...]]:
    """Voxel → RAS mm, whether the sides are known, and notes."""
    raw = header.raw
    units = int(raw["xyzt_units"]) & 7
    if units not in _MM:
        raise UserError("the header's unit of length is not known", file=path, remedy=_CONVERT)
    sizes = [float(value) for value, count in zip(raw["pixdim"][1:4], header.shape, strict=False) if count > 1]
    if raw["sform_code"] == 0 and not all(np.isfinite(value) and value > 0 for value in sizes):
        raise UserError("the header states no voxel size", file=path, remedy=f"{_CONVERT} It must state the spacing.")
    affine = np.asarray(raw.get_best_affine(), dtype=np.float64)
    affine[:3] *= _MM[units]
    known = bool(raw["sform_code"] > 0 or raw["qform_code"] > 0)
    with _named(path):
        probe = Volume(np.empty((1, 1, 1), np.uint8), affine, known)
    notes: tuple[str, ...] = ()
    axes = affine[:3, :3] / probe.spacing_mm
    skew = float(np.abs(axes.T @ axes - np.eye(3)).max())
    if skew > 0.01:
        angle = np.degrees(np.arcsin(min(1.0, skew)))
        notes = (f"The voxels are sheared by {angle:.0f}°: lengths on screen are not exact.",)
    if raw["sform_code"] > 0 and raw["qform_code"] > 0:
        notes += _compared(header, affine, skew > 0.01, path)
    return affine, known, notes


@contextlib.contextmanager
def _named(path: Path) -> Any:
    try:
        yield
    except UserError as error:
        raise UserError(error.what, file=path, remedy=error.remedy) from error


def _compared(header: _Header, affine: NDArray[np.float64], sheared: bool, path: Path) -> tuple[str, ...]:
    """Two places in one header must agree: otherwise a side, a length or the position may be wrong.

    Axes and spacing must agree always. Positions may differ where the header says that they are positions in two
    spaces (a scanner and an atlas): then a note says so. A sheared sform is not compared: qform holds no shear.
    """
    try:
        other = np.asarray(header.raw.get_qform(), dtype=np.float64)
    except (HeaderDataError, ValueError, np.linalg.LinAlgError):
        other = np.full((4, 4), np.nan)
    if not np.isfinite(other).all():
        return ("Its header holds a damaged second orientation (qform), which was not used.",)
    other[:3] *= _MM[int(header.raw["xyzt_units"]) & 7]
    names = ["".join(nibabel.aff2axcodes(place)) for place in (affine, other)]
    if names[0] != names[1]:
        raise UserError(
            f"its header states two orientations, {names[0]} (sform) and {names[1]} (qform)", file=path,
            remedy="Which side is left cannot be known: convert the scan again from its source.",
        )  # fmt: skip
    sizes = [np.linalg.norm(place[:3, :3], axis=0) for place in (affine, other)]
    if np.abs(sizes[0] / sizes[1] - 1).max() > 0.01:
        shown = [" × ".join(f"{value:.3g}" for value in size) for size in sizes]
        raise UserError(
            f"its header states two voxel sizes, {shown[0]} mm (sform) and {shown[1]} mm (qform)", file=path,
            remedy=f"Lengths and volumes cannot be known. {_CONVERT}",
        )  # fmt: skip
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in header.shape[:3]])).reshape(3, -1)
    apart = (affine - other) @ np.vstack([corners, np.ones(corners.shape[1])])
    distance = float(np.linalg.norm(apart[:3], axis=0).max())
    if sheared or distance <= max(0.5 * float(sizes[0].min()), 0.01):
        return ()
    what = f"two places {distance:.1f} mm apart (sform and qform)"
    if header.raw["sform_code"] == header.raw["qform_code"]:
        raise UserError(
            f"its header states {what}", file=path, remedy=f"Where the scan lies cannot be known. {_CONVERT}"
        )
    return (f"Its header states {what}, as of two spaces; the sform's place is used.",)

