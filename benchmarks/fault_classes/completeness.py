"""Nothing is left out silently: every file is imported, or named, or the import is refused."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from fault_classes import makers
from fault_classes.makers import nifti, packed, put
from fault_classes.names import cases, depth
from fault_classes.place import Place
from fault_classes.registry import Trial, fault_class

Change = Callable[[Path], object]


def _cut(path: Path, keep: float | int) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep) if isinstance(keep, float) else keep])


def _header_broken(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[128 + 4 + 8 : 128 + 4 + 60] = b"\xff" * 52
    path.write_bytes(bytes(content))


DAMAGE: dict[str, Change] = {
    "cut in the header": lambda path: _cut(path, 300),
    "cut behind the preamble": lambda path: _cut(path, 140),
    "cut in the middle of the tags": lambda path: _cut(path, 0.4),
    "cut in the pixels": lambda path: _cut(path, -9),
    "empty": lambda path: _cut(path, 0),
    "its first 128 bytes only": lambda path: _cut(path, 128),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "its header overwritten": _header_broken,
    "not permitted": lambda path: path.chmod(0),
    "a text file": lambda path: path.write_text("patient moved\n"),
    "another series' uid": lambda path: makers.dicom(path, 90.0, "9.9.9"),
    "without a position": lambda path: makers.dicom(path, 0.0, ImagePositionPatient=None),
    "without pixels": lambda path: makers.dicom(path, 0.0, PixelData=None),
    "another size": lambda path: makers.dicom(path, 0.0, pixels=np.zeros((12, 15), np.int16)),
}


@fault_class(4, "a damaged slice at the end of a DICOM series", short=2)
def slices() -> Iterator[Trial]:
    def trial(place: Place, where: int, damage: str, names: str = "") -> None:
        folder = place.work / "scans"
        paths = makers.series(folder)
        if names:
            paths = [path.rename(path.with_name(f"IM{number}{names}")) for number, path in enumerate(paths)]
        DAMAGE[damage](paths[where])
        more = {}
        if damage == "not permitted":
            place.open_to_all()
            paths[where].chmod(0)
            more["prepare"] = place.as_nobody
        study = place.new_study()
        answer = place.run("import", folder, "--into", study, **more)
        place.study_is_damaged = damage == "not permitted"  # of another user now
        told = paths[where].name in answer.text or answer.code == 2 or damage == "another series' uid"
        place.expect(told, f"not a word of {paths[where].name}: {answer.text.strip()[-160:]}")
        found = depth(study) if answer.code == 0 else 5
        place.expect(found in (0, 5) or damage == "a text file" or damage == "another series' uid",
                     f"imported with {found} slices of 5: {answer.text.strip()[-160:]}")  # fmt: skip

    for damage in DAMAGE:
        for where, name in ((0, "first"), (-1, "last"), (2, "third")):
            yield f"the {name} slice {damage}", partial(trial, where=where, damage=damage)
    for damage in ("cut in the header", "its first 128 bytes only", "zeros"):
        yield f"without suffix, the last {damage}", partial(trial, where=-1, damage=damage, names="")
        yield f"IM4.ima, {damage}", partial(trial, where=-1, damage=damage, names=".ima")

    def missing_last(place: Place) -> None:
        """The series itself says how many images it has."""
        paths = makers.series(place.work / "scans", ImagesInAcquisition=5, NumberOfSlices=5)
        paths[-1].unlink()
        study = place.new_study()
        answer = place.run("import", place.work / "scans", "--into", study)
        place.expect(answer.code == 2 or "5" in answer.text, f"not a word: {answer.text.strip()[-160:]}")

    yield "the last slice missing, and the header says so", missing_last


@fault_class(4, "stray files in a DICOM folder")
def strays() -> Iterator[Trial]:
    def trial(place: Place, name: str, content: bytes) -> None:
        folder = place.work / "scans"
        makers.series(folder)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
        study = place.new_study()
        answer = place.run("import", folder, "--into", study)
        place.expect_named(answer, Path(name).name)
        place.expect(answer.code == 2 or depth(study) == 5, f"{depth(study)} slices of 5")

    for name, content in (("README.txt", b"scanner notes"), ("report.pdf", b"%PDF-1.4"), ("DICOMDIR", b"x" * 400),
                          ("005.dcm", b"x" * 999), ("IM6", bytes(500)), ("sub/007.dcm", b"x" * 999),
                          ("notes.csv", b"a,b\n1,2\n"), ("photo.png", makers.picture()),
                          ("extra.nii.gz", packed(nifti())), ("mask.nrrd", b"NRRD0004\n")):  # fmt: skip
        yield name, partial(trial, name=name, content=content)


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
        makers.series(folder / "deep" / "er" / "MR_series", uid="5.6.7")

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
            content = packed(nifti(makers.block()))
        (folder / name).write_bytes(content)
        study = place.new_study()
        answer = place.run("import", folder, "--into", study)
        place.expect_named(answer, name)
        place.expect(cases(study) in (0, 2), f"{cases(study)} scans from 2")

    for name in ("good_0_label.nrrd", "good_0_seg.nii.gz", "good_0_mask.nii.gz", "mask_good_0.nii.gz", "good_0-label.nii.gz",
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
            "missing": lambda p: p.unlink(), "empty": lambda p: p.write_bytes(b""), "cut": lambda p: _cut(p, 0.6),
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
        place.expect_named(answer, *files)

    sound = packed(nifti(makers.voxels(50)))
    yield "an image that is there twice", partial(trial, files={"copy_of_good_0.nii.gz": sound})
    yield "broken images", partial(trial, files={"a.nii.gz": b"x", "b.png": b"x", "c.nrrd": b"x", "d.mha": b"x", "e.tif": b"x"})
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


def _voxels_refused(place: Place, name: str, content: bytes) -> None:
    """Refused, or imported with a word about it; never silently."""
    folder = makers.scans(place.work / "scans")
    (folder / name).write_bytes(content)
    study = place.new_study()
    answer = place.fine("import", folder, "--into", study)
    place.expect_named(answer, name)


@fault_class(4, "voxels that are no numbers")
def not_numbers() -> Iterator[Trial]:
    half = makers.voxels().astype(np.float32)
    for value in (np.nan, np.inf, -np.inf):
        array = half.copy()
        array[:7] = value
        yield f"half of them {value}", partial(_voxels_refused, name="x.nii.gz", content=packed(nifti(array)))
        few = half.copy()
        few[0, 0, :3] = value
        yield f"three of them {value}", partial(_voxels_refused, name="x.nii.gz", content=packed(nifti(few)))
    flat = np.where(np.arange(256) % 2, np.nan, 5.0).astype("<f4").tobytes()
    yield "NRRD", partial(_voxels_refused, name="x.nrrd", content=makers.nrrd(flat, type="float"))
    yield "MHA", partial(_voxels_refused, name="x.mha", content=makers.mha(flat, ElementType="MET_FLOAT"))
    huge = half.copy()
    huge[0] = np.inf
    yield "a slab of infinity", partial(_voxels_refused, name="x.nii.gz", content=packed(nifti(huge)))
    for slope, inter in ((np.nan, 0.0), (np.inf, 0.0), (1e38, 1e38), (1.0, np.inf)):
        yield f"slope {slope}, intercept {inter}", partial(_voxels_refused, name="x.nii.gz", content=packed(
            nifti(tweak=put(112, "<2f", slope, inter))))  # fmt: skip


@fault_class(4, "NIfTI headers that contradict themselves")
def contradictions() -> Iterator[Trial]:
    def changed(*changes: Callable[[bytearray], None]) -> bytes:
        return packed(nifti(tweak=lambda content: [change(content) for change in changes]))

    rows = struct.pack("<12f", 1e30, 0, 0, 0, 0, 1e30, 0, 0, 0, 0, 1e30, 0)
    for name, content in {
        "vox_offset 0": changed(put(108, "<f", 0)),
        "vox_offset 100": changed(put(108, "<f", 100)),
        "sform of 1e30 mm": changed(put(280, "<48s", rows)),
        "sform of 1e-30 mm": changed(put(280, "<12f", 1e-30, 0, 0, 0, 0, 1e-30, 0, 0, 0, 0, 1e-30, 0)),
        "sform of NaN": changed(put(280, "<f", np.nan)),
        "origin 1e20 mm away": changed(put(292, "<f", 1e20), put(268, "<f", 1e20)),
        "qform of another spacing": changed(put(80, "<3f", 1, 1, 3)),
        "qform of another origin": changed(put(268, "<3f", 50, 0, 0)),
        "qform turned round": changed(put(256, "<3f", 0, 0, 1)),
        "qform mirrored": changed(put(76, "<f", -1)),
        "spacing 0": changed(put(80, "<3f", 0, 0, 0), put(252, "<2h", 1, 0)),
        "negative spacing": changed(put(80, "<3f", -1, -1, -2), put(252, "<2h", 1, 0)),
        "spacing NaN": changed(put(80, "<f", np.nan), put(252, "<2h", 1, 0)),
        "spacing in metres": changed(put(123, "<B", 1), put(280, "<12f", .001, 0, 0, 0, 0, .001, 0, 0, 0, 0, .002, 0),
                                     put(80, "<3f", .001, .001, .002)),
        "singular": changed(put(280, "<12f", *[1.0] * 12), put(252, "<h", 0)),
    }.items():  # fmt: skip
        yield name, partial(_voxels_refused, name="x.nii.gz", content=content)


@fault_class(4, "MetaImage and NRRD geometry that cannot be")
def itk_geometry() -> Iterator[Trial]:
    voxels = bytes(range(256))
    for name, fields in {
        "negative spacing": {"ElementSpacing": "-1 1 2"}, "spacing 0": {"ElementSpacing": "0 1 2"},
        "spacing nan": {"ElementSpacing": "nan 1 2"}, "spacing 1e30": {"ElementSpacing": "1e30 1e30 1e30"},
        "two spacings": {"ElementSpacing": "1 1"}, "spacing in words": {"ElementSpacing": "one two three"},
        "singular": {"TransformMatrix": "1 0 0 1 0 0 0 0 1"}, "origin nan": {"Offset": "nan 0 0"},
        "matrix nan": {"TransformMatrix": "nan 0 0 0 1 0 0 0 1"}, "matrix of 4": {"TransformMatrix": "1 0 0 1"},
        "size 0": {"DimSize": "0 8 4"}, "size −8": {"DimSize": "-8 8 4"}, "no size": {"DimSize": ""},
        "no spacing": {"ElementSpacing": ""},
    }.items():  # fmt: skip
        yield f"MHA {name}", partial(_voxels_refused, name="x.mha", content=makers.mha(voxels, **fields))
    for name, fields in {
        "direction 0": {"space directions": "(0,0,0) (0,1,0) (0,0,2)"}, "nan": {"space directions": "(nan,0,0) (0,1,0) (0,0,2)"},
        "none": {"space directions": "none (0,1,0) (0,0,2)"}, "two vectors": {"space directions": "(1,0,0) (0,1,0)"},
        "1e30": {"space directions": "(1e30,0,0) (0,1e30,0) (0,0,1e30)"}, "origin nan": {"space origin": "(nan,0,0)"},
        "singular": {"space directions": "(1,0,0) (1,0,0) (0,0,2)"},
        "negative spacings": {"spacings": "-1 1 2", "space directions": "", "space": "", "space origin": ""},
        "no spacing at all": {"space directions": "", "space": "", "space origin": ""},
    }.items():  # fmt: skip
        yield f"NRRD {name}", partial(_voxels_refused, name="x.nrrd", content=makers.nrrd(voxels, fields))


@fault_class(4, "EXIF orientation")
def exif() -> Iterator[Trial]:
    def trial(place: Place, kind: str, orientation: int) -> None:
        from PIL import Image

        from amvlm.store import LabelStore

        exif = Image.Exif()
        exif[0x0112] = orientation
        folder, study = place.work / "scans", place.new_study()
        folder.mkdir()
        path = folder / f"x.{kind}"
        more = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}.get(kind, {})
        path.write_bytes(makers.picture(3, kind, exif=exif.tobytes(), **more))
        answer = place.run("import", folder, "--into", study)
        if answer.code == 2 and path.name in answer.text:
            return
        store = LabelStore(study)
        found = store.read_image(store.cases()[0]).array[:, :, 0].T.astype(int)
        from PIL import ImageOps

        with Image.open(path) as picture:
            upright = np.asarray(ImageOps.exif_transpose(picture)).astype(int)
        right = found.shape == upright.shape and np.abs(found - upright).max() <= 2
        place.expect(right or path.name in answer.text, f"{kind} with orientation {orientation} lies {found.shape}")

    for orientation in (6, 3, 8, 2, 5):
        for kind in ("JPEG", "PNG", "TIFF", "WEBP"):
            yield f"{orientation} in a {kind}", partial(trial, kind=kind, orientation=orientation)


@fault_class(4, "broken tables of captions")
def tables() -> Iterator[Trial]:
    def trial(place: Place, name: str, content: bytes) -> None:
        folder = makers.pictures(place.work / "scans")
        (folder / "captions.csv").unlink()
        (folder / name).write_bytes(content)
        study = place.new_study()
        answer = place.run("import", folder, "--into", study)
        place.expect(answer.code == 2 or cases(study) == 3, f"{cases(study)} cases of 3")
        place.expect_named(answer, name)

    head = b"Image,Description\n"
    for name, content in {
        "no_zip.xlsx": b"nothing", "cut.xlsx": makers.xlsx()[:500], "xml.xlsx": makers.xlsx(sheet=b"<worksheet><<<"),
        "shared.xlsx": makers.xlsx(shared=b"\xff\xff"), "styles.xlsx": makers.xlsx(styles=b"<a><b></a>"),
        "empty.xlsx": b"", "old.xlsx": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500), "zip.xlsx": _zip(),
        "deep.json": b"[" * 10**5, "empty.json": b"", "five.json": b"5", "null.json": b"null", "list.json": b"[5]",
        "latin.csv": head + "mask_p0.png,Pleuraergu\u00df".encode("latin-1"), "empty.csv": b"", "nul.csv": head + b"\0,\0",
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
            place.expect(not (study / "store.sqlite").exists() or "kidney" not in _structures(study),
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


def _structures(study: Path) -> list[str]:
    from amvlm.store import LabelStore

    return [structure.name for structure in LabelStore(study).structures()]
