"""DICOM series with damaged slices and strangers among them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from fault_classes import makers
from fault_classes.makers import nifti, packed
from fault_classes.place import Place
from fault_classes.registry import Trial, fault_class
from fault_classes.studies import cases, depth, depths

Change = Callable[[Path], object]


def cut_file(path: Path, keep: float | int) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep) if isinstance(keep, float) else keep])


def _header_broken(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[128 + 4 + 8 : 128 + 4 + 60] = b"\xff" * 52
    path.write_bytes(bytes(content))


DAMAGE: dict[str, Change] = {
    "cut in the header": lambda path: cut_file(path, 300),
    "cut behind the preamble": lambda path: cut_file(path, 140),
    "cut in the middle of the tags": lambda path: cut_file(path, 0.4),
    "cut in the pixels": lambda path: cut_file(path, -9),
    "empty": lambda path: cut_file(path, 0),
    "its first 128 bytes only": lambda path: cut_file(path, 128),
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


@fault_class(4, "stray files in a DICOM folder")
def strays() -> Iterator[Trial]:
    def trial(place: Place, name: str, content: bytes) -> None:
        folder = place.work / "scans"
        makers.series(folder)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
        study = place.new_study()
        answer = place.run("import", folder, "--into", study)
        place.expect(Path(name).name in answer.text or cases(study) == 2, f"{name} is not named: {answer.text[-160:]}")
        place.expect(answer.code == 2 or 5 in depths(study), f"{depths(study)} slices, not 5")

    for name, content in (("README.txt", b"scanner notes"), ("report.pdf", b"%PDF-1.4"), ("DICOMDIR", b"x" * 400),
                          ("005.dcm", b"x" * 999), ("IM6", bytes(500)), ("sub/007.dcm", b"x" * 999),
                          ("notes.csv", b"a,b\n1,2\n"), ("photo.png", makers.picture()),
                          ("extra.nii.gz", packed(nifti())), ("mask.nrrd", b"NRRD0004\n")):  # fmt: skip
        yield name, partial(trial, name=name, content=content)
