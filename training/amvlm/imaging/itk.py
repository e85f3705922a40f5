"""NRRD and MetaImage, written by SimpleITK; its world is LPS, ours RAS."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from amvlm.errors import UserError
from amvlm.imaging.volume import Volume

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


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
