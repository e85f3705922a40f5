"""What reading may cost: a header is believed as far as its file allows, and memory is bounded."""

from __future__ import annotations

import gzip
import importlib.util
import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image
from pydicom.uid import RLELossless

from amvlm.errors import UserError
from amvlm.imaging import limits, read_volume
from amvlm.imaging.limits import bounded_gunzip, in_a_sentence, memory_limit
from amvlm.imaging.voxels import Stored, finite, read_voxels

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def benchmark(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    assert spec.loader is not None
    spec.loader.exec_module(module)
    return module


SMALL_ENOUGH = (
    "NIfTI scaled to float32, gzip", "NIfTI, volume 1 of 3, gzip", "MetaImage zlib", "DICOM multi-frame",
)  # fmt: skip


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the high-water mark from /proc")
@pytest.mark.parametrize("name", SMALL_ENOUGH)
def test_each_voxel_is_held_once(name: str) -> None:
    module = benchmark("reader_memory")
    _, held, peak = module.measured(name, 48)
    assert peak <= 1.3 * held + 40


# -- headers that ask for more than their file can hold -----------------------------------------------------------


def asking_nifti(shape: tuple[int, ...], code: int = 4) -> bytes:
    raw = bytearray(nibabel.Nifti1Image(np.zeros((2, 2, 2), np.int16), np.eye(4)).to_bytes())
    raw[40:56] = np.array([len(shape), *shape, *[1] * (7 - len(shape))], "<i2").tobytes()
    raw[70:72] = np.array([code], "<i2").tobytes()
    return bytes(raw)


def asking_png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
            + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b""))  # fmt: skip


def asking_dicom(**fields: object) -> bytes:
    return benchmark("reader_fuzz").dicom_bytes(0, **fields)  # type: ignore[no-any-return]


def asking(kind: str) -> tuple[str, bytes]:
    """A suffix, and a few kB that ask for gigabytes."""
    if kind == "picture":
        return ".png", asking_png(13_000, 13_000)
    if kind == "bitmap":
        stream = io.BytesIO()
        Image.new("RGB", (4, 4)).save(stream, "BMP")
        raw = bytearray(stream.getvalue())
        raw[18:26] = struct.pack("<ii", 60_000, 60_000)
        return ".bmp", bytes(raw)
    if kind.startswith("NIfTI"):
        content = asking_nifti((30_000, 30_000, 8) if "short" in kind else (30_000, 30_000, 30_000, 30))
        return (".nii.gz", gzip.compress(content)) if "gzip" in kind else (".nii", content)
    if kind == "NRRD":
        return ".nrrd", (b"NRRD0004\ntype: uchar\ndimension: 3\nsizes: 900 900 9000000\nencoding: gzip\n\n"
                         + gzip.compress(b"0"))  # fmt: skip
    if kind == "MetaImage":
        return ".mha", (b"ObjectType = Image\nNDims = 3\nDimSize = 90000 90000 90000\nElementType = MET_DOUBLE\n"
                        b"CompressedData = True\nElementDataFile = LOCAL\n" + zlib.compress(b"0"))  # fmt: skip
    return ".dcm", asking_dicom(**{
        "DICOM frames": {"NumberOfFrames": 2**31 - 1}, "DICOM negative frames": {"NumberOfFrames": -5},
        "DICOM rows": {"Rows": 65535, "Columns": 65535}, "DICOM bits": {"BitsAllocated": 65528},
        "DICOM no frames": {"NumberOfFrames": 0}, "DICOM high bit": {"HighBit": 200},
        "DICOM sign": {"PixelRepresentation": 7}, "DICOM samples": {"SamplesPerPixel": 65535},
        "DICOM odd bits": {"BitsAllocated": 12},
        "DICOM stored": {"BitsStored": 60000, "HighBit": 59999},
    }[kind])  # fmt: skip


KINDS = (
    "picture", "bitmap", "NIfTI", "NIfTI short", "NIfTI gzip", "NIfTI gzip short", "NRRD", "MetaImage", "DICOM frames",
    "DICOM negative frames", "DICOM rows", "DICOM bits", "DICOM samples", "DICOM odd bits", "DICOM stored",
    "DICOM no frames", "DICOM high bit", "DICOM sign",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_small_files_that_ask_for_much_are_refused_at_once(tmp_path: Path, kind: str) -> None:
    suffix, content = asking(kind)
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError) as raised:
        read_volume(path)
    assert raised.value.file_name == path.name
    assert raised.value.remedy


def test_encapsulated_frames_that_ask_for_much_are_refused(tmp_path: Path) -> None:
    rle = benchmark("reader_fuzz").dicom_bytes(0, RLELossless)
    for changes in ({b"\x28\0\x10\0US\2\0\x10\0": b"\x28\0\x10\0US\2\0\xff\xff",
                     b"\x28\0\x11\0US\2\0\x0c\0": b"\x28\0\x11\0US\2\0\xff\xff"},
                    {b"\xfe\xff\0\xe0\4\0\0\0": b"\xfe\xff\0\xe0\xff\xff\xff\xff"},
                    {b"\xfe\xff\xdd\xe0": b"\xfe\xff\0\xe0"}):  # fmt: skip
        content = rle
        for old, new in changes.items():
            assert old in content
            content = content.replace(old, new)
        path = tmp_path / "x.dcm"
        path.write_bytes(content)
        with pytest.raises(UserError):
            read_volume(path)


