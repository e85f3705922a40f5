"""The series of a folder. Every file is accounted for: read, named as left out, or the folder is refused."""

from __future__ import annotations

import re
import stat
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from amvlm.errors import UserError
from amvlm.imaging.dicom_file import DICOM_SUFFIXES, DicomFile, Frame, is_dicom, read_header
from amvlm.imaging.limits import in_a_sentence

__all__ = ["DicomSeries", "FolderScan", "LeftOut", "find_series", "is_dicom", "scan_folder", "series_of_file"]

_HEAD = 4096
_OTHER_MAGICS = (b"\x89PNG", b"\xff\xd8\xff", b"%PDF", b"PK\x03\x04", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"\x1f\x8b",
                 b"MZ", b"\x7fELF", b"SQLite", b"7z\xbc\xaf", b"RIFF", b"\xd0\xcf\x11\xe0")  # fmt: skip


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


@dataclass(frozen=True)
class LeftOut:
    """A file of a folder that is not part of a series, and why, as a clause."""

    path: Path
    reason: str


@dataclass(frozen=True)
class FolderScan:
    """The series of a folder, and every other file in it; folders in it are not listed."""

    series: list[DicomSeries]
    left_out: list[LeftOut]


def find_series(source: Path) -> list[DicomSeries]:
    """List the image series of a folder; see :func:`scan_folder`."""
    return scan_folder(source).series


def scan_folder(source: Path, among: Collection[Path] | None = None) -> FolderScan:
    """List the image series of a folder (not of its subfolders), in order of their numbers, and what is left out.

    A file counts as a damaged slice when its name says so (a DICOM suffix, or the pattern of names that the images of
    this folder share), or when nothing tells it from one: no suffix of its own among images without suffixes, and
    neither text nor another known format inside.

    Raises
    ------
    UserError
        If a file is a damaged slice, or may be one and cannot be read: leaving it out could lose a slice.
    """
    with in_a_sentence(source, "the folder cannot be read"):
        left_out: list[LeftOut] = []
        candidates = []
        for path in sorted(source.iterdir() if among is None else among):
            reason = _never_a_slice(path)
            if reason:
                left_out.append(LeftOut(path, reason))
            elif not path.is_dir():
                candidates.append(_Candidate.of(path))
        names = [candidate.path for candidate in candidates if candidate.head[128:132] == b"DICM"]
        patterns, suffixes = {_pattern(path) for path in names}, {_suffix(path) for path in names}
        files, damaged = [], []
        for candidate in candidates:
            if candidate.head[128:132] != b"DICM" and not candidate.claims(patterns, suffixes):
                left_out.append(LeftOut(candidate.path, candidate.problem or "not DICOM"))
                continue
            try:
                file = candidate.header()
            except UserError as error:
                damaged.append(error)
                continue
            if file.frames:
                files.append(file)
            else:
                left_out.append(LeftOut(file.path, f"DICOM without a scan{f' ({file.kind})' if file.kind else ''}"))
        _refuse(damaged)
        return FolderScan(_grouped(files), sorted(left_out, key=lambda entry: entry.path))


def series_of_file(path: Path) -> DicomSeries:
    """The series that one file belongs to, from its folder."""
    for series in find_series(path.parent):
        if any(frame.path == path for frame in series.frames):
            return series
    raise UserError("it holds no image", file=path, remedy="Choose an image of the series.")


@dataclass(frozen=True)
class _Candidate:
    path: Path
    head: bytes
    problem: str

    @classmethod
    def of(cls, path: Path) -> _Candidate:
        try:
            if not stat.S_ISREG(path.stat().st_mode):
                return cls(path, b"", "neither a file nor a folder")
            with path.open("rb") as stream:
                return cls(path, stream.read(_HEAD), "")
        except PermissionError:
            return cls(path, b"", "it may not be read")
        except OSError:
            return cls(path, b"", "it cannot be opened")

    def claims(self, patterns: set[str], suffixes: set[str]) -> bool:
        """Whether this file without DICOM's magic word may be one of the folder's images all the same."""
        if self.path.suffix.lower() in DICOM_SUFFIXES or _pattern(self.path) in patterns:
            return True
        return _suffix(self.path) in suffixes and not (_is_text(self.head) or self.head.startswith(_OTHER_MAGICS))

    def header(self) -> DicomFile:
        if self.problem:
            raise UserError(self.problem, file=self.path)
        if not self.head:
            raise UserError("the file is empty", file=self.path)
        return read_header(self.path)


def _never_a_slice(path: Path) -> str:
    """Why a file of this name is no image, whatever it holds; "" for all others."""
    if path.name.startswith(".") and not path.is_dir():
        return "hidden file"
    return "index of a DICOM disc" if path.name.upper() == "DICOMDIR" else ""


def _pattern(path: Path) -> str:
    """A name with its numbers taken out: the slices of a series mostly share one."""
    return re.sub(r"\d+", "#", path.name.lower())


def _suffix(path: Path) -> str:
    """The suffix; a number (as at the end of a UID) is none."""
    return re.sub(r"^\.\d+$", "", path.suffix.lower())


def _is_text(head: bytes) -> bool:
    if not head:
        return False
    text = head.decode("utf-8", "ignore")
    return len(text.encode()) >= len(head) - 3 and all(c.isprintable() or c in "\t\r\n\ufeff" for c in text)


def _refuse(damaged: list[UserError]) -> None:
    if damaged:
        first = damaged[0]
        more = f" (and {len(damaged) - 1} more)" if len(damaged) > 1 else ""
        known = first.what.startswith("this DICOM file is damaged")
        raise UserError(
            f"{'' if known else 'this DICOM file is damaged: '}{first.what}{more}", file=first.file_name,
            remedy="Copy the folder again from its source, so that no slice is lost; remove what is no slice.",
        )  # fmt: skip


def _grouped(files: Iterable[DicomFile]) -> list[DicomSeries]:
    groups: dict[str, list[DicomFile]] = {}
    for file in files:
        groups.setdefault(file.series_uid, []).append(file)
    found = []
    for uid, members in groups.items():
        first = members[0]
        frames = tuple(frame for file in members for frame in file.frames)
        colour = int(frames[0].source.module.get("SamplesPerPixel") or 1) == 3
        found.append(
            DicomSeries(uid, first.number, first.modality, first.description, first.patient, frames, colour,
                        first.patient_orientation)
        )  # fmt: skip
    return sorted(found, key=lambda series: (series.number, series.uid))
