"""Studies that a plan must not fall over: odd sizes, spacings, kinds of pictures; full disks and small GPUs."""

from __future__ import annotations

import errno
import gzip
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from amvlm.cli import main
from amvlm.exchange import import_study
from amvlm.learning import cache
from amvlm.models import AmvlmModel
from amvlm.models.planned import PlannedStudent
from amvlm.planning import Intensities, Normalisation
from amvlm.store import LabelStore

RUN = ["--minutes", "1", "--name", "m", "--device", "cpu", "--threads", "1", "--precision", "fp32", "--batch-size", "2"]


class Scan(NamedTuple):
    """A scan with a block of the structure in its middle."""

    shape: tuple[int, int, int] = (40, 36, 6)
    spacing: tuple[float, float, float] = (1.0, 1.0, 3.0)
    block: tuple[float, float, float] = (0.4, 0.4, 0.4)  # of each side
    air: float = 0.0
    tissue: float = 100.0


def _study(folder: Path, scans: list[Scan]) -> LabelStore:
    """All are training cases with an accepted mask, but the last, which has none."""
    rng = np.random.default_rng(0)
    (folder / "in" / "images").mkdir(parents=True)
    (folder / "in" / "masks").mkdir()
    for number, scan in enumerate(scans):
        mask = np.zeros(scan.shape, np.uint8)
        ends = [(round((1 - part) / 2 * n), round((1 + part) / 2 * n) or 1)
                for n, part in zip(scan.shape, scan.block, strict=True)]  # fmt: skip
        mask[tuple(slice(*pair) for pair in ends)] = 1
        array = np.where(mask > 0, scan.tissue, scan.air) + rng.normal(0, 5, scan.shape)
        if scan.air >= 0:
            array = array.clip(min=0)
        affine = np.diag([*scan.spacing, 1.0])
        _write(folder / "in" / "images" / f"s{number}.nii.gz", array.astype(np.float32), affine)
        if number < len(scans) - 1:
            _write(folder / "in" / "masks" / f"s{number}.nii.gz", mask, affine)
    import_study(folder / "in", folder / "study", structure="blob", split="train")
    return LabelStore(folder / "study")


