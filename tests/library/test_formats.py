"""DICOM, NRRD and MetaImage: geometry, series, what is refused and how, and what another library reads back."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import MPEG2MPML, CTImageStorage, ExplicitVRLittleEndian, generate_uid

from amvlm.errors import ChoiceNeeded, UserError
from amvlm.exchange import export_dicom_seg, export_labels, import_study
from amvlm.imaging import Volume, read_volume, to_canonical, write_volume
from amvlm.imaging.dicom import read_series
from amvlm.imaging.dicom_headers import find_series
from amvlm.store import LabelStore

NAME, IDENTIFIER = "Planted^Patient", "PLANTED-4711"
Change = Callable[[FileDataset, int], None]


def slice_of(number: int, series: str = "1.2.3", **fields: Any) -> FileDataset:
    """One CT slice, 4 rows × 6 columns, 2.5 mm apart, that names its patient."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    data.SeriesInstanceUID, data.StudyInstanceUID = series, "1.2"
    data.FrameOfReferenceUID = "1.2.9"
    data.SeriesNumber, data.InstanceNumber, data.Modality = 3, number, "CT"
    data.PatientName, data.PatientID = NAME, IDENTIFIER
    data.PatientBirthDate, data.PatientSex, data.StudyDate, data.StudyTime = "19500101", "O", "20200101", "120000"
    data.AccessionNumber, data.StudyID, data.ReferringPhysicianName = "", "1", ""
    data.Rows, data.Columns, data.SamplesPerPixel, data.PhotometricInterpretation = 4, 6, 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
    data.PixelSpacing, data.SliceThickness = [0.5, 0.8], 2.5
    data.ImagePositionPatient, data.ImageOrientationPatient = [10.0, 20.0, 30 + 2.5 * number], [1, 0, 0, 0, 1, 0]
    data.RescaleSlope, data.RescaleIntercept = 1, -1024
    data.PixelData = (np.arange(24, dtype=np.int16) + 100 * number).tobytes()
    for field, value in fields.items():
        setattr(data, field, value)
    return data


def write_slices(folder: Path, count: int = 5, change: Change | None = None, prefix: str = "", **fields: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in np.random.default_rng(0).permutation(count).tolist():
        data = slice_of(number, **fields)
        if change is not None:
            change(data, number)
        data.save_as(folder / f"{prefix}{(number * 7) % 11}.dcm", enforce_file_format=False)
    return folder


def test_a_series_lies_where_its_headers_say(tmp_path: Path) -> None:
    volume = read_volume(write_slices(tmp_path / "ct"))
    assert volume.shape == (6, 4, 5)
    assert volume.modality == "CT"
    assert np.allclose(volume.affine @ [1, 2, 3, 1], [-10.8, -21, 37.5, 1])  # 0.8 along a row, 0.5 down, 2.5 up; RAS
    assert volume.array[1, 2, 3] == 100 * 3 + 2 * 6 + 1 - 1024
    assert np.array_equal(read_volume(tmp_path / "ct" / "0.dcm").array, volume.array)  # one file opens its series


def test_real_series_agree_with_simpleitk(shared_data: Path) -> None:
    for name, notes in (("ct_dicom_jpeg2000", 0), ("mr_dicom_oblique", 0)):
        folder = shared_data / "volumes" / name
        volume = read_volume(folder)
        names = SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
        image = SimpleITK.ReadImage(names)
        assert np.array_equal(SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0), volume.array)
        corner = tuple(n - 1 for n in volume.shape)
        world = np.array(image.TransformIndexToPhysicalPoint(corner)) * (-1, -1, 1)
        assert np.allclose((volume.affine @ [*corner, 1])[:3], world, atol=0.01)
        assert len(volume.notes) == notes


def test_several_series_are_a_question(tmp_path: Path) -> None:
    write_slices(tmp_path / "ct", 3, SeriesDescription="thin")
    write_slices(tmp_path / "ct", 4, series="1.2.4", prefix="b", SeriesNumber=8, SeriesDescription="thick")
    with pytest.raises(ChoiceNeeded) as raised:
        read_volume(tmp_path / "ct")
    assert raised.value.choices == ("series 3, CT, thin, 3 × 6 × 4", "series 8, CT, thick, 4 × 6 × 4")
    assert read_volume(tmp_path / "ct", series=1).shape == (6, 4, 4)
    assert read_volume(tmp_path / "ct" / "b0.dcm").shape == (6, 4, 4)
    with pytest.raises(UserError, match="no series number 2"):
        read_volume(tmp_path / "ct", series=2)


