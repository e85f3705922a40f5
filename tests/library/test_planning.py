"""Fingerprint and plan: the rules by hand-worked cases (METHOD §8)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from amvlm.errors import UserError
from amvlm.planning import (
    CaseFacts,
    Fingerprint,
    Intensities,
    Machine,
    MaskFacts,
    Plan,
    StructureFacts,
    bounding_box,
    intensities,
    looks_like_hounsfield,
    make_plan,
    mask_facts,
    overlap,
    structure_facts,
    turn_deg,
)
from amvlm.planning.rules import FEWEST_PATCHES, level_strides, seconds_per_patch


def _structure(name: str, extent: tuple[float, float, float], cases: int = 14, parts: int = 1) -> StructureFacts:
    return StructureFacts(name=name, cases=cases, extent_mm=extent, largest_extent_mm=extent, slices=8, parts=parts)


def _heart(**changes: Any) -> Fingerprint:
    """Cardiac MR as in ACDC: 9 slices of 216 × 256 at 1.5 mm, 10 mm apart."""
    return Fingerprint(
        **{
            "cases": (CaseFacts(shape=(9, 216, 256), spacing_mm=(10, 1.5, 1.5), modality="MR"),) * 5,
            "structures": (_structure("ventricle", (80, 84, 100)), _structure("myocardium", (80, 70, 70))),
            "exclusive": True, "region_mm": (80, 90, 120), "labelled": 14, "unlabelled": 126, "minutes": 7,
            "machine": Machine(seconds_per_megapixel=1.0),
        } | changes
    )  # fmt: skip


def test_a_plan_of_cardiac_scans_by_hand() -> None:
    plan = make_plan(_heart())
    assert plan.dimensions == 2  # 9 slices are fewer than 10
    assert plan.spacing_mm == (0.0, 1.5, 1.5)
    assert plan.patch == (1, 96, 128)  # both structures together: 1.5 · 90 / 1.5 = 90 → 96; 1.5 · 120 / 1.5 = 120 → 128
    assert plan.region_mm == (120, 135, 180)
    # 7 min · 60 s · 0.7 = 294 s; a patch costs 0.012288 Mpx · 1 s · 0.7 = 0.0086 s: 34,180 are too few for two phases
    assert plan.widths == (24, 48, 96, 192)  # 0.00512 s: 57,366 patches, 7,170 steps of 8
    assert plan.steps == 7_170
    assert (plan.decoder, plan.any_angle) == ("sum", 0.2)
    assert plan.exclusive
    assert plan.largest_part == (True, True)
    assert plan.outputs == 3
    assert plan.recipe == "two_phase"
    assert plan.sentence() == "2-D, 1.5 mm, patches of 96×128, 7,170 steps of 8, about 7 minutes"


def test_every_choice_has_its_reason() -> None:
    choices = {reason.choice for reason in make_plan(_heart()).reasons}
    assert {"dimensions", "grid", "patch", "region", "intensities", "structures", "length"} <= choices


def test_a_plan_survives_json() -> None:
    plan = make_plan(_heart())
    assert Plan.model_validate_json(plan.model_dump_json()) == plan


def test_a_plan_of_another_version_is_refused() -> None:
    stored = make_plan(_heart()).model_dump() | {"version": 2}
    with pytest.raises(ValueError, match="version"):
        Plan.model_validate(stored)


def test_few_minutes_shrink_width_then_patch_then_double_the_spacing() -> None:
    slow = Machine(seconds_per_megapixel=4.0)
    narrow = make_plan(_heart(minutes=10, machine=slow, unlabelled=0))  # 420 s, 0.0344 s each: 12,207 patches
    assert narrow.widths == (24, 48, 96, 192)  # 0.0205 s each, 20,488 patches
    assert narrow.patch == (1, 96, 128)
    small = make_plan(_heart(minutes=1.5, machine=slow))  # 63 s; 16 channels: 0.0099 s each, 6,376 patches
    assert small.widths == (16, 32, 64, 128)
    assert small.patch == (1, 80, 112)  # 0.0072 s each, 8,700 patches
    coarse = make_plan(_heart(minutes=0.5, machine=slow))
    assert coarse.spacing_mm == (0.0, 3.0, 3.0)
    for plan in (narrow, small, coarse):
        assert plan.steps * plan.batch_size >= FEWEST_PATCHES - plan.batch_size


def test_the_spacing_doubles_only_while_small_structures_keep_eight_pixels() -> None:
    slow = Machine(seconds_per_megapixel=4.0)
    adrenal = (_structure("adrenal", (20, 18, 20)), _structure("liver", (80, 84, 100)))
    plan = make_plan(_heart(minutes=0.5, machine=slow, structures=adrenal))  # 18 mm are 6 pixels of 3 mm
    assert plan.spacing_mm == (0.0, 1.5, 1.5)
    assert "fewer than the 8,000" in next(r.why for r in plan.reasons if r.choice == "length")


def test_too_few_minutes_are_refused_with_how_many_would_do() -> None:
    with pytest.raises(UserError, match="too few") as error:
        make_plan(_heart(minutes=0.02, machine=Machine(seconds_per_megapixel=50.0)))
    assert "--minutes" in str(error.value)


def test_isotropic_volumes_are_3d_where_the_device_carries_it_and_2d_where_not() -> None:
    brain = {
        "cases": (CaseFacts(shape=(50, 36, 35), spacing_mm=(1, 1, 1), modality="MR"),) * 3,
        "structures": (_structure("anterior", (20, 22, 18)),),
        "region_mm": (24.0, 30.0, 20.0),
    }
    on_cpu = make_plan(_heart(**brain))
    assert on_cpu.dimensions == 2
    assert "3-D blocks" in next(r.why for r in on_cpu.reasons if r.choice == "dimensions")
    on_gpu = make_plan(_heart(**brain, machine=Machine(device="cuda", memory_gib=16, seconds_per_megapixel=0.02)))
    assert on_gpu.dimensions == 3
    assert on_gpu.network == "dynunet"
    assert on_gpu.patch == (64, 48, 48)
    assert on_gpu.inputs == 1


def test_strides_wait_for_the_thick_axis() -> None:
    assert level_strides((16, 64, 64), (4.0, 1.0, 1.0), 5) == ((1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2))
    assert level_strides((1, 176, 176), (10.0, 1.0, 1.0), 6)[-1] == (1, 1, 1)  # 11 pixels cannot be halved
    assert level_strides((8, 8, 64), (1.0, 1.0, 1.0), 3) == ((2, 2, 2), (1, 1, 2))


def test_pictures_are_read_whole_and_keep_all_parts() -> None:
    xray = make_plan(
        _heart(
            cases=(CaseFacts(shape=(1, 224, 224), spacing_mm=(1, 1, 1)),), planar=True, unlabelled=0,
            structures=(_structure("infection", (1, 110, 150)),), region_mm=(1, 110, 150),
        )
    )  # fmt: skip
    assert xray.patch == (1, 224, 224)
    assert xray.region_mm is None
    assert xray.largest_part == (False,)
    assert xray.recipe == "labelled"
    assert xray.any_angle == 0.0  # a picture has an up


def test_ct_is_scaled_by_its_foreground_and_mr_beside_it_by_itself() -> None:
    hounsfield = Intensities(low=-100, high=200, mean=40, sd=50)
    ct = CaseFacts(shape=(9, 216, 256), spacing_mm=(10, 1.5, 1.5), modality="CT")
    only_ct = make_plan(_heart(cases=(ct,), foreground=hounsfield)).normalisation
    assert only_ct.for_scan("CT") == hounsfield
    assert only_ct.for_scan("") == hounsfield
    assert only_ct.for_scan("MR") is None
    both = make_plan(_heart(cases=(ct, _heart().cases[0]), foreground=hounsfield))
    assert both.normalisation.for_scan("") is None
    assert "MR in the same study" in next(r.why for r in both.reasons if r.choice == "intensities")


def test_a_tenfold_spread_of_spacings_is_said() -> None:
    odd = CaseFacts(shape=(9, 216, 256), spacing_mm=(10, 15, 15), modality="MR")
    plan = make_plan(_heart(cases=(*_heart().cases, odd)))
    assert "10-fold" in next(r.why for r in plan.reasons if r.choice == "grid")


def test_a_structure_larger_than_the_patch_is_said() -> None:
    wide = _heart(
        cases=(CaseFacts(shape=(9, 1000, 1000), spacing_mm=(10, 1.0, 1.0)),),
        structures=(_structure("colon", (80, 300, 400)),), region_mm=(80, 300, 400),
    )  # fmt: skip
    plan = make_plan(wide)
    assert max(plan.patch) == 160
    assert [r.choice for r in plan.reasons if r.notable and "does not fit into a patch" in r.why] == ["patch"]


def test_overlapping_structures_get_a_sigmoid_each() -> None:
    plan = make_plan(_heart(exclusive=False))
    assert not plan.exclusive
    assert plan.outputs == 2


def test_narrower_networks_cost_less() -> None:
    facts = _heart()
    wide, narrow = (seconds_per_patch(facts, (1, 128, 128), width, 2) for width in (32, 16))
    assert wide == pytest.approx(0.7 * 0.016384)
    assert narrow == pytest.approx(0.7 * 0.016384 * 0.5**1.8)


def test_facts_of_a_mask_by_hand() -> None:
    mask = np.zeros((5, 20, 30), np.uint8)
    mask[1:4, 2:12, 5:20] = 1
    mask[4, 19, 29] = 1  # a speck: 1 of 451 voxels is no part, but lies in the box
    facts = mask_facts(mask, (10.0, 1.5, 2.0))
    assert facts is not None
    assert facts.extent_mm == (40.0, 27.0, 50.0)
    assert (facts.slices, facts.parts) == (4, 1)
    assert mask_facts(np.zeros_like(mask), (1, 1, 1)) is None
    assert bounding_box(mask) == (slice(1, 5), slice(2, 20), slice(5, 30))
    together = structure_facts("liver", [facts, facts.model_copy(update={"parts": 2})])
    assert (together.cases, together.parts, together.extent_mm) == (2, 2, (40.0, 27.0, 50.0))
    assert structure_facts("spleen", []).cases == 0


def test_structures_overlap_only_where_a_voxel_belongs_to_two() -> None:
    first, second = np.zeros((2, 4, 4, 4), np.uint8)
    first[0], second[1] = 1, 1
    assert not overlap([first, second])
    second[0, 0, 0] = 1
    assert overlap([first, second])


def test_a_ct_without_a_modality_is_known_by_its_air() -> None:
    air = np.full((10, 20, 20), -1000, np.int16)
    air[3:7, 5:15, 5:15] = 60
    assert looks_like_hounsfield(air)
    assert not looks_like_hounsfield(air + 1000)
    assert not looks_like_hounsfield(np.full((2, 2, 2), np.nan))


def test_foreground_intensities_by_hand() -> None:
    found = intensities([np.linspace(0, 100, 201), np.linspace(0, 100, 201)])
    assert found is not None
    assert (found.low, found.high, found.mean) == pytest.approx((0.5, 99.5, 50.0), abs=0.1)
    assert intensities([]) is None


def test_a_small_gpu_gets_small_blocks() -> None:
    chest = {
        "cases": (CaseFacts(shape=(300, 400, 400), spacing_mm=(1, 1, 1)),),
        "structures": (_structure("lung", (280, 300, 380)),),
        "region_mm": (280.0, 300.0, 380.0),
    }
    sizes = [
        make_plan(_heart(**chest, machine=Machine(device="cuda", memory_gib=gib, seconds_per_megapixel=0.001))).patch
        for gib in (4, 11, 80)
    ]
    voxels = [int(np.prod(size)) for size in sizes]
    assert voxels == sorted(voxels)
    assert voxels[0] <= 128**3 * 4 / 11 < voxels[1] <= 128**3 < voxels[2] <= 160**3


def test_a_patch_holds_all_structures_where_a_device_carries_it_else_the_largest() -> None:
    apart = (_structure("spleen", (80, 60, 60)), _structure("kidney", (80, 80, 80)))
    far = make_plan(_heart(structures=apart, region_mm=(80, 90, 230)))  # 1.5 · 230 / 1.5 = 230 pixels are too many
    assert far.patch == (1, 80, 80)
    assert "largest structure (80 × 80 mm)" in next(r.why for r in far.reasons if r.choice == "patch")
    near = make_plan(_heart(structures=apart, region_mm=(80, 90, 140)))
    assert near.patch == (1, 96, 144)
    assert "all structures (90 × 140 mm)" in next(r.why for r in near.reasons if r.choice == "patch")


def _at(**centres: tuple[float, float]) -> dict[str, MaskFacts]:
    return {
        name: MaskFacts(extent_mm=(1, 1, 1), slices=1, parts=1, centre_mm=centre) for name, centre in centres.items()
    }


def test_how_far_scans_lie_turned_by_hand() -> None:
    upright, turned = _at(a=(0, 0), b=(0, 40), c=(1, 1)), _at(a=(0, 0), b=(40, 0), c=(1, -1))
    assert turn_deg([upright] * 10) == pytest.approx(0)
    assert turn_deg([upright] * 9 + [turned] * 3) == pytest.approx(90 - np.degrees(np.arctan2(3, 9)))
    assert turn_deg([upright] * 4) is None
    few = turn_deg([upright] * 5 + [turned])  # of few scans, twice the largest deviation from their mean
    assert few == pytest.approx(2 * (90 - np.degrees(np.arctan2(1, 5))))
    assert turn_deg([_at(a=(0, 0))] * 20) is None


def test_patches_are_turned_by_any_angle_where_the_scans_are() -> None:
    assert make_plan(_heart(turn_deg=52.0)).any_angle == 0.2
    assert make_plan(_heart(turn_deg=5.0)).any_angle == 0.0
    assert make_plan(_heart(turn_deg=None)).any_angle == 0.2


def test_the_centre_of_a_mask_by_hand() -> None:
    mask = np.zeros((5, 20, 30), np.uint8)
    mask[1:4, 2:13, 5:8] = 1
    facts = mask_facts(mask, (10.0, 1.5, 2.0))
    assert facts is not None
    assert facts.centre_mm == pytest.approx((7 * 1.5, 6 * 2.0))


def test_without_other_scans_the_same_minutes_hold_a_wider_network() -> None:
    plan = make_plan(_heart(unlabelled=4))
    assert plan.recipe == "labelled"
    assert plan.widths == (32, 64, 128, 256)
    assert plan.steps == 4_272  # 34,179 patches


def test_a_network_that_goes_on_keeps_its_widths_until_the_minutes_outgrow_it() -> None:
    wide, narrow = (32, 64, 128, 256), (16, 32, 64, 128)
    assert make_plan(_heart(known_widths=wide)).widths == wide  # 34,180 patches are enough to go on
    assert make_plan(_heart(known_widths=narrow)).widths == narrow
    assert make_plan(_heart(known_widths=narrow, minutes=60)).widths == wide  # 293,000: a wide one begins anew
    assert make_plan(_heart(known_widths=wide, minutes=1)).widths == narrow  # 4,883 are too few even to go on
    assert make_plan(_heart(known_widths=(64, 128, 256, 512))).widths == (24, 48, 96, 192)
    assert any(r.choice == "width" and "goes on from" in r.why for r in make_plan(_heart(known_widths=wide)).reasons)


def test_small_structures_are_read_on_a_grid_twice_as_fine() -> None:
    """Hippocampi: 35 × 50 px at 1 mm; the network's first level is at half resolution."""
    case = CaseFacts(shape=(36, 50, 35), spacing_mm=(1, 1, 1), modality="MR")
    small = {
        "cases": (case,) * 20, "region_mm": (30, 38, 24), "unlabelled": 0, "labelled": 20,
        "structures": (_structure("anterior", (22, 20, 20)), _structure("posterior", (22, 22, 18))),
    }  # fmt: skip
    plan = make_plan(_heart(**small, minutes=3))
    assert plan.spacing_mm == (0.0, 0.5, 0.5)
    assert plan.patch == (1, 112, 80)  # whole slices: 100 → 112, 70 → 80
    assert plan.context == 1
    assert any(r.choice == "grid" and "twice as fine" in r.why for r in plan.reasons)
    slow = make_plan(_heart(**small, minutes=0.3))  # 12.6 s hold 7,083 narrow patches there: too few
    assert slow.spacing_mm == (0.0, 1.0, 1.0)
    on_gpu = make_plan(_heart(**small, machine=Machine(device="cuda", memory_gib=12, seconds_per_megapixel=0.02)))
    assert min(on_gpu.spacing_mm[1:]) == 1.0
    assert make_plan(_heart()).spacing_mm == (0.0, 1.5, 1.5)
