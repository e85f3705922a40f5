"""Geometry, sides, reading and writing."""

from __future__ import annotations

import gzip
import itertools
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from nibabel.orientations import apply_orientation, inv_ornt_aff
from PIL import Image

from amvlm.errors import UserError
from amvlm.imaging import (
    Volume,
    canonical_mask,
    from_display,
    nifti_bytes,
    read_volume,
    slice_axis,
    to_canonical,
    to_display,
    to_original,
    write_volume,
)
from amvlm.imaging.resample import IntensityScale, SliceGrid, slabs

ORIENTATIONS = [
    np.array(list(zip(axes, flips, strict=True)))
    for axes in itertools.permutations(range(3))
    for flips in itertools.product((1, -1), repeat=3)
]


def stored_as(volume: Volume, orientation: np.ndarray) -> Volume:
    """The same scan in another storage order."""
    affine = volume.affine @ inv_ornt_aff(orientation, volume.shape)
    return Volume(apply_orientation(volume.array, orientation), affine)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_every_storage_order_has_one_canonical_form(scan_path: Path, orientation: np.ndarray) -> None:
    volume = read_volume(scan_path)
    other = stored_as(volume, orientation)
    canonical = to_canonical(other)
    assert np.array_equal(canonical.array, to_canonical(volume).array)
    assert np.allclose(canonical.affine, to_canonical(volume).affine)
    assert np.array_equal(to_original(canonical.array, other), other.array)
    assert np.array_equal(canonical_mask(other.array, other), canonical.array)
    assert np.array_equal(SliceGrid.of(other, 16).stack(other.array), SliceGrid.of(volume, 16).stack(volume.array))


def test_oblique_goes_to_its_nearest_axes() -> None:
    angle = np.deg2rad(20)
    rotation = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag([-1.0, 1, 2])
    volume = Volume(np.arange(24).reshape(2, 3, 4), affine)
    assert np.array_equal(to_canonical(volume).array, volume.array[::-1])


def test_display_is_radiological_and_painting_reaches_the_scan() -> None:
    ras = np.zeros((3, 4, 5), np.uint8)
    shown = to_display(ras)
    assert shown.shape == (5, 4, 3)
    shown[0, 0, 0] = 1  # top of the head, front, left edge of the screen
    assert ras[2, 3, 4] == 1  # superior, anterior, the patient's right (RAS: x grows to the right)
    assert np.shares_memory(from_display(shown), ras)


def test_slices_run_across_the_coarsest_spacing_and_ties_are_axial() -> None:
    assert slice_axis(np.array([1.0, 1.0, 3.0])) == 2
    assert slice_axis(np.array([5.0, 1.0, 3.0])) == 0
    assert slice_axis(np.array([1.0, 1.0, 1.0])) == 2
    assert slice_axis(np.array([1.001, 1.0, 1.0])) == 2


def test_letterbox_returns_to_the_same_grid() -> None:
    mask = np.zeros((40, 20, 3), np.float32)
    mask[10:30, 5:15] = 1
    grid = SliceGrid.of(Volume(mask, np.diag([1.0, 1, 2, 1])), 32)
    slices = torch.from_numpy(np.ascontiguousarray(grid.stack(mask)))[:, None]
    squares = grid.to_square(slices)
    assert squares.shape == (3, 1, 32, 32)
    back = grid.from_square(squares)[:, 0].numpy() > 0.5
    assert 2 * (back & (grid.stack(mask) > 0)).sum() / (back.sum() + mask.sum()) > 0.97


def test_intensity_scale_is_finite_whatever_the_units() -> None:
    array = np.random.default_rng(0).normal(1e6, 10, (10, 10, 10)).astype(np.float32)
    array[0, 0, 0], array[0, 0, 1] = np.nan, np.inf
    scaled = IntensityScale.of(array).apply(array)
    assert np.isfinite(scaled).all()
    assert abs(float(scaled.mean())) < 0.05
    constant = np.full((3, 3, 3), 7)
    assert np.array_equal(IntensityScale.of(constant).apply(constant), np.zeros((3, 3, 3)))


def test_slabs_hold_the_neighbours_and_repeat_the_edges() -> None:
    array = np.arange(4, dtype=np.float32)[:, None, None] * np.ones((4, 8, 8), np.float32)
    grid = SliceGrid.of(Volume(array.transpose(1, 2, 0), np.diag([1.0, 1, 2, 1])), 8)
    found = slabs(array, IntensityScale(0, 3, 0, 1), grid, [0, 2, 3])
    assert found[:, :, 4, 4].tolist() == [[0, 0, 1], [1, 2, 3], [2, 3, 3]]


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_written_scans_read_back_by_nibabel(scan_path: Path, tmp_path: Path, suffix: str) -> None:
    volume = read_volume(scan_path)
    path = tmp_path / f"copy{suffix}"
    write_volume(path, volume)
    image = nibabel.load(path)
    assert image.get_data_dtype() == volume.array.dtype
    assert np.array_equal(np.asarray(image.dataobj), volume.array)
    assert np.allclose(image.get_sform(), volume.affine)
    assert np.allclose(image.get_qform(), volume.affine)
    assert np.allclose(image.header.get_zooms(), volume.spacing_mm)
    assert nifti_bytes(volume) == nifti_bytes(read_volume(path))


