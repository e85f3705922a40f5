"""A box on one slice becomes a structure: how masks are carried, and where a box lies in a scan stored otherwise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from amvlm.cli import main
from amvlm.errors import UserError
from amvlm.imaging import Volume, read_volume, write_volume
from amvlm.inference import boxes
from amvlm.inference.boxes import BoxReader, box_of_voxels, usual_window
from amvlm.inference.carrying import Box, Plane, carried, doubt_of, largest_part
from amvlm.models.lite_medsam import Embedded, LiteMedSam, load_lite_medsam
from amvlm.models.tiny_vit import TinyViT, fold_batch_norm
from amvlm.weights import is_there


def _ball(centre: tuple[int, int, int] = (9, 18, 22), radius: int = 7) -> NDArray[np.bool_]:
    slices, rows, columns = np.indices((20, 40, 50))
    z, row, column = centre
    found: NDArray[np.bool_] = (slices - z) ** 2 + (rows - row) ** 2 + (columns - column) ** 2 <= radius**2
    return found


def _inside(truth: NDArray[np.bool_]):  # type: ignore[no-untyped-def]
    """A network that finds exactly what lies in the box."""

    def segment(index: int, box: Box) -> Plane:
        found = np.zeros(truth.shape[1:], bool)
        part = (slice(box.top, box.bottom + 1), slice(box.left, box.right + 1))
        found[part] = truth[index][part]
        return found

    return segment


def test_a_ball_is_carried_whole_and_nothing_beyond_it() -> None:
    truth = _ball()
    box = Box.around(truth[9])
    assert box == Box(11, 15, 25, 29)
    found = dict(carried(_inside(truth), len(truth), 9, box))
    assert next(iter(found)) == 9
    together = np.zeros_like(truth)
    for index, mask in found.items():
        together[index] = mask
    missing = truth & ~together  # the poles hold a single voxel, fewer than can be told from noise
    assert missing.sum() == 2
    assert not (together & ~truth).any()


def test_a_neighbour_that_enters_the_box_is_not_taken_over() -> None:
    truth = _ball()
    other = _ball(centre=(14, 18, 36), radius=5)
    found = dict(carried(_inside(truth | other), len(truth), 9, Box(11, 15, 25, 29)))
    assert not any((mask & other[index] & ~truth[index]).sum() > 20 for index, mask in found.items())


def test_a_mask_that_jumps_or_bursts_ends_there() -> None:
    first = np.zeros((30, 30), bool)
    first[10:20, 10:20] = True
    away, burst = np.zeros_like(first), np.ones_like(first)
    away[25:29, 25:29] = True
    masks = {5: first, 6: burst, 4: away}
    assert [index for index, _ in carried(lambda index, _: masks[index], 10, 5, Box(10, 10, 19, 19))] == [5]


def test_an_empty_first_mask_leads_nowhere() -> None:
    empty = np.zeros((8, 8), bool)
    found = list(carried(lambda *_: empty, 4, 2, Box(1, 1, 3, 3)))
    assert [index for index, _ in found] == [2]
    assert doubt_of(empty, Box(1, 1, 3, 3)) == "Nothing was found in the box."


def test_what_no_box_describes_is_said() -> None:
    rows, columns = np.mgrid[:40, :40]
    distance = np.hypot(rows - 20, columns - 20)
    box = Box(8, 8, 32, 32)
    assert doubt_of(distance < 12, box) == ""
    assert "ring" in doubt_of((distance < 12) & (distance > 8), box)
    two = (np.hypot(rows - 12, columns - 12) < 4) | (np.hypot(rows - 28, columns - 28) < 4)
    assert "several parts" in doubt_of(two, box)
    assert "little of the box" in doubt_of(abs(rows - columns) < 2, box)
    assert largest_part(two).sum() * 2 == two.sum()


@pytest.mark.parametrize("flip", [False, True])
def test_a_box_is_found_in_a_scan_stored_otherwise(flip: bool) -> None:
    """The same place of the patient, whatever the order of the file's voxels."""
    array = np.zeros((10, 12, 6), np.int16)
    affine = np.diag([1.0, 1.0, 3.0, 1.0])
    volume = Volume(array, affine)
    first, last = (2, 3, 4), (5, 8, 4)
    if flip:
        affine = affine.copy()
        affine[0, 0], affine[0, 3] = -1.0, 9.0
        volume = Volume(array, affine)
        first, last = (9 - 2, 3, 4), (9 - 5, 8, 4)
    assert box_of_voxels(volume, first, last) == (2, 4, Box(2, 3, 5, 8))


