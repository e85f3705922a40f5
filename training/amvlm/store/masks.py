"""Immutable masks, named by the hash of what they hold."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from amvlm.errors import UserError
from amvlm.imaging import Volume, nifti_bytes, write_bytes_atomically
from amvlm.imaging.readers import volume_from_nifti


class MaskFolder:
    """Content-addressed ``<sha256>.nii.gz`` files; the hash covers the uncompressed header and voxels."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, sha256: str) -> Path:
        return self.folder / f"{sha256}.nii.gz"

    def add(self, mask: NDArray[np.uint8], grid: Volume) -> str:
        """Keep a mask; return its hash once the bytes are on disk.

        Parameters
        ----------
        mask : ndarray, uint8 or bool, shape ``grid.shape``
            0 outside, 1 inside.
        grid : Volume
            The image that the mask belongs to; its affine becomes the mask's.

        Raises
        ------
        UserError
            If the shape is another one, or values other than 0 and 1 occur.
        """
        if mask.shape != grid.shape:
            raise UserError(
                f"the mask has shape {mask.shape}, its image {grid.shape}",
                remedy="Use a mask drawn on this very image.",
            )
        if mask.dtype != np.bool_ and not bool(np.isin(mask, (0, 1)).all()):
            raise UserError("the mask holds values other than 0 and 1", remedy="Give one mask per structure.")
        content = nifti_bytes(grid.with_array(np.ascontiguousarray(mask, dtype=np.uint8)))
        sha256 = hashlib.sha256(content).hexdigest()
        if not self.intact(sha256):
            write_bytes_atomically(self.path(sha256), gzip.compress(content, 6, mtime=0))
        return sha256

    def intact(self, sha256: str) -> bool:
        """True when the file is there and its content has that hash."""
        try:
            content = gzip.decompress(self.path(sha256).read_bytes())
        except (OSError, EOFError, zlib.error):
            return False
        return hashlib.sha256(content).hexdigest() == sha256

    def read(self, sha256: str) -> Volume:
        """Read a mask, refusing one whose bytes changed on disk."""
        path = self.path(sha256)
        try:
            content = gzip.decompress(path.read_bytes())
        except FileNotFoundError as error:
            raise UserError(
                "a label's mask is missing", file=path, remedy="Restore the folder labels/ from a backup."
            ) from error
        except (OSError, EOFError, zlib.error) as error:
            raise UserError("a label's mask is damaged", file=path, remedy="Restore it from a backup.") from error
        if hashlib.sha256(content).hexdigest() != sha256:
            raise UserError(
                "a label's mask was changed on disk, so it is not used",
                file=path,
                remedy="Restore it from a backup, or outline the case again.",
            )
        return volume_from_nifti(content, path)
