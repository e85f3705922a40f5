"""Names, kinds and links of source files."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from fault_classes import makers
from fault_classes.place import SECRET, Place
from fault_classes.registry import Trial, fault_class
from fault_classes.studies import cases, depth

HOSTILE = [
    "../labels", "../../outside/keep", "OUTSIDE/keep", "..", ".", "a/b", "a\\b", "x\ny", "CON", "a" * 300, " ",
    "models/../../labels", "x\u200b/..", "\udcff", "-rf", "a:b", "x\x1b[31m",
]  # fmt: skip


@fault_class(1, "file names that are no text")
def file_names() -> Iterator[Trial]:
    def trial(place: Place, name: bytes) -> None:
        folder = makers.scans(place.work / "scans")
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(makers.packed(makers.nifti()))
        study = place.new_study()
        answer = place.fine("import", folder, "--into", study)
        place.expect(cases(study) >= 2, f"the sound scans are not there: {answer.text[-120:]}")

    names = [b"a\xff.nii.gz", b"\xe9t\xe9.nii.gz", b"a\nb.nii.gz", b"\x1b[2J.nii.gz", b"[bold].nii.gz",
        b"[bold.nii.gz",
             "a\u202eb.nii.gz".encode(), b"a" * 240 + b".nii.gz", b" .nii.gz", b"-o.nii.gz",
             b"%s%n.nii.gz"]  # fmt: skip
    for name in names:
        yield repr(name[:30]), partial(trial, name=name)

    def of_mask(place: Place) -> None:
        folder = makers.pictures(place.work / "scans")
        mask = folder / "labelcol" / "mask_p0.png"
        os.rename(mask, os.fsencode(folder / "labelcol") + b"/mask_p0\xff.png")
        study = place.new_study()
        place.fine("import", folder, "--into", study, "--split", "train")
        place.expect(cases(study) == 3, "an image is missing")

    yield "a mask's", of_mask

    def of_folder(place: Place) -> None:
        folder = makers.scans(place.work / "scans")
        odd = Path(os.fsdecode(os.fsencode(place.work) + b"/sc\xffans"))
        folder.rename(odd)
        place.run("import", odd, "--into", place.new_study())

    yield "the folder's", of_folder

    def of_dicom(place: Place) -> None:
        paths = makers.series(place.work / "scans")
        os.rename(paths[0], os.fsencode(paths[0].parent) + b"/0\xff0.dcm")
        study = place.new_study()
        answer = place.run("import", place.work / "scans", "--into", study)
        place.expect(answer.code == 2 or depth(study) == 5, "a slice is missing without a word")

    yield "a DICOM slice's", of_dicom


@fault_class(1, "pipes, devices and sockets as sources")
def pipes() -> Iterator[Trial]:
    def make(path: Path, kind: str) -> None:
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "socket":
            with socket.socket(socket.AF_UNIX) as listener:
                here = os.getcwd()
                os.chdir(path.parent)
                listener.bind(path.name)
                os.chdir(here)
        else:
            path.symlink_to(kind)

    def opened(place: Place, name: str, kind: str) -> None:
        path = place.work / name
        make(path, kind)
        place.allow(place.work / "m.nii.gz")
        place.refused("segment", path, "--prompt", "anterior hippocampus", "-o", place.work / "m.nii.gz", seconds=20)

    def beside(place: Place, name: str, kind: str) -> None:
        folder = makers.scans(place.work / "scans")
        make(folder / name, kind)
        study = place.new_study()
        place.fine("import", folder, "--into", study, seconds=20)
        place.expect(cases(study) == 2, "the sound scans are not there")

    for kind in ("pipe", "/dev/zero", "socket", "/dev/full", "/dev/tty"):
        for name in ("x.nii.gz", "x.nii", "x.nrrd", "x.mha", "x.png", "x.dcm"):
            yield f"{name} is a {kind}", partial(opened, name=name, kind=kind)
        yield f"a {kind} beside scans", partial(beside, name="x.nii.gz", kind=kind)
    for name in ("captions.csv", "captions.xlsx", "captions.json", "labels.json", "dataset.json", "x.dcm", "README"):
        yield f"{name} is a pipe", partial(beside_or_refused, name=name)

    def mask(place: Place) -> None:
        study = place.study()
        os.mkfifo(place.work / "m.nii.gz")
        place.refused("judge", study, "case-00001", "liver", "accept", "--mask", place.work / "m.nii.gz", seconds=20)

    yield "a mask to accept", mask

    def pipe_as_study(place: Place) -> None:
        os.mkfifo(place.work / "pipe")
        place.refused("verify", place.work / "pipe", seconds=20)
        place.refused("import", place.work / "pipe", "--into", place.new_study(), seconds=20)
        place.refused("evaluate", place.work / "pipe", seconds=20)

    yield "the study", pipe_as_study


def beside_or_refused(place: Place, name: str) -> None:
    folder = makers.scans(place.work / "scans")
    os.mkfifo(folder / name)
    place.run("import", folder, "--into", place.new_study(), seconds=20)


@fault_class(1, "links that leave the folder")
def links() -> Iterator[Trial]:
    def image(place: Place, suffix: str) -> None:
        folder = makers.scans(place.work / "scans")
        (folder / f"link{suffix}").symlink_to(place.outside / "secret.nii.gz")
        answer = place.fine("import", folder, "--into", place.new_study())
        place.expect_named(answer, f"link{suffix}")

    yield "an image", partial(image, suffix=".nii.gz")
    yield "an image in a chain of links", partial(image, suffix="2.nii.gz")

    def folder_link(place: Place) -> None:
        folder = place.work / "scans"
        folder.mkdir()
        (place.outside / "img").mkdir()
        (place.outside / "img" / "a.nii.gz").write_bytes((place.outside / "secret.nii.gz").read_bytes())
        (folder / "images").symlink_to(place.outside / "img")
        place.run("import", folder, "--into", place.new_study())

    yield "the folder of images", folder_link

    def loop(place: Place) -> None:
        folder = makers.scans(place.work / "scans")
        (folder / "loop.nii.gz").symlink_to(folder / "loop.nii.gz")
        (folder / "round").symlink_to(folder)
        place.fine("import", folder, "--into", place.new_study())

    yield "a loop", loop

    def dicom_link(place: Place) -> None:
        makers.series(place.outside / "series")
        folder = place.work / "scans"
        folder.mkdir()
        (folder / "patient").symlink_to(place.outside / "series")
        study = place.new_study()
        place.run("import", folder, "--into", study)
        place.expect(cases(study) == 0, "a series of another folder was imported", "outside")

    yield "a folder of DICOM", dicom_link

    def slice_link(place: Place) -> None:
        paths = makers.series(place.work / "scans")
        paths[-1].rename(place.outside / "last.dcm")
        paths[-1].symlink_to(place.outside / "last.dcm")
        study = place.new_study()
        answer = place.run("import", place.work / "scans", "--into", study)
        place.expect(answer.code == 2 or depth(study) == 5, "a slice is missing without a word")

    yield "a DICOM slice", slice_link

    def table(place: Place) -> None:
        folder = makers.pictures(place.work / "scans")
        (place.outside / "captions.csv").write_bytes(b"Image,Description\nmask_p0.png," + SECRET + b"\n")
        (folder / "captions.csv").unlink()
        (folder / "captions.csv").symlink_to(place.outside / "captions.csv")
        place.run("import", folder, "--into", place.new_study())

    yield "the table of captions", table

    def output(place: Place) -> None:
        """A name that the person gave may be a link; what it leads to is theirs to choose, the study is not."""
        study = place.study()
        (study / "labels2").symlink_to(place.outside / "keep")
        place.run("export", study, study / "labels2")

    yield "an export through a link into a full folder", output