@pytest.mark.parametrize(
    ("first", "last", "words"), [((0, 0, 0), (3, 3, 3), "one slice"), ((0, 0, 6), (3, 3, 6), "outside")]
)
def test_a_box_that_is_none_is_refused(
    first: tuple[int, int, int], last: tuple[int, int, int], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        box_of_voxels(Volume(np.zeros((10, 12, 6), np.int16), np.eye(4)), first, last)


def test_ct_is_looked_at_in_a_soft_tissue_window_and_the_rest_by_its_own_range() -> None:
    rng = np.random.default_rng(0)
    ct = rng.uniform(-1000, 1500, (20, 20, 20)).astype(np.int16)
    assert usual_window(Volume(ct, np.eye(4), modality="CT")) == (-160.0, 240.0)
    mr = np.where(rng.random((20, 20, 20)) < 0.5, 0, rng.integers(100, 200, (20, 20, 20))).astype(np.int16)
    low, high = usual_window(Volume(mr, np.eye(4), modality="MR"))
    assert 100 <= low < 103 < 196 < high <= 200
    assert usual_window(Volume(np.full((4, 4, 4), 7, np.int16), np.eye(4))) == (0.0, 1.0)


class _Bright(LiteMedSam):
    """In place of the network: what is bright inside the box; counts how often a slice is read."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)
        self.read = 0

    def embed(self, image: torch.Tensor) -> Embedded:
        self.read += 1
        rows, columns = image.shape[-2:]
        return Embedded(image.float(), (rows, columns))

    def logits(self, embedded: Embedded, box: tuple[float, float, float, float]) -> tuple[torch.Tensor, float]:
        top, left, bottom, right = (int(side) for side in box)
        found = torch.full(embedded.shape, -1.0)
        part = (slice(top, bottom + 1), slice(left, right + 1))
        found[part] = embedded.features[part] - embedded.features.mean()
        return found, 1.0


def test_a_slice_is_read_once_for_many_boxes() -> None:
    network = _Bright()
    image = np.moveaxis(_ball(), 0, 2).astype(np.int16) * 100
    reader = BoxReader(network, Volume(image, np.diag([1.0, 1.0, 3.0, 1.0])))
    assert reader.shape == (20, 40, 50)
    box = Box(11, 15, 25, 29)
    assert (reader.mask(9, box) == _ball()[9]).all()
    reader.mask(9, box.grown(1, (40, 50)))
    assert network.read == 1


def test_the_command_writes_a_mask_on_the_scans_grid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("amvlm.models.lite_medsam.load_lite_medsam", _Bright)
    affine = np.diag([1.0, 1.0, 3.0, 1.0])
    affine[0, 0], affine[0, 3] = -1.0, 30.0
    image = np.moveaxis(_ball(), 0, 2)[::-1].astype(np.int16) * 100
    write_volume(tmp_path / "scan.nii.gz", Volume(np.ascontiguousarray(image), affine))
    corners = ["--from", "28", "15", "9", "--to", "14", "29", "9"]
    main(["box", str(tmp_path / "scan.nii.gz"), "-o", str(tmp_path / "one.nii.gz"), *corners])
    one = read_volume(tmp_path / "one.nii.gz").array
    assert (one[:, :, 9] == (image[:, :, 9] > 0)).all()
    assert one.sum() == (image[:, :, 9] > 0).sum()
    main(["box", str(tmp_path / "scan.nii.gz"), "-o", str(tmp_path / "all.nii.gz"), *corners, "--whole"])
    whole = read_volume(tmp_path / "all.nii.gz").array
    assert (image > 0).sum() - whole.sum() == 2
    assert "on 13 slices" in capsys.readouterr().out


def test_folded_batch_norms_answer_alike() -> None:
    torch.manual_seed(0)
    network = TinyViT().eval()
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        before = network(image)
        fold_batch_norm(network)
        assert torch.allclose(network(image), before, atol=1e-4)
    assert before.shape == (1, 256, 16, 16)


def test_the_published_weights_outline_a_disc() -> None:
    if not is_there("litemedsam"):
        pytest.skip("the weights are not here: amvlm weights fetch litemedsam")
    rows, columns = np.mgrid[:120, :160]
    disc = np.hypot(rows - 50, columns - 90) < 22
    image = np.where(disc, 150.0, 40.0) + np.random.default_rng(0).normal(0, 12, disc.shape)
    network = load_lite_medsam()
    found, quality = network.logits(network.embed(torch.from_numpy(image)), (26, 66, 74, 114))
    dice = 2 * ((found.numpy() > 0) & disc).sum() / ((found.numpy() > 0).sum() + disc.sum())
    assert dice > 0.9
    assert quality > 0.5


def test_absent_weights_are_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AMVLM_WEIGHTS", str(tmp_path))
    with pytest.raises(UserError, match="litemedsam"):
        load_lite_medsam()


def test_a_reader_forgets_the_slices_it_read_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boxes, "_KEPT", 2)
    network = _Bright()
    reader = BoxReader(network, Volume(np.moveaxis(_ball(), 0, 2).astype(np.int16), np.diag([1.0, 1.0, 3.0, 1.0])))
    for index in (5, 6, 7, 5):
        reader.mask(index, Box(1, 1, 5, 5))
    assert network.read == 4
