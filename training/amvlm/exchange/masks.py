"""Masks of other programs as ours: one array of 0 and 1 for each structure, or a sentence why not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amvlm.errors import UserError
from amvlm.exchange.layouts import Item
from amvlm.imaging import Volume, read_volume

NAME_VALUES = 'Name every value with --labels FILE, a JSON file {"1": "name", …}.'


def read_masks(item: Item, volume: Volume, structures: Mapping[str, str], values: Mapping[int, str]
               ) -> dict[str, NDArray[np.uint8]]:  # fmt: skip
    """The masks of an image, on its grid; nothing is written.

    Parameters
    ----------
    item : Item
    volume : Volume
        The item's image.
    structures, values : mapping
        As of :class:`Layout`.

    Returns
    -------
    dict of str to ndarray, uint8 {0, 1}, shape ``volume.shape``
        Structure → mask; empty where the item has none.

    Raises
    ------
    UserError
        If the mask has another grid, colours, values that are not whole numbers from 0 up, or values without a name.
    """
    if item.mask is None:
        return {}
    mask = read_volume(item.mask)
    if mask.array.ndim != 3:
        raise UserError("a mask must be grey-scale", file=item.mask, remedy="Save it with one value per structure.")
    same = mask.planar and mask.shape == volume.shape if volume.planar else mask.same_grid(volume)
    if not same:
        raise UserError(
            f"the mask's grid {mask.shape} is not its image's {volume.shape}"
            + (": size or place differ" if mask.shape == volume.shape else ""),
            file=item.mask,
            remedy="Resample the mask onto its image, or draw it again.",
        )
    present = _values_of(mask.array, item)
    if values:
        unknown = present - values.keys()
        if unknown:
            raise UserError(f"the mask holds values without a name: {sorted(unknown)[:5]}", file=item.mask,
                            remedy=NAME_VALUES)  # fmt: skip
        wanted = {name: [value for value, n in values.items() if n == name] for name in values.values()}
        return {name: np.isin(mask.array, of).astype(np.uint8) for name, of in wanted.items()}
    if len(present) > 1:
        raise UserError(f"the mask holds {len(present)} values, and nobody said what they mean", file=item.mask,
                        remedy=NAME_VALUES)  # fmt: skip
    (name,) = structures
    return {name: (mask.array > 0).astype(np.uint8)}


def _values_of(array: NDArray[Any], item: Item) -> set[int]:
    """The different values above 0."""
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise UserError("the mask holds values that are no numbers", file=item.mask,
                            remedy="Save it again as whole numbers.")  # fmt: skip
        if (array != np.rint(array)).any():
            raise UserError("the mask holds values between the whole numbers", file=item.mask,
                            remedy="Is it a map of probabilities? Save it as 0 and 1.")  # fmt: skip
    if array.dtype.kind != "u" and array.min() < 0:
        raise UserError("the mask holds values below 0", file=item.mask, remedy="Save it with 0 for the background.")
    return {int(value) for value in np.unique(array)} - {0}