def test_scaling_gives_float32(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.arange(8, dtype=np.int16).reshape(2, 2, 2), np.eye(4))
    image.header.set_slope_inter(2.0, -1.0)
    path = tmp_path / "scaled.nii"
    raw = bytearray(image.to_bytes())
    raw[112:120] = np.array([2.0, -1.0], "<f4").tobytes()
    path.write_bytes(raw)
    volume = read_volume(path)
    assert volume.array.dtype == np.float32
    assert volume.array[0, 0, 0] == -1


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_pictures_are_one_slice_with_sides_unknown(tmp_path: Path, suffix: str) -> None:
    pixels = np.zeros((5, 7, 3), np.uint8)
    pixels[0, 6] = (200, 10, 10)
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(pixels).save(path, lossless=True) if suffix == "webp" else Image.fromarray(pixels).save(path)
    volume = read_volume(path)
    assert volume.shape == (7, 5, 1)
    assert volume.planar
    assert not volume.sides_known
    shown = to_display(to_canonical(volume).array)
    assert np.array_equal(shown[0], pixels)


def test_grey_pictures_keep_their_dtype(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Image.fromarray(np.arange(6, dtype=np.uint16).reshape(2, 3)).save(path)
    assert read_volume(path).array.dtype.itemsize >= 2
    assert read_volume(path).array.shape == (3, 2, 1)


def damage(kind: str, good: bytes, folder: Path) -> Path:
    path = folder / "Smith_John.nii.gz"
    raw = gzip.decompress(good)
    header = bytearray(raw)
    if kind == "missing":
        return path
    if kind == "folder":
        path.mkdir()
        return path
    if kind == "text":
        good = b"this is not an image" * 50
    elif kind == "gzipped text":
        good = gzip.compress(b"this is not an image" * 50)
    elif kind == "empty":
        good = b""
    elif kind == "truncated":
        good = good[: len(good) // 2]
    elif kind == "checksum":
        good = good[:-8] + b"\0\0\0\0" + good[-4:]
    elif kind == "bit flip":
        middle = bytearray(good)
        middle[len(good) // 2] ^= 0x10
        good = bytes(middle)
    elif kind == "short voxels":
        good = gzip.compress(raw[:-10])
    elif kind == "NaN":
        good = gzip.compress(nibabel.Nifti1Image(np.full((2, 2, 2), np.nan, np.float32), np.eye(4)).to_bytes())
    elif kind == "singular":
        header[280:328] = np.zeros(12, "<f4").tobytes()
        header[252:256] = np.array([0, 1], "<i2").tobytes()
        good = gzip.compress(bytes(header))
    elif kind == "huge":
        header[40:56] = np.array([3, 32000, 32000, 32000, 1, 1, 1, 1], "<i2").tobytes()
        good = gzip.compress(bytes(header))
    elif kind == "negative":
        header[40:56] = np.array([3, -2, 5, 5, 1, 1, 1, 1], "<i2").tobytes()
        good = gzip.compress(bytes(header))
    elif kind == "four dimensions":
        good = gzip.compress(nibabel.Nifti1Image(np.zeros((2, 2, 2, 3), np.uint8), np.eye(4)).to_bytes())
    path.write_bytes(good)
    return path


BAD_FILES = (
    "missing", "folder", "text", "gzipped text", "empty", "truncated", "checksum", "bit flip", "short voxels", "NaN",
    "singular", "huge", "negative", "four dimensions",
)  # fmt: skip


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_files_are_refused_in_a_sentence(scan_path: Path, tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "private"
    folder.mkdir()
    with pytest.raises(UserError) as raised:
        read_volume(damage(kind, scan_path.read_bytes(), folder))
    message = str(raised.value)
    assert message.startswith("Smith_John.nii.gz: ")
    assert "private" not in message
    assert raised.value.remedy


def test_a_4d_file_opens_once_the_volume_is_chosen(tmp_path: Path) -> None:
    path = tmp_path / "x.nii"
    path.write_bytes(nibabel.Nifti1Image(np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3), np.eye(4)).to_bytes())
    assert read_volume(path, volume_index=2).array[0, 0, 0] == 2
    with pytest.raises(UserError, match="no volume number 5"):
        read_volume(path, volume_index=5)


def test_without_qform_and_sform_sides_are_not_known(tmp_path: Path) -> None:
    raw = bytearray(nibabel.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4)).to_bytes())
    raw[252:256] = b"\0\0\0\0"
    path = tmp_path / "x.nii"
    path.write_bytes(raw)
    assert not read_volume(path).sides_known