def test_every_position_twice_is_a_question(tmp_path: Path) -> None:
    write_slices(tmp_path / "ct", 3)
    write_slices(tmp_path / "ct", 3, prefix="b", TemporalPositionIdentifier=2, change=lambda d, n: setattr(
        d, "PixelData", np.full(24, n, np.int16).tobytes()))  # fmt: skip
    with pytest.raises(ChoiceNeeded, match="imaged 2 times") as raised:
        read_volume(tmp_path / "ct")
    assert raised.value.kind == "volume"
    assert (read_volume(tmp_path / "ct", volume_index=1).array == [-1024, -1023, -1022]).all()


def test_the_same_file_twice_counts_once(tmp_path: Path) -> None:
    folder = write_slices(tmp_path / "ct")
    shutil.copy(folder / "0.dcm", folder / "copy of 0.dcm")
    assert read_volume(folder).shape == (6, 4, 5)


def test_a_tilted_gantry_is_said(tmp_path: Path) -> None:
    volume = read_volume(write_slices(tmp_path / "ct", change=lambda d, n: setattr(
        d, "ImagePositionPatient", [10.0, 20 + 0.5 * n, 30 + 2.5 * n])))  # fmt: skip
    assert "tilted by 11°" in volume.notes[0]


def test_one_slope_for_each_slice(tmp_path: Path) -> None:
    volume = read_volume(write_slices(tmp_path / "pet", change=lambda d, n: setattr(d, "RescaleSlope", 0.5 + n)))
    assert volume.array.dtype == np.float32
    assert volume.array[0, 0].tolist() == [100 * n * (0.5 + n) - 1024 for n in range(5)]


def test_ct_without_rescale_slope_is_said(tmp_path: Path) -> None:
    def without(data: FileDataset, _: int) -> None:
        del data.RescaleSlope, data.RescaleIntercept

    volume = read_volume(write_slices(tmp_path / "ct", change=without))
    assert "Hounsfield" in volume.notes[0]
    assert volume.array[0, 0, 1] == 100


def test_an_x_ray_knows_its_sides_when_the_file_says_so(tmp_path: Path) -> None:
    def x_ray(data: FileDataset, _: int) -> None:
        del data.ImagePositionPatient, data.ImageOrientationPatient, data.RescaleSlope, data.RescaleIntercept
        data.Modality, data.PhotometricInterpretation = "DX", "MONOCHROME1"

    folder = write_slices(tmp_path / "a", 1, x_ray, PatientOrientation=["L", "F"])
    volume = read_volume(folder)
    assert (volume.planar, volume.sides_known, volume.shape) == (True, True, (6, 4, 1))
    assert volume.array[0, 0, 0] > volume.array[1, 0, 0]  # inverted: black on white becomes white on black
    unknown = read_volume(write_slices(tmp_path / "b", 1, x_ray))
    assert not unknown.sides_known
    assert "left" in unknown.notes[0]
    mirrored = read_volume(write_slices(tmp_path / "c", 1, x_ray, PatientOrientation=["R", "F"]))
    assert np.array_equal(to_canonical(mirrored).array, to_canonical(volume).array[::-1])


def _as_video(data: FileDataset, _: int) -> None:
    data.file_meta.TransferSyntaxUID = MPEG2MPML
    data.PixelData = encapsulate([data.PixelData])
    data["PixelData"].VR = "OB"


