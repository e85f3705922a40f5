"""Corrections of a mask, against cases worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from amvlm.imaging.editing import fill_holes, interpolate, largest_component, smooth

ISOTROPIC = (1.0, 1.0, 1.0)


def ball(
    radius: float, shape: tuple[int, int, int] = (40, 40, 40), spacing: tuple[float, ...] = ISOTROPIC
) -> np.ndarray:
    grid = np.meshgrid(*[(np.arange(n) - n / 2) * s for n, s in zip(shape, spacing, strict=True)], indexing="ij")
    return (sum(g**2 for g in grid) <= radius**2).astype(np.uint8)


def test_smoothing_takes_off_a_spike_and_keeps_the_volume() -> None:
    mask = ball(10)
    spiked = mask.copy()
    spiked[20, 20, 30:36] = 1
    found = smooth(spiked, ISOTROPIC)
    assert not found[20, 20, 32:].any()
    assert abs(int(found.sum()) / int(mask.sum()) - 1) < 0.04
    assert found.dtype == np.uint8
    assert not smooth(np.zeros_like(mask), ISOTROPIC).any()


def test_smoothing_is_in_millimetres() -> None:
    mask = np.zeros((20, 20, 6), np.uint8)
    mask[5:15, 5:15, 3] = 1
    assert smooth(mask, (1.0, 1.0, 8.0)).any()  # neighbours 8 mm away say nothing about a slice
    assert not smooth(mask, ISOTROPIC, 2.0).any()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_holes_are_filled_in_the_plane_that_is_seen(axis: int) -> None:
    mask = np.zeros((9, 9, 9), np.uint8)
    ring = np.ones((5, 5), np.uint8)
    ring[2, 2] = 0
    np.moveaxis(mask, axis, 0)[4, 2:7, 2:7] = ring  # a ring: a hole in this plane, a tunnel in three dimensions
    found = np.moveaxis(fill_holes(mask, axis), axis, 0)
    assert found[4, 2:7, 2:7].all()
    assert found.sum() == 25
    assert np.array_equal(fill_holes(mask, (axis + 1) % 3), mask)


def test_a_bay_is_no_hole() -> None:
    mask = np.zeros((6, 6, 1), np.uint8)
    mask[0, :, 0] = mask[:, 0, 0] = mask[:, 5, 0] = 1  # open towards one edge of the image
    assert np.array_equal(fill_holes(mask, 2), mask)


def test_only_the_largest_part_stays() -> None:
    mask = np.zeros((8, 8, 8), np.uint8)
    mask[1:4, 1:4, 1:4] = 1
    mask[4, 4, 4] = 1  # touches by a corner: belongs to it
    mask[6:8, 6:8, 6:8] = 1
    found = largest_component(mask)
    assert found.sum() == 28
    assert not found[6:, 6:, 6:].any()
    assert not largest_component(np.zeros_like(mask)).any()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_between_two_squares_lies_the_one_in_between(axis: int) -> None:
    mask = np.zeros((21, 21, 21), np.uint8)
    slices = np.moveaxis(mask, axis, 0)
    slices[3, 4:17, 4:17] = 1
    slices[7, 8:13, 8:13] = 1
    found = np.moveaxis(interpolate(mask, axis, ISOTROPIC), axis, 0)
    assert np.array_equal(found[3], slices[3])
    assert np.array_equal(found[7], slices[7])
    assert found[5, 6:15, 6:15].all()
    assert found[5].sum() == 81
    assert not found[:3].any()
    assert not found[8:].any()


def test_a_ball_is_rebuilt_from_every_fourth_slice() -> None:
    whole = ball(12)
    painted = np.zeros_like(whole)
    painted[:, :, ::4] = whole[:, :, ::4]
    found = interpolate(painted, 2, ISOTROPIC)
    inner = slice(8, 33)
    assert 2 * (found & whole)[:, :, inner].sum() / (found.sum() + whole[:, :, inner].sum()) > 0.95
