"""Words that came with images do not stay in a study, nor go out of it."""

from __future__ import annotations

import gzip
import json
import struct
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from PIL import Image, PngImagePlugin

from amvlm.exchange import export_labels, import_study
from amvlm.imaging import Volume, read_volume
from amvlm.imaging.copies import study_copy
from amvlm.store import LabelStore

WORD = b"PLANTED-SMITH"
PIXELS = np.random.default_rng(0).integers(0, 255, (9, 7), np.uint8)


def chunks(content: bytes) -> list[bytes]:
    """The names of a PNG's chunks; nothing may follow the last."""
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    names, at = [], 8
    while at < len(content):
        (length,) = struct.unpack(">I", content[at : at + 4])
        names.append(content[at + 4 : at + 8])
        at += 12 + length
    assert at == len(content)
    return names


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def planted(folder: Path) -> None:
    """The same pixels in every format, with words wherever a format has room for them."""
    folder.mkdir()
    text = PngImagePlugin.PngInfo()
    text.add_text("Patient", WORD.decode())
    text.add_itxt("Author", WORD.decode())
    exif = Image.Exif()
    exif[0x010E], exif[0x9286] = WORD.decode(), WORD
    picture = Image.fromarray(PIXELS)
    picture.save(folder / "before.png", pnginfo=text, exif=exif, icc_profile=WORD, dpi=(1, 1))
    picture.save(folder / "plain.png")
    content = (folder / "plain.png").read_bytes()
    end = content.index(b"IEND") - 4
    after = chunk(b"tEXt", b"Patient\0" + WORD) + chunk(b"prVt", WORD) + chunk(b"eXIf", exif.tobytes()[6:])
    (folder / "after.png").write_bytes(content[:end] + after + content[end:])
    (folder / "behind.png").write_bytes(content + WORD)
    picture.save(folder / "x.tif", description=WORD.decode(), artist=WORD.decode(), tiffinfo={65000: WORD})
    picture.save(folder / "x.webp", lossless=True, exif=exif, xmp=WORD)
    picture.save(folder / "x.jpg", exif=exif, comment=WORD)
    picture.save(folder / "x.bmp")
    with (folder / "x.bmp").open("ab") as stream:
        stream.write(WORD)


def test_pictures_are_encoded_afresh(tmp_path: Path) -> None:
    planted(tmp_path / "in")
    report = import_study(tmp_path / "in", tmp_path / "s")
    assert not report.refused
    kept = sorted((tmp_path / "s" / "images").iterdir())
    assert report.cases == len(kept) == 2  # the same pixels are the same image; the JPEG's are others
    for path in kept:
        assert set(chunks(path.read_bytes())) == {b"IHDR", b"IDAT", b"IEND"}
    assert any(np.array_equal(np.asarray(Image.open(path)), PIXELS) for path in kept)
    for path in (tmp_path / "s").rglob("*"):
        assert path.is_dir() or WORD not in path.read_bytes()


DEPTHS = {
    "8 bit": PIXELS, "16 bit": PIXELS.astype(np.uint16) * 257, "signed": PIXELS.astype(np.int16) - 100,
    "32 bit": PIXELS.astype(np.int32) * 2**20 + 1, "fractions": PIXELS.astype(np.float32) / 3,
    "colour": np.stack([PIXELS, PIXELS // 2, PIXELS // 3], -1),
}  # fmt: skip


@pytest.mark.parametrize("kind", DEPTHS)
def test_no_bit_of_a_picture_is_lost(tmp_path: Path, kind: str) -> None:
    pixels = DEPTHS[kind]
    volume = Volume(pixels.swapaxes(0, 1)[:, :, None], np.diag([-1.0, -1, 1, 1]), False, True)
    content, suffix = study_copy(volume)
    assert (content, suffix) == study_copy(volume)
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    assert np.array_equal(read_volume(path).array, volume.array)
    if suffix == ".tif":
        structure = {256, 257, 258, 259, 262, 273, 277, 278, 279, 284, 339}
        with Image.open(path) as picture:
            assert set(picture.tag_v2) <= structure  # type: ignore[attr-defined]


def test_headers_of_volumes_are_our_own(tmp_path: Path) -> None:
    voxels = np.arange(60, dtype=np.int16).reshape(5, 4, 3)
    (tmp_path / "in").mkdir()
    for n, kind in enumerate((nibabel.Nifti1Image, nibabel.Nifti2Image)):
        image = kind(voxels + n, np.eye(4))
        for name in ("descrip", "aux_file", "intent_name"):
            image.header[name] = WORD
        image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", WORD))
        image.header.extensions.append(nibabel.nifti1.Nifti1Extension(6, b'{"PatientName": "' + WORD + b'"}'))
        (tmp_path / "in" / f"n{n}.nii").write_bytes(image.to_bytes() + WORD)
    for n, suffix in enumerate((".nrrd", ".mha")):
        image = SimpleITK.GetImageFromArray(voxels + 10 + n)
        for key in ("PatientName", "content", "0010|0010"):
            image.SetMetaData(key, WORD.decode())
        SimpleITK.WriteImage(image, str(tmp_path / "in" / f"x{suffix}"))
    report = import_study(tmp_path / "in", tmp_path / "s")
    assert (report.cases, report.refused) == (4, [])
    store = LabelStore(tmp_path / "s")
    store.add_structure("liver")
    for case in store.cases():
        store.accept(case.case_id, "liver", np.ones(case.shape, np.uint8))
    for suffix in (".nii.gz", ".nii", ".nrrd", ".mha"):
        export_labels(store, tmp_path / suffix[1:], suffix)
    for path in (path for folder in ("s", "nii.gz", "nii", "nrrd", "mha") for path in (tmp_path / folder).rglob("*")):
        content = path.read_bytes() if path.is_file() else b""
        assert WORD not in (gzip.decompress(content) if path.name.endswith(".gz") else content)


def test_what_a_description_calls_its_modality_is_a_modality(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    nibabel.save(nibabel.Nifti1Image(np.ones((2, 3, 4), np.uint8), np.eye(4)), tmp_path / "in" / "a.nii.gz")
    for said, kept in (("MRI", "MR"), ("CT", "CT"), (f"{WORD.decode()} born 1950", "")):
        content = {"labels": {"1": "x"}, "training": [{"image": "a.nii.gz"}], "modality": {"0": said}}
        (tmp_path / "in" / "dataset.json").write_text(json.dumps(content))
        import_study(tmp_path / "in", tmp_path / said[:3])
        assert LabelStore(tmp_path / said[:3]).cases()[0].modality == kept
