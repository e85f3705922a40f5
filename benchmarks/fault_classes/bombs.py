"""Pictures and tables that unfold, jobs that lack memory, and what sound readers take."""

from __future__ import annotations

import gzip
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from fault_classes import makers
from fault_classes.makers import nifti, put
from fault_classes.place import Place
from fault_classes.registry import Trial, fault_class
from fault_classes.sizes import read_within_limits, refused_among_scans, sparse_file, zeros_packed

LITTLE_MB = 330.0
"""What refusing a file may take."""
_ZEROS = makers.packed(bytes(2**24))


@fault_class(3, "pictures of absurd size")
def picture_sizes() -> Iterator[Trial]:
    for width, height in ((60000, 60000), (2**31 - 1, 2**31 - 1), (13000, 13000), (2**31 - 1, 1), (0, 5)):
        yield f"PNG {width} × {height}, nothing there", partial(
            refused_among_scans, name="x.png", content=makers.png(width, height,
            zlib.compress(bytes(1000))))  # fmt: skip
    for colour, depth in ((2, 8), (6, 16), (3, 8), (0, 1)):
        yield f"PNG 50000 × 50000, colour {colour}, depth {depth}", partial(
            refused_among_scans, name="x.png", content=makers.png(50000, 50000, zlib.compress(bytes(1000)), depth,
            colour))  # fmt: skip
    bomb = makers.png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2**28), 1))

    def text(place: Place, chunk: bytes) -> None:
        folder = makers.scans(place.work / "scans")
        content = makers.picture()
        (folder / "x.png").write_bytes(content[:33] + chunk + content[33:])
        place.memory_mb = LITTLE_MB
        place.fine("import", folder, "--into", place.new_study(), seconds=20)

    yield "PNG, a comment that unfolds", partial(text, chunk=bomb * 8)
    yield "PNG, a profile that unfolds", partial(text, chunk=makers.png_chunk(
        b"iCCP", b"x\0\0" + zlib.compress(bytes(2**29), 1)))  # fmt: skip
    for width, height, compression in ((50000, 50000, 1), (2**32 - 1, 2**32 - 1, 1), (50000, 50000, 8),
        (50000, 50000, 5),
                                       (50000, 50000, 32773), (0, 5, 1), (5, 5, 60000)):  # fmt: skip
        yield f"TIFF {width} × {height}, compression {compression}", partial(
            refused_among_scans, name="x.tif", content=makers.tiff(width, height, compression=compression))  # fmt: skip
    loop = bytearray(makers.tiff(8, 8))
    loop[-4:] = struct.pack("<I", 8 + 64)
    yield "TIFF whose pages go in a circle", partial(
        refused_among_scans, name="x.tif", content=bytes(loop), readable=True
    )
    bmp = bytearray(makers.picture(kind="BMP"))
    struct.pack_into("<ii", bmp, 18, 60000, 60000)
    yield "BMP 60000 × 60000", partial(refused_among_scans, name="x.bmp", content=bytes(bmp))
    jpeg = bytearray(makers.picture(kind="JPEG"))
    at = jpeg.find(b"\xff\xc0")
    struct.pack_into(">HH", jpeg, at + 5, 65500, 65500)
    yield "JPEG 65500 × 65500", partial(refused_among_scans, name="x.jpg", content=bytes(jpeg))
    webp = bytearray(makers.picture(kind="WEBP", lossless=True))
    struct.pack_into("<I", webp, 21, 0x0FFFFFFF)
    yield "WebP 16384 × 16384", partial(refused_among_scans, name="x.webp", content=bytes(webp))

    def true(place: Place) -> None:
        (place.work / "x.png").write_bytes(makers.png(9000, 9000))
        read_within_limits(place, place.work / "x.png", 9000 * 9000)

    yield "PNG of 81 Mpx that is really there", true


