"""What the header of one DICOM file says: where its images lie in the patient, and where its pixels lie in the file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from amvlm.errors import UserError
from amvlm.imaging.limits import in_a_sentence
from amvlm.paths import check_regular

DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
AGAIN = "Export the series again from its source."
MAX_FRAMES = 2**16
NATIVE = ("", "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")
"""Transfer syntaxes that hold pixels as they are; "" where the file does not say."""
_DEFLATED = "1.2.840.10008.1.2.1.99"
_PIXEL_TAGS = (
    "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "Rows", "Columns", "BitsAllocated",
    "BitsStored", "HighBit", "PixelRepresentation", "RedPaletteColorLookupTableDescriptor",
    "GreenPaletteColorLookupTableDescriptor", "BluePaletteColorLookupTableDescriptor",
    "RedPaletteColorLookupTableData", "GreenPaletteColorLookupTableData", "BluePaletteColorLookupTableData",
)  # fmt: skip
_TAGS = (
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "Modality", "PatientID",
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "ImagerPixelSpacing", "SliceThickness",
    "SpacingBetweenSlices", "NumberOfFrames", "RescaleSlope", "RescaleIntercept", "InstanceNumber",
    "PatientOrientation", "TemporalPositionIdentifier", "EchoNumbers", "AcquisitionNumber",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", *_PIXEL_TAGS,
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class PixelSource:
    """Where the pixels of one file lie, and the header fields that decode them (a pydicom ``Dataset``).

    ``length`` is None for encapsulated pixels; ``frame_bytes`` is the size of one decoded frame.
    """

    start: int
    length: int | None
    size: int
    syntax: str
    frames: int
    module: Any

    @property
    def frame_bytes(self) -> int:
        of = self.module
        return int(of.Rows) * int(of.Columns) * int(of.get("SamplesPerPixel") or 1) * int(of.BitsAllocated) // 8


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
    source: PixelSource


@dataclass(frozen=True)
class DicomFile:
    """One file of a series, as far as its header tells; ``frames`` is empty for an object that is no scan."""

    path: Path
    series_uid: str
    number: int
    modality: str
    description: str
    patient: str
    patient_orientation: tuple[str, ...]
    kind: str
    frames: tuple[Frame, ...]


def is_dicom(path: Path) -> bool:
    """True for a file with DICOM's magic word, or a DICOM suffix."""
    try:
        check_regular(path)
        with path.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM" or path.suffix.lower() in DICOM_SUFFIXES
    except (OSError, UserError):
        return False


def read_header(path: Path) -> DicomFile:
    """Read what :class:`DicomFile` holds; the pixels are located and counted, not read.

    Raises
    ------
    UserError
        If the file is damaged, cut short, not DICOM, or may not be read.
    """
    import pydicom

    with in_a_sentence(path, "this DICOM file is damaged"):
        with path.open("rb") as stream:
            _check_not_deflated(stream, path)
            header = pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=list(_TAGS), force=True)
            if "SOPClassUID" not in header:
                raise UserError("it holds no DICOM object", file=path, remedy=AGAIN)
            for tag in _TAGS:
                header.get(tag)  # values are parsed at their first use: now, while errors are caught
            frames = _images(path, header, stream)
        return DicomFile(
            path, str(header.get("SeriesInstanceUID", "")), int(header.get("SeriesNumber") or 0),
            str(header.get("Modality") or ""), str(header.get("SeriesDescription") or "").strip(),
            str(header.get("PatientID") or ""), tuple(str(value) for value in header.get("PatientOrientation") or ()),
            _kind(header), frames,
        )  # fmt: skip


def _check_not_deflated(stream: BinaryIO, path: Path) -> None:
    """pydicom would inflate such a file whole, however large it becomes."""
    from pydicom.filereader import read_dataset

    stream.seek(128)
    if stream.read(4) != b"DICM":
        stream.seek(0)
    meta = read_dataset(stream, False, True, stop_when=lambda tag, vr, length: tag >= 0x00030000)
    if str(meta.get("TransferSyntaxUID", "")) == _DEFLATED:
        raise UserError("its header is compressed, which is not supported", file=path,
                        remedy="Export the series uncompressed.")  # fmt: skip
    stream.seek(0)


def _kind(header: Any) -> str:
    """The registered name of what the object is; "" for an unknown one."""
    from pydicom.uid import UID_dictionary

    return str(UID_dictionary.get(str(header.SOPClassUID), ("",))[0])


