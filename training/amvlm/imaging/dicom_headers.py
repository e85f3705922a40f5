"""What DICOM headers say: the series of a folder, and where each image lies in the patient."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from amvlm.errors import UserError

DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
AGAIN = "Export the series again from its source."
_TAGS = (
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "Modality", "PatientID",
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "ImagerPixelSpacing", "SliceThickness",
    "SpacingBetweenSlices", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel",
    "RescaleSlope", "RescaleIntercept", "InstanceNumber", "PatientOrientation", "TemporalPositionIdentifier",
    "EchoNumbers", "AcquisitionNumber", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
    "PixelRepresentation", "BitsAllocated",
)  # fmt: skip


@dataclass(frozen=True)
class Frame:
    """One image of a series: where its pixels are and where it lies in the patient (LPS, mm)."""

    path: Path
    index: int
    uid: str
    rows: int
    columns: int
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    spacing: tuple[float, float] | None
    thickness: float
    rescale: tuple[float, float] | None
    order: tuple[float, ...]


@dataclass(frozen=True)
class DicomSeries:
    """The images of one series, as the headers list them.

    ``patient`` is the patient's identifier, for keeping one patient's scans in one split; it is never written anywhere.
    """

    uid: str
    number: int
    modality: str
    description: str
    patient: str
    frames: tuple[Frame, ...]
    colour: bool
    patient_orientation: tuple[str, ...]

    @property
    def label(self) -> str:
        """A line for a list of series; it may hold words from the header, so it belongs on the screen only."""
        first = self.frames[0]
        words = [f"series {self.number}", self.modality, self.description]
        return ", ".join([*filter(None, words), f"{len(self.frames)} × {first.columns} × {first.rows}"])


def is_dicom(path: Path) -> bool:
    """True for a file with DICOM's magic word, or a DICOM suffix."""
    try:
        with path.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM" or path.suffix.lower() in DICOM_SUFFIXES
    except OSError:
        return False


def find_series(source: Path) -> list[DicomSeries]:
    """List the image series of a folder (not of its subfolders), in order of their numbers.

    Raises
    ------
    UserError
        If a DICOM file cannot be parsed: leaving it out could lose a slice without a word.
    """
    paths = sorted(path for path in source.iterdir() if path.is_file() and not path.name.startswith("."))
    headers, damaged = [], []
    for path in paths:
        if not is_dicom(path) or path.name.upper() == "DICOMDIR":
            continue
        try:
            header = _header(path)
            if header.get("Rows") and header.get("Columns"):
                headers.append((path, header))
        except UserError:
            damaged.append(path)
    if damaged:
        more = f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
        raise UserError(
            f"this DICOM file is damaged{more}", file=damaged[0],
            remedy="Copy the folder again from its source, so that no slice is lost.",
        )  # fmt: skip
    return _grouped(headers)


def series_of_file(path: Path) -> DicomSeries:
    """The series that one file belongs to, from its folder."""
    uid = str(_header(path).get("SeriesInstanceUID", ""))
    for series in find_series(path.parent):
        if series.uid == uid:
            return series
    raise UserError("it holds no image", file=path, remedy="Choose an image of the series.")


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """pydicom repeats odd header values in warnings and logs: they may name a patient."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logger.setLevel(level)


def _header(path: Path) -> Any:
    import pydicom

    try:
        with quietly():
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_TAGS), force=True)
            if "SOPClassUID" not in header:
                raise UserError("it holds no DICOM object", file=path, remedy=AGAIN)
            for tag in _TAGS:
                header.get(tag)  # values are parsed at their first use: now, while errors are caught
            return header
    except UserError:
        raise
    except PermissionError as error:
        raise UserError("the file may not be read", file=path, remedy="Ask for permission to read it.") from error
    except Exception as error:
        raise UserError("this DICOM file is damaged", file=path, remedy=AGAIN) from error


def _grouped(headers: Iterable[tuple[Path, Any]]) -> list[DicomSeries]:
    groups: dict[str, list[tuple[Path, Any]]] = {}
    for path, header in headers:
        groups.setdefault(str(header.get("SeriesInstanceUID", "")), []).append((path, header))
    found = []
    for uid, members in groups.items():
        first = members[0][1]
        try:
            frames = tuple(frame for path, header in members for frame in _frames(path, header))
        except (TypeError, ValueError, AttributeError, IndexError) as error:
            raise UserError("the headers of this series are damaged", file=members[0][0], remedy=AGAIN) from error
        found.append(
            DicomSeries(
                uid, int(first.get("SeriesNumber") or 0), str(first.get("Modality") or ""),
                str(first.get("SeriesDescription") or "").strip(), str(first.get("PatientID") or ""), frames,
                int(first.get("SamplesPerPixel") or 1) == 3,
                tuple(str(value) for value in first.get("PatientOrientation") or ()),
            )
        )  # fmt: skip
    return sorted(found, key=lambda series: (series.number, series.uid))


def _frames(path: Path, header: Any) -> Iterator[Frame]:
    """The frames of one file: one, or those of an enhanced multi-frame object."""
    shared = _first(header.get("SharedFunctionalGroupsSequence"))
    groups = header.get("PerFrameFunctionalGroupsSequence")
    for index in range(int(header.get("NumberOfFrames") or 1)):
        own = groups[index] if groups else None

        def of(sequence: str, tag: str, own: Any = own) -> Any:
            for group in (own, shared):
                item = _first(group.get(sequence)) if group is not None else None
                if item is not None and item.get(tag) is not None:
                    return item.get(tag)
            return header.get(tag)

        slope = of("PixelValueTransformationSequence", "RescaleSlope")
        intercept = of("PixelValueTransformationSequence", "RescaleIntercept")
        spacing = of("PixelMeasuresSequence", "PixelSpacing") or header.get("ImagerPixelSpacing")
        thickness = of("PixelMeasuresSequence", "SpacingBetweenSlices") or of("PixelMeasuresSequence", "SliceThickness")
        order = ("TemporalPositionIdentifier", "EchoNumbers", "AcquisitionNumber", "InstanceNumber")
        yield Frame(
            path, index, f"{header.get('SOPInstanceUID') or ''} {index}", int(header.Rows), int(header.Columns),
            _floats(of("PlanePositionSequence", "ImagePositionPatient"), 3),
            _floats(of("PlaneOrientationSequence", "ImageOrientationPatient"), 6),
            None if not spacing else (float(spacing[0]), float(spacing[1])), float(thickness or 0),
            None if slope is None else (float(slope), float(intercept or 0)),
            (*(_number(header.get(tag)) for tag in order), index),
        )  # fmt: skip


def _first(sequence: Any) -> Any:
    return sequence[0] if sequence else None


def _floats(value: Any, count: int) -> tuple[float, ...] | None:
    if value is None or isinstance(value, str) or len(value) != count:
        return None
    numbers = tuple(float(v) for v in value)
    return numbers if np.isfinite(numbers).all() else None


def _number(value: Any) -> float:
    try:
        return float(value if not hasattr(value, "__len__") else value[0])
    except (TypeError, ValueError, IndexError):
        return 0.0
