"""Reading scans to the last byte, refusing in words what cannot be trusted."""

from __future__ import annotations

import gzip
import io
import warnings
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from amvlm.errors import UserError, the_one_meant, volume_names
from amvlm.imaging.dicom import read_series
from amvlm.imaging.dicom_headers import DICOM_SUFFIXES, find_series, is_dicom, series_of_file
from amvlm.imaging.itk import COPY_AGAIN, ITK_SUFFIXES, read_itk
from amvlm.imaging.volume import Volume

PICTURE_SUFFIXES = (".png", ".tif", ".tiff", ".webp", ".jpg", ".jpeg", ".bmp")
NIFTI_SUFFIXES = (".nii", ".nii.gz")
MAX_BYTES = 16 * 2**30
_MAX_HEADER = 64 * 2**20


def is_image_name(name: str) -> bool:
    """True when the suffix is one that :func:`read_volume` takes as one image (DICOM slices are not)."""
    return name.lower().endswith((*NIFTI_SUFFIXES, *ITK_SUFFIXES, *PICTURE_SUFFIXES))


def read_volume(path: str | Path, volume_index: int | None = None, series: int | None = None) -> Volume:
    """Read an image or mask.

    Parameters
    ----------
    path : str or Path
        NIfTI, NRRD, MetaImage, a 2-D picture (PNG, TIFF, WebP, JPEG, BMP), a DICOM folder, or one DICOM file: then
        the whole series that it belongs to.
    volume_index : int, optional
        Which volume of a 4-D image.
    series : int, optional
        Which series of a DICOM folder, in order of their numbers.

    Returns
    -------
    Volume
        Stored dtype; float32 where the file asks for scaling.

    Raises
    ------
    ChoiceNeeded
        If there are several series or volumes and none is chosen.
    UserError
        No such file, not an image, truncated, wrong checksum, absurd dimensions, all-NaN voxels, singular
        affine, two contradicting orientations; of DICOM missing, doubled or mixed slices, undecodable pixels.
    """
    path = Path(path)
    if not path.exists():
        raise UserError("there is no such file", file=path, remedy="Check the name and the folder.")
    name = path.name.lower()
    try:
        if path.is_dir():
            return _volume_from_folder(path, volume_index, series)
        if path.stat().st_size == 0:
            raise UserError("the file is empty", file=path, remedy=COPY_AGAIN)
        if name.endswith(NIFTI_SUFFIXES):
            return volume_from_nifti(_nifti_content(path), path, volume_index)
        if name.endswith(ITK_SUFFIXES):
            return read_itk(path, volume_index, MAX_BYTES)
        if name.endswith(PICTURE_SUFFIXES):
            return _volume_from_picture(path)
        if is_dicom(path):
            return read_series(series_of_file(path), volume_index)
    except PermissionError as error:
        raise UserError("the file may not be read", file=path, remedy="Ask for permission to read it.") from error
    known = (*NIFTI_SUFFIXES, *ITK_SUFFIXES, *DICOM_SUFFIXES, *PICTURE_SUFFIXES)
    raise UserError("the format is not known", file=path, remedy=f"Supported: {', '.join(known)}.")


def _volume_from_folder(folder: Path, volume_index: int | None, chosen: int | None) -> Volume:
    found = find_series(folder)
    if not found:
        raise UserError(
            "the folder holds no DICOM series", file=folder,
            remedy="Open one file, or make a study from a folder of scans.",
        )  # fmt: skip
    number = the_one_meant(chosen, [series.label for series in found], "series", folder)
    return read_series(found[number], volume_index)