def _images(path: Path, header: Any, stream: BinaryIO) -> tuple[Frame, ...]:
    """The frames of an image; () for an object that is not an image of a scan."""
    if _is_no_scan(header):
        return ()
    whole = {tag: header.get(tag) for tag in ("Rows", "Columns", "BitsAllocated")}
    if not all(isinstance(value, int) and 0 < value < 2**16 for value in whole.values()):
        raise UserError("this DICOM file is damaged: its header does not state its size", file=path, remedy=AGAIN)
    source = _located(path, header, stream)
    groups = header.get("PerFrameFunctionalGroupsSequence")
    if groups and len(groups) < source.frames:
        raise UserError("this DICOM file is damaged: it describes too few images", file=path, remedy=AGAIN)
    return tuple(_frames(path, header, source))


def _is_no_scan(header: Any) -> bool:
    """A report, a segmentation, a maker's own object: known by its class; a class that is not known proves nothing."""
    if _kind(header).startswith("Segmentation"):
        return True
    if any(header.get(tag) is not None for tag in ("Rows", "Columns", "BitsAllocated", "ImagePositionPatient")):
        return False
    if _kind(header):
        return "Image Storage" not in _kind(header)
    stated = str(header.SOPClassUID)
    of_a_maker = bool(stated) and not stated.startswith("1.2.840.10008.")
    return of_a_maker and stated == str(getattr(header.file_meta, "MediaStorageSOPClassUID", ""))


def _located(path: Path, header: Any, stream: BinaryIO) -> PixelSource:
    """Find the pixels; what the header asks for must lie in the file, before anything of that size is made."""
    import pydicom

    syntax = str(getattr(header.file_meta, "TransferSyntaxUID", None) or "")
    size = path.stat().st_size
    implicit, little = header.original_encoding
    order: Any = "little" if little else "big"
    start = stream.read(4)
    group, element = (int.from_bytes(start[n : n + 2], order) for n in (0, 2))
    rest = stream.read(4 if implicit else 8)
    if (group, element) != (0x7FE0, 0x0010) or len(rest) < (4 if implicit else 8):
        raise UserError("the file is cut short: it holds no pixels", file=path, remedy=AGAIN)
    length: int | None = int.from_bytes(rest[-4:], order)
    module = pydicom.Dataset()
    for tag in _PIXEL_TAGS:
        if tag in header:
            module[tag] = header[tag]
    source = PixelSource(stream.tell(), None if length == 0xFFFFFFFF else length, size, syntax,
                         _frame_count(header), module)  # fmt: skip
    if not 1 <= source.frames <= MAX_FRAMES:
        raise UserError(f"it asks for {source.frames:,} images", file=path, remedy=AGAIN)
    held = min(size - source.start, source.length if source.length is not None else size)
    needed = source.frames * (source.frame_bytes if source.syntax in NATIVE else 8)
    if held < needed or (source.length is not None and source.length > size - source.start):
        stated = max(needed, source.length or 0)
        raise UserError(
            f"the file is cut short: {stated:,} bytes of pixels expected, {held:,} found", file=path, remedy=AGAIN
        )
    return source


def _frame_count(header: Any) -> int:
    stated = header.get("NumberOfFrames")
    return 1 if stated is None or stated == "" else int(stated)


def _frames(path: Path, header: Any, source: PixelSource) -> Iterator[Frame]:
    """The frames of one file: one, or those of an enhanced multi-frame object."""
    shared = _first(header.get("SharedFunctionalGroupsSequence"))
    groups = header.get("PerFrameFunctionalGroupsSequence")
    for index in range(source.frames):
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
        rescale = None if slope is None else (float(slope), float(intercept or 0))
        if rescale is not None and (rescale[0] == 0 or not np.isfinite(rescale).all()):
            raise UserError("this DICOM file is damaged: its rescale slope is none", file=path, remedy=AGAIN)
        yield Frame(
            path, index, f"{header.get('SOPInstanceUID') or ''} {index}", int(header.Rows), int(header.Columns),
            _floats(of("PlanePositionSequence", "ImagePositionPatient"), 3),
            _floats(of("PlaneOrientationSequence", "ImageOrientationPatient"), 6),
            None if not spacing else (float(spacing[0]), float(spacing[1])), float(thickness or 0), rescale,
            (*(_number(header.get(tag)) for tag in order), index), source,
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
