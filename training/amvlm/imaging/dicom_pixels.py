"""The pixels of DICOM images, decoded one frame at a time.

SimpleITK decodes; it never opens a stranger's file, but a single-frame file made here from the checked fields of the
pixel module and the bytes of one frame. So memory is the result plus one frame, and what the rest of a header holds
reaches no decoder. Values are rescaled here, as the headers say.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from amvlm.errors import UserError
from amvlm.imaging.dicom_file import AGAIN, NATIVE, Frame, PixelSource
from amvlm.imaging.limits import check_size

_MAX_RATIO = 10_000
_UNCHECKED = 64 * 2**20
_LITTLE, _BIG = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"


def read_pixels(stack: Sequence[Frame], folder: Path) -> NDArray[Any]:
    """Decode and rescale frames.

    Parameters
    ----------
    stack : sequence of Frame
        In order, all of one size.
    folder : Path
        For messages about the series as a whole.

    Returns
    -------
    ndarray, (slices, rows, columns) or (slices, rows, columns, 3)
        The stored dtype; where the headers rescale, the smallest integers that hold every value, or float32.

    Raises
    ------
    UserError
        Pixels cut short, undecodable, of another size or type than stated, or more than memory should hold.
    """
    first = stack[0]
    _check_kind(stack, folder)
    shape = (len(stack), first.rows, first.columns)
    pixels: NDArray[Any] | None = None
    by_file: dict[Path, list[int]] = {}
    for place, frame in enumerate(stack):
        by_file.setdefault(frame.path, []).append(place)
    with tempfile.TemporaryDirectory() as scratch:
        for path, places in by_file.items():
            wanted = {stack[place].index: place for place in places}
            for index, content in _frames_of(stack[places[0]].source, path, set(wanted)):
                place = wanted[index]
                decoded = _decoded(stack[place], content, Path(scratch) / "frame.dcm")
                if pixels is None:
                    dtype = _target(stack, decoded.dtype)
                    check_size(int(np.prod(shape, dtype=object)) * decoded[0, 0].size * dtype.itemsize, shape, folder)
                    pixels = np.empty((len(stack), *decoded.shape), dtype)
                _put(pixels, place, decoded, stack[place])
    if pixels is None:
        raise UserError("it holds no image", file=folder, remedy=AGAIN)
    return pixels


def _check_kind(stack: Sequence[Frame], folder: Path) -> None:
    for frame in stack:
        module = frame.source.module
        bits, samples = int(module.BitsAllocated), int(module.get("SamplesPerPixel") or 1)
        stored = int(module.get("BitsStored") or bits)
        high, signed = int(module.get("HighBit") or stored - 1), int(module.get("PixelRepresentation") or 0)
        if bits not in (8, 16, 32) or samples not in (1, 3) or not 1 <= stored <= high + 1 <= bits or signed > 1:
            raise UserError(
                f"pixels of {samples} × {bits} bits ({stored} of them in use) are not supported", file=frame.path,
                remedy="Export the series as a grey-scale or RGB image.",
            )  # fmt: skip
    wanted = sum(frame.source.frame_bytes for frame in stack)
    check_size(wanted, (len(stack), stack[0].rows, stack[0].columns), folder)


# -- bytes of a frame ---------------------------------------------------------------------------------------------


def _frames_of(source: PixelSource, path: Path, wanted: set[int]) -> Iterator[tuple[int, bytes]]:
    """The bytes of some frames of a file."""
    with path.open("rb") as stream:
        if source.length is not None:
            if source.syntax not in NATIVE:
                raise _undecodable(source, path)
            for index in sorted(wanted):
                stream.seek(source.start + index * source.frame_bytes)
                yield index, stream.read(source.frame_bytes)
            return
        frames = _encapsulated(stream, source, path)
        for index in sorted(wanted):
            content = b""
            for start, length in frames[index]:
                stream.seek(start)
                content += stream.read(length)
            if source.frame_bytes > max(_UNCHECKED, _MAX_RATIO * len(content)):
                raise UserError(
                    f"its header asks for {source.frame_bytes:,} bytes from {len(content):,} compressed ones",
                    file=path, remedy=AGAIN,
                )  # fmt: skip
            yield index, content


def _encapsulated(stream: BinaryIO, source: PixelSource, path: Path) -> list[list[tuple[int, int]]]:
    """Frame → its fragments (start, length), each of which lies in the file whole."""
    table, fragments = b"", []
    place, first = source.start, True
    while True:
        stream.seek(place)
        head = stream.read(8)
        tag, length = head[:4], int.from_bytes(head[4:], "little")
        if tag == b"\xfe\xff\xdd\xe0":
            break
        if len(head) < 8 or tag != b"\xfe\xff\x00\xe0" or place + 8 + length > source.size:
            raise UserError("the file is cut short in its pixels", file=path, remedy=AGAIN)
        if first:
            table = stream.read(length)
        else:
            fragments.append((place + 8, length))
        place, first = place + 8 + length, False
    if source.frames == 1 and fragments:
        return [fragments]
    if source.frames == len(fragments):
        return [[fragment] for fragment in fragments]
    offsets = np.frombuffer(table[: len(table) // 4 * 4], "<u4").tolist()
    if len(offsets) != source.frames or not fragments or offsets[0] != 0:
        raise UserError("its images cannot be told apart", file=path, remedy="Export the series uncompressed.")
    frames: list[list[tuple[int, int]]] = []
    for start, length in fragments:  # offsets count from the tag of the first fragment
        if len(frames) < len(offsets) and start - fragments[0][0] == offsets[len(frames)]:
            frames.append([])
        frames[-1].append((start, length))
    if len(frames) != source.frames:
        raise UserError("its images cannot be told apart", file=path, remedy="Export the series uncompressed.")
    return frames


# -- values -------------------------------------------------------------------------------------------------------


def _decoded(frame: Frame, content: bytes, scratch: Path) -> NDArray[Any]:
    """(rows, columns[, 3]) as stored; MONOCHROME1 is inverted, palettes and YBR become RGB."""
    import SimpleITK

    source = frame.source
    try:
        _write_single(source, content, scratch)
        SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
        image = SimpleITK.ReadImage(str(scratch), imageIO="GDCMImageIO")
    except Exception as error:  # pydicom refuses odd fields, and SimpleITK odd pixels, in many ways
        if isinstance(error, MemoryError):
            raise
        raise _undecodable(source, frame.path) from error
    array: NDArray[Any] = SimpleITK.GetArrayFromImage(image)
    array = array[0] if image.GetDimension() == 3 else array
    if array.shape not in ((frame.rows, frame.columns), (frame.rows, frame.columns, 3)):
        raise UserError("the pixels do not have the size that the headers state", file=frame.path, remedy=AGAIN)
    return array


def _write_single(source: PixelSource, content: bytes, scratch: Path) -> None:
    import pydicom
    from pydicom.encaps import encapsulate

    native = source.length is not None
    dataset = pydicom.Dataset()
    dataset.update(source.module)
    dataset.SOPClassUID, dataset.SOPInstanceUID = _SECONDARY_CAPTURE, "2.25.1"
    if native and source.syntax == _BIG and int(dataset.BitsAllocated) > 8:
        content = np.frombuffer(content, f">u{int(dataset.BitsAllocated) // 8}").byteswap().tobytes()
    dataset.PixelData = content + b"\0" * (len(content) % 2) if native else encapsulate([content])
    dataset["PixelData"].VR = "OW" if native and int(dataset.BitsAllocated) > 8 else "OB"
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = _LITTLE if native else source.syntax
    dataset.save_as(scratch, enforce_file_format=True, little_endian=True, implicit_vr=False)


def _undecodable(source: PixelSource, path: Path) -> UserError:
    from pydicom.uid import UID_dictionary

    name = UID_dictionary.get(source.syntax, ("an unknown transfer syntax",))[0] if source.syntax else "none stated"
    return UserError(
        f"its pixels cannot be decoded ({name})", file=path,
        remedy="The file is damaged, or compressed in a way that is not supported: export it uncompressed.",
    )  # fmt: skip


def _target(stack: Sequence[Frame], decoded: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype that holds every rescaled value."""
    rescales = {frame.rescale or (1.0, 0.0) for frame in stack}
    if rescales == {(1.0, 0.0)} or decoded.kind == "f":
        return decoded
    if len(rescales) > 1 or any(value % 1 for value in next(iter(rescales))):
        return np.dtype(np.float32)
    slope, intercept = next(iter(rescales))
    ends = [value * int(slope) + int(intercept) for value in _range(stack[0], decoded)]
    kinds = (np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64)
    fitting = (kind for kind in kinds if min(ends) >= np.iinfo(kind).min and max(ends) <= np.iinfo(kind).max)
    return np.dtype(next(fitting, np.float32))


