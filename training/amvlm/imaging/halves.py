"""One half of a finding that lies on both sides."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.measure import label, regionprops


def half(mask: NDArray[Any], low: bool) -> NDArray[np.bool_]:
    """The connected parts of a mask (H, W) whose centre lies in the lower (or upper) half of the first axis."""
    parts = label(mask > 0)
    middle = (mask.shape[0] - 1) / 2
    kept = [region.label for region in regionprops(parts) if (region.centroid[0] < middle) == low]
    return np.asarray(np.isin(parts, kept))
