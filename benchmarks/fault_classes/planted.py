"""Scans and pictures with identifiers in every corner that their formats have."""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin, TiffImagePlugin

from fault_classes import makers
from fault_classes.makers import nifti, packed, png_chunk

WORD = "Plnt9"
"""Every planted identifier begins so: ``Plnt9descrip``, ``Plnt9exif`` …"""
_WORDS = re.compile(rf"{WORD}\w{{0,24}}".encode(), re.IGNORECASE)
_WIDE = re.compile(f"{WORD}".encode("utf-16-le"))


def words_in(content: bytes) -> set[str]:
    """The planted identifiers in some bytes: plain, in UTF-16, and as base64 or hexadecimal."""
    found = {word.decode() for word in _WORDS.findall(content)}
    if _WIDE.search(content):
        found.add(f"{WORD} (UTF-16)")
    if WORD.encode().hex().encode() in content:
        found.add(f"{WORD} (hexadecimal)")
    return found


def word(place: str) -> str:
    return f"{WORD}{place}"


def _exif() -> bytes:
    exif = Image.Exif()
    exif[0x010E], exif[0x013B], exif[0x8298] = word("description"), word("artist"), word("copyright")
    exif[0x010F], exif[0x0132] = word("make"), "2020:01:02 03:04:05"
    return exif.tobytes()


def _png(folder: Path, before: bytes = b"", after: bytes = b"", behind: bytes = b"") -> str:
    """A PNG with chunks before and after its pixels, and bytes behind its end."""
    plain = makers.picture(len(before + after + behind))  # no two alike: the same picture twice is one case
    data, end = plain.index(b"IDAT") - 4, plain.index(b"IEND") - 4
    (folder / "x.png").write_bytes(plain[:data] + before + plain[data:end] + after + plain[end:] + behind)
    return "x.png"


def _itxt(name: str, compressed: bool = False) -> bytes:
    text = word(name).encode()
    body = zlib.compress(text) if compressed else text
    return png_chunk(b"iTXt", b"Comment\0" + bytes([compressed]) + b"\0\0\0" + body)


def _png_of_all(folder: Path) -> str:
    early = (png_chunk(b"tEXt", b"Comment\0" + word("text").encode()) + _itxt("itxt") + _itxt("ztxt", True)
             + png_chunk(b"eXIf", _exif()[6:]) + png_chunk(b"prVt", word("private").encode())
             + png_chunk(b"zTXt", b"Author\0\0" + zlib.compress(word("compressed").encode())))  # fmt: skip
    late = png_chunk(b"tEXt", b"Author\0" + word("late").encode()) + _itxt("lateitxt") + png_chunk(
        b"zzZz", word("lateprivate").encode())  # fmt: skip
    return _png(folder, early, late, word("behind").encode() * 3)


def _save(folder: Path, name: str, kind: str, **more: Any) -> str:
    image = Image.open(io.BytesIO(makers.picture(sum(kind.encode()) + len(more))))
    image.load()
    image.info.clear()
    image.save(folder / name, kind, **more)
    return name


def _jpeg(folder: Path) -> str:
    name = _save(folder, "x.jpg", "JPEG", exif=_exif(), comment=word("comment").encode(), quality=90)
    content = (folder / name).read_bytes()
    irb = b"Photoshop 3.0\x008BIM\x04\x04\0\0" + struct.pack(">I", 40) + word("iptc").encode().ljust(40, b" ")
    xmp = b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta>" + word("xmp").encode() + b"</x:xmpmeta>"
    extra = b"".join(marker + struct.pack(">H", len(body) + 2) + body for marker, body in
                     ((b"\xff\xed", irb), (b"\xff\xe1", xmp), (b"\xff\xef", word("app15").encode())))  # fmt: skip
    (folder / name).write_bytes(content[:2] + extra + content[2:] + word("behind").encode())
    return name


def _tiff(folder: Path) -> str:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    for number, name in ((270, "description"), (305, "software"), (306, "datetime"), (315, "artist"), (316, "host"),
                         (33432, "copyright"), (271, "make"), (65000, "private")):  # fmt: skip
        tags[number] = word(name)
        tags.tagtype[number] = 2
    name = _save(folder, "x.tif", "TIFF", tiffinfo=tags)
    with (folder / name).open("ab") as stream:
        stream.write(word("behind").encode())
    return name


def _bmp(folder: Path) -> str:
    name = _save(folder, "x.bmp", "BMP")
    with (folder / name).open("ab") as stream:
        stream.write(word("behind").encode())
    return name


def _png_sixteen(folder: Path) -> str:
    info = PngImagePlugin.PngInfo()
    info.add_text("Patient", word("sixteen"))
    Image.fromarray(makers.voxels(6, (24, 18, 3))[..., 0].astype(np.uint16)).save(folder / "x.png", pnginfo=info)
    return "x.png"


