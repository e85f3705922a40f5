"""Folders of every layout: each file is imported, or named, or the import is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from fault_classes import makers
from fault_classes.makers import nifti, packed
from fault_classes.place import Place
from fault_classes.registry import Trial, fault_class
from fault_classes.series import cut_file
from fault_classes.studies import cases, structures

Change = Callable[[Path], object]


@fault_class(4, "mixed folders")
def mixed() -> Iterator[Trial]:
    def trial(place: Place, make: Change, count: int, *names: str) -> None:
        folder = place.work / "scans"
        folder.mkdir()
        make(folder)
        study = place.new_study()
        answer = place.run("import", folder, "--into", study)
        found = cases(study)
        missing = [name for name in names if name not in answer.text]
        place.expect(found == count or (found < count and not missing) or (answer.code == 2 and not missing),
                     f"{found} cases of {count}, not named: {missing}: {answer.text.strip()[-200:]}")  # fmt: skip

    def scan(path: Path, number: int = 0) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(packed(nifti(makers.voxels(number))))

    def dicom_beside(folder: Path) -> None:
        makers.scans(folder)
        makers.series(folder / "CT_series")

    yield "a DICOM folder beside NIfTI files", lambda place: trial(place, dicom_beside, 3, "CT_series")

    def two_dicom(folder: Path) -> None:
        dicom_beside(folder)
        makers.series(folder / "deep" / "er" / "MR_series", 4, uid="5.6.7")

    yield "two DICOM folders, one deep", lambda place: trial(place, two_dicom, 4, "CT_series", "MR_series")

    def loose(folder: Path) -> None:
        makers.scans(folder)
        makers.series(folder)

    yield "DICOM slices among NIfTI files", lambda place: trial(place, loose, 3, "000.dcm")

    def per_patient(folder: Path, suffix: str) -> None:
        for number in range(3):
            path = folder / f"patient{number}" / f"scan{suffix}"
            path.parent.mkdir()
            voxels = makers.voxels(number)
            if suffix == ".png":
                path.write_bytes(makers.picture(number))
            elif suffix == ".nii.gz":
                path.write_bytes(packed(nifti(voxels)))
            else:
                path.write_bytes(makers.nrrd(bytes([number]) * 100 + bytes(156)) if suffix == ".nrrd" else makers.mha(
                    bytes([number]) * 100 + bytes(156)))  # fmt: skip

    for suffix in (".nii.gz", ".nrrd", ".mha", ".png"):
        yield f"one folder per patient with {suffix}", lambda place, s=suffix: trial(
            place, lambda folder: per_patient(folder, s), 3, "patient0", "patient1", "patient2")  # fmt: skip

    def nested(folder: Path) -> None:
        makers.scans(folder)
        scan(folder / "more" / "inner.nii.gz", 7)

    yield "a subfolder of NIfTI beside NIfTI", lambda place: trial(place, nested, 3, "more")

    def bids(folder: Path) -> None:
        for number in range(2):
            scan(folder / f"sub-{number}" / "anat" / f"sub-{number}_T1w.nii.gz", number)

    yield "BIDS", lambda place: trial(place, bids, 2, "sub-0", "sub-1")

    def images_and_more(folder: Path) -> None:
        makers.scans(folder / "images")
        scan(folder / "outside_of_images.nii.gz", 8)

    yield "an image beside the folder of images", lambda place: trial(
        place, images_and_more, 3, "outside_of_images.nii.gz")  # fmt: skip

    def odd_suffixes(folder: Path) -> None:
        makers.scans(folder)
        for name in ("a.img", "a.hdr", "b.mgz", "c.mnc", "d.tar.gz", "e.gipl", "f.dcm.bak", "g.NII"):
            (folder / name).write_bytes(b"x" * 400)

    yield "formats that nobody reads", lambda place: trial(
        place, odd_suffixes, 99, "a.img", "b.mgz", "c.mnc", "d.tar.gz", "e.gipl", "f.dcm.bak", "g.NII")  # fmt: skip

    def hidden(folder: Path) -> None:
        makers.scans(folder)
        scan(folder / ".hidden.nii.gz", 8)
        scan(folder / "Capital.NII.GZ", 9)

    yield "hidden files and capital suffixes", lambda place: trial(place, hidden, 3)


@fault_class(4, "masks that would become scans")
def masks_as_scans() -> Iterator[Trial]:
    def trial(place: Place, name: str) -> None:
        folder = makers.scans(place.work / "scans")
        if name.endswith(".nrrd"):
            content = makers.nrrd(bytes(100) + b"\1" * 56 + bytes(100))
        elif name.endswith(".mha"):
            content = makers.mha(bytes(100) + b"\1" * 56 + bytes(100))
        else:
            content = packed(nifti(makers.block(1)))
        (folder / name).write_bytes(content)
        study = place.new_study()
        answer = place.run("import", folder, "--into", study)
        place.expect(name in answer.text or "1 mask" in answer.text, f"{name} is not named: {answer.text[-160:]}")
        place.expect(cases(study) <= 2, f"{cases(study)} scans from 2")
        place.expect(cases(study) == 2 or "good_0.nii.gz" in answer.text, f"a scan is missing: {answer.text[-160:]}")

    for name in ("good_0_label.nrrd", "good_0_seg.nii.gz", "good_0_mask.nii.gz", "mask_good_0.nii.gz",
        "good_0-label.nii.gz",
                 "good_0_segmentation.nii.gz", "good_0.seg.nrrd", "good_0_labels.mha", "good_0_gt.nii.gz",
                 "label_good_0.nii.gz", "good_0-mask.nii.gz", "Segmentation.nii.gz", "good_0_roi.nii.gz"):  # fmt: skip
        yield name, partial(trial, name=name)


@fault_class(4, "a case whose mask is missing or broken")
def missing_masks() -> Iterator[Trial]:
    def trial(place: Place, layout: str, damage: str) -> None:
        make = makers.msd if layout == "MSD" else makers.pictures
        folder = make(place.work / "scans")
        name = "labelsTr/scan_1.nii.gz" if layout == "MSD" else "labelcol/mask_p1.png"
        path = folder / name
        broken: dict[str, Change] = {
            "missing": lambda p: p.unlink(), "empty": lambda p: p.write_bytes(b""), "cut": lambda p: cut_file(p, 0.6),
            "of another grid": lambda p: p.write_bytes(
                packed(nifti(makers.block()[1:])) if layout == "MSD" else makers.picture(size=(20, 18))),
            "a folder": lambda p: (p.unlink(), p.mkdir()),
            "of unknown values": lambda p: p.write_bytes(packed(nifti(makers.block() * 9))),
            "of another affine": lambda p: p.write_bytes(packed(nifti(makers.block(), np.diag([1.0, 1, 3, 1])))),
            "all NaN": lambda p: p.write_bytes(packed(nifti(np.full((14, 12, 9), np.nan, np.float32)))),
            "of fractions": lambda p: p.write_bytes(packed(nifti(makers.block().astype(np.float32) * 0.5))),
        }  # fmt: skip
        broken[damage](path)
        study = place.new_study()
        answer = place.fine("import", folder, "--into", study, "--split", "train")
        least = 3 if damage == "missing" else 2
        place.expect(cases(study) >= least, f"{cases(study)} cases of 3: {answer.text.strip()[-160:]}")
        if layout == "MSD" or damage != "missing":
            place.expect_named(answer, "scan_1" if layout == "MSD" else "p1")

    for damage in ("missing", "empty", "cut", "of another grid", "a folder", "of unknown values", "of another affine",
                   "all NaN", "of fractions"):  # fmt: skip
        yield f"MSD, {damage}", partial(trial, layout="MSD", damage=damage)
    for damage in ("missing", "empty", "cut", "of another grid", "a folder"):
        yield f"pictures, {damage}", partial(trial, layout="pictures", damage=damage)

    def orphan(place: Place) -> None:
        folder = makers.pictures(place.work / "scans")
        (folder / "labelcol" / "mask_nobody.png").write_bytes(makers.picture(5))
        answer = place.fine("import", folder, "--into", place.new_study())
        place.expect_named(answer, "mask_nobody.png")

    yield "a mask without an image", orphan


@fault_class(4, "the report accounts for every file")
def accounting() -> Iterator[Trial]:
    def trial(place: Place, files: dict[str, bytes]) -> None:
        folder = makers.scans(place.work / "scans")
        for name, content in files.items():
            (folder / name).write_bytes(content)
        answer = place.fine("import", folder, "--into", place.new_study())
        if "in the study already" not in answer.text:
            place.expect_named(answer, *files)

    sound = packed(nifti(makers.voxels(50)))
    yield "an image that is there twice", partial(trial, files={"copy_of_good_0.nii.gz": sound})
    yield (
        "broken images",
        partial(trial, files={"a.nii.gz": b"x", "b.png": b"x", "c.nrrd": b"x", "d.mha": b"x", "e.tif": b"x"}),
    )
    yield "files of no known kind", partial(trial, files={"notes.txt": b"x", "a.pdf": b"x", "b.docx": b"x", "c": b"x"})
    yield "many broken images", partial(trial, files={f"broken_{n:03d}.nii.gz": b"x" * (n + 1) for n in range(120)})

    def twice(place: Place) -> None:
        folder, study = makers.scans(place.work / "scans"), place.new_study()
        place.fine("import", folder, "--into", study)
        answer = place.fine("import", folder, "--into", study)
        place.expect(cases(study) == 2 and "2" in answer.text, f"the second import says {answer.text.strip()[-160:]}")

    yield "the same folder again", twice

    def captions(place: Place) -> None:
        folder = makers.pictures(place.work / "scans")
        with (folder / "captions.csv").open("a") as stream:
            stream.write("nobody.png,a caption of no image\n")
        answer = place.fine("import", folder, "--into", place.new_study())
        place.expect("1" in answer.text and "caption" in answer.text, answer.text.strip()[-160:])

    yield "a caption without an image", captions


@fault_class(4, "broken tables of captions")
def tables() -> Iterator[Trial]:
    def trial(place: Place, name: str, content: bytes) -> None:
        folder = makers.pictures(place.work / "scans")
        (folder / "captions.csv").unlink()
        (folder / name).write_bytes(content)
        study = place.new_study()
        answer = place.run("import", folder, "--into", study)
        place.expect(answer.code == 2 or cases(study) == 3, f"{cases(study)} cases of 3")
        place.expect(name in answer.text or "caption" in answer.text.split("captions", 1)[-1],
                     f"{name} is not named: {answer.text[-160:]}")  # fmt: skip

    head = b"Image,Description\n"
    for name, content in {
        "no_zip.xlsx": b"nothing", "cut.xlsx": makers.xlsx()[:500], "xml.xlsx": makers.xlsx(sheet=b"<worksheet><<<"),
        "shared.xlsx": makers.xlsx(shared=b"\xff\xff"), "styles.xlsx": makers.xlsx(styles=b"<a><b></a>"),
        "empty.xlsx": b"", "old.xlsx": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500), "zip.xlsx": _zip(),
        "deep.json": b"[" * 10**5, "empty.json": b"", "five.json": b"5", "null.json": b"null", "list.json": b"[5]",
        "latin.csv": head + "mask_p0.png,Pleuraergu\u00df".encode("latin-1"), "empty.csv": b"",
        "nul.csv": head + b"\0,\0",
        "utf16.csv": "Image,Description\nmask_p0.png,x".encode("utf-16"), "columns.csv": b"a,b\n1,2\n",
        "quote.csv": head + b'mask_p0.png,"never closed', "wide.csv": head + b"mask_p0.png," + b"x" * 200_000,
        "short.csv": head + b"mask_p0.png\n", "long_name.csv": head + b"y" * 5000 + b".png,text\n",
        "file_names.csv": head + b"mask_p0.png,p0.png\n",
    }.items():  # fmt: skip
        yield name, partial(trial, name=name, content=content)


def _zip() -> bytes:
    import io
    import zipfile

    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("hello.txt", "x")
    return stream.getvalue()


@fault_class(4, "an import that is wholly refused")
def refused_imports() -> Iterator[Trial]:
    def trial(place: Place, into: str) -> None:
        source = makers.msd(place.work / "scans", labels={"0": "background", "1": "kidney", "2": "pancreas"})
        for path in (source / "imagesTr").iterdir():
            path.write_bytes(b"broken")
        study = place.study() if into == "old" else place.new_study()
        place.refused("import", source, "--into", study)
        if into == "new":
            place.expect(not (study / "store.sqlite").exists() or "kidney" not in structures(study),
                         "its structures stay in the new study", "changed")  # fmt: skip

    yield "into a study", partial(trial, into="old")
    yield "into a new one", partial(trial, into="new")

    def labels_only(place: Place, described: object) -> None:
        study = place.study()
        source = makers.msd(place.work / "scans")
        (source / "dataset.json").write_text(json.dumps(described))
        place.refused("import", source, "--into", study)

    yield "no scans in dataset.json", partial(labels_only, described={"labels": {"1": "kidney"}, "training": []})
    yield "no labels in dataset.json", partial(labels_only, described={"training": [{"image": "a", "label": "b"}]})
