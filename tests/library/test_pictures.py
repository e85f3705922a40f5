"""Pictures: EXIF, palettes, transparency, depth, pages and what is not a picture."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from amvlm.errors import UserError
from amvlm.imaging import pictures, read_volume

RGB = np.random.default_rng(0).integers(0, 255, (5, 7, 3)).astype(np.uint8)


def shown(path: Path) -> np.ndarray:
    """Rows × columns, as the reader has them."""
    return read_volume(path).array[:, :, 0].swapaxes(0, 1)


@pytest.mark.parametrize("suffix", ["png", "tif", "webp", "jpg"])
@pytest.mark.parametrize("orientation", range(10))
def test_exif_orientation_is_applied(tmp_path: Path, suffix: str, orientation: int) -> None:
    path = tmp_path / f"x.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(RGB).save(path, exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    with Image.open(path) as picture:
        upright = ImageOps.exif_transpose(picture)
        assert np.array_equal(shown(path), np.asarray(upright))
    if suffix != "jpg":
        assert shown(path).shape == ((7, 5, 3) if orientation in (5, 6, 7, 8) else (5, 7, 3))


def test_masks_turn_as_their_images_do(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RGB).save(tmp_path / "image.jpg", exif=exif)
    Image.fromarray(RGB[..., 0]).save(tmp_path / "mask.png", exif=exif)
    assert read_volume(tmp_path / "image.jpg").same_grid(read_volume(tmp_path / "mask.png"))


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "I", "F", "I;16"])
def test_every_mode_is_what_pillow_shows(tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "_STRIP", 16)
    grey = Image.fromarray(RGB[..., 0])
    picture = Image.fromarray(RGB[..., 0].astype(np.uint16) * 200) if mode == "I;16" else (
        grey if mode in ("L", "LA", "I", "F", "1") else Image.fromarray(RGB)).convert(mode)  # fmt: skip
    path = tmp_path / "x.tif"
    picture.save(path)
    wanted = picture if mode in ("1", "L", "I", "F", "I;16") else picture.convert("RGB")
    pixels = np.asarray(wanted).astype(np.uint8 if mode == "1" else np.asarray(wanted).dtype)
    assert np.array_equal(shown(path), pixels[..., 0] if mode == "LA" else pixels)


def test_what_is_lost_is_said(tmp_path: Path) -> None:
    transparent = np.dstack([RGB, np.full((5, 7), 255, np.uint8)])
    Image.fromarray(transparent).save(tmp_path / "a.png")
    assert read_volume(tmp_path / "a.png").notes == ()
    transparent[0, 0, 3] = 100
    Image.fromarray(transparent).save(tmp_path / "a.png")
    assert "transparent" in read_volume(tmp_path / "a.png").notes[0]
    Image.fromarray(RGB).convert("CMYK").save(tmp_path / "c.jpg")
    assert "CMYK" in read_volume(tmp_path / "c.jpg").notes[0]
    deep = bytearray(_deep_png())
    (tmp_path / "d.png").write_bytes(deep)
    assert "16 bits" in read_volume(tmp_path / "d.png").notes[0]


def _deep_png() -> bytes:
    import struct
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + (RGB[y].astype(">u2") * 257).tobytes() for y in range(5))
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 7, 5, 16, 2, 0, 0, 0))
            + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))  # fmt: skip


@pytest.mark.parametrize("kind", ["EPS", "PDF", "GIF", "PPM", "ICO", "TGA"])
def test_other_formats_behind_a_known_suffix_are_not_tried(tmp_path: Path, kind: str) -> None:
    stream = io.BytesIO()
    Image.fromarray(RGB).save(stream, kind)
    (tmp_path / "x.png").write_bytes(stream.getvalue())
    with pytest.raises(UserError, match="not a readable picture"):
        read_volume(tmp_path / "x.png")


@pytest.mark.parametrize(("suffix", "options"), [("tif", {}), ("png", {}), ("webp", {})])
def test_pages_are_refused(tmp_path: Path, suffix: str, options: dict[str, object]) -> None:
    first, second = Image.fromarray(RGB), Image.fromarray(RGB[::-1].copy())
    first.save(tmp_path / f"x.{suffix}", save_all=True, append_images=[second], **options)
    with pytest.raises(UserError, match="several pages"):
        read_volume(tmp_path / f"x.{suffix}")


def test_large_pictures_are_refused_by_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(pictures.MAX_MEGAPIXELS, "PNG", 0.00003)
    Image.fromarray(RGB).save(tmp_path / "x.png")
    with pytest.raises(UserError, match=r"7 × 5"):
        read_volume(tmp_path / "x.png")


def test_a_float_picture_without_numbers_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), np.nan, np.float32)).save(tmp_path / "x.tif")
    with pytest.raises(UserError, match="no voxel holds a finite number"):
        read_volume(tmp_path / "x.tif")
