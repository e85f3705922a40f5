"""A header reads its voxels from one plain file beside it, and from nowhere else; odd sources are sentences."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from amvlm.errors import UserError
from amvlm.imaging import read_volume


def header(path: Path, name: str) -> Path:
    """A header of 3 × 4 × 5 bytes whose voxels are said to be in ``name``."""
    if path.suffix == ".nhdr":
        path.write_text(f"NRRD0004\ntype: uchar\ndimension: 3\nsizes: 3 4 5\nspace: LPS\nencoding: raw\n"
                        f"space directions: (1,0,0) (0,1,0) (0,0,1)\ndata file: {name}\n", "utf-8")  # fmt: skip
    else:
        path.write_text(f"ObjectType = Image\nNDims = 3\nBinaryData = True\nElementSpacing = 1 1 1\nDimSize = 3 4 5\n"
                        f"ElementType = MET_UCHAR\nElementDataFile = {name}\n", "utf-8")  # fmt: skip
    return path


FOREIGN = (
    "../secret.raw", "{absolute}", "/dev/zero", "/dev/stdin", "LIST", "LIST 2", "secret%03d.raw 0 0 1", "%s", ".", "..",
    "./inside.raw", "sub/inside.raw", "sub\\inside.raw", "link.raw", "loop.raw", "folder", "fifo.raw", "missing.raw",
    "x.nhdr", "x.mhd", "", "x" * 5000, "file:///etc/hostname", "http://example.org/x.raw", "~/secret.raw", "*.raw",
    "*", "short.raw", "hard/../../secret.raw", "SKIPLIST",
)  # fmt: skip


@pytest.mark.parametrize("suffix", [".nhdr", ".mhd"])
@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_voxels_are_not_read(tmp_path: Path, suffix: str, name: str) -> None:
    (tmp_path / "secret.raw").write_bytes(bytes(range(60)))
    folder = tmp_path / "scans"
    (folder / "sub").mkdir(parents=True)
    (folder / "folder").mkdir()
    (folder / "sub" / "inside.raw").write_bytes(bytes(60))
    (folder / "short.raw").write_bytes(bytes(59))
    (folder / "link.raw").symlink_to("../secret.raw")
    (folder / "loop.raw").symlink_to("loop.raw")
    os.mkfifo(folder / "fifo.raw")
    path = header(folder / f"x{suffix}", name.format(absolute=tmp_path / "secret.raw"))
    with pytest.raises(UserError) as raised:
        read_volume(path)
    assert raised.value.remedy


@pytest.mark.parametrize("suffix", [".nhdr", ".mhd"])
def test_voxels_beside_the_header_are_read(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "my scan.raw").write_bytes(bytes(range(60)))
    (tmp_path / "link.raw").symlink_to("my scan.raw")
    for name in ("my scan.raw", "link.raw"):
        assert np.array_equal(read_volume(header(tmp_path / f"x{suffix}", name)).array.ravel(order="F"), np.arange(60))
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.ones((2, 3, 4), np.int16)), str(tmp_path / f"y{suffix}"), True)
    assert (read_volume(tmp_path / f"y{suffix}").array == 1).all()


def test_headers_that_are_odd_sources_themselves(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.nii.gz")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s.png"))
        for name in ("pipe.nii.gz", "s.png"):
            with pytest.raises(UserError, match="neither a file nor a folder"):
                read_volume(tmp_path / name)
    for name in ("x" * 5000 + ".nii", "a\0b.nii"):
        with pytest.raises(UserError):
            read_volume(tmp_path / name)
    for device in ("/dev/zero", "/dev/null"):
        with pytest.raises(UserError, match="neither a file nor a folder"):
            read_volume(device)
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.nii.gz"))
    odd.write_bytes(b"x")
    with pytest.raises(UserError, match="not valid UTF-8") as raised:
        read_volume(odd)
    str(raised.value).encode()
    (tmp_path / "dangling.nii").symlink_to("nowhere")
    (tmp_path / "loop.nii").symlink_to("loop.nii")
    for name in ("dangling.nii", "loop.nii"):
        with pytest.raises(UserError):
            read_volume(tmp_path / name)
