"""NIfTI headers that lie, contradict themselves, or state other units."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from amvlm.errors import UserError
from amvlm.imaging import nifti_bytes, read_volume
from amvlm.imaging.nifti import volume_from_nifti

AFFINE = np.diag([2.0, 1.5, 3.0, 1.0])


def image(change: Callable[[nibabel.Nifti1Header], None] | None = None, array: np.ndarray | None = None,
          kind: type = nibabel.Nifti1Image) -> bytes:  # fmt: skip
    array = np.arange(24, dtype=np.int16).reshape(2, 3, 4) if array is None else array
    made = kind(array, AFFINE)
    made.set_qform(AFFINE, 1)
    made.set_sform(AFFINE, 1)
    raw = made.to_bytes()
    size = 540 if kind is nibabel.Nifti2Image else 348
    header = type(made.header)(raw[:size])
    if change is not None:
        change(header)
    return header.binaryblock + raw[size:]


def fields(**values: object) -> Callable[[nibabel.Nifti1Header], None]:
    def change(header: nibabel.Nifti1Header) -> None:
        for name, value in values.items():
            header[name] = value

    return change


def dims(*values: int) -> dict[str, object]:
    return {"dim": [*values, *[1] * (8 - len(values))]}


REFUSED = {
    "voxels over the header": ({"vox_offset": 0}, "where the voxels begin"),
    "voxels inside the header": ({"vox_offset": 100}, "where the voxels begin"),
    "one voxel byte in the header": ({"vox_offset": 351}, "where the voxels begin"),
    "offset not a number": ({"vox_offset": np.nan}, "where the voxels begin"),
    "offset negative": ({"vox_offset": -352}, "where the voxels begin"),
    "offset beyond": ({"vox_offset": 4000}, "cut short"),
    "sform of 1e30": ({"srow_x": [1e30, 0, 0, 0]}, "states voxels of"),
    "sform far away": ({"srow_x": [2, 0, 0, 1e9], "qform_code": 0}, "states voxels of"),
    "sform tiny": ({"srow_x": [1e-9, 0, 0, 0], "qform_code": 0}, "states voxels of"),
    "sform NaN": ({"srow_x": [np.nan, 0, 0, 0]}, "not finite"),
    "sform zero": ({"srow_x": [0, 0, 0, 0]}, "singular"),
    "two spacings": ({"srow_x": [2.2, 0, 0, 0]}, "two voxel sizes, 2.2 × 1.5 × 3 mm"),
    "two spacings, other codes": ({"srow_x": [2.2, 0, 0, 0], "sform_code": 4}, "two voxel sizes"),
    "two places": ({"srow_x": [2, 0, 0, 40]}, "two places 40.0 mm apart"),
    "two places, rotated": ({"quatern_b": 0.2}, "two places|two orientations"),
    "no dimension": (dims(0), "impossible dimensions"),
    "zero": (dims(3, 0, 3, 4), "impossible dimensions"),
    "negative dimensions": (dims(-3, 2, 3, 4), "impossible dimensions|not a NIfTI"),
    "eight dimensions": (dims(8, 2, 3, 4), "impossible|not a NIfTI|voxels begin"),
    "five dimensions": (dims(5, 2, 3, 1, 1, 4), "5 dimensions"),
    "slope infinite": ({"scl_slope": np.inf}, "scale of its values"),
    "inter NaN": ({"scl_slope": 2, "scl_inter": np.nan}, "scale of its values"),
    "unknown unit": ({"xyzt_units": 5}, "unit of length"),
    "metres": ({"xyzt_units": 1}, "states voxels of 2e"),
    "complex": ({"datatype": 32, "bitpix": 64}, "type complex"),
    "RGB": ({"datatype": 128, "bitpix": 24}, "not supported"),
    "one bit": ({"datatype": 1, "bitpix": 1}, "not a NIfTI|not supported|impossible"),
    "unknown type": ({"datatype": 999}, "not a NIfTI"),
    "pair": ({"magic": b"ni1"}, "not a single-file"),
    "no place, no size": ({"sform_code": 0, "qform_code": 0, "pixdim": [1, 0, 1, 1, 0, 0, 0, 0]}, "no voxel size"),
    "quaternion NaN": ({"sform_code": 0, "quatern_b": np.nan}, "not"),
    "quaternion of 3": ({"sform_code": 0, "quatern_b": 3}, "not"),
    "qform spacing negative": ({"sform_code": 0, "pixdim": [1, -2, 1, 1, 0, 0, 0, 0]}, "no voxel size"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_headers_that_cannot_be_trusted_are_refused(tmp_path: Path, kind: str) -> None:
    values, words = REFUSED[kind]
    content = image(fields(**values))
    path = tmp_path / "x.nii"
    path.write_bytes(content)
    for read in (lambda: read_volume(path), lambda: volume_from_nifti(content, path)):
        with pytest.raises(UserError, match=words) as raised:
            read()
        assert raised.value.file_name == "x.nii"
        assert raised.value.remedy


@pytest.mark.parametrize(("unit", "factor"), [(0, 1), (2, 1), (3, 0.001), (16 + 2, 1), (8 + 3, 0.001)])
def test_units_are_converted(tmp_path: Path, unit: int, factor: float) -> None:
    (tmp_path / "x.nii").write_bytes(image(fields(xyzt_units=unit)))
    assert np.allclose(read_volume(tmp_path / "x.nii").affine[:3], AFFINE[:3] * factor)


def test_two_spaces_are_a_note_and_a_broken_qform_too(tmp_path: Path) -> None:
    path = tmp_path / "x.nii"
    path.write_bytes(image(fields(srow_x=[2, 0, 0, 40], sform_code=4)))
    assert "two places 40.0 mm apart" in read_volume(path).notes[0]
    path.write_bytes(image(fields(quatern_b=np.nan)))
    assert "damaged second orientation" in read_volume(path).notes[0]
    path.write_bytes(image(fields(srow_x=[2, 0, 0, 0.1])))
    assert read_volume(path).notes == ()


@pytest.mark.parametrize("slope", [0, np.nan])
def test_no_slope_means_no_scaling(tmp_path: Path, slope: float) -> None:
    (tmp_path / "x.nii").write_bytes(image(fields(scl_slope=slope, scl_inter=np.nan)))
    assert read_volume(tmp_path / "x.nii").array.dtype == np.int16


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_every_type_and_byte_order_agrees_with_nibabel(tmp_path: Path, dtype: str, order: str, kind: type) -> None:
    array = (np.random.default_rng(0).random((3, 4, 5, 2)) * 100).astype(dtype)
    header = kind.header_class(endianness=order)
    header.set_data_dtype(np.dtype(dtype))
    made = kind(array, AFFINE, header)
    path = tmp_path / "x.nii.gz"
    nibabel.save(made, path)
    for number in (0, 1):
        volume = read_volume(path, number)
        assert np.array_equal(volume.array, np.asarray(nibabel.load(path).dataobj)[..., number])
        assert volume.array.dtype == np.dtype(dtype)
        assert volume.array.dtype.isnative


def test_texts_and_extensions_stay_outside(tmp_path: Path) -> None:
    made = nibabel.Nifti1Image(np.zeros((2, 3, 4), np.int16), AFFINE)
    for field in ("descrip", "aux_file", "intent_name", "db_name"):
        made.header[field] = b"PLANTED-1"
    made.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"PLANTED-5 " * 20))
    nibabel.save(made, tmp_path / "x.nii.gz")
    volume = read_volume(tmp_path / "x.nii.gz")
    assert "PLANTED" not in repr(vars(volume))
    assert b"PLANTED" not in nifti_bytes(volume)
