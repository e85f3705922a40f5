"""Files that ask for more memory than they are worth."""

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
from fault_classes.names import cases
from fault_classes.place import Place
from fault_classes.registry import Trial, fault_class

LITTLE_MB = 330.0
"""What refusing a file may take."""
_ZEROS = makers.packed(bytes(2**24))


def zeros_packed(megabytes: int) -> bytes:
    """Zeros as many gzip members of 16 MB: megabytes made from kilobytes at once."""
    return _ZEROS * (megabytes // 16)


def _refused(place: Place, name: str, content: bytes | Callable[[Path], object], seconds: float = 20) -> None:
    """Neither command may take the file, nor much memory or time to say so."""
    folder = makers.scans(place.work / "scans")
    path = folder / name
    path.write_bytes(content) if isinstance(content, bytes) else content(path)
    place.memory_mb, study = LITTLE_MB, place.new_study()
    answer = place.fine("import", folder, "--into", study, seconds=seconds)
    place.expect_named(answer, name)
    place.expect(cases(study) == 2, f"{cases(study)} cases of 2")


def _sparse(path: Path, header: bytes, size: int) -> None:
    with path.open("wb") as stream:
        stream.write(header)
        stream.truncate(size)


@fault_class(3, "NIfTI headers that ask for more than there is")
def nifti_headers() -> Iterator[Trial]:
    for dims in [(3, 30000, 30000, 30000), (3, 2000, 2000, 700), (3, 32767, 32767, 1), (7, 100, 100, 100, 9, 9, 9, 9),
                 (4, 256, 256, 256, 3000), (0, 1, 1, 1), (8, 2, 2, 2), (-1, 2, 2, 2), (3, -5, 5, 5), (3, 0, 5, 5),
                 (1, 30000, 1, 1), (5, 14, 12, 9, 1, 32767)]:  # fmt: skip
        yield f"dim {dims}", partial(_refused, name="x.nii", content=nifti(
            tweak=put(40, "<8h", *dims, *[1] * (8 - len(dims)))))  # fmt: skip
    for offset in (1e9, 3e38, float("nan"), -352.0, 1.0, 351.0):
        yield f"vox_offset {offset}", partial(_refused, name="x.nii", content=nifti(tweak=put(108, "<f", offset)))
    for datatype, bits in ((2304, 32), (1536, 128), (64, 2**15 - 1), (0, 0), (9999, 8)):
        yield f"datatype {datatype}", partial(_refused, name="x.nii", content=nifti(
            tweak=put(70, "<2h", datatype, bits)))  # fmt: skip
    two = struct.pack("<i8shh", 540, b"n+2\0\r\n\x1a\n", 4, 16)
    for sizes in ((3, 2**62, 2**62, 2**62), (3, 2**31, 2**31, 2), (7, *[2**10] * 7), (3, -(2**40), 2, 2)):
        header = two + struct.pack("<8q", *sizes, *[1] * (8 - len(sizes)))
        yield f"NIfTI-2 dim {sizes[:3]}", partial(_refused, name="x.nii", content=header + bytes(1000 - len(header)))
    yield "a sparse file of 60 GB", partial(_refused, name="x.nii", content=lambda path: _sparse(
        path, nifti(tweak=put(40, "<8h", 3, 30000, 10000, 100, 1, 1, 1, 1))[:352], 352 + 2 * 30000 * 10000 * 100))  # fmt: skip


@fault_class(3, "gzip that unfolds")
def gzip_bombs() -> Iterator[Trial]:
    head = makers.packed(nifti())
    yield "2 GB behind the voxels", partial(_refused, name="x.nii.gz", content=head + zeros_packed(2048), seconds=40)
    yield "40 GB declared, 5 kB there", partial(_refused, name="x.nii.gz", content=makers.packed(
        nifti(tweak=put(40, "<8h", 3, 30000, 10000, 70, 1, 1, 1, 1))))  # fmt: skip
    yield "40 GB declared, 1 GB there", partial(_refused, name="x.nii.gz", seconds=40, content=makers.packed(
        nifti(tweak=put(40, "<8h", 3, 30000, 10000, 70, 1, 1, 1, 1))[:352]) + zeros_packed(1024))  # fmt: skip
    yield "no NIfTI, 4 GB of zeros", partial(_refused, name="x.nii.gz", content=zeros_packed(4096), seconds=40)
    yield "a gzip inside a gzip", partial(_refused, name="x.nii.gz", content=makers.packed(zeros_packed(2**12)))
    yield "endless empty members", partial(_refused, name="x.nii.gz", content=makers.packed(nifti()[:400]) + makers.packed(
        b"") * 2 * 10**5)  # fmt: skip

    def true(place: Place) -> None:
        """600 MB of voxels that are really there: allowed, for what they are worth."""
        shape = (1000, 1000, 300)
        head = nifti(tweak=put(40, "<8h", 3, *shape, 1, 1, 1, 1))[:352]
        (place.work / "x.nii.gz").write_bytes(makers.packed(head) + zeros_packed(624))
        _measured(place, place.work / "x.nii.gz", 2 * int(np.prod(shape)))

    yield "600 MB that are really there", true


def _measured(place: Place, path: Path, size: int) -> None:
    """Read a file: at most 1.3 times its voxels and 300 MB."""
    from amvlm.errors import UserError
    from amvlm.imaging import read_volume

    def read() -> None:
        try:
            print(read_volume(path).shape)
        except UserError as error:
            print(f"amvlm: {error}")

    place.memory_mb = 1.3 * size / 2**20 + 300
    place.run("read", instead=read)


@fault_class(3, "NRRD headers")
def nrrd_sizes() -> Iterator[Trial]:
    for sizes in ("30000 30000 30000", "2000 2000 700", "99999999999 2 2", "0 8 4", "-8 8 4", "8 8", "8 8 4 9", "1e9 2 2"):
        for encoding in ("raw", "gzip"):
            content = makers.packed(bytes(256)) if encoding == "gzip" else bytes(256)
            yield f"sizes {sizes}, {encoding}", partial(_refused, name="x.nrrd", content=makers.nrrd(
                content, sizes=sizes, encoding=encoding))  # fmt: skip
    yield "a gzip that unfolds", partial(_refused, name="x.nrrd", seconds=40, content=makers.nrrd(
        zeros_packed(2048), encoding="gzip"))  # fmt: skip
    yield "a sparse file of 60 GB", partial(_refused, name="x.nrrd", content=lambda path: _sparse(
        path, makers.nrrd(b"", sizes="30000 20000 100"), 60 * 10**9 + 300))  # fmt: skip
    yield "dimension 16", partial(_refused, name="x.nrrd", content=makers.nrrd(
        bytes(65536), dimension="16", sizes=" ".join(["2"] * 16), kinds="", space="", space_directions="",
        space_origin=""))  # fmt: skip
    yield "a header of 50 MB", partial(_refused, name="x.nrrd", content=makers.nrrd(bytes(256), content="x" * 5 * 10**7))
    yield "bzip2 of nothing", partial(_refused, name="x.nrrd", content=makers.nrrd(bytes(9), encoding="bzip2"))
    yield "text voxels", partial(_refused, name="x.nrrd", content=makers.nrrd(b"1 2 3", encoding="ascii", sizes="9999 9999 9999"))
    yield "line skip −1", partial(_refused, name="x.nrrd", content=makers.nrrd(bytes(20), byte_skip="-1"))
    yield "byte skip 10¹⁵", partial(_refused, name="x.nrrd", content=makers.nrrd(bytes(256), byte_skip="1000000000000000"))


@fault_class(3, "MetaImage headers")
def mha_sizes() -> Iterator[Trial]:
    for sizes in ("30000 30000 30000", "2000 2000 700", "99999999999 2 2", "0 8 4", "-8 8 4", "8 8", "1e9 2 2"):
        yield f"DimSize {sizes}", partial(_refused, name="x.mha", content=makers.mha(bytes(256), DimSize=sizes))
        yield f"DimSize {sizes}, compressed", partial(_refused, name="x.mha", content=makers.mha(
            zlib.compress(bytes(256)), DimSize=sizes, CompressedData="True"))  # fmt: skip
    yield "zlib that unfolds", partial(_refused, name="x.mha", seconds=40, content=makers.mha(
        zlib.compress(bytes(2**30), 1), CompressedData="True"))  # fmt: skip
    yield "a sparse file of 60 GB", partial(_refused, name="x.mha", content=lambda path: _sparse(
        path, makers.mha(b"", DimSize="30000 20000 100"), 60 * 10**9 + 300))  # fmt: skip
    yield "10⁶ channels", partial(_refused, name="x.mha", content=makers.mha(
        bytes(256), ElementNumberOfChannels="1000000"))  # fmt: skip
    yield "NDims 10", partial(_refused, name="x.mha", content=makers.mha(
        bytes(1024), NDims="10", DimSize=" ".join(["2"] * 10), TransformMatrix="", Offset="", CenterOfRotation="",
        ElementSpacing=""))  # fmt: skip
    yield "HeaderSize 10¹²", partial(_refused, name="x.mha", content=makers.mha(bytes(256), HeaderSize="1000000000000"))
    yield "HeaderSize −1, cut", partial(_refused, name="x.mha", content=makers.mha(bytes(56), HeaderSize="-1"))
    yield "CompressedDataSize 10¹²", partial(_refused, name="x.mha", content=makers.mha(
        zlib.compress(bytes(100)), CompressedData="True", CompressedDataSize="1000000000000"))  # fmt: skip


@fault_class(3, "DICOM headers")
def dicom_sizes() -> Iterator[Trial]:
    def trial(place: Place, syntax: str = "1.2.840.10008.1.2.1", **tags: object) -> None:
        folder = place.work / "scans"
        makers.dicom(folder / "x.dcm", syntax=syntax, **tags)
        place.memory_mb, place.seconds = LITTLE_MB, 20
        place.refused("import", folder, "--into", place.new_study())
        place.allow(place.work / "m.nii.gz")
        place.refused("segment", folder / "x.dcm", "--prompt", "liver", "-o", place.work / "m.nii.gz")

    for value in (2**31, 2**31 - 1, 10**6, -5, 0, "1e9", 2**70):
        yield f"NumberOfFrames {value}", partial(trial, NumberOfFrames=str(value))
    for rows, columns in ((65535, 65535), (0, 16), (16, 0), (65535, 16)):
        yield f"{rows} × {columns} pixels", partial(trial, Rows=rows, Columns=columns)
    for tags in ({"SamplesPerPixel": 60000}, {"BitsAllocated": 64}, {"BitsAllocated": 0}, {"BitsAllocated": 12},
                 {"BitsStored": 99}, {"HighBit": 200}, {"PixelRepresentation": 7}, {"PlanarConfiguration": 9,
                 "SamplesPerPixel": 3}, {"PhotometricInterpretation": "PALETTE COLOR"}, {"PixelData": b""}):  # fmt: skip
        yield f"{tags}"[:60], partial(trial, **tags)

    def encapsulated(place: Place, syntax: str) -> None:
        from pydicom.encaps import encapsulate

        trial(place, syntax=syntax, PixelData=encapsulate([b"\xff\xd8" + bytes(500)]), Rows=60000, Columns=60000)

    for name, syntax in (("JPEG", "1.2.840.10008.1.2.4.50"), ("JPEG 2000", "1.2.840.10008.1.2.4.90"),
                         ("JPEG-LS", "1.2.840.10008.1.2.4.80"), ("RLE", "1.2.840.10008.1.2.5")):  # fmt: skip
        yield f"{name}, 60000 × 60000", partial(encapsulated, syntax=syntax)

    def deflated(place: Place) -> None:
        path = makers.dicom(place.work / "scans" / "x.dcm")
        content = path.read_bytes()
        at = content.find(b"\x08\x00\x16\x00")  # the first element behind the file's own header
        packer = zlib.compressobj(1, zlib.DEFLATED, -15)
        long = b"\x09\x00\x01\x10OB\0\0" + struct.pack("<I", 2**30)
        body = packer.compress(long) + b"".join(packer.compress(bytes(2**24)) for _ in range(64)) + packer.flush()
        path.write_bytes(content[:at].replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99")[:at + 2] + body)
        place.memory_mb, place.seconds = LITTLE_MB + 700, 30
        place.refused("import", place.work / "scans", "--into", place.new_study())

    yield "a deflated data set that unfolds to 1 GB", deflated


@fault_class(3, "pictures of absurd size")
def picture_sizes() -> Iterator[Trial]:
    for width, height in ((60000, 60000), (2**31 - 1, 2**31 - 1), (13000, 13000), (2**31 - 1, 1), (0, 5)):
        yield f"PNG {width} × {height}, nothing there", partial(
            _refused, name="x.png", content=makers.png(width, height, zlib.compress(bytes(1000))))  # fmt: skip
    for colour, depth in ((2, 8), (6, 16), (3, 8), (0, 1)):
        yield f"PNG 50000 × 50000, colour {colour}, depth {depth}", partial(
            _refused, name="x.png", content=makers.png(50000, 50000, zlib.compress(bytes(1000)), depth, colour))  # fmt: skip
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
    for width, height, compression in ((50000, 50000, 1), (2**32 - 1, 2**32 - 1, 1), (50000, 50000, 8), (50000, 50000, 5),
                                       (50000, 50000, 32773), (0, 5, 1), (5, 5, 60000)):  # fmt: skip
        yield f"TIFF {width} × {height}, compression {compression}", partial(
            _refused, name="x.tif", content=makers.tiff(width, height, compression=compression))  # fmt: skip
    loop = bytearray(makers.tiff(8, 8))
    loop[-4:] = struct.pack("<I", 8 + 64)
    yield "TIFF whose pages go in a circle", partial(_refused, name="x.tif", content=bytes(loop))
    bmp = bytearray(makers.picture(kind="BMP"))
    struct.pack_into("<ii", bmp, 18, 60000, 60000)
    yield "BMP 60000 × 60000", partial(_refused, name="x.bmp", content=bytes(bmp))
    jpeg = bytearray(makers.picture(kind="JPEG"))
    at = jpeg.find(b"\xff\xc0")
    struct.pack_into(">HH", jpeg, at + 5, 65500, 65500)
    yield "JPEG 65500 × 65500", partial(_refused, name="x.jpg", content=bytes(jpeg))
    webp = bytearray(makers.picture(kind="WEBP", lossless=True))
    struct.pack_into("<I", webp, 21, 0x0FFFFFFF)
    yield "WebP 16384 × 16384", partial(_refused, name="x.webp", content=bytes(webp))

    def true(place: Place) -> None:
        (place.work / "x.png").write_bytes(makers.png(9000, 9000))
        _measured(place, place.work / "x.png", 9000 * 9000)

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

    sheet = b'<?xml version="1.0"?><worksheet xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"><sheetData>'
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
    yield "csv, a field of 200 MB", partial(trial, name="a.csv", content=b'Image,Description\na.png,"' + b"x" * 2 * 10**8)
    yield "csv, a line of 200 MB", partial(trial, name="a.csv", content=b"Image,Description," + b"," * 2 * 10**8)
    yield "csv, two million rows", partial(trial, name="a.csv", content=b"Image,Description\n" + b"a.png,x\n" * 2 * 10**6)
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
            _sparse(folder / name, makers.nrrd(b"", sizes="700 700 600"), 700 * 700 * 600 + 300)
        elif name.endswith(".png"):
            (folder / name).write_bytes(makers.png(12000, 12000))
        else:
            _sparse(folder / name, head, 352 + 2 * int(np.prod(shape)))
        place.allow(place.work / "m.nii.gz", study / "runs", study / "models", study / "store.sqlite")
        arguments = {
            "segment": ["segment", folder / name, "--prompt", "liver", "-o", place.work / "m.nii.gz"],
            "import": ["import", folder, "--into", place.new_study()], "train": ["train", study, *makers.TINY],
            "quality": ["quality", study],
        }[command]  # fmt: skip
        place.run(*arguments, address_space=megabytes * 2**20)

    for name in ("x.nii", "x.nii.gz", "x.nrrd", "x.png"):
        for megabytes in (100, 200, 400):
            yield f"{name}, import with {megabytes} MB", partial(trial, megabytes=megabytes, command="import", name=name)
    for megabytes in (60, 150, 500):
        yield f"segment with {megabytes} MB", partial(trial, megabytes=megabytes, command="segment", name="x.nii")
        yield f"train with {megabytes // 3} MB", partial(trial, megabytes=megabytes // 3, command="train", name="x.nii")
        yield f"quality with {megabytes // 4} MB", partial(trial, megabytes=megabytes // 4, command="quality", name="x.nii")


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
        _measured(place, path, 2 * 512**3)

    for kind in ("nii", "nii.gz", "nrrd", "mha", "dicom"):
        yield kind, partial(trial, kind=kind)
