"""What a study keeps of an image: its voxels and their place, and none of the words that came with them."""

from __future__ import annotations

import gzip
import io

import numpy as np
from PIL import Image

from amvlm.errors import UserError
from amvlm.imaging.volume import Volume
from amvlm.imaging.writers import nifti_bytes


def study_copy(volume: Volume) -> tuple[bytes, str]:
    """Encode an image afresh, so that equal voxels give equal bytes and nothing else of its file remains.

    A volume becomes a gzipped NIfTI with a header of our own; a picture a PNG of 8 or 16 bits with its pixels alone,
    or a TIFF where its values are whole numbers of another range (32 bits) or fractions (float32).

    Returns
    -------
    content : bytes
    suffix : str
        ".nii.gz", ".png" or ".tif".

    Raises
    ------
    UserError
        If it is a volume in colour.
    """
    if not volume.planar and volume.array.ndim == 4:
        raise UserError("a volume in colour cannot be kept", remedy="Convert it to grey-scale, or to pictures.")
    if not volume.planar:
        return gzip.compress(nifti_bytes(volume), 6, mtime=0), ".nii.gz"
    pixels = volume.array[:, :, 0].swapaxes(0, 1)
    if pixels.dtype not in (np.uint8, np.uint16):
        whole = pixels.dtype.kind in "iu" and np.can_cast(pixels.dtype, np.int32)
        pixels = pixels.astype(np.int32 if whole else np.float32)
    suffix, form = (".png", "PNG") if pixels.dtype.kind == "u" else (".tif", "TIFF")
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(stream, form)
    return stream.getvalue(), suffix
