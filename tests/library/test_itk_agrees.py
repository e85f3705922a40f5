"""Our own NRRD and MetaImage readers against SimpleITK, over types, dimensions, byte orders and directions."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from amvlm.errors import UserError
from amvlm.imaging import read_volume

TURN = (0, -1, 0, 0, 0, 1, -1, 0, 0)
TILT = tuple(np.array([[np.cos(0.3), -np.sin(0.3), 0], [np.sin(0.3), np.cos(0.3), 0], [0, 0, -1]]).ravel().tolist())


def written(path: Path, array: np.ndarray, direction: tuple[float, ...] = (), vector: bool = False,
            compressed: bool = False) -> SimpleITK.Image:  # fmt: skip
    image = SimpleITK.GetImageFromArray(array, isVector=vector)
    if image.GetDimension() == 3:
        image.SetSpacing((0.75, 1.5, 3.0))
        image.SetOrigin((-12.5, 30.25, 7.0))
        if direction:
            image.SetDirection(direction)
    SimpleITK.WriteImage(image, str(path), compressed)
    return image


def agree(path: Path, image: SimpleITK.Image) -> None:
    volume = read_volume(path)
    assert np.array_equal(SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0), volume.array)
    assert volume.array.dtype == SimpleITK.GetArrayViewFromImage(image).dtype
    for index in itertools.product(*[(0, n - 1) for n in volume.shape]):
        world = np.array(image.TransformIndexToPhysicalPoint(tuple(map(int, index)))) * (-1, -1, 1)
        assert np.allclose((volume.affine @ [*index, 1])[:3], world, atol=1e-4)


@pytest.mark.parametrize("suffix", [".nrrd", ".nhdr", ".mha", ".mhd"])
@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"])
def test_every_type(tmp_path: Path, suffix: str, dtype: str) -> None:
    array = (np.random.default_rng(0).random((3, 4, 5)) * 100).astype(dtype)
    agree(tmp_path / f"x{suffix}", written(tmp_path / f"x{suffix}", array))
    agree(tmp_path / f"y{suffix}", written(tmp_path / f"y{suffix}", array, compressed=True))


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
@pytest.mark.parametrize("direction", [TURN, TILT])
def test_every_direction(tmp_path: Path, suffix: str, direction: tuple[float, ...]) -> None:
    path = tmp_path / f"x{suffix}"
    agree(path, written(path, np.arange(60, dtype=np.int16).reshape(3, 4, 5), direction))


@pytest.mark.parametrize(("suffix", "line", "other"), [
    (".nrrd", b"endian: little", b"endian: big"),
    (".mha", b"BinaryDataByteOrderMSB = False", b"BinaryDataByteOrderMSB = True"),
])  # fmt: skip
def test_big_endian(tmp_path: Path, suffix: str, line: bytes, other: bytes) -> None:
    path = tmp_path / f"x{suffix}"
    written(path, np.arange(60, dtype=np.int16).reshape(3, 4, 5))
    path.write_bytes(path.read_bytes().replace(line, other))
    agree(path, SimpleITK.ReadImage(str(path)))


@pytest.mark.parametrize("space", ["right-anterior-superior", "RAS", "left-anterior-superior", "LPS"])
def test_every_space_of_nrrd(tmp_path: Path, space: str) -> None:
    path = tmp_path / "x.nrrd"
    written(path, np.arange(60, dtype=np.int16).reshape(3, 4, 5), TILT)
    path.write_bytes(path.read_bytes().replace(b"space: left-posterior-superior", f"space: {space}".encode()))
    agree(path, SimpleITK.ReadImage(str(path)))
    assert read_volume(path).sides_known


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_two_and_four_dimensions_and_vectors(tmp_path: Path, suffix: str) -> None:
    rng = np.random.default_rng(0)
    plane = rng.integers(0, 99, (4, 5)).astype(np.uint8)
    written(tmp_path / f"a{suffix}", plane)
    flat = read_volume(tmp_path / f"a{suffix}")
    assert flat.planar
    assert np.array_equal(flat.array[..., 0].T, plane)
    times = rng.integers(0, 99, (6, 2, 3, 4)).astype(np.int16)
    written(tmp_path / f"b{suffix}", times)
    assert np.array_equal(read_volume(tmp_path / f"b{suffix}", 4).array.T, times[4])
    vectors = rng.integers(0, 99, (2, 3, 4, 5)).astype(np.float32)
    written(tmp_path / f"c{suffix}", vectors, vector=True, compressed=True)
    assert np.array_equal(read_volume(tmp_path / f"c{suffix}", 3).array.T, vectors[..., 3])
    colour = rng.integers(0, 99, (2, 3, 4, 3)).astype(np.uint8)
    written(tmp_path / f"d{suffix}", colour, vector=True)
    assert np.array_equal(read_volume(tmp_path / f"d{suffix}").array, colour.transpose(2, 1, 0, 3))


def test_units_are_converted_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.nrrd"
    written(path, np.zeros((3, 4, 5), np.uint8))
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"encoding:", b'space units: "cm" "cm" "cm"\nencoding:'))
    assert np.allclose(read_volume(path).spacing_mm, (7.5, 15, 30))
    path.write_bytes(whole.replace(b"encoding:", b'space units: "inch" "inch" "inch"\nencoding:'))
    with pytest.raises(UserError, match="unit of length"):
        read_volume(path)
    path = tmp_path / "x.mha"
    written(path, np.zeros((3, 4, 5), np.uint8))
    path.write_bytes(path.read_bytes().replace(b"DimSize", b"DistanceUnits = um\nDimSize"))
    assert np.allclose(read_volume(path).spacing_mm, (0.00075, 0.0015, 0.003))


def test_key_value_pairs_and_comments_stay_outside(tmp_path: Path) -> None:
    path = tmp_path / "x.nrrd"
    written(path, np.zeros((3, 4, 5), np.uint8))
    planted = b"# PLANTED-1\nPatient:=PLANTED-2\ncontent: PLANTED-3\nencoding:"
    path.write_bytes(path.read_bytes().replace(b"encoding:", planted))
    assert "PLANTED" not in repr(vars(read_volume(path)))


MHA = {
    "negative spacing": (b"ElementSpacing = 0.75", b"ElementSpacing = -0.75"),
    "zero spacing": (b"ElementSpacing = 0.75", b"ElementSpacing = 0"),
    "zero size": (b"DimSize = 5", b"DimSize = 0"),
    "negative size": (b"DimSize = 5", b"DimSize = -5"),
    "absurd spacing": (b"ElementSpacing = 0.75", b"ElementSpacing = 1e30"),
    "absurd place": (b"Offset = -12.5", b"Offset = -1e12"),
    "not finite": (b"Offset = -12.5", b"Offset = nan"),
    "scaled axes": (b"TransformMatrix = 1", b"TransformMatrix = 3"),
    "singular axes": (b"TransformMatrix = 1 0 0", b"TransformMatrix = 0 1 0"),
    "twice": (b"DimSize = 5 4 3", b"DimSize = 5 4 3\nDimSize = 3 4 5"),
    "text": (b"BinaryData = True", b"BinaryData = False"),
    "type": (b"MET_SHORT", b"MET_STRING"),
    "more than the file": (b"DimSize = 5 4 3", b"DimSize = 5 4 4"),
    "the header as voxels": (b"DimSize = 5 4 3", b"HeaderSize = -1\nDimSize = 5 4 4"),
    "a hundred dimensions": (b"NDims = 3", b"NDims = 100"),
}


@pytest.mark.parametrize("kind", MHA)
def test_absurd_metaimages_are_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.mha"
    written(path, np.zeros((3, 4, 5), np.int16))
    assert MHA[kind][0] in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(*MHA[kind]))
    with pytest.raises(UserError) as raised:
        read_volume(path)
    assert raised.value.file_name == "x.mha"
    assert raised.value.remedy


NRRD = {
    "zero size": (b"sizes: 5", b"sizes: 0"), "dimension": (b"dimension: 3", b"dimension: 300000000"),
    "directions": (b"(0.75", b"(1e30"), "singular": (b"(0.75", b"(0"), "nan": (b"(0.75", b"(nan"),
    "encoding": (b"encoding: raw", b"encoding: hex"), "endian": (b"endian: little\n", b""),
    "type": (b"type: short", b"type: block"), "twice": (b"sizes: 5 4 3", b"sizes: 5 4 3\nsizes: 3 4 5"),
    "skip": (b"encoding:", b"byte skip: -2\nencoding:"),
    "far skip": (b"encoding:", b"byte skip: 99999999999\nencoding:"),
    "lines": (b"encoding:", b"line skip: 999999999\nencoding:"),
    "more than the file": (b"sizes: 5 4 3", b"sizes: 5 4 4"),
    "the header as voxels": (b"sizes: 5 4 3", b"byte skip: -1\nsizes: 5 4 4"),
}  # fmt: skip


@pytest.mark.parametrize("kind", NRRD)
def test_absurd_nrrds_are_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.nrrd"
    written(path, np.zeros((3, 4, 5), np.int16))
    content = path.read_bytes()
    assert NRRD[kind][0] in content
    path.write_bytes(content.replace(*NRRD[kind]))
    with pytest.raises(UserError) as raised:
        read_volume(path)
    assert raised.value.file_name == "x.nrrd"
    assert raised.value.remedy
