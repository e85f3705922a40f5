"""Hostile files against the readers: ``python benchmarks/reader_fuzz.py [--mutants 1200] [--seed 0] [DICOM FOLDER …]``.

Every mutant must be read, or refused with a ``UserError``; anything else is printed with what reproduces it: an
exception of another type, a warning that escapes, a voxel that is not finite, a slice lost, more than ten
seconds of processor time.
"""

from __future__ import annotations

import argparse
import collections
import faulthandler
import gzip
import io
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import SimpleITK
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

from amvlm.errors import UserError
from amvlm.imaging import read_volume
from amvlm.imaging.limits import quietly

SLOW = 10.0
"""Seconds of processor time for one mutant: a wall clock measures the neighbours too."""
Mutation = Callable[[bytes, np.random.Generator], bytes]


# -- seeds --------------------------------------------------------------------------------------------------------


def dicom_bytes(number: int, syntax: str = ExplicitVRLittleEndian, frames: int = 1, **fields: object) -> bytes:
    """A small CT image, or an image of several frames."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, f"1.2.3.{number + 1}"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian if syntax == RLELossless else syntax
    data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID, data.SeriesInstanceUID = CTImageStorage, f"1.2.3.{number + 1}", "1.2"
    data.Rows, data.Columns, data.SamplesPerPixel, data.PhotometricInterpretation = 16, 12, 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
    data.PixelSpacing, data.SliceThickness, data.Modality, data.SeriesNumber = [0.5, 0.8], 2.5, "CT", 3
    data.ImagePositionPatient, data.ImageOrientationPatient = [1.0, 2.0, 2.5 * number], [1, 0, 0, 0, 1, 0]
    data.RescaleSlope, data.RescaleIntercept, data.InstanceNumber = 1, -1024, number
    pixels = np.arange(16 * 12 * frames, dtype=np.int16) + 7 * number
    data.PixelData = (pixels.byteswap() if syntax == ExplicitVRBigEndian else pixels).tobytes()
    if frames > 1:
        data.NumberOfFrames, data.PerFrameFunctionalGroupsSequence = frames, []
        for place in range(frames):
            group, inner = pydicom.Dataset(), pydicom.Dataset()
            inner.ImagePositionPatient = [1.0, 2.0, 2.5 * place]
            group.PlanePositionSequence = [inner]
            data.PerFrameFunctionalGroupsSequence.append(group)
    for field, value in fields.items():
        setattr(data, field, value)
    if syntax == RLELossless:
        data.compress(RLELossless, generate_instance_uid=False)
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, data, implicit_vr=syntax == ImplicitVRLittleEndian,
                     little_endian=syntax != ExplicitVRBigEndian, force_encoding=True)  # fmt: skip
    return stream.getvalue()


def files() -> dict[str, tuple[str, bytes]]:
    """Name → suffix and content of one good file of each format that is one file."""
    array = np.random.default_rng(0).integers(0, 300, (9, 8, 7)).astype(np.int16)
    affine = np.diag([1.0, 1.5, 3.0, 1.0])
    scan = nibabel.Nifti1Image(array, affine).to_bytes()
    found = {
        "NIfTI": (".nii", scan), "NIfTI gzip": (".nii.gz", gzip.compress(scan)),
        "NIfTI-2 float": (".nii", nibabel.Nifti2Image(array.astype(np.float32), affine).to_bytes()),
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        for suffix in (".nrrd", ".mha"):
            for compressed in (False, True):
                path = Path(folder) / f"x{suffix}"
                SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array), str(path), compressed)
                found[f"{suffix}{' compressed' * compressed}"] = (suffix, path.read_bytes())
    rgb = np.random.default_rng(1).integers(0, 255, (24, 20, 3)).astype(np.uint8)
    for kind, options in (("PNG", {}), ("TIFF", {"compression": "tiff_lzw"}), ("WEBP", {"lossless": True}),
                          ("JPEG", {}), ("BMP", {})):  # fmt: skip
        stream = io.BytesIO()
        Image.fromarray(rgb).save(stream, kind, **options)
        found[kind] = (f".{kind.lower()}".replace("jpeg", "jpg"), stream.getvalue())
    return found


def series() -> dict[str, list[bytes]]:
    """Name → the files of a small series."""
    return {
        "DICOM explicit": [dicom_bytes(n) for n in range(3)],
        "DICOM implicit": [dicom_bytes(n, ImplicitVRLittleEndian) for n in range(3)],
        "DICOM big endian": [dicom_bytes(n, ExplicitVRBigEndian) for n in range(3)],
        "DICOM RLE": [dicom_bytes(n, RLELossless) for n in range(3)],
        "DICOM frames": [dicom_bytes(0, frames=4)],
        "DICOM frames, RLE": [dicom_bytes(0, RLELossless, frames=4)],
    }


# -- mutations ----------------------------------------------------------------------------------------------------


def _flip(content: bytes, rng: np.random.Generator) -> bytes:
    """A few bytes anywhere, most of them near the start, where headers are."""
    changed = bytearray(content)
    for _ in range(rng.integers(1, 9)):
        end = len(changed) if rng.random() < 0.3 else min(len(changed), 1500)
        changed[rng.integers(end)] = rng.integers(256)
    return bytes(changed)


def _cut(content: bytes, rng: np.random.Generator) -> bytes:
    return content[: rng.integers(len(content))]


def _number(content: bytes, rng: np.random.Generator) -> bytes:
    """An extreme number in place of two, four or eight bytes."""
    extremes = (b"\xff" * 4, b"\0\0\0\x80", b"\xff\xff\xff\x7f", b"\0" * 4, b"\0\0\xc0\x7f", b"\xff" * 2, b"\xff" * 8)
    put = extremes[rng.integers(len(extremes))]
    place = rng.integers(max(1, min(len(content), 1500) - len(put)))
    return content[:place] + put + content[place + len(put) :]


def _digits(content: bytes, rng: np.random.Generator) -> bytes:
    """A number written in digits, replaced by an extreme one."""
    places = [n for n in range(min(len(content), 1500)) if content[n : n + 1].isdigit()]
    if not places:
        return _flip(content, rng)
    words = (b"-1", b"0", b"2147483648", b"99999999999999999999", b"1e309", b"nan", b"", b"\xff", b"1e-300")
    place = places[rng.integers(len(places))]
    return content[:place] + words[rng.integers(len(words))] + content[place + 1 :]


def _move(content: bytes, rng: np.random.Generator) -> bytes:
    """A part removed, or written twice."""
    start, length = rng.integers(len(content)), rng.integers(1, 400)
    part = content[start : start + length]
    return content[:start] + part * (2 * rng.integers(2)) + content[start + length :]


def _tags(content: bytes, rng: np.random.Generator) -> bytes:
    """Elements of a DICOM file removed or given another value, the rest whole."""
    try:
        with quietly():
            data = pydicom.dcmread(io.BytesIO(content), force=True)
            tags = [element.tag for element in data]
            for _ in range(rng.integers(1, 4)):
                tag = tags[rng.integers(len(tags))]
                if tag in data and rng.random() < 0.4:
                    del data[tag]
                elif tag in data:
                    data[tag] = pydicom.DataElement(tag, data[tag].VR, _odd_value(data[tag].VR, rng))
            stream = io.BytesIO()
            data.save_as(stream, enforce_file_format=False)
    except Exception:  # noqa: BLE001 - pydicom will not write every odd value
        return _flip(content, rng)
    return stream.getvalue()


def _odd_value(vr: str, rng: np.random.Generator) -> object:
    odd: dict[str, list[object]] = {
        "US": [0, 1, 65535, [3, 4]], "DS": ["0", "-1", "1e308", "nan", ["1", "2"], "", "1e-40"],
        "IS": ["0", "-5", "2147483647", "65536", ""], "UI": ["", "1.2.3.4.5", "1.2.840.10008.1.2.4.90", "x"],
        "CS": ["", "PALETTE COLOR", "YBR_FULL_422", "MONOCHROME1", "\u00e9"], "OW": [b"", b"\0" * 7, b"\xff" * 5000],
        "OB": [b"", b"\0" * 8, b"\xfe\xff\x00\xe0\xff\xff\xff\xff"], "SQ": [[]],
    }  # fmt: skip
    choices = odd.get(vr, ["", "x" * 300, "\\".join("1" * 50)])
    return choices[rng.integers(len(choices))]


MUTATIONS: tuple[Mutation, ...] = (_flip, _cut, _number, _digits, _move)


def mutants(seed: int, each: int, folders: list[Path]) -> Iterator[tuple[str, str, Callable[[Path], Path]]]:
    """(format, what reproduces it, a function that writes the mutant into a folder and returns what to read)."""
    for name, (suffix, content) in files().items():
        for number in range(each):
            rng = np.random.default_rng([seed, number, len(content)])
            changed = MUTATIONS[number % len(MUTATIONS)](content, rng)
            yield name, f"{name} {number}", lambda folder, c=changed, s=suffix: _written(folder / f"x{s}", c)
    whole = series() | {f.name: [path.read_bytes() for path in sorted(f.iterdir())] for f in folders}
    for name, contents in whole.items():
        for number in range(each * 3 if name.startswith("DICOM") else each):
            rng = np.random.default_rng([seed, number, len(contents[0])])
            mutation = (*MUTATIONS, _tags)[number % (len(MUTATIONS) + 1)]
            place = int(rng.choice([0, len(contents) - 1, rng.integers(len(contents))]))
            slices = [mutation(c, rng) if n == place else c for n, c in enumerate(contents)]
            yield name, f"{name} {number}", lambda folder, s=slices: _series(folder, s)


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def _series(folder: Path, contents: list[bytes]) -> Path:
    for number, content in enumerate(contents):
        (folder / f"IM{number:04d}").write_bytes(content)
    return folder


def outcome(source: Path) -> tuple[str, str]:
    """("read" | "refused" | "FAULT", what). A series that is read has as many slices as the folder has files."""
    start = time.process_time()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            volume = read_volume(source)
        whole = volume.array.dtype.kind != "f" or np.isfinite(volume.array).all()
        fault = "" if whole else "voxels that are not finite"
        if source.is_dir() and volume.shape[2] < len(list(source.iterdir())):
            fault = f"{volume.shape[2]} slices of {len(list(source.iterdir()))} files"
        kind = "read"
    except UserError as error:
        kind, fault = "refused", "" if str(error) and "\n" not in str(error) else "no sentence"
    except BaseException as error:  # noqa: BLE001 - that is what this looks for
        kind, fault = "FAULT", f"{type(error).__name__}: {error}"
    seconds = time.process_time() - start
    fault = fault or (f"{seconds:.0f} s" if seconds > SLOW else "")
    return ("FAULT", fault) if fault else (kind, "")


def run(seed: int, each: int, folders: list[Path]) -> tuple[dict[str, collections.Counter[str]], list[str]]:
    """Count the outcomes of every mutant by format, and list the faults."""
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    faults = []
    for name, which, write in mutants(seed, each, folders):
        folder = Path(tempfile.mkdtemp())
        try:
            kind, fault = outcome(write(folder))
        finally:
            shutil.rmtree(folder)
        counts[name][kind] += 1
        if fault:
            faults.append(f"seed {seed}, {which}: {fault}")
    return counts, faults


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path, help="real DICOM series")
    parser.add_argument("--mutants", type=int, default=100, help="of each format; three times as many of each series")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    faulthandler.enable()
    counts, faults = run(arguments.seed, arguments.mutants, arguments.folders)
    print("| format | mutants | read | refused in a sentence | faults |\n|---|---|---|---|---|")
    for name, of in counts.items():
        print(f"| {name} | {of.total()} | {of['read']} | {of['refused']} | {of['FAULT']} |")
    print("\n".join(faults) or "no faults")
    raise SystemExit(bool(faults))


if __name__ == "__main__":
    main()
