"""2-D pictures as one slice. Only the five formats named here are tried: Pillow has others that run programs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from amvlm.errors import UserError
from amvlm.imaging.limits import check_size, in_a_sentence
from amvlm.imaging.volume import Volume
from amvlm.imaging.voxels import finite

PICTURE_SUFFIXES = (".png", ".tif", ".tiff", ".webp", ".jpg", ".jpeg", ".bmp")
MAX_MEGAPIXELS = {"PNG": 60, "BMP": 60, "TIFF": 40, "JPEG": 30, "MPO": 30, "WEBP": 15}
"""Pillow holds a whole picture, and its decoders up to five times as much: so many million pixels keep reading within
1.3 times the pixels plus 300 MB."""
_FORMATS = ("PNG", "TIFF", "WEBP", "JPEG", "BMP")
_GREY = ("1", "L", "I;16", "I;16B", "I;16L", "I;16N", "I", "F")
_STRIP = 2**20
_UPRIGHT: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {
    2: lambda shown: shown[:, ::-1],
    3: lambda shown: shown[::-1, ::-1],
    4: lambda shown: shown[::-1],
    5: lambda shown: shown.swapaxes(0, 1),
    6: lambda shown: shown[::-1].swapaxes(0, 1),
    7: lambda shown: shown[::-1, ::-1].swapaxes(0, 1),
    8: lambda shown: shown[:, ::-1].swapaxes(0, 1),
}
"""EXIF's orientation → how the stored rows become upright (a view)."""


def read_picture(path: Path) -> Volume:
    """A picture as one slice: rows run down, columns run right, sides as in radiological display but not known.

    EXIF orientation is applied. Colour becomes RGB, and grey where the three channels are equal everywhere; what is
    lost on the way (transparency, 16-bit colour) is a note.
    """
    with in_a_sentence(path, "this is not a readable picture"), Image.open(path, formats=_FORMATS) as picture:
        _check(picture, path)
        notes = _what_is_lost(picture)
        picture.load()
        orientation = picture.getexif().get(0x0112, 1)
        if _has_transparency(picture):
            notes += ("The picture has transparent parts; they show the colour that lies beneath.",)
        pixels, more = finite(_pixels(picture), path)
    upright = _UPRIGHT[orientation](pixels) if orientation in _UPRIGHT else pixels
    array = upright.swapaxes(0, 1)[:, :, None]
    return Volume(array, np.diag([-1.0, -1.0, 1.0, 1.0]), sides_known=False, planar=True, notes=(*notes, *more))


def _check(picture: Image.Image, path: Path) -> None:
    """Size and pages, before a pixel is decoded."""
    limit = MAX_MEGAPIXELS[picture.format or "WEBP"]
    if picture.width * picture.height > limit * 10**6:
        raise UserError(
            f"the picture has {picture.width * picture.height / 1e6:,.0f} million pixels "
            f"({picture.width} × {picture.height}), more than the limit of {limit}", file=path,
            remedy="Crop it, or scale it down.",
        )  # fmt: skip
    check_size(picture.width * picture.height * 8, picture.size, path)
    if getattr(picture, "n_frames", 1) > 1:
        raise UserError("it holds several pages", file=path, remedy="Save it as one picture per file or as NIfTI.")


def _what_is_lost(picture: Image.Image) -> tuple[str, ...]:
    notes = []
    deep = any("16" in str(tile[3]) for tile in getattr(picture, "tile", ()))
    if picture.mode not in _GREY and deep:
        notes.append("The picture holds 16 bits per colour; it was read with 8.")
    if picture.mode in ("CMYK", "LAB", "HSV"):
        notes.append(f"The picture's {picture.mode} colours were converted to RGB; they are approximate.")
    return tuple(notes)


def _has_transparency(picture: Image.Image) -> bool:
    if picture.mode in ("LA", "PA", "RGBA", "La", "RGBa"):
        extrema = picture.getchannel("A" if picture.mode[-1] == "A" else "a").getextrema()
        return extrema[0] != 255
    return "transparency" in picture.info


def _strips(picture: Image.Image, mode: str) -> Iterator[tuple[slice, NDArray[Any]]]:
    """The rows in parts, converted: Pillow would hold the picture twice."""
    rows = max(1, _STRIP // picture.width)
    for top in range(0, picture.height, rows):
        part = picture.crop((0, top, picture.width, min(top + rows, picture.height)))
        yield slice(top, top + part.height), np.asarray(part if part.mode == mode else part.convert(mode))


def _pixels(picture: Image.Image) -> NDArray[Any]:
    """(rows, columns[, 3]) in native byte order."""
    mode = picture.mode if picture.mode in _GREY else "RGB"
    grey = mode != "RGB" or all(
        bool((part[..., 0] == part[..., 1]).all() and (part[..., 0] == part[..., 2]).all())
        for _, part in _strips(picture, mode)
    )
    pixels: NDArray[Any] | None = None
    for rows, part in _strips(picture, mode):
        if pixels is None:
            dtype = np.dtype(np.uint8) if part.dtype == np.bool_ else part.dtype.newbyteorder("=")
            pixels = np.empty((picture.height, picture.width, *(() if grey else (3,))), dtype)
        pixels[rows] = part[..., 0] if part.ndim == 3 and grey else part
    if pixels is None:
        raise ValueError("a picture without rows")
    return pixels
