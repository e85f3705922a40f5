"""Arrays that can be made again, kept on disk: written whole or not at all, and looked at before they are believed."""

from __future__ import annotations

import hashlib
import os
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from amvlm.errors import UserError


def kept_array(path: Path, dtype: type[np.generic], shape: tuple[int | None, ...]) -> NDArray[Any] | None:
    """The array under a name, mapped from disk; None where it is missing, cut, or of another kind.

    Parameters
    ----------
    shape : tuple
        What it must have; None stands for any length.
    """
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return None
    fits = array.ndim == len(shape) and all(own in (side, None) for own, side in zip(shape, array.shape, strict=True))
    return array if fits and array.dtype == dtype else None


def keep_array(path: Path, array: NDArray[Any]) -> None:
    """Write beside and rename.

    Raises
    ------
    UserError
        If the disk does not take it.
    """
    beside = path.with_suffix(f".{uuid.uuid4().hex}.part")
    try:
        with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
            np.save(stream, array)
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise UserError(
            f"the study's cache could not be written ({error.strerror})", file=path.parent,
            remedy="Check free disk space; nothing of the study was changed.",
        ) from error  # fmt: skip


def weights_digest(*networks: torch.nn.Module) -> str:
    """A short hash of all weights and buffers, which names what was computed with them."""
    digest = hashlib.sha256()
    for network in networks:
        for name, tensor in network.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