def broken(kind: str, folder: Path) -> Path:
    if kind == "missing slice":
        write_slices(folder)
        (folder / "3.dcm").unlink()  # the third of five
    elif kind == "uneven":
        write_slices(folder, change=lambda d, n: setattr(d, "ImagePositionPatient", [0.0, 0.0, [0, 2, 4, 7, 9][n]]))
    elif kind == "doubled position":
        write_slices(folder)
        write_slices(folder, 1, prefix="b")
    elif kind == "mixed orientation":
        write_slices(folder, change=lambda d, n: n or setattr(d, "ImageOrientationPatient", [0, 1, 0, 0, 0, -1]))
    elif kind == "two sizes":
        write_slices(folder, change=lambda d, n: n or setattr(d, "PixelSpacing", [1, 1]))
    elif kind == "truncated pixels":
        write_slices(folder)
        content = (folder / "0.dcm").read_bytes()
        (folder / "0.dcm").write_bytes(content[:-10])
    elif kind == "no decoder":
        write_slices(folder, change=_as_video)
    elif kind == "no position":
        write_slices(folder, change=lambda d, _: delattr(d, "ImagePositionPatient"))
    elif kind == "damaged header":
        write_slices(folder)
        content = (folder / "0.dcm").read_bytes()
        (folder / "0.dcm").write_bytes(content[:140] + b"\xff" * 90)
    elif kind == "damaged orientation":
        write_slices(folder, change=lambda d, _: setattr(d, "ImageOrientationPatient", [1, 0, 0, 1, 0, 0]))
    elif kind == "nothing":
        folder.mkdir(parents=True)
    return folder


