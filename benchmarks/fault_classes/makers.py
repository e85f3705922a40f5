"""Files of every format, sound and broken, from numbers alone; and the studies that trials copy."""

from __future__ import annotations

import gzip
import io
import json
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

TINY = [
    "--steps", "2", "--batch-size", "2", "--precision", "fp32", "--device", "cpu", "--network", "unet", "--channels",
    "8", "--channels", "16", "--checkpoint-every", "1", "--threads", "1",
]  # fmt: skip
"""The smallest training run."""


def voxels(seed: int = 0, shape: tuple[int, ...] = (14, 12, 9)) -> NDArray[np.int16]:
    """A scan with a bright block that is no symmetric thing, and noise."""
    array = np.random.default_rng(seed).integers(0, 200, shape).astype(np.int16)
    array[4:9, 3:8, 2:6] += 600
    return array


def block(values: int = 2, shape: tuple[int, ...] = (14, 12, 9)) -> NDArray[np.uint8]:
    """The mask of that block: its slices 1, 2, … up to ``values``."""
    mask = np.zeros(shape, np.uint8)
    for value in range(1, values + 1):
        mask[4:9, 3:8, 1 + value] = value
    return mask


def nifti(
    array: NDArray[Any] | None = None,
    affine: NDArray[np.float64] | None = None,
    tweak: Callable[[bytearray], object] | None = None,
) -> bytes:
    """An uncompressed single-file NIfTI-1; ``tweak`` may change its bytes."""
    affine = np.diag([1.0, 1.0, 2.0, 1.0]) if affine is None else affine
    image = nibabel.Nifti1Image(voxels() if array is None else array, affine)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    content = bytearray(image.to_bytes())
    if tweak is not None:
        tweak(content)
    return bytes(content)


def put(offset: int, kind: str, *values: float) -> Callable[[bytearray], None]:
    """Write values into bytes: ``put(40, "<8h", 3, 1, …)``."""

    def change(content: bytearray) -> None:
        struct.pack_into(kind, content, offset, *values)

    return change


def nifti_of_secret(secret: bytes) -> bytes:
    return nifti(np.frombuffer((secret * 64)[: 16 * 16 * 8], np.uint8).reshape((16, 16, 8), order="F"))


def packed(content: bytes) -> bytes:
    return gzip.compress(content, 6, mtime=0)


def nrrd(payload: bytes, fields: Mapping[str, str] | None = None, **more: str) -> bytes:
    """An NRRD file; ``fields`` and ``more`` (underscores for spaces) replace or, with "", drop the usual ones."""
    described = {
        "type": "uint8", "dimension": "3", "space": "left-posterior-superior", "sizes": "8 8 4",
        "space directions": "(1,0,0) (0,1,0) (0,0,2)", "kinds": "domain domain domain", "endian": "little",
        "encoding": "raw", "space origin": "(0,0,0)", **(fields or {}),
        **{key.replace("_", " "): value for key, value in more.items()},
    }  # fmt: skip
    lines = [f"{key}: {value}" for key, value in described.items() if value]
    return ("NRRD0004\n" + "\n".join(lines) + "\n\n").encode("utf-8", "surrogateescape") + payload


def mha(payload: bytes, **fields: str) -> bytes:
    """A MetaImage file; ``ElementDataFile`` comes last, whatever it says."""
    described = {
        "ObjectType": "Image", "NDims": "3", "BinaryData": "True", "BinaryDataByteOrderMSB": "False",
        "CompressedData": "False", "TransformMatrix": "1 0 0 0 1 0 0 0 1", "Offset": "0 0 0",
        "CenterOfRotation": "0 0 0", "AnatomicalOrientation": "RAI", "ElementSpacing": "1 1 2", "DimSize": "8 8 4",
        "ElementType": "MET_UCHAR", "ElementDataFile": "LOCAL",
    }  # fmt: skip
    last = fields.pop("ElementDataFile", "LOCAL")
    described |= fields
    described.pop("ElementDataFile")
    lines = [f"{key} = {value}" for key, value in described.items() if value] + [f"ElementDataFile = {last}"]
    return ("\n".join(lines) + "\n").encode() + payload


def dicom(
    path: Path,
    place: float = 0.0,
    series: str = "1.2.3",
    pixels: NDArray[Any] | None = None,
    syntax: str = ExplicitVRLittleEndian,
    **tags: Any,
) -> Path:
    """One CT slice of 16 × 12 pixels; a tag given as None is left out."""
    pixels = voxels(int(place * 7) + 1, (12, 16, 9))[..., 0] if pixels is None else pixels
    meta = FileMetaDataset()
    uid = f"1.2.826.0.1.{abs(hash((series, round(place * 1000)))) % 10**9}"
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, uid
    meta.TransferSyntaxUID = syntax
    data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    usual: dict[str, Any] = {
        "SOPClassUID": CTImageStorage, "SOPInstanceUID": uid, "SeriesInstanceUID": series, "Modality": "CT",
        "StudyInstanceUID": "1.2", "PatientID": "P1", "SeriesNumber": 1, "Rows": pixels.shape[0],
        "Columns": pixels.shape[1], "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16, "BitsStored": 16, "HighBit": 15, "PixelRepresentation": 1, "PixelSpacing": [1, 1],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "ImagePositionPatient": [0, 0, place],
        "RescaleSlope": 1, "RescaleIntercept": 0, "PixelData": pixels.astype(np.int16).tobytes(), **tags,
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings(action="ignore"):  # some values are meant to be wrong
        for name, value in usual.items():
            if value is not None:
                setattr(data, name, value)
        data.save_as(path, enforce_file_format=False)
    return path


def series(folder: Path, count: int = 5, uid: str = "1.2.3", **tags: Any) -> list[Path]:
    """A whole series, slices 2 mm apart."""
    return [dicom(folder / f"{number:03d}.dcm", 2.0 * number, uid, **tags) for number in range(count)]


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, rows: bytes | None = None, depth: int = 8, colour: int = 0) -> bytes:
    """A PNG of the size its header says, with the (compressed) rows given, all zero otherwise."""
    rows = zlib.compress(bytes((1 + width) * height), 9) if rows is None else rows
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", head) + png_chunk(b"IDAT", rows) + png_chunk(b"IEND", b"")