@fault_class(3, "tables that unfold")
def table_bombs() -> Iterator[Trial]:
    def trial(place: Place, name: str, content: bytes | Callable[[Path], object]) -> None:
        folder = makers.pictures(place.work / "scans")
        (folder / "captions.csv").unlink()
        path = folder / name
        path.write_bytes(content) if isinstance(content, bytes) else content(path)
        place.memory_mb = 700
        place.run("import", folder, "--into", place.new_study(), seconds=40)

    def zipped(part: str, start: bytes, end: bytes) -> Callable[[Path], None]:
        def write(path: Path) -> None:
            path.write_bytes(makers.xlsx())
            with zipfile.ZipFile(path) as old:
                kept = {name: old.read(name) for name in old.namelist() if name != part}
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as new:
                for name, content in kept.items():
                    new.writestr(name, content)
                with new.open(part, "w", force_zip64=True) as stream:
                    stream.write(start)
                    for _ in range(64):
                        stream.write(b" " * 2**24)
                    stream.write(end)

        return write

    sheet = (
        b'<?xml version="1.0"?><worksheet xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"><sheetData>'
    )
    text = b'<row r="1"><c r="A1" t="inlineStr"><is><t>'
    yield "xlsx, a cell of 1 GB", partial(trial, name="a.xlsx", content=zipped(
        "xl/worksheets/sheet1.xml", sheet + text, b"</t></is></c></row></sheetData></worksheet>"))  # fmt: skip
    yield "xlsx, shared strings of 1 GB", partial(trial, name="a.xlsx", content=zipped(
        "xl/sharedStrings.xml", b"<sst><si><t>", b"</t></si></sst>"))  # fmt: skip
    yield "xlsx, styles of 1 GB", partial(trial, name="a.xlsx", content=zipped(
        "xl/styles.xml", b"<styleSheet>", b"</styleSheet>"))  # fmt: skip
    laughs = b"".join(b'<!ENTITY l%d "%s">' % (n, b"&l%d;" % (n - 1) * 10) for n in range(1, 10))
    yield "xlsx, a billion laughs", partial(trial, name="a.xlsx", content=makers.xlsx(
        sheet=b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY l0 "lol">' + laughs + b"]>" + sheet[21:] + text
        + b"&l9;</t></is></c></row></sheetData></worksheet>"))  # fmt: skip
    rows = b'<row r="1048576"><c r="XFD1048576" t="inlineStr"><is><t>x</t></is></c></row></sheetData></worksheet>'
    yield "xlsx, one cell at the far end", partial(trial, name="a.xlsx", content=makers.xlsx(sheet=sheet + rows))
    wide = b'<row r="1">' + b'<c r="A1"/>' * 2 * 10**6 + b"</row></sheetData></worksheet>"
    yield "xlsx, two million empty cells", partial(trial, name="a.xlsx", content=makers.xlsx(sheet=sheet + wide))
    yield (
        "csv, a field of 200 MB",
        partial(trial, name="a.csv", content=b'Image,Description\na.png,"' + b"x" * 2 * 10**8),
    )
    yield "csv, a line of 200 MB", partial(trial, name="a.csv", content=b"Image,Description," + b"," * 2 * 10**8)
    yield (
        "csv, two million rows",
        partial(trial, name="a.csv", content=b"Image,Description\n" + b"a.png,x\n" * 2 * 10**6),
    )
    yield "json, 200 MB", partial(trial, name="a.json", content=b"[" + b"0," * 10**8 + b"0]")
    yield "json, 10⁵ deep", partial(trial, name="a.json", content=b"[" * 10**5)
    yield "json, 10⁵ deep and closed", partial(trial, name="a.json", content=b'{"a":' * 10**5 + b"1" + b"}" * 10**5)
    yield "json, a number of 10⁶ digits", partial(trial, name="a.json", content=b'[{"Image": ' + b"9" * 10**6 + b"}]")
    yield "labels.json, deep", partial(trial, name="labels.json", content=b"[" * 10**5)
    yield "labels.json, 10⁶ structures", partial(trial, name="labels.json", content=(
        "{" + ",".join(f'"{n}": "s{n}"' for n in range(1, 300001)) + "}").encode())  # fmt: skip


@fault_class(3, "less memory than a job needs", short=1)
def memory_short() -> Iterator[Trial]:
    def trial(place: Place, megabytes: int, command: str, name: str) -> None:
        folder, study = place.work / "scans", place.study("trained")
        folder.mkdir()
        shape = (700, 700, 300)
        head = nifti(tweak=put(40, "<8h", 3, *shape, 1, 1, 1, 1))[:352]
        if name.endswith(".gz"):
            (folder / name).write_bytes(makers.packed(head) + zeros_packed(288))
        elif name.endswith(".nrrd"):
            sparse_file(folder / name, makers.nrrd(b"", sizes="700 700 600"), 700 * 700 * 600 + 300)
        elif name.endswith(".png"):
            (folder / name).write_bytes(makers.png(12000, 12000))
        else:
            sparse_file(folder / name, head, 352 + 2 * int(np.prod(shape)))
        place.allow(place.work / "m.nii.gz", study / "runs", study / "models", study / "store.sqlite")
        arguments = {
            "segment": ["segment", folder / name, "--prompt", "anterior hippocampus", "-o", place.work / "m.nii.gz"],
            "import": ["import", folder, "--into", place.new_study()], "train": ["train", study, *makers.TINY],
            "quality": ["quality", study],
        }[command]  # fmt: skip
        place.run(*arguments, address_space=megabytes * 2**20)

    for name in ("x.nii", "x.nii.gz", "x.nrrd", "x.png"):
        for megabytes in (100, 200, 400):
            yield (
                f"{name}, import with {megabytes} MB",
                partial(trial, megabytes=megabytes, command="import", name=name),
            )
    for megabytes in (60, 150, 500):
        yield f"segment with {megabytes} MB", partial(trial, megabytes=megabytes, command="segment", name="x.nii")
        yield f"train with {megabytes // 3} MB", partial(trial, megabytes=megabytes // 3, command="train", name="x.nii")
        yield (
            f"quality with {megabytes // 4} MB",
            partial(trial, megabytes=megabytes // 4, command="quality", name="x.nii"),
        )


@fault_class(3, "peak memory of sound readers")
def peaks() -> Iterator[Trial]:
    """At most 1.3 times the voxels and 300 MB; 268 MB of voxels of each kind."""

    def trial(place: Place, kind: str) -> None:
        size = (512, 512, 512)
        path = place.work / f"x.{kind}"
        array = np.zeros(size, np.int16)
        array[100:200, 100:200, 100:200] = 700
        if kind in ("nii", "nii.gz"):
            content = nifti(array)
            path.write_bytes(content if kind == "nii" else gzip.compress(content, 1))
        elif kind == "dicom":
            path.mkdir()
            for number in range(128):
                makers.dicom(path / f"{number}.dcm", float(number), pixels=np.zeros((1024, 1024), np.int16))
        else:
            import SimpleITK

            SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array), str(path), kind != "mha")
        del array
        read_within_limits(place, path, 2 * 512**3)

    for kind in ("nii", "nii.gz", "nrrd", "mha", "dicom"):
        yield kind, partial(trial, kind=kind)