BROKEN = {
    "missing slice": "1 slice is missing after slice", "uneven": "unevenly spaced", "doubled position": "hold 2 images",
    "mixed orientation": "same direction", "two sizes": "differ in size", "truncated pixels": "cut short",
    "no decoder": "cannot be decoded", "no position": "do not say where", "damaged header": "damaged",
    "damaged orientation": "orientation is damaged", "nothing": "no DICOM series",
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_series_are_refused_in_a_sentence(tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    folder = broken(kind, tmp_path / "private" / "scan")
    with pytest.raises(UserError, match=BROKEN[kind]) as raised:
        read_volume(folder)
    assert "private" not in str(raised.value)
    assert raised.value.remedy
    assert not any(planted in caplog.text for planted in (NAME, IDENTIFIER))


def test_a_folder_of_series_becomes_a_study_without_names(tmp_path: Path) -> None:
    for number in range(4):
        patient = {"PatientID": f"{IDENTIFIER}-{number // 2}", "PatientName": NAME}
        write_slices(tmp_path / "in" / f"Planted_{number}", 3, series=f"1.2.{number}", **patient, change=lambda d, n,
                     k=number: setattr(d, "PixelData", np.full(24, 9 * k + n, np.int16).tobytes()))  # fmt: skip
    report = import_study(tmp_path / "in", tmp_path / "study")
    assert report.cases == 4
    store = LabelStore(tmp_path / "study")
    assert len({case.group for case in store.cases()}) == 2
    for case in store.cases():
        assert store.read_image(case).shape == (6, 4, 3)
    for path in (tmp_path / "study").rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        content = gzip.decompress(content) if path.suffix == ".gz" else content
        assert not any(word in content + path.name.encode() for word in (b"Planted", IDENTIFIER.encode(), b"1950"))


def test_a_segmentation_object_lies_on_its_series(tmp_path: Path) -> None:
    highdicom = pytest.importorskip("highdicom")
    from amvlm.imaging.dicomseg import write_dicom_seg

    series = find_series(write_slices(tmp_path / "ct"))[0]
    volume = read_series(series)
    first, second = np.zeros((2, *volume.shape), np.uint8)
    first[1:4, 2, 3] = 1
    second[2, :, 1:4] = 1
    path = tmp_path / "out.dcm"
    write_dicom_seg(path, {"liver": first, "spleen": second, "empty": np.zeros_like(first)}, series)
    read = highdicom.seg.segread(path)
    assert [str(segment.SegmentLabel) for segment in read.SegmentSequence] == ["liver", "spleen"]
    for number, mask in ((1, first), (2, second)):
        found = read.get_volume(segment_numbers=[number], combine_segments=False)
        voxels = np.argwhere(found.array[..., 0])
        world = (found.affine @ np.c_[voxels, np.ones(len(voxels))].T)[:3].T * (-1, -1, 1)
        ours = (volume.affine @ np.c_[np.argwhere(mask), np.ones(mask.sum())].T)[:3].T
        assert np.allclose(np.unique(world.round(3), axis=0), np.unique(ours.round(3), axis=0))
    with pytest.raises(UserError, match="grid"):
        write_dicom_seg(path, {"liver": np.ones((6, 4, 4), np.uint8)}, series)
    with pytest.raises(UserError, match="no voxel"):
        write_dicom_seg(path, {"liver": np.zeros(volume.shape, np.uint8)}, series)


def test_labels_go_back_to_the_series_they_came_from(tmp_path: Path) -> None:
    pytest.importorskip("highdicom")
    write_slices(tmp_path / "in" / "one")
    write_slices(tmp_path / "in" / "two", 4, series="1.2.4")
    import_study(tmp_path / "in", tmp_path / "study")
    store = LabelStore(tmp_path / "study")
    store.add_structure("liver")
    case = next(case for case in store.cases() if case.shape[2] == 4)
    mask = np.zeros(case.shape, np.uint8)
    mask[2, 1, 3] = 1
    store.accept(case.case_id, "liver", mask)
    assert export_dicom_seg(store, tmp_path / "in", tmp_path / "out") == 1
    written = pydicom.dcmread(tmp_path / "out" / f"{case.case_id}.dcm")
    assert written.ReferencedSeriesSequence[0].SeriesInstanceUID == "1.2.4"
    assert export_labels(store, tmp_path / "nrrd", ".nrrd") == 1
    assert np.array_equal(read_volume(tmp_path / "nrrd" / f"{case.case_id}_liver.nrrd").array, mask)
    (tmp_path / "nrrd" / "labels.json").unlink()
    with pytest.raises(UserError, match="no DICOM series"):
        export_dicom_seg(store, tmp_path / "nrrd", tmp_path / "more")


# -- NRRD and MetaImage -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_written_volumes_read_back_by_simpleitk(scan_path: Path, tmp_path: Path, suffix: str) -> None:
    volume = read_volume(scan_path)
    path = tmp_path / "new" / f"copy{suffix}"
    path.parent.mkdir()
    write_volume(path, volume)
    image = SimpleITK.ReadImage(str(path))
    assert np.array_equal(SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0), volume.array)
    corner = tuple(n - 1 for n in volume.shape)
    world = np.array(image.TransformIndexToPhysicalPoint(corner)) * (-1, -1, 1)
    assert np.allclose((volume.affine @ [*corner, 1])[:3], world, atol=1e-3)
    again = read_volume(path)
    assert again.same_grid(volume)
    assert again.sides_known
    assert np.array_equal(again.array, volume.array)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_shear_is_refused_where_the_format_does_not_hold_it(tmp_path: Path) -> None:
    affine = np.eye(4)
    affine[0, 1] = 0.3
    with pytest.raises(UserError, match="right angles"):
        write_volume(tmp_path / "x.nrrd", Volume(np.zeros((2, 2, 2), np.uint8), affine))
    assert not list(tmp_path.iterdir())


def test_flipped_brain_lies_where_simpleitk_says(shared_data: Path) -> None:
    image, mask = (read_volume(shared_data / "volumes" / f"brain1_{kind}.nrrd") for kind in ("image", "label"))
    assert mask.same_grid(image)
    other = SimpleITK.ReadImage(str(shared_data / "volumes" / "brain1_image.nrrd"))
    corner = tuple(n - 1 for n in image.shape)
    world = np.array(other.TransformIndexToPhysicalPoint(corner)) * (-1, -1, 1)
    assert np.allclose((image.affine @ [*corner, 1])[:3], world, atol=0.01)
    assert image.sides_known


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_without_a_stated_direction_sides_are_not_known(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.arange(24, dtype=np.int16).reshape(2, 3, 4)), str(path), False)
    assert read_volume(path).sides_known
    content = path.read_bytes()
    for line in (b"space: left-posterior-superior\n", b"TransformMatrix = 1 0 0 0 1 0 0 0 1\n"):
        content = content.replace(line, b"")
    content = content.replace(b"space directions: (1,0,0) (0,1,0) (0,0,1)", b"spacings: 1 1 1")
    path.write_bytes(content.replace(b"space origin: (0,0,0)\n", b"").replace(b"kinds: domain domain domain\n", b""))
    assert not read_volume(path).sides_known


