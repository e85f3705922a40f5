"""Every file of a DICOM folder is accounted for: read, named as left out, or the folder is refused."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from amvlm.errors import UserError
from amvlm.imaging import read_volume
from amvlm.imaging.dicom_headers import find_series, scan_folder

SECONDARY = ("1.2.840.10008.5.1.4.1.1.88.11", "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.11.1")


def slice_bytes(number: int, preamble: bool = True, **fields: object) -> bytes:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, f"1.2.3.{number + 1}"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID, data.SeriesInstanceUID = CTImageStorage, f"1.2.3.{number + 1}", "1.2"
    data.Modality, data.Rows, data.Columns, data.SamplesPerPixel = "CT", 4, 6, 1
    data.PhotometricInterpretation, data.BitsAllocated, data.BitsStored, data.HighBit = "MONOCHROME2", 16, 12, 11
    data.PixelRepresentation, data.PixelSpacing, data.InstanceNumber = 0, [1, 1], number
    data.ImagePositionPatient, data.ImageOrientationPatient = [0, 0, 2 * number], [1, 0, 0, 0, 1, 0]
    data.PixelData = np.arange(24, dtype=np.uint16).tobytes()
    for field, value in fields.items():
        if value is None:
            delattr(data, field)
        else:
            setattr(data, field, value)
    stream = io.BytesIO()
    if preamble:
        data.save_as(stream, enforce_file_format=False)
    else:
        pydicom.filewriter.write_dataset(stream := pydicom.filebase.DicomBytesIO(), data)  # as before 1993
    return stream.getvalue()


def folder_of(folder: Path, names: str = "IM{:04d}", count: int = 5) -> Path:
    folder.mkdir(exist_ok=True)
    for number in range(count):
        (folder / names.format(number)).write_bytes(slice_bytes(number))
    return folder


NAMES = ("IM{:04d}", "{}.dcm", "slice-{}.DCM", "CT.1.2.840.{}", "1.2.3.{}", "a{}f", "{}.img", "{}")
HEAD = len(slice_bytes(0)) - 48 - 12


@pytest.mark.parametrize("names", NAMES)
def test_a_cut_slice_refuses_its_folder(tmp_path: Path, names: str) -> None:
    folder = folder_of(tmp_path / "ct", names)
    for place in (0, 4):
        damaged = folder / names.format(place)
        whole = damaged.read_bytes()
        for length in (0, 1, 100, 128, 130, 140, 300, HEAD - 60, HEAD, HEAD + 12, HEAD + 40):
            damaged.write_bytes(whole[:length])
            with pytest.raises(UserError, match="damaged") as raised:
                find_series(folder)
            assert raised.value.file_name == damaged.name
        damaged.write_bytes(whole)
    assert read_volume(folder).shape == (6, 4, 5)


def test_an_object_of_an_unknown_class_is_left_out_only_when_the_file_says_so_twice(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "ct")
    nothing = dict.fromkeys(("Rows", "Columns", "BitsAllocated", "ImagePositionPatient"))
    for kind in ("1.3.12.2.1107.5.9.1", "1.2.840.10008.9.9.9", ""):
        (folder / "XA0001").write_bytes(slice_bytes(7, SOPClassUID=kind, **nothing))
        with pytest.raises(UserError, match="damaged"):
            scan_folder(folder)
    (folder / "XA0001").write_bytes(slice_bytes(7, SOPClassUID="1.3.12.2.1107.5.9.1", **nothing).replace(
        b"1.2.840.10008.5.1.4.1.1.2\0", b"1.3.12.2.1107.5.9.1\0\0\0\0\0\0\0"[:26], 1))  # fmt: skip
    assert [entry.path.name for entry in scan_folder(folder).left_out] == ["XA0001"]


@pytest.mark.parametrize("field", ["Rows", "Columns", "BitsAllocated", "PixelData", "SOPClassUID"])
def test_a_slice_without_its_size_refuses_its_folder(tmp_path: Path, field: str) -> None:
    folder = folder_of(tmp_path / "ct")
    (folder / "IM0004").write_bytes(slice_bytes(4, **{field: None}))
    with pytest.raises(UserError, match="damaged"):
        find_series(folder)


NOISE = np.random.default_rng(0).bytes(900)


@pytest.mark.parametrize("content", [b"hello there\n", b"\x89PNG\r\n\x1a\n" + b"x" * 200, b"\0" * 4000, NOISE])
def test_a_file_with_the_name_of_a_slice_is_one(tmp_path: Path, content: bytes) -> None:
    folder = folder_of(tmp_path / "ct", "{}.dcm")
    (folder / "9.dcm").write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        find_series(folder)
    folder = folder_of(tmp_path / "no suffix")
    (folder / "IM0009").write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        find_series(folder)


def test_a_slice_that_may_not_be_read_refuses_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(tmp_path / "ct")
    usual = Path.open

    def denied(self: Path, *arguments: object, **named: object) -> object:
        if self.name in ("IM0004", "notes.txt"):
            raise PermissionError(13, "Permission denied")
        return usual(self, *arguments, **named)  # type: ignore[call-overload]

    (folder / "notes.txt").write_text("x")
    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(UserError, match="may not be read") as raised:
        read_volume(folder)
    assert raised.value.file_name == "IM0004"
    (folder / "IM0004").unlink()
    assert [(entry.path.name, entry.reason) for entry in scan_folder(folder).left_out] == [
        ("notes.txt", "it may not be read")
    ]


def test_odd_things_with_the_name_of_a_slice_refuse_their_folder(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "a")
    os.mkfifo(folder / "IM0005")
    with pytest.raises(UserError, match="neither a file nor a folder"):
        scan_folder(folder)
    folder = folder_of(tmp_path / "b")
    (folder / "IM0005").symlink_to("gone")
    with pytest.raises(UserError, match="cannot be opened"):
        scan_folder(folder)


def test_what_is_no_slice_is_named(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "ct")
    Image.new("L", (4, 4)).save(folder / "key.png")
    (folder / "README").write_text("Exported on a Friday.\n")
    (folder / "viewer.exe").write_bytes(b"MZ" + os.urandom(300))
    (folder / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0" + os.urandom(300))
    (folder / "._IM0001").write_bytes(b"\0\5\x16\7" + os.urandom(300))
    (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (folder / "DICOMDIR").write_bytes(slice_bytes(0))
    (folder / "scan.nii.gz").write_bytes(b"\x1f\x8bxx")
    (folder / "empty.txt").write_bytes(b"")
    os.mkfifo(folder / "pipe.fifo")
    (folder / "sub").mkdir()
    for number, kind in enumerate(SECONDARY):
        nothing = {} if number == 1 else dict.fromkeys(("Rows", "Columns", "BitsAllocated", "ImagePositionPatient"))
        (folder / f"SR{number}").write_bytes(slice_bytes(number, SOPClassUID=kind, **nothing))
    scan = scan_folder(folder)
    assert [len(series.frames) for series in scan.series] == [5]
    left = {entry.path.name: entry.reason for entry in scan.left_out}
    assert set(left) == {path.name for path in folder.iterdir()} - {"sub", *(f"IM{n:04d}" for n in range(5))}
    assert left["DICOMDIR"] == "index of a DICOM disc"
    assert left["._IM0001"] == "hidden file"
    assert left["key.png"] == "not DICOM"
    assert left["SR1"] == "DICOM without a scan (Segmentation Storage)"
    assert read_volume(folder).shape == (6, 4, 5)


def test_slices_without_the_magic_word_are_read(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "ct")
    (folder / "IM0004").write_bytes(slice_bytes(4, preamble=False))
    assert read_volume(folder).shape == (6, 4, 5)


def test_a_folder_without_dicom_holds_no_series(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    scan = scan_folder(tmp_path)
    assert (scan.series, [entry.path.name for entry in scan.left_out]) == ([], ["a.txt"])
    with pytest.raises(UserError):
        scan_folder(tmp_path / "nowhere")


def test_implicit_files_without_a_syntax_are_read(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "ct", "{}.dcm", 2)
    for path in folder.iterdir():
        data = pydicom.dcmread(path)
        data.file_meta = FileMetaDataset()
        pydicom.dcmwrite(path, data, implicit_vr=True, little_endian=True, enforce_file_format=False)
    assert read_volume(folder).array[1, 2, 1] == 13
    assert ImplicitVRLittleEndian