def _range(frame: Frame, decoded: np.dtype[Any]) -> tuple[int, int]:
    """The values that the stored bits can hold."""
    module = frame.source.module
    bits = min(max(int(module.get("BitsStored") or 1), 1), 8 * decoded.itemsize)
    if decoded.kind == "i":
        return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    return 0, 2**bits - 1


def _put(pixels: NDArray[Any], place: int, decoded: NDArray[Any], frame: Frame) -> None:
    """Rescale one frame into its place."""
    slope, intercept = frame.rescale or (1.0, 0.0)
    if decoded.shape != pixels.shape[1:]:
        raise UserError("its images differ in size", file=frame.path, remedy="Export the parts as series of their own.")
    if pixels.dtype.kind == "f":
        with np.errstate(over="ignore", invalid="ignore"):
            pixels[place] = decoded * np.float64(slope) + intercept
        return
    if (slope, intercept) == (1.0, 0.0):
        values = decoded
    else:
        values = decoded.astype(np.int64) * int(slope) + int(intercept)
    bounds = np.iinfo(pixels.dtype)
    if values.dtype != pixels.dtype and (int(values.min()) < bounds.min or int(values.max()) > bounds.max):
        raise UserError("its values do not fit the bits that the headers state", file=frame.path, remedy=AGAIN)
    pixels[place] = values
