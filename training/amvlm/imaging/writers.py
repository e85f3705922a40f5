"""Writing, so that a crash leaves the old file or the new one, never half of either."""

from __future__ import annotations

import gzip
import os
import tempfile
import uuid
from pathlib import Path

import nibabel
import numpy as np

from amvlm.errors import UserError
from amvlm.imaging.itk import write_itk
from amvlm.imaging.volume import Volume

WRITTEN_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha")


def nifti_bytes(volume: Volume) -> bytes:
    """The uncompressed single-file NIfTI-1 of a volume, the same bytes for the same volume every time.

    Sform code 1 holds the affine, rounded to float32; qform is written where it can hold it (no shear).
    Masks of dtype bool become uint8. RGB volumes are refused with ``ValueError``: write the picture instead.
    """
    if volume.array.ndim != 3:
        raise ValueError("RGB volumes are kept as pictures, not as NIfTI")
    array = volume.array.view(np.uint8) if volume.array.dtype == np.bool_ else volume.array
    image = nibabel.Nifti1Image(array, volume.affine, dtype=array.dtype)
    image.set_sform(volume.affine, code=1 if volume.sides_known else 0)
    axes = volume.affine[:3, :3] / volume.spacing_mm
    orthogonal = np.allclose(axes.T @ axes, np.eye(3), atol=1e-4)
    image.set_qform(volume.affine if orthogonal else None, code=1 if orthogonal and volume.sides_known else 0)
    image.header.set_xyzt_units("mm")
    encoded: bytes = image.to_bytes()
    return encoded


def write_bytes_atomically(path: Path, content: bytes, private: bool = True) -> None:
    """Write beside the target, fsync, rename, and fsync the folder (POSIX).

    Parameters
    ----------
    path : Path
    content : bytes
    private : bool
        Readable by this user alone (mode 0600), as everything in a study is; otherwise as the umask says.

    Raises
    ------
    UserError
        If the disk does not take it, or something other than a file has this name.
    """
    beside = path.with_name(f".{uuid.uuid4().hex}.part")
    if path.exists() and not path.is_file():  # a device, a pipe or a folder: a rename would put a file in its place
        raise UserError("there is something else under this name", file=path, remedy="Choose another file name.")
    try:
        with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o666), "wb") as stream:
            _hold(stream.fileno())
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise UserError(
            f"the file could not be written ({error.strerror})",
            file=path,
            remedy="Check free disk space and permissions, then try again; nothing was replaced.",
        ) from error
    fsync_folder(path.parent)


def is_held(path: Path) -> bool:
    """True while a program is still writing a partial file of :func:`write_bytes_atomically`."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        _hold(descriptor)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _hold(descriptor: int) -> None:
    """Lock a file until it is closed; on Windows an open file cannot be removed anyway."""
    if os.name == "posix":
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def fsync_folder(folder: Path) -> None:
    """Make renames inside a folder last through a loss of power (POSIX; nothing elsewhere)."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def check_target(path: Path) -> None:
    """Refuse a target that :func:`write_volume` cannot write, before the work is done."""
    if not path.name.lower().endswith(WRITTEN_SUFFIXES):
        raise UserError(f"the output must end in {', '.join(WRITTEN_SUFFIXES)}", file=path,
                        remedy="Choose another file name.")  # fmt: skip
    if not path.parent.is_dir():
        raise UserError("its folder does not exist", file=path, remedy="Create the folder first.")


def write_volume(path: Path, volume: Volume) -> None:
    """Write NIfTI, NRRD or MetaImage atomically; gzip without a time stamp, so equal volumes give equal files.

    NRRD and MetaImage hold no shear: such a volume is refused with a ``UserError``.
    """
    check_target(path)
    name = path.name.lower()
    if name.endswith((".nii", ".nii.gz")):
        content = nifti_bytes(volume)
        content = gzip.compress(content, 6, mtime=0) if name.endswith(".gz") else content
    else:
        with tempfile.TemporaryDirectory() as folder:
            beside = Path(folder) / f"volume{path.suffix.lower()}"
            write_itk(beside, volume)
            content = beside.read_bytes()
    write_bytes_atomically(path, content, private=False)
