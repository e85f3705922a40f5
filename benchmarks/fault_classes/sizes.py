"""Files that ask for more memory than they are worth."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from fault_classes import makers
from fault_classes.makers import nifti, put
from fault_classes.place import Place
from fault_classes.registry import Trial, fault_class
from fault_classes.studies import cases

LITTLE_MB = 330.0
"""What refusing a file may take."""
_ZEROS = makers.packed(bytes(2**24))


def zeros_packed(megabytes: int) -> bytes:
    """Zeros as many gzip members of 16 MB: megabytes made from kilobytes at once."""
    return _ZEROS * (megabytes // 16)


def refused_among_scans(
    place: Place, name: str, content: bytes | Callable[[Path], object], seconds: float = 20, readable: bool = False
) -> None:
    """The import may take neither the file nor much memory or time to say so; a ``readable`` one it may take."""
    folder = makers.scans(place.work / "scans")
    path = folder / name
    path.write_bytes(content) if isinstance(content, bytes) else content(path)
    place.memory_mb, study = LITTLE_MB, place.new_study()
    answer = place.fine("import", folder, "--into", study, seconds=seconds)
    if not readable:
        place.expect_named(answer, name)
        place.expect(cases(study) == 2, f"{cases(study)} cases of 2")


def sparse_file(path: Path, header: bytes, size: int) -> None:
    with path.open("wb") as stream:
        stream.write(header)
        stream.truncate(size)


@fault_class(3, "NIfTI headers that ask for more than there is")
def nifti_headers() -> Iterator[Trial]:
    for dims in [(3, 30000, 30000, 30000), (3, 2000, 2000, 700), (3, 32767, 32767, 1), (7, 100, 100, 100, 9, 9, 9, 9),
                 (4, 256, 256, 256, 3000), (0, 1, 1, 1), (8, 2, 2, 2), (-1, 2, 2, 2), (3, -5, 5, 5), (3, 0, 5, 5),
                 (1, 30000, 1, 1), (5, 14, 12, 9, 1, 32767)]:  # fmt: skip
        yield f"dim {dims}", partial(refused_among_scans, name="x.nii", content=nifti(
            tweak=put(40, "<8h", *dims, *[1] * (8 - len(dims)))))  # fmt: skip
    for offset in (1e9, 3e38, float("nan"), -352.0, 1.0, 351.0):
        yield (
            f"vox_offset {offset}",
            partial(refused_among_scans, name="x.nii", content=nifti(tweak=put(108, "<f", offset))),
        )
    for datatype, bits in ((2304, 32), (1536, 128), (64, 2**15 - 1), (0, 0), (9999, 8)):
        yield f"datatype {datatype}", partial(refused_among_scans, name="x.nii", content=nifti(
            tweak=put(70, "<2h", datatype, bits)))  # fmt: skip
    two = struct.pack("<i8shh", 540, b"n+2\0\r\n\x1a\n", 4, 16)
    for sizes in ((3, 2**62, 2**62, 2**62), (3, 2**31, 2**31, 2), (7, *[2**10] * 7), (3, -(2**40), 2, 2)):
        header = two + struct.pack("<8q", *sizes, *[1] * (8 - len(sizes)))
        yield (
            f"NIfTI-2 dim {sizes[:3]}",
            partial(refused_among_scans, name="x.nii", content=header + bytes(1000 - len(header))),
        )
    yield "a sparse file of 60 GB", partial(refused_among_scans, name="x.nii", content=lambda path: sparse_file(
        path, nifti(tweak=put(40, "<8h", 3, 30000, 10000, 100, 1, 1, 1, 1))[:352],
        352 + 2 * 30000 * 10000 * 100))  # fmt: skip


@fault_class(3, "gzip that unfolds")
def gzip_bombs() -> Iterator[Trial]:
    head = makers.packed(nifti())
    yield (
        "2 GB behind the voxels",
        partial(refused_among_scans, name="x.nii.gz", content=head + zeros_packed(2048), seconds=40),
    )
    yield "40 GB declared, 5 kB there", partial(refused_among_scans, name="x.nii.gz", content=makers.packed(
        nifti(tweak=put(40, "<8h", 3, 30000, 10000, 70, 1, 1, 1, 1))))  # fmt: skip
    yield "40 GB declared, 1 GB there", partial(refused_among_scans, name="x.nii.gz", seconds=40, content=makers.packed(
        nifti(tweak=put(40, "<8h", 3, 30000, 10000, 70, 1, 1, 1, 1))[:352]) + zeros_packed(1024))  # fmt: skip
    yield (
        "no NIfTI, 4 GB of zeros",
        partial(refused_among_scans, name="x.nii.gz", content=zeros_packed(4096), seconds=40),
    )
    yield (
        "a gzip inside a gzip",
        partial(refused_among_scans, name="x.nii.gz", content=makers.packed(zeros_packed(2**12))),
    )
    yield "endless empty members", partial(refused_among_scans, name="x.nii.gz",
        content=makers.packed(nifti()[:400]) + makers.packed(
        b"") * 2 * 10**5)  # fmt: skip

    def true(place: Place) -> None:
        """600 MB of voxels that are really there: allowed, for what they are worth."""
        shape = (1000, 1000, 300)
        head = nifti(tweak=put(40, "<8h", 3, *shape, 1, 1, 1, 1))[:352]
        (place.work / "x.nii.gz").write_bytes(makers.packed(head) + zeros_packed(624))
        read_within_limits(place, place.work / "x.nii.gz", 2 * int(np.prod(shape)))

    yield "600 MB that are really there", true


def read_within_limits(place: Place, path: Path, size: int) -> None:
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
    for sizes in (
        "30000 30000 30000",
        "2000 2000 700",
        "99999999999 2 2",
        "0 8 4",
        "-8 8 4",
        "8 8",
        "8 8 4 9",
        "1e9 2 2",
    ):
        for encoding in ("raw", "gzip"):
            content = makers.packed(bytes(256)) if encoding == "gzip" else bytes(256)
            yield f"sizes {sizes}, {encoding}", partial(refused_among_scans, name="x.nrrd", content=makers.nrrd(
                content, sizes=sizes, encoding=encoding))  # fmt: skip
    yield "a gzip that unfolds", partial(refused_among_scans, name="x.nrrd", seconds=40, content=makers.nrrd(
        zeros_packed(2048), encoding="gzip"))  # fmt: skip
    yield "a sparse file of 60 GB", partial(refused_among_scans, name="x.nrrd", content=lambda path: sparse_file(
        path, makers.nrrd(b"", sizes="30000 20000 100"), 60 * 10**9 + 300))  # fmt: skip
    yield "dimension 16", partial(refused_among_scans, name="x.nrrd", content=makers.nrrd(
        bytes(65536), dimension="16", sizes=" ".join(["2"] * 16), kinds="", space="", space_directions="",
        space_origin=""))  # fmt: skip
    yield (
        "a header of 50 MB",
        partial(refused_among_scans, name="x.nrrd", content=makers.nrrd(bytes(256), content="x" * 5 * 10**7)),
    )
    yield (
        "bzip2 of nothing",
        partial(refused_among_scans, name="x.nrrd", content=makers.nrrd(bytes(9), encoding="bzip2")),
    )
    yield (
        "text voxels",
        partial(
            refused_among_scans, name="x.nrrd", content=makers.nrrd(b"1 2 3", encoding="ascii", sizes="9999 9999 9999")
        ),
    )
    yield "line skip −1", partial(refused_among_scans, name="x.nrrd", content=makers.nrrd(bytes(20), byte_skip="-1"))
    yield (
        "byte skip 10¹⁵",
        partial(refused_among_scans, name="x.nrrd", content=makers.nrrd(bytes(256), byte_skip="1000000000000000")),
    )


@fault_class(3, "MetaImage headers")
def mha_sizes() -> Iterator[Trial]:
    for sizes in ("30000 30000 30000", "2000 2000 700", "99999999999 2 2", "0 8 4", "-8 8 4", "8 8", "1e9 2 2"):
        yield (
            f"DimSize {sizes}",
            partial(refused_among_scans, name="x.mha", content=makers.mha(bytes(256), DimSize=sizes)),
        )
        yield f"DimSize {sizes}, compressed", partial(refused_among_scans, name="x.mha", content=makers.mha(
            zlib.compress(bytes(256)), DimSize=sizes, CompressedData="True"))  # fmt: skip
    yield "zlib that unfolds", partial(refused_among_scans, name="x.mha", seconds=40, content=makers.mha(
        zlib.compress(bytes(2**30), 1), CompressedData="True"))  # fmt: skip
    yield "a sparse file of 60 GB", partial(refused_among_scans, name="x.mha", content=lambda path: sparse_file(
        path, makers.mha(b"", DimSize="30000 20000 100"), 60 * 10**9 + 300))  # fmt: skip
    yield "10⁶ channels", partial(refused_among_scans, name="x.mha", content=makers.mha(
        bytes(256), ElementNumberOfChannels="1000000"))  # fmt: skip
    yield "NDims 10", partial(refused_among_scans, name="x.mha", content=makers.mha(
        bytes(1024), NDims="10", DimSize=" ".join(["2"] * 10), TransformMatrix="", Offset="", CenterOfRotation="",
        ElementSpacing=""))  # fmt: skip
    yield (
        "HeaderSize 10¹²",
        partial(refused_among_scans, name="x.mha", content=makers.mha(bytes(256), HeaderSize="1000000000000")),
    )
    yield (
        "HeaderSize −1, cut",
        partial(refused_among_scans, name="x.mha", content=makers.mha(bytes(56), HeaderSize="-1")),
    )
    yield "CompressedDataSize 10¹²", partial(refused_among_scans, name="x.mha", content=makers.mha(
        zlib.compress(bytes(100)), CompressedData="True", CompressedDataSize="1000000000000"))  # fmt: skip


@fault_class(3, "DICOM headers")
def dicom_sizes() -> Iterator[Trial]:
    def trial(place: Place, syntax: str = "1.2.840.10008.1.2.1", readable: bool = False, **tags: object) -> None:
        folder = place.work / "scans"
        makers.dicom(folder / "x.dcm", syntax=syntax, **tags)
        place.memory_mb, place.seconds = LITTLE_MB, 20
        use = place.run if readable else place.refused
        use("import", folder, "--into", place.new_study())
        place.allow(place.work / "m.nii.gz")
        use("segment", folder / "x.dcm", "--prompt", "anterior hippocampus", "-o", place.work / "m.nii.gz")

    for value in (2**31, 2**31 - 1, 10**6, -5, 0, "1e9", 2**70):
        yield f"NumberOfFrames {value}", partial(trial, readable=value == 0, NumberOfFrames=str(value))
    for rows, columns in ((65535, 65535), (0, 16), (16, 0), (65535, 16)):
        yield f"{rows} × {columns} pixels", partial(trial, Rows=rows, Columns=columns)
    for tags in ({"SamplesPerPixel": 60000}, {"BitsAllocated": 64}, {"BitsAllocated": 0}, {"BitsAllocated": 12},
                 {"BitsStored": 99}, {"HighBit": 200}, {"PixelRepresentation": 7}, {"PlanarConfiguration": 9,
                 "SamplesPerPixel": 3}, {"PhotometricInterpretation": "PALETTE COLOR"},
                 {"PixelData": b""}):  # fmt: skip
        yield f"{tags}"[:60], partial(trial, readable="HighBit" in tags, **tags)

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
        path.write_bytes(content[:at].replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99")[: at + 2] + body)
        place.memory_mb, place.seconds = LITTLE_MB + 700, 30
        place.refused("import", place.work / "scans", "--into", place.new_study())

    yield "a deflated data set that unfolds to 1 GB", deflated
