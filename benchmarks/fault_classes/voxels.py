"""Voxels that are no numbers, headers that contradict themselves, pictures that lie on their side."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from fault_classes import makers
from fault_classes.makers import nifti, packed, put
from fault_classes.place import Place
from fault_classes.registry import Trial, fault_class

Change = Callable[[Path], object]


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
    for slope, inter in ((np.inf, 0.0), (1e38, 1e38), (1.0, np.inf)):
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
        "singular": changed(put(280, "<12f", *[1.0] * 12), put(252, "<h", 0)),
    }.items():  # fmt: skip
        yield name, partial(_voxels_refused, name="x.nii.gz", content=content)

    def metres(place: Place) -> None:
        """Nothing is wrong with metres, if they are read as such."""
        from amvlm.store import LabelStore

        folder, study = makers.scans(place.work / "scans"), place.new_study()
        rows = (0.001, 0, 0, 0, 0, 0.001, 0, 0, 0, 0, 0.002, 0)
        changes = (put(123, "<B", 1), put(280, "<12f", *rows), put(80, "<3f", 0.001, 0.001, 0.002))
        (folder / "x.nii.gz").write_bytes(changed(*changes))
        place.fine("import", folder, "--into", study)
        spacings = [np.linalg.norm(case.affine[:3, :3], axis=0) for case in LabelStore(study).cases()]
        place.expect(all(np.allclose(own, (1, 1, 2), atol=1e-4) for own in spacings), f"spacings of {spacings} mm")

    yield "spacing in metres", metres


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
        "direction 0": {"space directions": "(0,0,0) (0,1,0) (0,0,2)"},
        "nan": {"space directions": "(nan,0,0) (0,1,0) (0,0,2)"},
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
            upright = np.asarray(ImageOps.exif_transpose(picture).convert("L")).astype(int)
        right = found.shape == upright.shape and np.abs(found - upright).max() <= 2
        place.expect(right or path.name in answer.text, f"{kind} with orientation {orientation} lies {found.shape}")

    for orientation in (6, 3, 8, 2, 5):
        for kind in ("JPEG", "PNG", "TIFF", "WEBP"):
            yield f"{orientation} in a {kind}", partial(trial, kind=kind, orientation=orientation)
