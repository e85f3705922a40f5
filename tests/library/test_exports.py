"""Exports: every structure has a file of its own inside the target, nothing is overwritten, a failure is a sentence."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from amvlm.cli import main
from amvlm.errors import UserError
from amvlm.exchange import export_dicom_seg, export_labels, exporting, import_study
from amvlm.imaging import dicomseg, read_volume, writers
from amvlm.imaging.dicom_headers import find_series
from amvlm.imaging.dicomseg import segment_label, write_dicom_seg
from amvlm.store import LabelStore
from amvlm.store.records import Snapshot

NAMES = (
    "L5/S disc", "liver", "Liver", "LIVER", "../../up", "a\\b", "con", "脾臓", "tumour " * 11 + "x", "L5-S disc",
    "L5 S disc",
)  # fmt: skip


def labelled(folder: Path, names: Iterable[str] = NAMES) -> LabelStore:
    (folder / "in").mkdir(parents=True)
    voxels = np.random.default_rng(0).integers(0, 99, (6, 5, 4), np.uint8)
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), folder / "in" / "scan.nii.gz")
    import_study(folder / "in", folder / "study")
    store = LabelStore(folder / "study")
    for number, name in enumerate(names):
        store.add_structure(name)
        mask = np.zeros((6, 5, 4), np.uint8)
        mask.flat[: number + 1] = 1
        store.accept("case-00001", name, mask)
    return store


def manifest(folder: Path) -> dict[str, dict[str, Any]]:
    return {row["structure"]: row for row in json.loads((folder / "labels.json").read_text("utf-8"))["labels"]}


def test_every_structure_has_a_file_whatever_it_is_called(tmp_path: Path) -> None:
    store = labelled(tmp_path)
    assert export_labels(store, tmp_path / "out" / "new", ".nii") == len(NAMES)
    rows = manifest(tmp_path / "out" / "new")
    files = [rows[" ".join(name.split())]["file"] for name in NAMES]
    assert len({file.lower() for file in files}) == len(NAMES)
    for number, file in enumerate(files):
        assert (tmp_path / "out" / "new" / file).parent == tmp_path / "out" / "new"
        assert file.isascii()
        assert read_volume(tmp_path / "out" / "new" / file).array.sum() == number + 1
    assert rows["LIVER"]["file"] == "case-00001_LIVER.nii"
    written = {path.name for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert written == {*files, "labels.json"}


def test_the_disc_of_the_spine_set_goes_out_by_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = labelled(tmp_path, ["L5/S disc"])
    main(["export", str(store.folder), str(tmp_path / "out"), "--suffix", ".nrrd"])
    assert "1 masks written" in capsys.readouterr().out
    assert manifest(tmp_path / "out")["L5/S disc"]["file"].startswith("case-00001_L5-S-disc-")


@pytest.mark.parametrize("case_id", ["/etc/passwd", "../x", "..", "a/b", "C:\\x", "x\0y", "", "case-00001\n", "con"])
def test_no_identifier_of_a_case_leads_out_of_the_target(
    tmp_path: Path, case_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = labelled(tmp_path, ["liver"])
    case = store.case("case-00001")
    revision = dataclasses.replace(store.snapshot().revisions[0], case_id=case_id)
    monkeypatch.setattr(LabelStore, "snapshot", lambda self: Snapshot(self.store_id, (revision,)))
    monkeypatch.setattr(LabelStore, "case", lambda self, _: case)
    before = set(tmp_path.rglob("*"))
    assert export_labels(store, tmp_path / "out") == 1
    added = set(tmp_path.rglob("*")) - before
    assert {path.parent for path in added} == {tmp_path, tmp_path / "out"}


def _full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_a_sentence_that_says_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = labelled(tmp_path, ["a", "b", "c"])
    real, calls = writers.os.fsync, []

    def third_time(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 4:  # each file and its folder
            _full()
        real(descriptor)

    monkeypatch.setattr(writers.os, "fsync", third_time)
    with pytest.raises(UserError, match=r"No space left.*2 files were written before"):
        export_labels(store, tmp_path / "out")
    left = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert left == ["case-00001_a.nii.gz", "case-00001_b.nii.gz"]


def test_a_manifest_that_cannot_be_written_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = labelled(tmp_path, ["a"])
    monkeypatch.setattr(exporting, "write_bytes_atomically", _full)
    with pytest.raises(UserError, match=r"No space left on device; 1 files were written before"):
        export_labels(store, tmp_path / "out")


def test_targets_that_cannot_be_a_folder(tmp_path: Path) -> None:
    store = labelled(tmp_path, ["a"])
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    for target in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / "full", tmp_path / ("x" * 300),
                   tmp_path / "a\0b"):  # fmt: skip
        for export in (export_labels, lambda store, into: export_dicom_seg(store, tmp_path / "in", into)):
            with pytest.raises(UserError):
                export(store, target)
    assert (tmp_path / "file").read_text() == (tmp_path / "full" / "notes.txt").read_text() == "mine"


@pytest.mark.skipif(sys.platform == "win32", reason="links")
def test_a_link_that_waits_in_the_target_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = labelled(tmp_path, ["a"])
    (tmp_path / "victim").write_text("mine")
    real = Path.mkdir

    def planting(self: Path, *arguments: Any, **options: Any) -> None:
        real(self, *arguments, **options)
        (self / "case-00001_a.nii.gz").symlink_to(tmp_path / "victim")

    monkeypatch.setattr(Path, "mkdir", planting)
    with pytest.raises(UserError, match=r"outside its folder|already"):
        export_labels(store, tmp_path / "out")
    assert (tmp_path / "victim").read_text() == "mine"


# -- DICOM SEG -----------------------------------------------------------------------------------------------------


def slices(folder: Path, series: str = "1.2.3", count: int = 3, **fields: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, f"{series}.{number + 1}"
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        data.SeriesInstanceUID, data.StudyInstanceUID, data.FrameOfReferenceUID = series, "1.2", "1.2.9"
        data.PatientName, data.PatientID, data.Modality = "A^B", "P", "CT"
        data.PatientBirthDate, data.PatientSex, data.StudyDate, data.StudyTime = "", "O", "", ""
        data.AccessionNumber, data.StudyID, data.ReferringPhysicianName = "", "1", ""
        data.Rows, data.Columns, data.SamplesPerPixel, data.PhotometricInterpretation = 4, 6, 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
        data.PixelSpacing, data.SliceThickness = [1, 1], 2
        data.SeriesNumber, data.InstanceNumber = 1, number
        data.ImagePositionPatient, data.ImageOrientationPatient = [0, 0, 2.0 * number], [1, 0, 0, 0, 1, 0]
        data.RescaleSlope, data.RescaleIntercept = 1, 0
        data.PixelData = np.full(24, number + len(series), np.int16).tobytes()
        for name, value in fields.items():
            setattr(data, name, value)
        data.save_as(folder / f"{number}.dcm", enforce_file_format=True)
    return folder


def accepted(source: Path, study: Path, name: str = "liver") -> LabelStore:
    import_study(source, study)
    store = LabelStore(study)
    store.add_structure(name)
    for case in store.cases():
        mask = np.zeros(case.shape, np.uint8)
        mask[1, 2] = 1
        store.accept(case.case_id, name, mask)
    return store


@pytest.mark.parametrize("name", ["L5/S disc", "a\\b", "脾臓", "tumour " * 12 + "x", "naïve [red]", "x" * 150])
def test_segments_of_any_name(tmp_path: Path, name: str) -> None:
    pytest.importorskip("highdicom")
    slices(tmp_path / "in", SpecificCharacterSet="ISO_IR 100", PatientName="Müller^Jörg")
    store = accepted(tmp_path / "in", tmp_path / "study", name)
    assert export_dicom_seg(store, tmp_path / "in", tmp_path / "out") == 1
    written = pydicom.dcmread(tmp_path / "out" / "case-00001.dcm")
    label = str(written.SegmentSequence[0].SegmentLabel)
    assert label == segment_label(" ".join(name.split()))
    assert len(label) <= 64
    assert str(written.PatientName) == "Müller^Jörg"
    assert manifest(tmp_path / "out")[" ".join(name.split())]["file"] == "case-00001.dcm"


def test_labels_without_a_series_are_listed(tmp_path: Path) -> None:
    pytest.importorskip("highdicom")
    slices(tmp_path / "in" / "one")
    slices(tmp_path / "in" / "three", "1.2.4444", 4)
    store = accepted(tmp_path / "in", tmp_path / "study")
    damaged = tmp_path / "in" / "three" / "2.dcm"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    assert export_dicom_seg(store, tmp_path / "in", tmp_path / "out") == 1
    rows = json.loads((tmp_path / "out" / "labels.json").read_text())["labels"]
    assert sorted("file" in row for row in rows) == [False, True]
    assert any("no series of this folder" in row.get("left out", "") for row in rows)
    with pytest.raises(UserError, match="not empty"):
        export_dicom_seg(store, tmp_path / "in", tmp_path / "out")


@pytest.mark.parametrize(
    "fields",
    [{"StudyInstanceUID": ""}, {"FrameOfReferenceUID": ""}, {"PatientID": None}, {"SOPClassUID": "1.2"},
     {"StudyDate": "yesterday"}, {"PatientBirthDate": "x" * 100}, {"SpecificCharacterSet": "nonsense"}],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore")
def test_headers_of_strangers_make_an_object_or_a_sentence(tmp_path: Path, fields: dict[str, Any]) -> None:
    pytest.importorskip("highdicom")
    series = find_series(slices(tmp_path / "in", **fields))[0]
    with contextlib.suppress(UserError):
        write_dicom_seg(tmp_path / "x.dcm", {"liver": np.ones((6, 4, 3), np.uint8)}, series)
    written = [pydicom.dcmread(path).Modality for path in tmp_path.glob("*.dcm")]
    assert written in ([], ["SEG"])


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("x"), IndexError(), OverflowError(), RecursionError()])
def test_whatever_the_encoder_raises_is_a_sentence(
    tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    highdicom = pytest.importorskip("highdicom")

    def fails(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(highdicom.seg, "Segmentation", fails)
    with pytest.raises(UserError):
        dicomseg.write_dicom_seg(
            tmp_path / "x.dcm", {"liver": np.ones((6, 4, 3), np.uint8)}, find_series(slices(tmp_path / "in"))[0]
        )
    assert not (tmp_path / "x.dcm").exists()
