"""Folders that strangers filled: no file is read from elsewhere, and every file is accounted for."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from amvlm.cli import main
from amvlm.errors import UserError
from amvlm.exchange import ImportReport, import_study
from amvlm.exchange import arrivals as arrivals_module
from amvlm.store import LabelStore, verify

posix = pytest.mark.skipif(sys.platform == "win32", reason="pipes, sockets and free links")
SECRET = 77


def scan(path: Path, seed: int = 0, array: np.ndarray | None = None, affine: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.random.default_rng(seed).integers(1, 60, (6, 5, 4), np.uint8) if array is None else array
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4) if affine is None else affine), path)
    return path


def mask(path: Path, seed: int = 0) -> Path:
    return scan(path, array=np.random.default_rng(seed).integers(0, 2, (6, 5, 4), np.uint8))


def slices(folder: Path, series: str = "1.2.3", patient: str = "P", count: int = 3, value: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        data.SeriesInstanceUID, data.PatientID, data.Modality, data.SeriesNumber = series, patient, "CT", 1
        data.Rows, data.Columns, data.SamplesPerPixel, data.PhotometricInterpretation = 4, 6, 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
        data.PixelSpacing, data.SliceThickness, data.InstanceNumber = [1, 1], 2, number
        data.ImagePositionPatient, data.ImageOrientationPatient = [0, 0, 2.0 * number], [1, 0, 0, 0, 1, 0]
        data.RescaleSlope, data.RescaleIntercept = 1, 0
        data.PixelData = np.full(24, value + number, np.int16).tobytes()
        data.save_as(folder / f"{number}.dcm", enforce_file_format=True)
    return folder


def msd(folder: Path, *entries: Any, labels: Any = None) -> Path:
    for n in range(2):
        scan(folder / "imagesTr" / f"a{n}.nii.gz", n)
        mask(folder / "labelsTr" / f"a{n}.nii.gz", n)
    good = {"image": "./imagesTr/a0.nii.gz", "label": "./labelsTr/a0.nii.gz"}
    content = {"labels": labels or {"0": "background", "1": "liver"}, "training": [good, *entries]}
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def files_in(folder: Path) -> int:
    return sum(len(names) for _, _, names in os.walk(folder))


def check(report: ImportReport, folder: Path) -> None:
    """Every file has one fate, and nothing was taken in from elsewhere."""
    assert report.files_seen == sum(report.files.values())
    assert report.files_seen == files_in(folder)
    lines = "\n".join(report.lines())
    assert all(sentence in lines for sentence in (*report.refused, *report.left_out))
    assert lines.isprintable() or all(line.isprintable() for line in lines.split("\n"))


def images_of(study: Path) -> list[np.ndarray]:
    store = LabelStore(study)
    assert list(verify(store)) == []
    return [store.read_image(case).array for case in store.cases()]


# -- dataset.json --------------------------------------------------------------------------------------------------

OUTSIDE = {
    "climbs": "../secret.nii.gz", "climbs deep": "imagesTr/../../secret.nii.gz", "absolute": "{secret}",
    "device": "/dev/zero", "process": "/proc/self/mem", "folder": "imagesTr", "itself": ".", "NUL": "a\0b.nii.gz",
    "long": "x" * 5000 + ".nii.gz", "home": "~/secret.nii.gz", "URL": "file:///secret.nii.gz",
    "link": "imagesTr/link.nii.gz", "through a link": "out/secret.nii.gz", "pipe": "imagesTr/pipe.nii.gz",
    "description": "dataset.json",
}  # fmt: skip


@posix
@pytest.mark.parametrize("key", ["image", "label"])
@pytest.mark.parametrize("kind", OUTSIDE)
def test_no_entry_of_a_description_leads_out_of_its_folder(tmp_path: Path, kind: str, key: str) -> None:
    secret = scan(tmp_path / "secret.nii.gz", array=np.full((6, 5, 4), SECRET, np.uint8))
    entry = {"image": "imagesTr/a1.nii.gz", "label": "labelsTr/a1.nii.gz"}
    entry[key] = OUTSIDE[kind].format(secret=secret)
    folder = msd(tmp_path / "in", entry)
    (folder / "imagesTr" / "link.nii.gz").symlink_to(secret)
    (folder / "out").symlink_to(tmp_path)
    os.mkfifo(folder / "imagesTr" / "pipe.nii.gz")
    report = import_study(folder, tmp_path / "s", split="train")
    assert report.files_seen == sum(report.files.values())
    assert report.refused or report.without_mask
    assert report.masks == 1
    assert not any((image == SECRET).any() for image in images_of(tmp_path / "s"))


@pytest.mark.parametrize("entry", [5, None, "a", ["imagesTr/a1.nii.gz"], {"label": "x"}, {"image": 5}, {"image": ""}])
def test_an_entry_of_another_shape_is_refused(tmp_path: Path, entry: Any) -> None:
    with pytest.raises(UserError, match="not a Medical Segmentation Decathlon"):
        import_study(msd(tmp_path / "in", entry), tmp_path / "s")
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    "labels",
    [{"-1": "x"}, {"1.5": "x"}, {"1": {"a": 1}}, {"a": [1, 2]}, {"1": " "}, {"1": "a\x1b[31m"}, {"1": "y" * 5000},
     {"1": "a", "01": "b"}, {"9" * 400: "x"}, {"1": "\u202eabc"}, ["a"], {str(n): f"s{n}" for n in range(2000)}],
)  # fmt: skip
def test_names_of_values_that_cannot_be_used(tmp_path: Path, labels: Any) -> None:
    with pytest.raises(UserError, match=r"dataset\.json"):
        import_study(msd(tmp_path / "in", labels=labels), tmp_path / "s")


def test_two_values_of_one_name_are_one_structure(tmp_path: Path) -> None:
    folder = msd(tmp_path / "in", labels={"1": "Liver", "2": "liver "})
    scan(folder / "labelsTr" / "a0.nii.gz", array=np.full((6, 5, 4), 2, np.uint8))
    import_study(folder, tmp_path / "s", split="train")
    store = LabelStore(tmp_path / "s")
    assert store.read_mask(store.snapshot().revisions[0]).all()


def test_one_image_twice_and_a_missing_mask(tmp_path: Path) -> None:
    again = {"image": "./imagesTr/../imagesTr/a0.nii.gz", "label": "labelsTr/a1.nii.gz"}
    missing = {"image": "imagesTr/a1.nii.gz", "label": "labelsTr/gone.nii.gz"}
    report = import_study(msd(tmp_path / "in", again, missing), tmp_path / "s", split="train")
    assert (report.cases, report.masks, report.without_mask) == (2, 1, ["a1.nii.gz"])
    assert len(report.refused) == 1
    assert "came without a mask" in report.sentence()


@posix
@pytest.mark.parametrize("name", ["dataset.json", "labels.json"])
def test_a_description_that_is_a_link_or_a_pipe_stops_the_import(tmp_path: Path, name: str) -> None:
    folder = msd(tmp_path / "in")
    (folder / "dataset.json").unlink()
    os.mkfifo(folder / name)
    with pytest.raises(UserError, match=name):
        import_study(folder, tmp_path / "s")
    (folder / name).unlink()
    (folder / name).symlink_to("/etc/passwd")
    with pytest.raises(UserError, match=name):
        import_study(folder, tmp_path / "s")


# -- what lies in a folder -----------------------------------------------------------------------------------------


@posix
def test_what_is_no_plain_file_is_named_and_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = scan(tmp_path / "secret.nii.gz", array=np.full((6, 5, 4), SECRET, np.uint8))
    folder = scan(tmp_path / "in" / "ok.nii.gz").parent
    os.mkfifo(folder / "pipe.nii.gz")
    os.mkfifo(folder / "pipe.json")
    with socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.chdir(folder)  # the path of a socket is short
        listener.bind("socket.nii.gz")
    for name, target in (("device.nii", "/dev/zero"), ("secret.nii.gz", secret), ("nothing.nii", "gone"),
                         ("loop.nii", "loop.nii"), ("up", ".."), ("inner.nii.gz", "ok.nii.gz")):  # fmt: skip
        (folder / name).symlink_to(target)
    report = import_study(folder, tmp_path / "s")
    assert report.files_seen == sum(report.files.values())
    assert (report.cases, report.already_there, len(report.refused)) == (1, 1, 8)
    assert not any((image == SECRET).any() for image in images_of(tmp_path / "s"))


@posix
@pytest.mark.parametrize(
    "name",
    [b"a\nb.nii.gz", b"\x1b[31mred.nii.gz", b"[red]x[-].nii.gz", b"<b>x.nii.gz", "\u202etxt.nii.gz".encode(),
     b"y" * 248 + b".nii.gz", b"-rf.nii.gz", b"a; rm x.nii.gz", b"\xff\xfe.nii.gz", b"\xed\xa0\x80.nii.gz"],
)  # fmt: skip
def test_odd_names_stop_nobody(tmp_path: Path, name: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    folder = scan(tmp_path / "in" / "ok.nii.gz").parent
    scan(folder / "odd.nii.gz", 1)
    os.rename(folder / "odd.nii.gz", os.fsencode(folder) + b"/" + name)
    report = import_study(folder, tmp_path / "s")
    check(report, folder)
    readable = b"\xff" not in name and b"\xed" not in name
    assert (report.cases, len(report.refused)) == ((2, 0) if readable else (1, 1))
    main(["import", str(folder), "--into", str(tmp_path / "t")])
    assert "\x1b[31m" not in capsys.readouterr().out


def plain(folder: Path) -> None:
    for n in range(3):
        scan(folder / f"s{n}.nii.gz", n)
    (folder / "notes.txt").write_text("x")
    (folder / ".hidden").write_text("x")


def patients(folder: Path) -> None:
    for n in range(6):
        scan(folder / f"P{n // 2}" / f"scan{n % 2}.nii.gz", n)
        (folder / f"P{n // 2}" / "report.pdf").write_bytes(b"%PDF")
    (folder / "P0" / "scan0.json").write_text("{}")


def mixed(folder: Path) -> None:
    scan(folder / "a.nii.gz")
    slices(folder / "ct")
    slices(folder / "deep" / "er", "1.2.4", "Q", value=9)
    (folder / "ct" / "readme").write_text("x")
    (folder / "ct" / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")


def masks_beside(folder: Path) -> None:
    for n, name in enumerate(("a", "b", "c_image", "d", "e", "f")):
        scan(folder / f"{name}.nii.gz", n)
    for n, name in enumerate(("a_label", "b-mask", "c_seg", "d.seg", "mask_e", "F_GT", "orphan_mask")):
        mask(folder / f"{name}.nii.gz", n)
    mask(scan(folder / "P" / "scan.nii.gz", 9).with_name("segmentation.nii.gz"))


def lvit(folder: Path) -> None:
    for n in range(3):
        for kind, name in (("img", f"c{n}"), ("labelcol", f"mask_c{n}")):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            pixels = (np.random.default_rng(n).random((8, 9)) > 0.5).astype(np.uint8)
            Image.fromarray(pixels * (250 if kind == "img" else 1)).save(folder / kind / f"{name}.png")
    (folder / "labelcol" / "mask_c2.png").rename(folder / "labelcol" / "mask_other.png")
    (folder / "text.csv").write_text("Image,Description\nmask_c0.png,left lung\ngone.png,x\n")
    (folder / "img" / "Thumbs.db").write_bytes(b"x")


def broken(folder: Path) -> None:
    scan(folder / "ok.nii.gz")
    for name, content in {"cut.nii.gz": b"\x1f\x8b", "empty.png": b"", "words.mha": b"x", "x.nrrd": b"NRRD\n"}.items():
        (folder / name).write_bytes(content)
    slices(folder / "ct")
    (folder / "ct" / "1.dcm").write_bytes((folder / "ct" / "1.dcm").read_bytes()[:200])


def nested_sets(folder: Path) -> None:
    lvit(folder / "Train_Folder")
    lvit(folder / "more" / "Val_Folder")
    for n in range(2):
        scan(folder / "set" / "imagesTr" / f"P{n}" / "x.nii.gz", n)
        mask(folder / "set" / "labelsTr" / f"P{n}" / "x.nii.gz", n)


SHAPES: dict[str, tuple[Callable[[Path], Any], dict[str, int]]] = {
    "plain": (plain, {"scan": 3, "left out": 2}),
    "a folder per patient": (patients, {"scan": 6, "left out": 4}),
    "mixed with DICOM": (mixed, {"scan": 7, "left out": 2}),
    "masks beside their scans": (masks_beside, {"scan": 7, "mask": 7, "refused": 1}),
    "LViT": (lvit, {"scan": 3, "mask": 2, "table": 1, "left out": 2}),
    "broken": (broken, {"scan": 1, "refused": 7}),
    "sets in subfolders": (nested_sets, {"scan": 5, "already there": 3, "mask": 4}),
    "MSD": (msd, {"scan": 1, "mask": 1, "table": 1, "left out": 2}),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_file_is_accounted_for(tmp_path: Path, shape: str) -> None:
    make, expected = SHAPES[shape]
    make(tmp_path / "in")
    report = import_study(tmp_path / "in", tmp_path / "s", split="train")
    check(report, tmp_path / "in")
    assert {fate: report.files[fate] for fate in expected} == expected  # type: ignore[index]
    again = import_study(tmp_path / "in", tmp_path / "s", split="train")
    check(again, tmp_path / "in")
    assert (again.cases, again.files["scan"], again.files["mask"]) == (0, 0, 0)
    ignored = import_study(tmp_path / "in", tmp_path / "t", split="train", masks="ignore")
    check(ignored, tmp_path / "in")
    assert (ignored.files["mask"], ignored.without_mask) == (0, [])
    assert len(images_of(tmp_path / "s")) == len(images_of(tmp_path / "t")) == report.cases


def test_the_patients_folder_keeps_scans_in_one_split(tmp_path: Path) -> None:
    patients(tmp_path / "in")
    for kind in ("T1", "T2"):
        for n in range(3):
            scan(tmp_path / "kinds" / kind / f"x{n}.nii.gz", n + 10 * (kind == "T2"))
    slices(tmp_path / "in" / "P0" / "ct", patient="SOMEBODY")
    assert import_study(tmp_path / "in", tmp_path / "s").patients == 3
    assert import_study(tmp_path / "kinds", tmp_path / "t").patients == 3
    groups: dict[str, set[str]] = {}
    for case in LabelStore(tmp_path / "s").cases():
        groups.setdefault(case.group, set()).add(case.split)
    assert all(len(splits) == 1 for splits in groups.values())


def test_masks_beside_their_scans_go_to_the_right_scan(tmp_path: Path) -> None:
    masks_beside(tmp_path / "in")
    report = import_study(tmp_path / "in", tmp_path / "s", split="train", structure="tumour")
    assert (report.cases, report.masks) == (7, 7)
    assert "orphan_mask.nii.gz: its name says that it is a mask" in report.refused[0]
    store = LabelStore(tmp_path / "s")
    by_image = {store.read_image(case).array.tobytes(): case.case_id for case in store.cases()}
    for image, its_mask in (("a", "a_label"), ("c_image", "c_seg"), ("f", "F_GT")):
        voxels = np.asarray(nibabel.load(tmp_path / "in" / f"{image}.nii.gz").dataobj)
        label = store.read_mask(store.current(by_image[voxels.tobytes()], "tumour"))
        assert np.array_equal(label, np.asarray(nibabel.load(tmp_path / "in" / f"{its_mask}.nii.gz").dataobj))


def test_a_scan_with_two_masks_is_a_question(tmp_path: Path) -> None:
    for name in ("a_seg", "a_mask"):
        mask(tmp_path / "in" / f"{name}.nii.gz")
    scan(tmp_path / "in" / "a.nii.gz")
    report = import_study(tmp_path / "in", tmp_path / "s")
    assert (report.cases, report.masks, len(report.refused)) == (1, 0, 2)


def test_a_dicom_folder_with_a_part_that_cannot_be_used_is_refused_whole(tmp_path: Path) -> None:
    scan(tmp_path / "in" / "ok.nii.gz")
    slices(tmp_path / "in" / "ct")
    if sys.platform != "win32":
        (tmp_path / "in" / "ct" / "3.dcm").symlink_to(slices(tmp_path / "other", count=4) / "3.dcm")
        report = import_study(tmp_path / "in", tmp_path / "s")
        assert (report.cases, report.files["refused"]) == (1, 4)
    (tmp_path / "in" / "ct" / "3.dcm").unlink(missing_ok=True)
    (tmp_path / "in" / "ct" / "0.dcm").write_bytes((tmp_path / "in" / "ct" / "0.dcm").read_bytes()[:200])
    report = import_study(tmp_path / "in", tmp_path / "t")
    check(report, tmp_path / "in")
    assert (report.cases, report.files["refused"]) == (1, 3)


def test_a_dicom_segmentation_is_no_scan(tmp_path: Path) -> None:
    slices(tmp_path / "in" / "ct")
    slices(tmp_path / "in" / "seg", "1.2.8")
    for path in (tmp_path / "in" / "seg").iterdir():
        data = pydicom.dcmread(path)
        data.Modality = "SEG"
        data.save_as(path)
    report = import_study(tmp_path / "in", tmp_path / "s")
    check(report, tmp_path / "in")
    assert (report.cases, len(report.refused)) == (1, 1)


def test_studies_and_hidden_folders_inside_are_left_out(tmp_path: Path) -> None:
    scan(tmp_path / "in" / "ok.nii.gz")
    scan(tmp_path / "in" / ".cache" / "x.nii.gz", 1)
    for _ in range(2):  # the second time the study itself lies in the folder
        report = import_study(tmp_path / "in", tmp_path / "in" / "study")
        assert report.files_seen == sum(report.files.values())
    assert report.already_there == 1
    with pytest.raises(UserError, match="a study already"):
        import_study(tmp_path / "in" / "study", tmp_path / "s")


def test_many_files_left_out_for_one_reason_are_counted(tmp_path: Path) -> None:
    scan(tmp_path / "in" / "ok.nii.gz")
    for n in range(60):
        (tmp_path / "in" / f"{n}.txt").write_text("x")
    report = import_study(tmp_path / "in", tmp_path / "s")
    assert len(report.left_out) == 60
    assert report.lines()[-1] == "left out: 10 more files: not an image."


# -- masks ---------------------------------------------------------------------------------------------------------

BASE = np.random.default_rng(5).integers(0, 2, (6, 5, 4))
BAD_MASKS = {
    "fractions": (BASE * 0.5).astype(np.float32), "NaN": np.where(BASE, np.nan, 0).astype(np.float32),
    "infinite": np.where(BASE, np.inf, 0).astype(np.float32), "negative": (-BASE).astype(np.int16),
    "many values": np.random.default_rng(0).integers(0, 7, (6, 5, 4), np.uint8),
    "other shape": np.ones((3, 3, 3), np.uint8), "other dimensions": np.ones((6, 5), np.uint8),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_MASKS)
def test_masks_that_cannot_be_trusted_bring_nothing_in(tmp_path: Path, kind: str) -> None:
    scan(tmp_path / "in" / "a.nii.gz")
    scan(tmp_path / "in" / "a_mask.nii.gz", array=BAD_MASKS[kind])
    scan(tmp_path / "in" / "ok.nii.gz", 1)
    report = import_study(tmp_path / "in", tmp_path / "s")
    check(report, tmp_path / "in")
    assert (report.cases, report.masks, len(report.refused)) == (1, 0, 1)
    assert report.refused[0].startswith("a_mask.nii.gz: ")
    assert report.left_out == ["a.nii.gz: its mask was refused, and so is the case."]
    assert not list((tmp_path / "s" / "labels").iterdir())


def test_a_mask_of_another_place_is_refused(tmp_path: Path) -> None:
    scan(tmp_path / "in" / "a.nii.gz")
    scan(tmp_path / "in" / "a_mask.nii.gz", array=BASE.astype(np.uint8), affine=np.diag([2.0, 1, 1, 1]))
    with pytest.raises(UserError, match="size or place differ"):
        import_study(tmp_path / "in", tmp_path / "s")


@pytest.mark.parametrize("values", [BASE.astype(np.float64) * 255, BASE.astype(np.int32) * 7, BASE.astype(np.uint16)])
def test_masks_of_two_values_of_any_type_come_in(tmp_path: Path, values: np.ndarray) -> None:
    scan(tmp_path / "in" / "a.nii.gz")
    scan(tmp_path / "in" / "a_mask.nii.gz", array=values)
    import_study(tmp_path / "in", tmp_path / "s", split="train")
    store = LabelStore(tmp_path / "s")
    assert np.array_equal(store.read_mask(store.snapshot().revisions[0]), BASE)


def test_an_empty_mask_is_said(tmp_path: Path) -> None:
    scan(tmp_path / "in" / "a.nii.gz")
    scan(tmp_path / "in" / "a_mask.nii.gz", array=np.zeros((6, 5, 4), np.uint8))
    assert "1 masks are empty" in import_study(tmp_path / "in", tmp_path / "s").sentence()


def test_masks_in_colour_are_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for n, name in enumerate(("a", "a_mask", "b")):
        pixels = np.random.default_rng(n).integers(0, 255, (8, 9, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "in" / f"{name}.png")
    report = import_study(tmp_path / "in", tmp_path / "s")
    assert (report.cases, len(report.refused)) == (1, 1)
    assert "grey-scale" in report.refused[0]


# -- an import that brings nothing ---------------------------------------------------------------------------------


def test_nothing_remains_of_an_import_that_was_refused(tmp_path: Path) -> None:
    folder = msd(tmp_path / "in")
    (folder / "imagesTr" / "a0.nii.gz").write_bytes(b"x")
    with pytest.raises(UserError, match=r"a0\.nii\.gz"):
        import_study(folder, tmp_path / "new" / "s")
    assert not (tmp_path / "new").exists()
    LabelStore.create(tmp_path / "old")
    before = sorted(path.name for path in (tmp_path / "old").rglob("*"))
    with pytest.raises(UserError, match=r"a0\.nii\.gz"):
        import_study(folder, tmp_path / "old")
    assert LabelStore(tmp_path / "old").structures() == []
    assert sorted(path.name for path in (tmp_path / "old").rglob("*")) == before


@pytest.mark.parametrize("is_new", [True, False])
@pytest.mark.parametrize("fails_at", ["keep_image", "commit"])
def test_nothing_remains_of_an_import_that_broke_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_new: bool, fails_at: str
) -> None:
    masks_beside(tmp_path / "in")
    if not is_new:
        import_study(scan(tmp_path / "first" / "x.nii.gz", 99).parent, tmp_path / "s")
    before = sorted(path.name for path in tmp_path.rglob("s/**/*"))
    calls = []
    original = getattr(arrivals_module.Arrivals, fails_at)

    def full(self: Any, *arguments: Any) -> Any:
        calls.append(arguments)
        if fails_at == "commit" or len(calls) > 3:
            raise UserError("the disk is full")
        return original(self, *arguments)

    monkeypatch.setattr(arrivals_module.Arrivals, fails_at, full)
    with pytest.raises(UserError, match="disk is full"):
        import_study(tmp_path / "in", tmp_path / "s")
    assert sorted(path.name for path in tmp_path.rglob("s/**/*")) == before
    assert (tmp_path / "s").exists() is not is_new