def _write(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    path.write_bytes(gzip.compress(nibabel.Nifti1Image(array, affine).to_bytes()))


def _trained(store: LabelStore, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    """Train by the command; returns what it said."""
    main(["train", str(store.folder), *RUN, *more])
    assert AmvlmModel.load(store.folder / "models" / "m").plan is not None
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("scans", "words"),
    [
        (
            [Scan((350, 350, 2), block=(0.95, 0.06, 0.6)), Scan((350, 350, 2))],
            "the largest structure does not fit into a patch",
        ),
        ([Scan((40, 36, 1)), Scan((40, 36, 1))], "patches of"),
        ([Scan((40, 36, 6), (1, 1, 3)), Scan((16, 16, 6), (10, 10, 3)), Scan()], "spacings differ 10-fold"),
        ([Scan((120, 110, 6)), Scan((20, 18, 4)), Scan((12, 12, 3))], "patches of"),
        (
            [Scan(air=-1000), Scan(tissue=600), Scan(air=-1000)],
            "no CT in the same study: z-score of each scan",
        ),
    ],
    ids=["structure larger than the patch", "one slice", "tenfold spacing", "smaller than the patch", "CT and MR"],
)  # fmt: skip
def test_an_odd_study_is_trained_and_its_oddity_said(
    scans: list[Scan], words: str, tmp_path: Path, quick: None, capsys: pytest.CaptureFixture[str]
) -> None:
    said = _trained(_study(tmp_path, scans), capsys)
    assert words in said
    assert "validation cases are labelled: quality is unknown" in said


def test_each_scan_of_ct_and_mr_is_scaled_by_its_own_rule() -> None:
    foreground = Intensities(low=-100, high=300, mean=100, sd=50)
    mixed = Normalisation(modalities=("CT", "no CT"), foreground=foreground)
    assert mixed.for_scan("CT") == foreground
    assert mixed.for_scan("MR") is None
    assert mixed.for_scan("", below_zero=True) == foreground
    assert mixed.for_scan("", below_zero=False) is None
    named = Normalisation(modalities=("CT", "MR"), foreground=foreground)
    assert named.for_scan("MR", below_zero=True) is None
    assert named.for_scan("", below_zero=True) is None


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_pictures_are_trained_by_minutes(
    mode: str, tmp_path: Path, quick: None, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (tmp_path / "in" / kind).mkdir(parents=True)
    for number in range(3):
        pixels = rng.integers(0, 255, (40, 48) if mode == "L" else (40, 48, 3), dtype=np.uint8)
        mask = np.zeros((40, 48), np.uint8)
        mask[8:24, 8:24] = 255
        Image.fromarray(pixels).save(tmp_path / "in" / "images" / f"p{number}.png")
        Image.fromarray(mask).save(tmp_path / "in" / "masks" / f"p{number}.png")
    import_study(tmp_path / "in", tmp_path / "study", structure="nodule", split="train")
    store = LabelStore(tmp_path / "study")
    assert "The plan: 2-D" in _trained(store, capsys)
    plan = AmvlmModel.load(store.folder / "models" / "m").plan
    assert plan is not None
    assert plan.channels == (1 if mode == "L" else 3)


def test_a_full_disk_while_preparing_is_a_sentence_and_nothing_is_lost(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store, real = _study(tmp_path, [Scan(), Scan(), Scan()]), np.save
    labels = len(store.snapshot().revisions)

    def full(stream: Any, array: np.ndarray) -> None:
        if len(list(store.folder.rglob("*.npy"))) > 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(stream, array)

    monkeypatch.setattr(cache.np, "save", full)
    with pytest.raises(SystemExit) as ended:
        main(["train", str(store.folder), *RUN])
    assert ended.value.code == 2
    assert "cache could not be written (No space left on device)" in capsys.readouterr().err
    assert not list(store.folder.rglob("*.part"))
    assert len(LabelStore(store.folder).snapshot().revisions) == labels
    monkeypatch.setattr(cache.np, "save", real)
    assert "The plan" in _trained(store, capsys)


@pytest.mark.parametrize("room", [2, 0])
def test_a_gpu_too_small_takes_halves_or_says_so(
    room: int, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = PlannedStudent.forward

    def limited(self: PlannedStudent, image: Tensor) -> Tensor:
        if torch.is_grad_enabled() and len(image) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, image)

    monkeypatch.setattr(PlannedStudent, "forward", limited)
    store = _study(tmp_path, [Scan(), Scan()])
    if room:
        assert "The plan" in _trained(store, capsys)
        return
    with pytest.raises(SystemExit) as ended:
        main(["train", str(store.folder), *RUN])
    assert ended.value.code == 2
    assert "GPU's memory does not hold" in capsys.readouterr().err


def test_a_gpu_that_fails_in_any_other_stage_is_a_sentence(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(*_: object, **__: object) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(PlannedStudent, "volume_logits", failing)
    store = _study(tmp_path, [Scan(), Scan()])
    with pytest.raises(SystemExit) as ended:
        main(["train", str(store.folder), *RUN])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "the GPU's memory does not hold the job" in said
    assert "--device cpu" in said


def test_a_run_whose_plan_is_of_another_version_is_not_resumed(
    tmp_path: Path, quick: None, capsys: pytest.CaptureFixture[str]
) -> None:
    store = _study(tmp_path, [Scan(), Scan()])
    _trained(store, capsys, "--run-name", "r")
    config = store.folder / "runs" / "r" / "config.json"
    kept = json.loads(config.read_text())
    kept["plan"]["version"] = 99
    config.write_text(json.dumps(kept))
    with pytest.raises(SystemExit) as ended:
        main(["train", str(store.folder), "--run-name", "r", "--resume"])
    assert ended.value.code == 2
    assert "another version of amvlm" in capsys.readouterr().err
    (store.folder / "models" / "m" / "config.json").write_text(
        (store.folder / "models" / "m" / "config.json").read_text().replace('"version":1', '"version":99')
        .replace('"version": 1', '"version": 99')
    )  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", str(store.folder), "--model", "m", "--split", "train"])
    assert ended.value.code == 2
    assert "another version" in capsys.readouterr().err