def _header_bytes(head: bytes, path: Path) -> int:
    """How long the uncompressed file must be, from the first bytes of its header."""
    try:
        header_class = nibabel.Nifti2Header if head[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c") else nibabel.Nifti1Header
        with warnings.catch_warnings(action="ignore"):  # what matters is refused below, in words
            header = header_class.from_fileobj(io.BytesIO(head), check=False)
        shape = tuple(int(n) for n in header["dim"][1 : 1 + int(header["dim"][0])])
        itemsize = int(header.get_data_dtype().itemsize)
        offset = int(header["vox_offset"])
    except (HeaderDataError, ValueError, KeyError, IndexError, OverflowError) as error:
        raise UserError("this is not a NIfTI image", file=path, remedy="Check what wrote the file.") from error
    if bytes(header["magic"])[:3] not in (b"n+1", b"n+2"):
        raise UserError("this is not a single-file NIfTI image", file=path, remedy="Check what wrote the file.")
    if not 1 <= len(shape) <= 7 or min(shape) < 1 or itemsize < 1 or not 0 <= offset <= _MAX_HEADER:
        raise UserError("the header holds impossible dimensions", file=path, remedy=COPY_AGAIN)
    sizes = [float(value) for value, count in zip(header["pixdim"][1:4], shape[:3], strict=False) if count > 1]
    if header["sform_code"] == 0 and not all(np.isfinite(value) and value > 0 for value in sizes):
        raise UserError(
            "the header states no voxel size", file=path, remedy="Convert the scan again from its source, with spacing."
        )
    size = itemsize
    for count in shape:
        size *= count
    if size > MAX_BYTES:
        raise UserError(
            f"the header asks for {size / 2**30:,.0f} GiB of voxels ({' × '.join(map(str, shape))})",
            file=path,
            remedy="Such dimensions are most likely damage; copy the file again or crop the scan.",
        )
    return offset + size


def _nifti_content(path: Path) -> bytearray:
    """Read the whole file, decompressing to the end so that length and checksum are verified."""
    opener = gzip.open if path.name.lower().endswith(".gz") else open
    try:
        with opener(path, "rb") as stream:
            head = stream.read(544)
            if len(head) < 348:
                raise UserError("the file is too short to be a NIfTI image", file=path, remedy=COPY_AGAIN)
            expected = _header_bytes(head, path)
            content = bytearray(max(expected, len(head)))  # of the final size at once: volumes are large
            content[: len(head)] = head
            held = len(head)
            with memoryview(content) as whole:
                while held < expected and (count := stream.readinto(whole[held:])):
                    held += count
            trailing = 0
            while chunk := stream.read(2**20):
                trailing += len(chunk)
                if trailing > 2**26:
                    raise UserError("the file is far longer than its header says", file=path, remedy=COPY_AGAIN)
    except EOFError as error:
        raise UserError("the file is cut short", file=path, remedy=COPY_AGAIN) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        kind = "the checksum is wrong" if "CRC" in str(error) else "the compressed stream is damaged"
        raise UserError(kind, file=path, remedy=COPY_AGAIN) from error
    if held < expected:
        raise UserError(
            f"the file is cut short: {expected:,} bytes expected, {held:,} found",
            file=path,
            remedy=COPY_AGAIN,
        )
    return content


def volume_from_nifti(content: bytes | bytearray, path: Path, volume_index: int | None = None) -> Volume:
    """Decode the bytes of an uncompressed NIfTI file; ``path`` is only for messages. See :func:`read_volume`."""
    kind = nibabel.Nifti2Header if content[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c") else nibabel.Nifti1Header
    try:
        with warnings.catch_warnings(action="ignore"):
            header = kind.from_fileobj(io.BytesIO(content[:544]))
            affine = np.asarray(header.get_best_affine(), dtype=np.float64)
            slope, inter = (given if given is not None else usual for given, usual in
                            zip(header.get_slope_inter(), (1.0, 0.0), strict=True))  # fmt: skip
        shape, dtype = header.get_data_shape(), header.get_data_dtype()
        count, offset = int(np.prod(shape, dtype=object)), int(header["vox_offset"])
        stored: NDArray[Any] = np.frombuffer(content, dtype, count, offset).reshape(shape, order="F")
    except Exception as error:
        raise UserError("this is not a readable NIfTI image", file=path, remedy=COPY_AGAIN) from error
    array = _three_dimensional(stored, path, volume_index)
    if array.dtype.fields is not None or array.dtype.kind not in "iuf":
        raise UserError(
            f"voxels of type {array.dtype} are not supported",
            file=path,
            remedy="Convert it to a grey-scale image.",
        )
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if (slope, inter) != (1.0, 0.0):
        array = array.astype(np.float32) * np.float32(slope) + np.float32(inter)
    if array.dtype.kind == "f" and not np.isfinite(array).any():
        raise UserError("no voxel holds a finite number", file=path, remedy="Export the scan again from its source.")
    sides_known = bool(header["sform_code"] > 0 or header["qform_code"] > 0)
    try:
        volume = Volume(array, affine, sides_known)
    except UserError as error:
        raise UserError(error.what, file=path, remedy=error.remedy) from error
    if header["sform_code"] > 0 and header["qform_code"] > 0:
        _check_one_orientation(affine, header, path)
    axes = affine[:3, :3] / volume.spacing_mm
    skew = float(np.abs(axes.T @ axes - np.eye(3)).max())
    if skew > 0.01:
        note = (
            f"The voxels are sheared by {np.degrees(np.arcsin(min(1.0, skew))):.0f}°: lengths on screen are not exact."
        )
        volume = replace(volume, notes=(note,))
    return volume


def _check_one_orientation(affine: NDArray[np.float64], header: Any, path: Path) -> None:
    """Two orientations in one header must name the same axes: otherwise a side may be wrong."""
    try:
        other = header.get_qform()
    except (HeaderDataError, ValueError, np.linalg.LinAlgError):
        return  # a broken quaternion beside a good sform
    names = ["".join(nibabel.aff2axcodes(a)) for a in (affine, other)] if np.isfinite(other).all() else [""] * 2
    if names[0] != names[1]:
        raise UserError(
            f"its header states two orientations, {names[0]} (sform) and {names[1]} (qform)", file=path,
            remedy="Which side is left cannot be known: convert the scan again from its source.",
        )  # fmt: skip


def _three_dimensional(array: NDArray[Any], path: Path, volume_index: int | None) -> NDArray[Any]:
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim < 3:
        array = array.reshape(array.shape + (1,) * (3 - array.ndim))
    if array.ndim > 4:
        raise UserError(f"it has {array.ndim} dimensions", file=path, remedy="Export one 3-D volume.")
    if array.ndim == 3:
        array = array[..., None]
    chosen: NDArray[Any] = array[..., the_one_meant(volume_index, volume_names(array.shape[3]), "volume", path)]
    return chosen


def _volume_from_picture(path: Path) -> Volume:
    """A picture as one slice: rows run down, columns run right, sides as in radiological display but not known."""
    try:
        with Image.open(path) as picture:
            if getattr(picture, "n_frames", 1) > 1:
                raise UserError(
                    "it holds several pages", file=path, remedy="Save it as one picture per file or as NIfTI."
                )
            picture.load()
            if picture.mode in ("1", "L", "I;16", "I;16B", "I", "F"):
                pixels = np.asarray(picture)
            else:
                pixels = np.asarray(picture.convert("RGB"))
    except UserError:
        raise
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError("this is not a readable picture", file=path, remedy=COPY_AGAIN) from error
    if pixels.dtype == np.bool_:
        pixels = pixels.astype(np.uint8)
    if pixels.ndim == 3 and (pixels[..., :1] == pixels).all():
        pixels = np.ascontiguousarray(pixels[..., 0])
    array = pixels.swapaxes(0, 1)[:, :, None]
    if array.dtype.kind == "f" and not np.isfinite(array).any():
        raise UserError("no pixel holds a finite number", file=path, remedy="Export the picture again.")
    return Volume(array, np.diag([-1.0, -1.0, 1.0, 1.0]), sides_known=False, planar=True)
