"""Peak memory of every reader, each in a fresh process: ``python benchmarks/reader_memory.py [--megabytes 400]``.

The peak is the process's high-water mark less what it held after a small file of the same format had been read
(imports, thread stacks), so Linux only. The bound is 1.3 times the bytes of the array returned, plus 300 MB; pictures
are as large as their reader accepts.
"""

from __future__ import annotations

import argparse
import functools
import gzip
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import SimpleITK
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import get_encoder
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, RLELossless

from amvlm.imaging.pictures import MAX_MEGAPIXELS

MEASURE = """
import sys
from amvlm.imaging import read_volume
def held(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) / 1024
index = None if sys.argv[3] == "-" else int(sys.argv[3])
read_volume(sys.argv[1], index)
with open("/proc/self/clear_refs", "w") as reset:
    reset.write("5")
before = held("VmRSS")
volume = read_volume(sys.argv[2], index)
print(volume.array.nbytes / 2**20, held("VmHWM") - before)
"""
Writer = Callable[[Path, float], Path]


def voxels(megabytes: float, dtype: Any = np.int16, axes: int = 3) -> np.ndarray:
    """A smooth volume with a little noise, about so large."""
    side = max(4, round((megabytes * 2**20 / np.dtype(dtype).itemsize) ** (1 / 3)))
    ramp = np.arange(side, dtype=np.float32)
    flat = (ramp[:, None] * 3 + ramp[None] * 2).astype(dtype)
    array = np.empty((side, side, side), dtype, order="F")
    for z in range(side):
        array[..., z] = np.roll(flat, z)
    return array


def nifti(suffix: str, dtype: Any = np.int16, slope: float = 1, order: str = "<", repeats: int = 1) -> Writer:
    def write(folder: Path, megabytes: float) -> Path:
        array = voxels(megabytes / (2 if slope != 1 else 1), dtype)
        kind = np.dtype(dtype).newbyteorder(order)
        header = nibabel.Nifti1Header(endianness=order)
        header.set_data_dtype(kind)
        header.set_data_shape(array.shape if repeats == 1 else (*array.shape, repeats))
        header["scl_slope"], header["vox_offset"], header["magic"] = slope, 352, b"n+1"
        header.set_sform(np.eye(4), 1)
        path = folder / f"x{suffix}"
        with gzip.open(path, "wb", 1) if suffix.endswith("gz") else path.open("wb") as stream:
            stream.write(header.binaryblock + b"\0" * 4)
            for _ in range(repeats):
                for z in range(array.shape[2]):
                    stream.write(array[..., z].astype(kind).tobytes(order="F"))
        return path

    return write


def itk(suffix: str, compressed: bool, components: int = 1) -> Writer:
    def write(folder: Path, megabytes: float) -> Path:
        array = voxels(megabytes).T
        image = SimpleITK.GetImageFromArray(
            array if components == 1 else np.stack([array] * components, -1), isVector=components > 1
        )
        path = folder / f"x{suffix}"
        writer = SimpleITK.ImageFileWriter()
        writer.SetFileName(str(path))
        writer.SetUseCompression(compressed)
        writer.SetCompressionLevel(1)
        writer.Execute(image)
        return path

    return write


def dicom(frames: int, rle: bool, intercept: float = -1024) -> Writer:
    """A series of single images (frames = 1), or one enhanced image of as many frames as needed."""

    def write(folder: Path, megabytes: float) -> Path:
        path = folder / "series"
        path.mkdir()
        count = max(2, round(megabytes * 2))  # half a megabyte each
        flat = (np.arange(512)[:, None] + np.arange(512)).astype(np.uint16)
        planes = [np.roll(flat, n % 8) for n in range(count)]
        if frames > 1:
            data = _image(0, planes, intercept, rle)
            data.SOPClassUID, data.NumberOfFrames = EnhancedCTImageStorage, count
            _place_frames(data, count)
            data.save_as(path / "0.dcm", enforce_file_format=False)
        else:
            for number, plane in enumerate(planes):
                _image(number, [plane], intercept, rle).save_as(path / f"{number}.dcm", enforce_file_format=False)
        return path

    return write


@functools.cache
def _rle(content: bytes) -> bytes:
    return get_encoder(RLELossless).encode(
        content, rows=512, columns=512, samples_per_pixel=1, bits_allocated=16, bits_stored=12, pixel_representation=0,
        photometric_interpretation="MONOCHROME2", number_of_frames=1, encoding_plugin="pydicom",
    )  # fmt: skip


def _image(number: int, planes: list[np.ndarray], intercept: float, rle: bool) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = CTImageStorage, ExplicitVRLittleEndian
    meta.MediaStorageSOPInstanceUID = f"1.2.3.{number + 1}"
    data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID, data.SeriesInstanceUID = CTImageStorage, f"1.2.3.{number + 1}", "1.2"
    data.Rows, data.Columns, data.SamplesPerPixel, data.PhotometricInterpretation = 512, 512, 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    data.Modality, data.InstanceNumber, data.PixelSpacing = "CT", number, [1, 1]
    data.ImagePositionPatient, data.ImageOrientationPatient = [0, 0, number], [1, 0, 0, 0, 1, 0]
    data.RescaleSlope, data.RescaleIntercept = 1, intercept
    frames = [plane.tobytes() for plane in planes]
    if rle:
        meta.TransferSyntaxUID = RLELossless
    data.PixelData = encapsulate([_rle(frame) for frame in frames]) if rle else b"".join(frames)
    return data


