"""Content-addressed files: images and masks, named by the hash of what they hold and never changed."""

from __future__ import annotations

import gzip
import hashlib
import re
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from amvlm.errors import UserError
from amvlm.imaging import Volume, nifti_bytes, write_bytes_atomically
from amvlm.imaging.readers import volume_from_nifti
from amvlm.paths import check_regular, check_sha256, inside

IMAGE_SUFFIXES = (".nii.gz", ".png", ".tif", ".webp")
_IMAGE_FILE = re.compile(r"images/([0-9a-f]{64}|case-\d{5,9})(\.nii\.gz|\.png|\.tif|\.webp)")
"""``images/<sha256>.*``; studies made before that held ``images/case-00001.*``."""
_HEADER_ROOM = 4096
_CHUNK = 2**20
_MOST_VOXELS = 2**31


def sha256_of(content: bytes) -> str:
    """The hexadecimal SHA-256 of some bytes."""
    return hashlib.sha256(content).hexdigest()


class ImageFolder:
    """``images/``: what a study was made from, as files that nobody changes."""

    def __init__(self, study: Path) -> None:
        self._study = study

    @staticmethod
    def file_of(sha256: str, suffix: str) -> str:
        """The image's path in the study, with forward slashes."""
        return check_image_file(f"images/{check_sha256(sha256)}{suffix}")

    def path(self, image_file: str) -> Path:
        """Where an image lies; refuses a name that is not ours or that leads out of the study."""
        return inside(self._study, check_image_file(image_file))

    def add(self, content: bytes, suffix: str) -> str:
        """Keep an image; return its hash once the bytes are on disk."""
        sha256 = sha256_of(content)
        path = self.path(self.file_of(sha256, suffix))
        if not self.intact(self.file_of(sha256, suffix), sha256):
            write_bytes_atomically(path, content)
        return sha256

    def intact(self, image_file: str, sha256: str) -> bool:
        """True when the file is there and has that hash."""
        try:
            with check_regular(self.path(image_file)).open("rb") as stream:
                return hashlib.file_digest(stream, "sha256").hexdigest() == sha256
        except (OSError, UserError):
            return False

    def checked(self, image_file: str, sha256: str) -> Path:
        """The image's path, once its bytes were found to be the ones that were imported.

        Raises
        ------
        UserError
            If it is missing or was changed on disk.
        """
        path = self.path(image_file)
        if not path.is_file():
            raise UserError("a case's image is missing", file=path, remedy="Restore the folder images/ from a backup.")
        if not self.intact(image_file, sha256):
            raise UserError(
                "a case's image was changed on disk, so it is not used", file=path, remedy="Restore it from a backup."
            )
        return path


def check_image_file(image_file: str) -> str:
    """Return a path in ``images/`` that this program may have written, or raise :class:`UserError`."""
    if not isinstance(image_file, str) or not _IMAGE_FILE.fullmatch(image_file):
        raise UserError("the index names an image that is not the study's", remedy="Another program changed it.")
    return image_file


class MaskFolder:
    """``labels/``: ``<sha256>.nii.gz``; the hash covers the uncompressed header and voxels."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, sha256: str) -> Path:
        return inside(self.folder, f"{check_sha256(sha256)}.nii.gz")

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
        sha256 = sha256_of(content)
        if not self.intact(sha256):
            write_bytes_atomically(self.path(sha256), gzip.compress(content, 6, mtime=0))
        return sha256

    def intact(self, sha256: str) -> bool:
        """True when the file is there and its content has that hash."""
        digest = hashlib.sha256()
        try:
            with gzip.open(check_regular(self.path(sha256)), "rb") as stream:
                while chunk := stream.read(_CHUNK):
                    digest.update(chunk)
        except (OSError, EOFError, zlib.error, UserError):
            return False
        return digest.hexdigest() == sha256

    def read(self, sha256: str, shape: tuple[int, int, int] | None = None) -> Volume:
        """Read a mask, refusing one whose bytes changed on disk.

        Parameters
        ----------
        sha256 : str
        shape : tuple of int, optional
            Of the image that it belongs to: no more memory than such a mask needs is taken.
        """
        path = self.path(sha256)
        most = (_MOST_VOXELS if shape is None else int(np.prod(shape, dtype=object))) + _HEADER_ROOM
        try:
            with gzip.open(check_regular(path), "rb") as stream:
                content = stream.read(most + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError("a label's mask is damaged", file=path, remedy="Restore it from a backup.") from error
        except UserError as error:
            raise UserError(
                "a label's mask is missing", file=path, remedy="Restore the folder labels/ from a backup."
            ) from error
        if len(content) > most or sha256_of(content) != sha256:
            raise UserError(
                "a label's mask was changed on disk, so it is not used", file=path,
                remedy="Restore it from a backup, or outline the case again.",
            )  # fmt: skip
        mask = volume_from_nifti(content, path)
        if shape not in (None, mask.shape) or mask.array.dtype != np.uint8:
            raise UserError("a label's mask does not fit its image", file=path, remedy="Outline the case again.")
        return mask
