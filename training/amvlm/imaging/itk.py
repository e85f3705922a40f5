"""NRRD and MetaImage, read and written by SimpleITK; its world is LPS, ours RAS."""

from __future__ import annotations

import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amvlm.errors import UserError, the_one_meant, volume_names
from amvlm.imaging.volume import Volume

ITK_SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
COPY_AGAIN = "Copy the file again from its source; the transfer or the disk damaged it."


def read_itk(path: Path, volume_index: int | None, max_bytes: int) -> Volume:
    """Read one volume of an NRRD or MetaImage file.

    Parameters
    ----------
    path : Path
    volume_index : int, optional
        Which volume of a 4-D image or of a vector image with other than three 8-bit components.
    max_bytes : int
        Headers that ask for more are refused before memory is taken.
    """
    import SimpleITK

    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    text = _header_text(path)
    try:
        reader.ReadImageInformation()
        size = reader.GetSize()
        wanted = reader.GetNumberOfComponents() * int(np.prod([int(n) for n in size], dtype=object))
        if wanted > max_bytes:
            raise UserError(
                f"the header asks for {wanted / 2**30:,.0f} GiB of voxels ({' × '.join(map(str, size))})", file=path,
                remedy="Such dimensions are most likely damage; copy the file again or crop the scan.",
            )  # fmt: skip
        _check_compressed(path, text)
        image = reader.Execute()
    except RuntimeError as error:
        raise UserError("this is not a readable image, or it is cut short", file=path, remedy=COPY_AGAIN) from error
    array: NDArray[Any] = SimpleITK.GetArrayViewFromImage(image).copy()
    components, dimension = image.GetNumberOfComponentsPerPixel(), image.GetDimension()
    if array.dtype.kind not in "iuf":
        raise UserError(f"voxels of type {array.dtype} are not supported", file=path,
                        remedy="Convert it to a grey-scale image.")  # fmt: skip
    colour = components == 3 and array.dtype == np.uint8
    if components > 1 and not colour:
        array = np.moveaxis(array, -1, 0)
    if dimension > 4 or (dimension == 4 and components > 1):
        raise UserError(f"it has {dimension} dimensions", file=path, remedy="Export one 3-D volume.")
    if dimension == 4 or (components > 1 and not colour):
        array = array[the_one_meant(volume_index, volume_names(len(array)), "volume", path)]
    grid = min(dimension, 3)
    stored = tuple(range(grid))[::-1] + ((grid,) if colour else ())
    array = array.transpose(stored)
    if array.dtype.kind == "f" and not np.isfinite(array).any():
        raise UserError("no voxel holds a finite number", file=path, remedy="Export the scan again from its source.")
    spacing, origin = np.array(image.GetSpacing()[:grid]), np.array(image.GetOrigin()[:grid])
    if dimension == 2:
        affine = np.diag([-float(spacing[0]), -float(spacing[1]), 1.0, 1.0])
        return Volume(np.expand_dims(array, 2), affine, sides_known=False, planar=True)
    direction = np.array(image.GetDirection()).reshape(dimension, dimension)[:3, :3]
    lps = np.eye(4)
    lps[:3, :3], lps[:3, 3] = direction * spacing, origin
    try:
        return Volume(array, _LPS_TO_RAS @ lps, _says_sides(text))
    except UserError as error:
        raise UserError(error.what, file=path, remedy=error.remedy) from error


def write_itk(path: Path, volume: Volume) -> None:
    """Write NRRD or MHA (one compressed file); the caller renames it into its place."""
    import SimpleITK

    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(volume.array.transpose(2, 1, 0)))
    lps = _LPS_TO_RAS @ volume.affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    direction = lps[:3, :3] / spacing
    if not np.allclose(direction.T @ direction, np.eye(3), atol=1e-4):
        raise UserError("its axes are not at right angles, which this format does not hold", file=path,
                        remedy="Write NIfTI instead.")  # fmt: skip
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection(direction.ravel().tolist())
    try:
        SimpleITK.WriteImage(image, str(path), True)
    except RuntimeError as error:
        raise UserError("the file could not be written", file=path,
                        remedy="Check free disk space and permissions, then try again.") from error  # fmt: skip


def _header_text(path: Path) -> str:
    """The head of the file as text, up to where the voxels begin."""
    with path.open("rb") as stream:
        head = stream.read(2**16)
    end = rb"\r?\n\r?\n" if head.startswith(b"NRRD") else rb"ElementDataFile\s*=\s*[^\n]*\n"
    found = re.search(end, head)
    return (head[: found.end()] if found else head).decode("latin-1")


def _says_sides(text: str) -> bool:
    """Whether the header states a direction; both formats fall back to an identity without a word."""
    if text.startswith("NRRD"):
        return bool(re.search(r"^space:\s*(left|right|LPS|RAS|LAS)", text, re.MULTILINE | re.IGNORECASE))
    return bool(re.search(r"^(TransformMatrix|Rotation|Orientation)\s*=", text, re.MULTILINE))


def _check_compressed(path: Path, text: str) -> None:
    """ITK may read damaged compressed voxels as if they were whole: inflate them first and see that they end well."""
    fields = {name.lower(): value for name, value in re.findall(r"^([\w ]+?)\s*[=:]\s*(.*?)\s*$", text, re.MULTILINE)}
    if fields.get("encoding", "").lower() in ("gzip", "gz"):
        inside, name, bits = "data file" not in fields, fields.get("data file", ""), 31
    elif fields.get("compresseddata", "").lower() == "true":
        inside, name, bits = fields.get("elementdatafile") == "LOCAL", fields.get("elementdatafile", ""), 15
    else:
        return
    inflater = zlib.decompressobj(bits)
    try:
        with (path if inside else path.parent / Path(name).name).open("rb") as stream:
            stream.seek(len(text.encode("latin-1")) if inside else 0)
            while (chunk := stream.read(2**20)) and not inflater.eof:
                inflater.decompress(chunk)
    except (OSError, zlib.error) as error:
        raise UserError("the compressed voxels are damaged or missing", file=path, remedy=COPY_AGAIN) from error
    if not inflater.eof:
        raise UserError("the file is cut short", file=path, remedy=COPY_AGAIN)