def _png_palette(folder: Path) -> str:
    """Bytes that no pixel uses: a palette can spell."""
    image = Image.fromarray(np.zeros((18, 24), np.uint8), "L").convert("P")
    image.putpalette(list(word("palette").encode().ljust(255, b"\0")))
    image.save(folder / "x.png")
    return "x.png"


PICTURES: dict[str, Callable[[Path], str]] = {
    "PNG, text before the pixels": lambda f: _png(f, png_chunk(b"tEXt", b"Comment\0" + word("text").encode())),
    "PNG, text after the pixels": lambda f: _png(f, after=png_chunk(b"tEXt", b"Comment\0" + word("late").encode())),
    "PNG, eXIf": lambda f: _png(f, png_chunk(b"eXIf", _exif()[6:])),
    "PNG, private chunks": lambda f: _png(f, png_chunk(b"prVt", word("private").encode()),
                                          png_chunk(b"zzZz", word("lateprivate").encode())),
    "PNG, bytes behind its end": lambda f: _png(f, behind=word("behind").encode()),
    "PNG, profile": lambda f: _png(f, png_chunk(b"iCCP", word("profile").encode() + b"\0\0" + zlib.compress(
        word("icc").encode() * 20))),
    "PNG, everything": _png_of_all, "PNG, 16 bits": _png_sixteen, "PNG, palette": _png_palette,
    "JPEG": _jpeg, "TIFF": _tiff, "BMP": _bmp,
    "WebP, lossless": lambda f: _save(f, "x.webp", "WEBP", lossless=True, exif=_exif(), xmp=word("xmp").encode()),
    "WebP, lossy": lambda f: _save(f, "x.webp", "WEBP", exif=_exif(), xmp=word("xmp").encode()),
}  # fmt: skip


def _nifti(folder: Path) -> None:
    def tweak(content: bytearray) -> None:
        content[14:32] = word("dbname").encode().ljust(18, b"\0")
        content[4:14] = b"Plnt9data\0"
        content[148:228] = word("descrip").encode().ljust(80, b"\0")
        content[228:252] = word("auxfile").encode().ljust(24, b"\0")
        content[328:344] = word("intent").encode().ljust(16, b"\0")

    content = bytearray(nifti(tweak=tweak))
    note = word("extension").encode().ljust(56, b"\0")
    content[348:352] = b"\1\0\0\0"
    struct.pack_into("<f", content, 108, 352 + 64)
    (folder / "x.nii.gz").write_bytes(packed(bytes(content[:352]) + struct.pack("<ii", 64,
        6) + note + bytes(content[352:])
                                             + word("behind").encode()))  # fmt: skip


def _gzip_name(folder: Path) -> None:
    """The gzip header has room for a file's name and a comment."""
    content = packed(nifti())
    head = bytearray(content[:10])
    head[3] = 0x18
    (folder / "x.nii.gz").write_bytes(bytes(head) + word("gzname").encode() + b"\0" + word("gzcomment").encode() + b"\0"
                                      + content[10:])  # fmt: skip


def _nrrd(folder: Path) -> None:
    fields = {"content": word("content"), "sample units": word("units"), "# " + word("remark"): "x",
              "PatientName:=" + word("key"): word("value")}  # fmt: skip
    text = makers.nrrd(bytes(range(256)), fields)
    text = text.replace(f"PatientName:={word('key')}: ".encode(), f"PatientName:={word('key')}".encode())
    (folder / "x.nrrd").write_bytes(text + word("behind").encode())


def _mha(folder: Path) -> None:
    (folder / "x.mha").write_bytes(makers.mha(bytes(range(256)), Comment=word("comment"), Name=word("name"),
                                              PatientID=word("id"), AcquisitionDate=word("date"),
                                              Modality="MET_MOD_CT"))  # fmt: skip


def _dicom(folder: Path) -> None:
    makers.series(
        folder / word("folder"), PatientName=word("patient") + "^" + word("given"), PatientID=word("id"),
        PatientBirthDate="19700102", AccessionNumber="Plnt9acc", InstitutionName=word("institution"),
        ReferringPhysicianName=word("physician"), StudyDescription=word("study"), SeriesDescription=word("series"),
        StationName="Plnt9station", PatientComments=word("comments"), OperatorsName=word("operator"),
        ProtocolName=word("protocol"), BodyPartExamined="PLNT9BODY", StudyID="Plnt9studyid",
    )  # fmt: skip


VOLUMES: dict[str, Callable[[Path], None]] = {
    "NIfTI": _nifti, "the gzip header": _gzip_name, "NRRD": _nrrd, "MHA": _mha, "DICOM": _dicom,
}  # fmt: skip