def picture(seed: int = 0, kind: str = "PNG", size: tuple[int, int] = (24, 18), **more: Any) -> bytes:
    """A grey picture of noise with a bright corner, as Pillow writes it."""
    pixels = np.random.default_rng(seed).integers(0, 90, size[::-1]).astype(np.uint8)
    pixels[:6, :9] += 120
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **more)
    return stream.getvalue()


def tiff(width: int, height: int, strip: bytes = b"\0" * 64, compression: int = 1) -> bytes:
    """A grey TIFF with one strip."""
    entries = [
        (256, 4, width), (257, 4, height), (258, 3, 8), (259, 3, compression), (262, 3, 1), (273, 4, 8),
        (277, 3, 1), (278, 4, height), (279, 4, len(strip)),
    ]  # fmt: skip
    start = 8 + len(strip)
    table = struct.pack("<H", len(entries))
    for tag, kind, value in entries:
        table += struct.pack("<HHI", tag, kind, 1) + (struct.pack("<I", value))
    return b"II*\0" + struct.pack("<I", start) + strip + table + struct.pack("<I", 0)


def xlsx(rows: list[list[str]] | None = None, **parts: bytes) -> bytes:
    """A workbook of captions; ``parts`` ("sheet", "shared", "styles") replace what Excel would write."""
    import openpyxl

    book = openpyxl.Workbook()
    for row in rows or [["Image", "Description"], ["a.png", "liver"]]:
        book.active.append(row)
    stream = io.BytesIO()
    book.save(stream)
    names = {"sheet": "xl/worksheets/sheet1.xml", "shared": "xl/sharedStrings.xml", "styles": "xl/styles.xml"}
    replaced = {names[key]: content for key, content in parts.items()}
    result = io.BytesIO()
    with zipfile.ZipFile(stream) as old, zipfile.ZipFile(result, "w", zipfile.ZIP_DEFLATED) as new:
        for name in dict.fromkeys([*old.namelist(), *replaced]):
            new.writestr(name, replaced.get(name, old.read(name) if name in old.namelist() else b""))
    return result.getvalue()


def msd(folder: Path, count: int = 3, first: int = 0, labels: Mapping[str, str] | None = None, **entries: Any) -> Path:
    """A folder in the layout of the Medical Segmentation Decathlon; ``entries`` change its dataset.json."""
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    training = []
    labels = labels or {"0": "background", "1": "liver", "2": "spleen"}
    for number in range(first, first + count):
        (folder / "imagesTr" / f"scan_{number}.nii.gz").write_bytes(packed(nifti(voxels(number))))
        (folder / "labelsTr" / f"scan_{number}.nii.gz").write_bytes(packed(nifti(block(len(labels) - 1))))
        training.append({"image": f"./imagesTr/scan_{number}.nii.gz", "label": f"./labelsTr/scan_{number}.nii.gz"})
    described = {
        "name": "trunk", "modality": {"0": "CT"}, "training": training,
        "labels": labels, **entries,
    }  # fmt: skip
    (folder / "dataset.json").write_text(json.dumps(described), "utf-8")
    return folder


def pictures(folder: Path, count: int = 3, captions: Mapping[str, str] | None = None) -> Path:
    """LViT's layout: ``img``, ``labelcol`` and a table of captions (these name the image's sides)."""
    for name in ("img", "labelcol"):
        (folder / name).mkdir(parents=True)
    rows = []
    for number in range(count):
        (folder / "img" / f"p{number}.png").write_bytes(picture(number))
        mask = np.zeros((18, 24), np.uint8)
        mask[:6, :9] = 255
        Image.fromarray(mask).save(folder / "labelcol" / f"mask_p{number}.png")
        rows.append(f"mask_p{number}.png,infection in the left lung\n")
    (folder / "captions.csv").write_text("Image,Description\n" + "".join(rows), "utf-8")
    return folder


def scans(folder: Path, count: int = 2) -> Path:
    """A plain folder of sound NIfTI scans, ``good_0.nii.gz`` …"""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"good_{number}.nii.gz").write_bytes(packed(nifti(voxels(50 + number))))
    return folder


def bundled() -> Path:
    """The folder of the bundled model."""
    from amvlm.sample.study import bundled_model_folder

    return bundled_model_folder()
