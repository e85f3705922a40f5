"""Volumes in world space: reading, writing, orientation and resampling."""

from amvlm.imaging.orientation import (
    canonical_mask,
    evenly_spread,
    from_display,
    obliquity_deg,
    slice_axis,
    to_canonical,
    to_display,
    to_original,
)
from amvlm.imaging.readers import read_volume
from amvlm.imaging.volume import Volume
from amvlm.imaging.writers import check_target, nifti_bytes, write_bytes_atomically, write_volume

__all__ = [
    "Volume",
    "canonical_mask",
    "check_target",
    "evenly_spread",
    "from_display",
    "nifti_bytes",
    "obliquity_deg",
    "read_volume",
    "slice_axis",
    "to_canonical",
    "to_display",
    "to_original",
    "write_bytes_atomically",
    "write_volume",
]