def _place_frames(data: FileDataset, count: int) -> None:
    data.PerFrameFunctionalGroupsSequence = []
    for number in range(count):
        group, place = pydicom.Dataset(), pydicom.Dataset()
        place.ImagePositionPatient = [0, 0, number]
        group.PlanePositionSequence = [place]
        data.PerFrameFunctionalGroupsSequence.append(group)
    del data.ImagePositionPatient


def picture(suffix: str, mode: str, **options: Any) -> Writer:
    def write(folder: Path, megabytes: float) -> Path:
        kind = {".png": "PNG", ".tif": "TIFF", ".jpg": "JPEG", ".webp": "WEBP", ".bmp": "BMP"}[suffix]
        side = 64 if megabytes < 2 else int((MAX_MEGAPIXELS[kind] * 1e6) ** 0.5)
        line = (np.arange(side) // 8 % 251).astype(np.uint8)
        grey = np.empty((side, side), np.uint8)
        for y in range(side):
            grey[y] = line + np.uint8(y // 16 % 5)
        if mode == "I;16":
            image = Image.fromarray(grey.astype(np.uint16) * 200)
        elif mode == "L":
            image = Image.fromarray(grey)
        else:
            bands = [grey, grey if "grey" in options else grey + np.uint8(1), grey, np.full_like(grey, 255)]
            image = Image.merge(mode, [Image.fromarray(band) for band in bands[: len(mode)]])
        path = folder / f"x{suffix}"
        image.save(path, **{name: value for name, value in options.items() if name != "grey"})
        return path

    return write


FORMATS: dict[str, tuple[Writer, str]] = {
    "NIfTI int16": (nifti(".nii"), "-"),
    "NIfTI int16, gzip": (nifti(".nii.gz"), "-"),
    "NIfTI big endian, gzip": (nifti(".nii.gz", order=">"), "-"),
    "NIfTI scaled to float32, gzip": (nifti(".nii.gz", slope=0.5), "-"),
    "NIfTI float32": (nifti(".nii", np.float32), "-"),
    "NIfTI, volume 1 of 3, gzip": (nifti(".nii.gz", repeats=3), "1"),
    "NRRD raw": (itk(".nrrd", False), "-"),
    "NRRD gzip": (itk(".nrrd", True), "-"),
    "NRRD, component 1 of 2": (itk(".nrrd", False, 2), "1"),
    "NRRD detached": (itk(".nhdr", False), "-"),
    "MetaImage raw": (itk(".mha", False), "-"),
    "MetaImage zlib": (itk(".mha", True), "-"),
    "DICOM series": (dicom(1, False), "-"),
    "DICOM series, float slope": (dicom(1, False, -1000.5), "-"),
    "DICOM series, RLE": (dicom(1, True), "-"),
    "DICOM multi-frame": (dicom(2, False), "-"),
    "DICOM multi-frame, RLE": (dicom(2, True), "-"),
    "PNG grey": (picture(".png", "L"), "-"),
    "PNG grey, 16 bit": (picture(".png", "I;16"), "-"),
    "PNG RGB": (picture(".png", "RGB"), "-"),
    "PNG RGB, all grey": (picture(".png", "RGB", grey=True), "-"),
    "PNG RGBA": (picture(".png", "RGBA"), "-"),
    "TIFF RGB, deflate": (picture(".tif", "RGB", compression="tiff_deflate"), "-"),
    "TIFF RGB, LZW, one strip": (picture(".tif", "RGB", compression="tiff_lzw", tiffinfo={278: 10**6}, grey=True), "-"),
    "JPEG RGB": (picture(".jpg", "RGB"), "-"),
    "JPEG RGB, progressive, all grey": (picture(".jpg", "RGB", progressive=True, subsampling=0, grey=True), "-"),
    "WebP RGB": (picture(".webp", "RGB", lossless=True, method=0), "-"),
    "WebP RGB, all grey": (picture(".webp", "RGB", grey=True, lossless=True, method=0), "-"),
    "BMP RGB": (picture(".bmp", "RGB"), "-"),
}


def measured(name: str, megabytes: float) -> tuple[float, float, float]:
    """(file, voxels, peak) in MB of one format."""
    write, index = FORMATS[name]
    with tempfile.TemporaryDirectory() as folder:
        for part in ("small", "large"):
            (Path(folder) / part).mkdir()
        small, large = write(Path(folder) / "small", 0.5), write(Path(folder) / "large", megabytes)
        size = sum(path.stat().st_size for path in large.parent.rglob("*") if path.is_file())
        answer = subprocess.run(
            [sys.executable, "-c", MEASURE, small, large, index], capture_output=True, text=True, check=True
        )
    held, peak = map(float, answer.stdout.split())
    return size / 2**20, held, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=float, default=400)
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    print("| format | file MB | voxels MB | peak MB | peak / voxels | bound MB | kept |\n|---|---|---|---|---|---|---|")
    for name in FORMATS:
        if arguments.only.lower() in name.lower():
            size, held, peak = measured(name, arguments.megabytes)
            bound = 1.3 * held + 300
            print(f"| {name} | {size:.1f} | {held:.0f} | {peak:.0f} | {peak / held:.2f} | {bound:.0f} |"
                  f" {'yes' if peak <= bound else 'NO'} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
