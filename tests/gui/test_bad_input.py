"""The catalogue of bad input in one window: each is a sentence, earlier work stays byte for byte, the window lives."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from napari_amvlm.layers import LABEL, TEXT_MASK

NAME = "Planted^Patient"


def fingerprint(folder: Path) -> dict[str, str]:
    """Every file of a study but SQLite's own moments."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith("store.sqlite")
    }


def scan(path: Path, array: np.ndarray, affine: np.ndarray | None = None, qform: np.ndarray | None = None) -> Path:
    affine = np.eye(4) if affine is None else affine
    image = nibabel.Nifti1Image(array, affine)
    image.set_sform(affine, 1)
    image.set_qform(affine if qform is None else qform, 1)
    content = image.to_bytes()
    path.write_bytes(gzip.compress(content) if path.name.endswith(".gz") else content)
    return path


def slices(folder: Path, places: list[float], cut: int = 0) -> Path:
    folder.mkdir()
    for number, place in enumerate(places):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        data.SOPClassUID, data.SOPInstanceUID, data.SeriesInstanceUID = CTImageStorage, generate_uid(), "1.2"
        data.PatientName, data.PatientID, data.Modality = NAME, "PLANTED-1", "CT"
        data.Rows, data.Columns, data.SamplesPerPixel, data.PhotometricInterpretation = 4, 4, 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
        data.PixelSpacing, data.ImageOrientationPatient = [1, 1], [1, 0, 0, 0, 1, 0]
        data.ImagePositionPatient, data.PixelData = [0, 0, place], np.zeros(16, np.int16).tobytes()
        path = folder / f"{number}.dcm"
        data.save_as(path, enforce_file_format=False)
        if cut:
            path.write_bytes(path.read_bytes()[:-cut])
    return folder


def catalogue(folder: Path) -> dict[str, Path]:
    rng = np.random.default_rng(0)
    array = rng.integers(0, 999, (8, 9, 10)).astype(np.int16)
    good = scan(folder / "good.nii.gz", array).read_bytes()
    bad: dict[str, Path] = {"missing": folder / "missing.nii.gz"}

    def write(name: str, content: bytes) -> None:
        bad[name] = folder / name
        bad[name].write_bytes(content)

    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 0x10
    write("truncated.nii.gz", good[: len(good) // 2])
    write("checksum.nii.gz", good[:-8] + b"\0\0\0\0" + good[-4:])
    write("bit flip.nii.gz", bytes(flipped))
    write("empty.nii.gz", b"")
    write("wrong extension.nii.gz", b"\x89PNG\r\n\x1a\n" + b"0" * 900)
    write("unknown.xyz", b"0" * 900)
    write("bomb.nii.gz", gzip.compress(nibabel.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4)).to_bytes()
                                       + bytes(2**27)))  # fmt: skip
    header = bytearray(gzip.decompress(good))
    header[40:56] = np.array([3, 32000, 32000, 32000, 1, 1, 1, 1], "<i2").tobytes()
    write("absurd.nii", bytes(header))
    header = bytearray(gzip.decompress(good))
    header[80:84], header[254:256] = np.zeros(1, "<f4").tobytes(), b"\0\0"
    write("no spacing.nii", bytes(header))
    header = bytearray(gzip.decompress(good))
    header[280:328] = np.zeros(12, "<f4").tobytes()
    header[252:254] = b"\0\0"
    write("singular.nii", bytes(header))
    bad["complex"] = scan(folder / "complex.nii", array.astype(np.complex64))
    bad["all NaN"] = scan(folder / "nan.nii", np.full((3, 3, 3), np.nan, np.float32))
    bad["two orientations"] = scan(folder / "two.nii", array, np.eye(4), np.diag([-1.0, 1, 1, 1]))
    bad["missing slice"] = slices(folder / "missing slice", [0, 1, 2, 4, 5])
    bad["doubled"] = slices(folder / "doubled", [0, 1, 1, 2])
    bad["cut pixels"] = slices(folder / "cut", [0, 1, 2], cut=6)
    bad["no series"] = folder / "no series"
    bad["no series"].mkdir()
    return bad


def test_the_catalogue_leaves_the_window_and_the_study_as_they_were(
    window: Any, study: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    window.open(study)
    window.run()
    layers = window.controller.layers
    label, before = layers.masks[LABEL].copy(), fingerprint(study)
    folder = tmp_path / "private"
    folder.mkdir()
    for name, path in catalogue(folder).items():
        window.prompt.show_notice("")
        window.controller.studies.open_scan(path)
        window.idle()
        assert path.name in window.notice, name
        assert len(window.notice) > len(path.name) + 25, name  # what happened and what to do
        assert "private" not in window.notice, name
        assert window.controller.layers is layers, name
    assert np.array_equal(layers.masks[LABEL], label)
    assert fingerprint(study) == before
    window.run()
    assert layers.masks[TEXT_MASK].any()
    said = caplog.text + "".join(capfd.readouterr())
    assert NAME not in said
    assert "PLANTED" not in said


@pytest.mark.parametrize(
    "array",
    [
        np.full((6, 7, 8), 5, np.int16),
        np.where(np.arange(336).reshape(6, 7, 8) % 13, 7, np.nan).astype(np.float32),
        np.where(np.arange(336).reshape(6, 7, 8) % 13, 7, np.inf).astype(np.float32),
        np.zeros((1, 1, 1), np.uint8),
    ],
    ids=["constant", "some NaN", "some infinite", "one voxel"],
)
def test_odd_but_readable_scans_open_and_prompt(window: Any, tmp_path: Path, array: np.ndarray) -> None:
    window.idle()
    window.controller.studies.open_scan(scan(tmp_path / "x.nii", array))
    window.wait(lambda: window.controller.layers is not None and not window.controller.worker.busy)
    window.run()
    assert window.controller.layers.probs[TEXT_MASK].shape == array.shape
    low, high = window.controller.layers.images[0].contrast_limits
    assert low < high
