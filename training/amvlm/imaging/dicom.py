"""DICOM: one series as a volume.

Geometry comes from the headers (image position and orientation of every slice), pixels from SimpleITK, which decodes
the compressed transfer syntaxes. What does not form one regular grid is explained and refused, never guessed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amvlm.errors import UserError, the_one_meant, volume_names
from amvlm.imaging.dicom_headers import AGAIN, DicomSeries, Frame, quietly
from amvlm.imaging.volume import Volume

MAX_VOXELS = 2**33


def read_series(series: DicomSeries, volume_index: int | None = None) -> Volume:
    """Read a series as one volume.

    Parameters
    ----------
    series : DicomSeries
    volume_index : int, optional
        Which one, where every position was imaged several times (time points, echoes).

    Raises
    ------
    ChoiceNeeded
        If there are several volumes and none is chosen.
    UserError
        Missing or doubled slices, mixed orientations or sizes, truncated or undecodable pixels.
    """
    folder = series.frames[0].path.parent if len(series.frames) > 1 else series.frames[0].path
    frames = _without_copies(series)
    if frames[0].position is None and len(frames) == 1:
        return _planar(series, frames[0])
    stacks = _stacks(frames, folder)
    number = the_one_meant(
        volume_index, volume_names(len(stacks)), "volume", folder, f"every position was imaged {len(stacks)} times"
    )
    stack = stacks[number]
    affine, notes = _affine(stack, folder)
    if series.modality == "CT" and any(frame.rescale is None for frame in stack):
        notes.append("The files state no rescale slope: values may not be Hounsfield units.")
    pixels = _pixels(stack, folder)
    array = pixels.transpose(2, 1, 0) if pixels.ndim == 3 else pixels.transpose(2, 1, 0, 3)
    return Volume(array, affine, True, False, series.modality, tuple(notes))


# -- geometry -----------------------------------------------------------------------------------------------------


def _without_copies(series: DicomSeries) -> list[Frame]:
    """The same image twice in a folder counts once; its identifier alone does not tell: some are stripped."""
    return list({(frame.uid, frame.position, frame.order): frame for frame in series.frames}.values())


def _stacks(frames: Sequence[Frame], folder: Path) -> list[list[Frame]]:
    """Frames by position along the normal; one stack for each time that the positions were imaged."""
    if any(f.position is None or f.orientation is None for f in frames):
        raise UserError(
            "some images do not say where they lie in the patient", file=folder,
            remedy="Open them one by one as pictures, or export the series with its geometry.",
        )  # fmt: skip
    if len({(f.rows, f.columns, f.spacing) for f in frames}) > 1:
        raise UserError("its images differ in size", file=folder, remedy="Export the parts as series of their own.")
    directions = np.array([f.orientation for f in frames])
    if np.abs(directions - directions[0]).max() > 1e-3:
        raise UserError(
            "its images do not all lie in the same direction (a scout among them?)", file=folder,
            remedy="Export each direction as a series of its own.",
        )  # fmt: skip
    axes = directions[0].reshape(2, 3)
    if np.abs(np.linalg.norm(axes, axis=1) - 1).max() > 0.01 or abs(float(axes[0] @ axes[1])) > 0.01:
        raise UserError("its image orientation is damaged", file=folder, remedy=AGAIN)
    normal = np.cross(axes[0], axes[1])
    places = np.array([np.dot(f.position or (), normal) for f in frames])
    by_place: dict[int, list[Frame]] = {}
    for number, place in zip(np.round(places / 0.01).astype(int).tolist(), range(len(frames)), strict=True):
        key = next((near for near in (number - 1, number, number + 1) if near in by_place), number)
        by_place.setdefault(key, []).append(frames[place])
    counts = {len(found) for found in by_place.values()}
    if len(counts) > 1:
        most = max(counts)
        doubled = sum(len(found) == most for found in by_place.values())
        raise UserError(
            f"{doubled} of its {len(by_place)} positions hold {most} images and the others fewer", file=folder,
            remedy="Slices are missing or doubled; which image is right cannot be known. " + AGAIN,
        )  # fmt: skip
    ordered = [sorted(by_place[key], key=lambda frame: frame.order) for key in sorted(by_place)]
    return [list(stack) for stack in zip(*ordered, strict=True)]


def _affine(stack: Sequence[Frame], folder: Path) -> tuple[NDArray[np.float64], list[str]]:
    """Voxel → RAS mm of (column, row, slice), and what to know about it; uneven slices are refused."""
    first, notes = stack[0], []
    axes = np.array(first.orientation).reshape(2, 3)
    normal = np.cross(axes[0], axes[1])
    spacing = first.spacing
    if spacing is None or min(spacing) <= 0:
        spacing = (1.0, 1.0)
        notes.append("The files state no pixel size: lengths and volumes are not in mm and ml.")
    positions = np.array([frame.position for frame in stack])
    step = normal * (first.thickness or 1.0)
    if len(stack) > 1:
        along = np.diff(positions @ normal)
        usual = float(np.median(along))
        worst = int(np.argmax(np.abs(along - usual)))
        if abs(along[worst] - usual) > max(0.1 * usual, 0.02):
            gap = along[worst] / usual
            what = (
                f"{round(gap) - 1} slice{'s are' if round(gap) > 2 else ' is'} missing after slice {worst + 1}"
                if abs(gap - round(gap)) < 0.1 and gap > 1.5
                else f"its slices are unevenly spaced ({along.min():.2f} to {along.max():.2f} mm)"
            )
            raise UserError(f"{what} of {len(stack)}", file=folder, remedy=AGAIN)
        step = (positions[-1] - positions[0]) / (len(stack) - 1)
        tilt = float(np.degrees(np.arccos(np.clip(step @ normal / np.linalg.norm(step), -1, 1))))
        if tilt > 0.5:
            notes.append(f"The gantry was tilted by {tilt:.0f}°: side views look sheared; lengths there are not exact.")
    lps = np.eye(4)
    lps[:3, 0], lps[:3, 1], lps[:3, 2] = axes[0] * spacing[1], axes[1] * spacing[0], step
    lps[:3, 3] = positions[0]
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps, notes


# -- pixels -------------------------------------------------------------------------------------------------------


def _planar(series: DicomSeries, frame: Frame) -> Volume:
    """One image without a position, such as an X-ray, as one slice; MONOCHROME1 is inverted by the decoder."""
    pixels = _pixels([frame], frame.path)
    array = np.moveaxis(pixels, 0, 2).swapaxes(0, 1)
    across = {"L\\F": -1.0, "R\\F": 1.0}.get("\\".join(series.patient_orientation))
    notes = []
    if across is None:
        notes.append("The file does not say which side is the patient's left.")
    if frame.spacing is None:
        notes.append("The file states no pixel size: areas are in pixels.")
    rows, columns = frame.spacing or (1.0, 1.0)
    affine = np.diag([(across or -1.0) * columns, -rows, 1.0, 1.0])
    return Volume(array, affine, across is not None, True, series.modality, tuple(notes))


def _pixels(stack: Sequence[Frame], folder: Path) -> NDArray[Any]:
    """(slices, rows, columns[, 3]), rescaled as the headers say."""
    if len(stack) * stack[0].rows * stack[0].columns > MAX_VOXELS:
        raise UserError("the series asks for more voxels than fit in memory", file=folder, remedy="Crop the scan.")
    slopes = {frame.rescale for frame in stack}
    files = list(dict.fromkeys(frame.path for frame in stack))
    if len(files) == len(stack) > 1 and len(slopes) == 1:
        pixels = _decoded(files, folder)
    else:  # one slope for each image (PET), or several frames in one file
        kept: dict[Path, NDArray[Any]] = {}
        for path in files:
            decoded = _decoded([path], path)
            kept[path] = decoded if len(slopes) == 1 else decoded.astype(np.float32)
        pixels = np.stack([kept[frame.path][frame.index] for frame in stack])
    if pixels.shape[:3] != (len(stack), stack[0].rows, stack[0].columns):
        raise UserError("the pixels do not have the size that the headers state", file=folder, remedy=AGAIN)
    return pixels


def _decoded(files: Sequence[Path], named: Path) -> NDArray[Any]:
    import SimpleITK

    try:
        _check_lengths(files)
        names = [str(path) for path in files]
        image = SimpleITK.ReadImage(names if len(names) > 1 else names[0], imageIO="GDCMImageIO")
    except RuntimeError as error:
        raise UserError(
            f"its pixels cannot be decoded ({_syntax(files[0])})", file=named,
            remedy="The file is damaged, or compressed in a way that is not supported: export it uncompressed.",
        ) from error  # fmt: skip
    array: NDArray[Any] = SimpleITK.GetArrayFromImage(image)
    return array if array.ndim > 2 and not (array.ndim == 3 and array.shape[-1] == 3) else array[None]


def _check_lengths(files: Sequence[Path]) -> None:
    """Uncompressed pixels cut short are padded in silence by the decoder: count them first."""
    import pydicom

    for path in files:
        with quietly():
            header = pydicom.dcmread(path, defer_size=1024, force=True)
        if (
            getattr(header.file_meta, "TransferSyntaxUID", None) is None
            or header.file_meta.TransferSyntaxUID.is_compressed
        ):
            continue
        wanted = (
            int(header.Rows) * int(header.Columns) * int(header.get("SamplesPerPixel") or 1)
            * int(header.get("NumberOfFrames") or 1) * int(header.BitsAllocated) // 8
        )  # fmt: skip
        try:
            held = len(header.PixelData) if "PixelData" in header else 0
        except Exception:  # noqa: BLE001 - cut inside the element
            held = 0
        if held < wanted:
            raise UserError(
                f"the file is cut short: {wanted:,} bytes of pixels expected, {held:,} found", file=path, remedy=AGAIN
            )


def _syntax(path: Path) -> str:
    try:
        return str(_meta(path).TransferSyntaxUID.name)
    except Exception:  # noqa: BLE001 - only for a message
        return "transfer syntax not readable"


def _meta(path: Path) -> Any:
    import pydicom

    with quietly():
        return pydicom.dcmread(path, stop_before_pixels=True, force=True).file_meta