def test_a_limit_is_set_from_outside_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 2**28 < memory_limit() < 2**50
    path = tmp_path / "x.nii"
    path.write_bytes(nibabel.Nifti1Image(np.zeros((64, 64, 64), np.int16), np.eye(4)).to_bytes())
    monkeypatch.setenv(limits.MEMORY_VARIABLE, "0.0001")
    with pytest.raises(UserError, match=r"64 × 64 × 64.*limit of 0.0001 GiB"):
        read_volume(path)
    for odd in ("much", "", "-1", "0", "nan"):
        monkeypatch.setenv(limits.MEMORY_VARIABLE, odd)
        assert memory_limit() > 2**28
    monkeypatch.delenv(limits.MEMORY_VARIABLE)
    monkeypatch.setattr(limits, "_CGROUPS", tmp_path)
    (tmp_path / "memory.max").write_text("268435456\n")
    assert memory_limit() == 2**27
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_limit() > 2**28


ROOM = """
import resource, sys
from amvlm.errors import UserError
from amvlm.imaging import read_volume
resource.setrlimit(resource.RLIMIT_AS, (1 << 20, 1 << 40))
try:
    read_volume(sys.argv[1])
except UserError as error:
    print(error)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the address space")
def test_too_little_memory_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "x.nii"
    path.write_bytes(nibabel.Nifti1Image(np.zeros((256, 256, 256), np.int16), np.eye(4)).to_bytes())
    answer = subprocess.run([sys.executable, "-c", ROOM, path], capture_output=True, text=True, check=False)
    assert answer.stdout.startswith("x.nii: there is not enough free memory"), answer.stderr


def test_a_stream_is_unfolded_to_its_limit_and_no_further(tmp_path: Path) -> None:
    path = tmp_path / "x.gz"
    good = gzip.compress(bytes(5000))
    assert bounded_gunzip(io.BytesIO(good), 5000, path) == bytes(5000)
    for content, limit, words in ((good, 4999, "unfolds to more than 4,999"), (good[:-9], 5000, "cut short"),
                                  (good[:-4] + b"\0\0\0\1", 5000, "damaged"), (b"text", 9, "damaged")):  # fmt: skip
        with pytest.raises(UserError, match=words):
            bounded_gunzip(io.BytesIO(content), limit, path)


def test_one_boundary_turns_everything_into_sentences(tmp_path: Path) -> None:
    path = tmp_path / "Smith.nii"
    for error in (MemoryError(), RecursionError(), OSError(5, "I/O"), KeyError("x"), EOFError(), zlib.error("x"),
                  PermissionError(13, "x"), struct.error("x"), UserError("as it was", file=path)):  # fmt: skip
        with pytest.raises(UserError, match=r"^Smith\.nii: "), in_a_sentence(path):
            raise error
    with pytest.raises(KeyboardInterrupt), in_a_sentence(path):
        raise KeyboardInterrupt


# -- voxels ---------------------------------------------------------------------------------------------------------


def test_voxels_are_read_in_chunks_whatever_their_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amvlm.imaging.voxels._CHUNK", 64)
    stored = np.arange(1000, dtype=">i2")
    for form, wanted in (
        (Stored(stored.dtype, 1000), np.arange(1000, dtype=np.int16)),
        (Stored(stored.dtype, 1000, 0.5, 3.0), (np.arange(1000) * 0.5 + 3).astype(np.float32)),
        (Stored(stored.dtype, 200, pick=3, of=5), np.arange(3, 1000, 5, dtype=np.int16)),
    ):
        voxels = read_voxels(io.BytesIO(stored.tobytes()), form, tmp_path)
        assert voxels.dtype == wanted.dtype
        assert np.array_equal(voxels, wanted)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_a_few_voxels_may_be_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    monkeypatch.setattr("amvlm.imaging.voxels._CHUNK", 64)
    array = np.arange(1000, dtype=np.float64).reshape(10, 10, 10) + 5
    array[3, 4:6, 5] = value
    array[0, 0, 0] = value
    path = tmp_path / "x.nii"
    path.write_bytes(nibabel.Nifti1Image(array, np.eye(4)).to_bytes())
    volume = read_volume(path)
    assert "3 of 1,000 voxels (less than 1 %) hold no finite number; they count as 6" in volume.notes[0]
    assert volume.array[3, 4, 5] == volume.array[0, 0, 0] == 6
    array[:5] = value
    path.write_bytes(nibabel.Nifti1Image(array, np.eye(4)).to_bytes())
    with pytest.raises(UserError, match=r"500 of 1,000 voxels \(50 %\) hold no finite number"):
        read_volume(path)
    whole = np.ones((4, 4), np.float32)
    assert finite(whole, path)[0] is whole
    strided = np.ones((40, 40), np.float32)[::2, ::2]
    strided[0, 0] = np.nan
    assert np.array_equal(finite(strided, path)[0], np.ones((20, 20)))
