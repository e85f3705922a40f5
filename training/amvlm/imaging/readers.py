"""Strict readers: a file that cannot be trusted raises a ``UserError`` that says why."""

from __future__ import annotations

from pathlib import Path

from amvlm.errors import UserError, choose_index
from amvlm.imaging.dicom import read_series
from amvlm.imaging.dicom_file import DICOM_SUFFIXES, is_dicom
from amvlm.imaging.dicom_headers import find_series, series_of_file
from amvlm.imaging.limits import COPY_AGAIN, in_a_sentence
from amvlm.imaging.metaimage import META_SUFFIXES, read_metaimage
from amvlm.imaging.nifti import NIFTI_SUFFIXES, read_nifti, volume_from_nifti
from amvlm.imaging.nrrd import NRRD_SUFFIXES, read_nrrd
from amvlm.imaging.pictures import PICTURE_SUFFIXES, read_picture
from amvlm.imaging.volume import Volume
from amvlm.paths import check_encodable, check_regular

_IMAGE_SUFFIXES = (*NIFTI_SUFFIXES, *NRRD_SUFFIXES, *META_SUFFIXES, *PICTURE_SUFFIXES)


def is_image_name(name: str) -> bool:
    """True when the suffix is one that :func:`read_volume` takes as one image (DICOM slices are not)."""
    return name.lower().endswith(_IMAGE_SUFFIXES)


def read_volume(path: str | Path, volume_index: int | None = None, series: int | None = None) -> Volume:
    """Read an image or mask.

    Memory peaks at 1.3 times the voxels returned, plus 300 MB; see :func:`amvlm.imaging.limits.memory_limit`.

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
        Stored dtype; float32 where the file asks for scaling. Every voxel is a finite number.

    Raises
    ------
    ChoiceNeeded
        If there are several series or volumes and none is chosen.
    UserError
        No such file, not an image, truncated, wrong checksum, a header that asks for more than the file or the
        memory holds, more than a tenth of the voxels not finite, singular or absurd affine, two contradicting
        places; of DICOM missing, doubled or mixed slices, undecodable pixels.
    """
    path = Path(path)
    check_regular(check_encodable(path))
    with in_a_sentence(path):
        if path.is_dir():
            return _volume_from_folder(path, volume_index, series)
        if path.stat().st_size == 0:
            raise UserError("the file is empty", file=path, remedy=COPY_AGAIN)
        name = path.name.lower()
        if name.endswith(NIFTI_SUFFIXES):
            return read_nifti(path, volume_index)
        if name.endswith(NRRD_SUFFIXES):
            return read_nrrd(path, volume_index)
        if name.endswith(META_SUFFIXES):
            return read_metaimage(path, volume_index)
        if name.endswith(PICTURE_SUFFIXES):
            return read_picture(path)
        if is_dicom(path):
            return read_series(series_of_file(path), volume_index)
    known = (*NIFTI_SUFFIXES, *NRRD_SUFFIXES, *META_SUFFIXES, *DICOM_SUFFIXES, *PICTURE_SUFFIXES)
    raise UserError("the format is not known", file=path, remedy=f"Supported: {', '.join(known)}.")


def _volume_from_folder(folder: Path, volume_index: int | None, chosen: int | None) -> Volume:
    found = find_series(folder)
    if not found:
        raise UserError(
            "the folder holds no DICOM series", file=folder,
            remedy="Open one file, or make a study from a folder of scans.",
        )  # fmt: skip
    number = choose_index(chosen, [series.label for series in found], "series", folder)
    return read_series(found[number], volume_index)


__all__ = ["is_image_name", "read_volume", "volume_from_nifti"]
