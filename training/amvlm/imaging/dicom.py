"""DICOM: one series as a volume.

Geometry comes from the headers (image position and orientation of every slice), pixels from ``dicom_pixels``. What
does not form one regular grid is explained and refused, never guessed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amvlm.errors import UserError, choose_index, volume_names
from amvlm.imaging.dicom_file import AGAIN, Frame
from amvlm.imaging.dicom_headers import DicomSeries
from amvlm.imaging.dicom_pixels import read_pixels
from amvlm.imaging.limits import in_a_sentence
from amvlm.imaging.volume import Volume
from amvlm.imaging.voxels import finite


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
    with in_a_sentence(folder, "this series is damaged"):
        return _read(series, volume_index, folder)


def _read(series: DicomSeries, volume_index: int | None, folder: Path) -> Volume:
    frames = _without_copies(series)
    if frames[0].position is None and len(frames) == 1:
        return _planar(series, frames[0])
    stacks = _stacks(frames, folder)
    number = choose_index(
        volume_index, volume_names(len(stacks)), "volume", folder, f"every position was imaged {len(stacks)} times"
    )
    stack = stacks[number]
    affine, notes = _affine(stack, folder)
    if series.modality == "CT" and any(frame.rescale is None for frame in stack):
        notes.append("The files state no rescale slope: values may not be Hounsfield units.")
    pixels, more = finite(read_pixels(stack, folder), folder)
    array = pixels.transpose(2, 1, 0) if pixels.ndim == 3 else pixels.transpose(2, 1, 0, 3)
    return _volume(series, array, affine, folder, (*notes, *more), sides_known=True)


def _volume(
    series: DicomSeries, array: NDArray[Any], affine: NDArray[np.float64], folder: Path, notes: Sequence[str],
    sides_known: bool, planar: bool = False,
) -> Volume:  # fmt: skip
    try:
        return Volume(array, affine, sides_known, planar, series.modality, tuple(notes))
    except UserError as error:
        raise UserError(error.what, file=folder, remedy=error.remedy) from error


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


def _planar(series: DicomSeries, frame: Frame) -> Volume:
    """One image without a position, such as an X-ray, as one slice; MONOCHROME1 is inverted by the decoder."""
    pixels, more = finite(read_pixels([frame], frame.path), frame.path)
    array = np.moveaxis(pixels, 0, 2).swapaxes(0, 1)
    across = {"L\\F": -1.0, "R\\F": 1.0}.get("\\".join(series.patient_orientation))
    notes = list(more)
    if across is None:
        notes.append("The file does not say which side is the patient's left.")
    if frame.spacing is None:
        notes.append("The file states no pixel size: areas are in pixels.")
    rows, columns = frame.spacing or (1.0, 1.0)
    affine = np.diag([(across or -1.0) * columns, -rows, 1.0, 1.0])
    return _volume(series, array, affine, frame.path, notes, across is not None, planar=True)
