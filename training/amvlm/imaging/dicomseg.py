"""DICOM Segmentation objects, written with highdicom: each structure a segment, so they may overlap."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amvlm.errors import UserError, printable
from amvlm.imaging.dicom_file import Frame
from amvlm.imaging.dicom_headers import DicomSeries
from amvlm.imaging.limits import quietly
from amvlm.imaging.writers import write_bytes_atomically


def write_dicom_seg(path: Path, masks: Mapping[str, NDArray[np.uint8]], series: DicomSeries) -> None:
    """Write masks of one series as a DICOM Segmentation that refers to the series' own images.

    Parameters
    ----------
    path : Path
        ``.dcm``, written atomically.
    masks : mapping of str to ndarray, shape of the series' volume (columns, rows, slices), {0, 1}
        Structure → mask on the grid of :func:`amvlm.imaging.dicom.read_series`.
    series : DicomSeries
        The series the masks belong to. The object carries its patient and study identifiers, as DICOM demands: it is
        as private as the series.

    Raises
    ------
    UserError
        If highdicom is missing, no mask holds a voxel, or the series has several volumes or frames in one file.
    """
    try:
        import highdicom  # noqa: F401 - first of all, whether it is there
    except ImportError as error:
        raise UserError(
            "writing DICOM SEG needs the package highdicom", remedy="pip install 'napari-amvlm[dicomseg]'"
        ) from error
    if path.suffix.lower() != ".dcm":
        raise UserError("the output must end in .dcm", file=path, remedy="Choose another file name.")
    kept = {name: mask for name, mask in masks.items() if mask.any()}
    if not kept:
        raise UserError("there is no voxel to write", file=path, remedy="Accept a label first.")
    frames = sorted(series.frames, key=_along_normal)
    shape = next(iter(kept.values())).shape
    if shape != (frames[0].columns, frames[0].rows, len(frames)) or len({frame.path for frame in frames}) != len(
        frames
    ):
        raise UserError(
            f"the masks' grid {shape} is not the series'", file=path,
            remedy="Choose the series that the scan was opened from.",
        )  # fmt: skip
    if any(frame.uid.startswith(" ") for frame in frames) or len({frame.uid for frame in frames}) != len(frames):
        raise _without_identifiers(path)
    write_bytes_atomically(path, _encoded(kept, frames, path), private=False)


def _encoded(kept: Mapping[str, NDArray[np.uint8]], frames: Sequence[Frame], path: Path) -> bytes:
    """The object's bytes; a stranger's headers may make pydicom and highdicom raise nearly anything."""
    import highdicom
    import pydicom
    from pydicom.sr.codedict import codes

    stack = np.stack([mask.transpose(2, 1, 0) for mask in kept.values()], -1).astype(np.uint8)
    how = highdicom.seg.SegmentAlgorithmTypeValues.SEMIAUTOMATIC
    family: Any = codes.DCM.ArtificialIntelligence
    made_by = highdicom.AlgorithmIdentificationSequence(name="napari-amvlm", version=_version(), family=family)
    segments = [
        highdicom.seg.SegmentDescription(
            segment_number=number, segment_label=segment_label(name), segmented_property_category=codes.SCT.Tissue,
            segmented_property_type=codes.SCT.Tissue, algorithm_type=how, algorithm_identification=made_by,
        )
        for number, name in enumerate(kept, 1)
    ]  # fmt: skip
    stream = io.BytesIO()
    try:
        with quietly():
            sources = [pydicom.dcmread(frame.path, defer_size=4096) for frame in frames]
            made = highdicom.seg.Segmentation(
                source_images=sources, pixel_array=stack, segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
                segment_descriptions=segments, series_instance_uid=highdicom.UID(), series_number=900,
                sop_instance_uid=highdicom.UID(), instance_number=1, manufacturer="napari-amvlm developers",
                manufacturer_model_name="napari-amvlm", software_versions=_version(), device_serial_number="0",
                series_description="napari-amvlm, research use only", content_label="SEGMENTATION",
            )  # fmt: skip
            made.SpecificCharacterSet = "ISO_IR 192"  # structures may be named in any script
            made.save_as(stream)
    except MemoryError as error:
        raise UserError("there is not enough memory to write it", file=path, remedy="Close other programs.") from error
    except Exception as error:
        raise _without_identifiers(path) from error
    return stream.getvalue()


def segment_label(name: str) -> str:
    """A structure's name as DICOM's LO holds it: at most 64 characters, no backslash, nothing that cannot be shown."""
    label = printable(name).replace("\\", "/").strip()
    return label if len(label) <= 64 else f"{label[:57]}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def _without_identifiers(path: Path) -> UserError:
    return UserError(
        "the series lacks identifiers that a DICOM segmentation refers to (stripped when it was de-identified?)",
        file=path, remedy="Export NIfTI or NRRD instead.",
    )  # fmt: skip


def _along_normal(frame: Any) -> float:
    axes = np.array(frame.orientation).reshape(2, 3)
    return float(np.dot(frame.position, np.cross(axes[0], axes[1])))


def _version() -> str:
    from importlib.metadata import version

    return version("napari-amvlm")