def test_vectors_and_colour(tmp_path: Path) -> None:
    path = tmp_path / "x.nrrd"
    vectors = np.random.default_rng(0).integers(0, 99, (2, 3, 4, 5)).astype(np.int16)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(vectors, isVector=True), str(path))
    with pytest.raises(ChoiceNeeded, match="5 volumes"):
        read_volume(path)
    assert np.array_equal(read_volume(path, volume_index=2).array, vectors[..., 2].transpose(2, 1, 0))
    colour = vectors[..., :3].astype(np.uint8)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(colour, isVector=True), str(path))
    assert np.array_equal(read_volume(path).array, colour.transpose(2, 1, 0, 3))


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
@pytest.mark.parametrize("kind", ["truncated", "bit flip", "end flip", "text", "huge", "empty"])
def test_damaged_files_are_refused(scan_path: Path, tmp_path: Path, suffix: str, kind: str) -> None:
    folder = tmp_path / "private"
    folder.mkdir()
    path = folder / f"x{suffix}"
    write_volume(path, read_volume(scan_path))
    content = bytearray(path.read_bytes())
    if kind == "truncated":
        content = content[:-50]
    elif kind == "bit flip":
        content[len(content) // 2] ^= 0x10
    elif kind == "end flip":
        content[-3] ^= 0x40  # checksum of the stream
    elif kind == "text":
        content = bytearray(b"nothing of the kind" * 30)
    elif kind == "huge":
        shape = " ".join(map(str, read_volume(scan_path).shape)).encode()
        assert shape in content
        content = bytearray(bytes(content).replace(shape, b"60000 60000 60000", 1))
    elif kind == "empty":
        content = bytearray()
    path.write_bytes(content)
    with pytest.raises(UserError) as raised:
        read_volume(path)
    assert str(raised.value).startswith(path.name)
    assert "private" not in str(raised.value)
    assert raised.value.remedy


# -- NIfTI: what its header leaves open -----------------------------------------------------------------------------


def nifti(path: Path, affine: np.ndarray, qform: np.ndarray | None = None) -> Path:
    image = nibabel.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), affine)
    image.set_sform(affine, 1)
    image.set_qform(affine if qform is None else qform, 1)
    path.write_bytes(image.to_bytes())
    return path


def test_two_orientations_in_one_header_are_refused(tmp_path: Path) -> None:
    flipped = np.diag([-1.0, 1, 1, 1])
    with pytest.raises(UserError, match=r"RAS \(sform\) and LAS \(qform\)"):
        read_volume(nifti(tmp_path / "x.nii", np.eye(4), flipped))
    shifted = np.eye(4)
    shifted[:3, 3] = 5
    with pytest.raises(UserError, match=r"two places 8.7 mm apart"):
        read_volume(nifti(tmp_path / "y.nii", np.eye(4), shifted))


def test_shear_is_said(tmp_path: Path) -> None:
    affine = np.eye(4)
    affine[0, 1] = np.tan(np.deg2rad(15))
    image = nibabel.Nifti1Image(np.zeros((2, 3, 4), np.int16), affine)
    image.set_sform(affine, 1)
    image.set_qform(None, 0)
    (tmp_path / "x.nii").write_bytes(image.to_bytes())
    assert "sheared by 15°" in read_volume(tmp_path / "x.nii").notes[0]


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_zero_or_nan_spacing_is_refused(tmp_path: Path, value: float) -> None:
    raw = bytearray(nifti(tmp_path / "x.nii", np.eye(4)).read_bytes())
    raw[80:84] = np.array([value], "<f4").tobytes()  # pixdim[1]
    raw[254:256] = b"\0\0"  # no sform: the spacing counts
    (tmp_path / "x.nii").write_bytes(raw)
    with pytest.raises(UserError) as raised:
        read_volume(tmp_path / "x.nii")
    assert str(raised.value).startswith("x.nii: ")


def test_a_gzip_bomb_is_refused(tmp_path: Path) -> None:
    good = nibabel.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4)).to_bytes()
    (tmp_path / "x.nii.gz").write_bytes(gzip.compress(good + bytes(2**27)))
    with pytest.raises(UserError, match="far longer"):
        read_volume(tmp_path / "x.nii.gz")


def test_dicom_without_a_suffix_is_recognised(tmp_path: Path) -> None:
    folder = write_slices(tmp_path / "ct")
    for path in list(folder.iterdir()):
        path.rename(path.with_suffix(""))
    assert read_volume(folder / "0").shape == (6, 4, 5)
    assert pydicom.dcmread(folder / "0").PatientID == IDENTIFIER  # the source is only read
