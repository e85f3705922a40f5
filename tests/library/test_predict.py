"""Masks of every scan of a study or folder, from the command line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from amvlm.cli import main
from amvlm.exchange import import_study
from amvlm.imaging import read_volume
from amvlm.store import LabelStore


@pytest.fixture
def scans(sample_store: LabelStore, tmp_path: Path) -> Path:
    folder = tmp_path / "scans"
    folder.mkdir()
    for number, case in enumerate(sample_store.cases("test")[:2]):
        image = sample_store.folder / case.image_file
        (folder / f"Patient {number}.nii.gz").write_bytes(image.read_bytes())
    return folder


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def run(*arguments: object) -> None:
    main([str(argument) for argument in arguments])


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as ended:
        run(*arguments)
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_a_folder_of_scans_becomes_masks_and_a_table(scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run("predict", scans, "-o", out, "--model", "bundled")
    rows = table(out)
    assert len({row["case"] for row in rows}) == 2
    parts = {"anterior hippocampus", "posterior hippocampus"}
    assert {row["prompt"] for row in rows} == {*parts, "whole hippocampus"}
    for row in rows:
        mask = read_volume(out / row["file"])
        (scan,) = [path for path in scans.iterdir() if path.name[8] == row["case"].split("-")[1][0]]
        assert mask.same_grid(read_volume(scan))
        assert int(mask.array.sum()) == int(row["voxels"]) > 0
        assert float(row["ml"]) == pytest.approx(mask.array.sum() * mask.voxel_ml, abs=1e-3)


def test_combined_labels_and_going_on(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    prompts = ["--prompt", "anterior hippocampus", "--prompt", "posterior hippocampus", "--combined"]
    run("predict", scans, "-o", out, "--model", "bundled", *prompts)
    rows, before = table(out), {path.name: path.read_bytes() for path in out.glob("*.nii.gz")}
    assert len(before) == 2
    values = np.asanyarray(nibabel.load(out / rows[0]["file"]).dataobj)
    assert [int((values == number).sum()) for number in (1, 2)] == [int(row["voxels"]) for row in rows[:2]]
    assert json.loads((out / "predictions.json").read_text())["labels"]["posterior hippocampus"] == 2
    (out / rows[0]["file"]).unlink()  # as if it had been ended here
    done: list[str] = []
    from amvlm.inference import predicting

    real = predicting._predicted
    monkeypatch.setattr(predicting, "_predicted", lambda *given: done.append(given[3]) or real(*given))
    run("predict", scans, "-o", out, "--model", "bundled", *prompts)
    assert done == [rows[0]["case"]]
    assert table(out) == rows
    assert {path.name: path.read_bytes() for path in out.glob("*.nii.gz")} == before
    assert "other prompts" in refused(capsys, "predict", scans, "-o", out, "--model", "bundled")


def test_a_study_keeps_its_case_numbers(scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    import_study(scans, tmp_path / "own")
    run("predict", tmp_path / "own", "-o", out, "--prompt", "anterior hippocampus", "--suffix", ".mha")
    rows = table(out)
    assert [row["case"] for row in rows] == ["case-00001", "case-00002"]
    assert all((out / row["file"]).is_file() for row in rows)


def test_refusals_leave_folders_as_they_were(
    scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    assert "not empty" in refused(capsys, "predict", scans, "-o", mine)
    assert "no such folder" in refused(capsys, "predict", tmp_path / "nowhere", "-o", tmp_path / "o")
    assert refused(capsys, "predict", tmp_path / "mine", "-o", tmp_path / "o")
    assert refused(capsys, "predict", scans, "-o", mine / "notes.txt" / "x")
    assert [path.name for path in mine.iterdir()] == ["notes.txt"]


def test_words_the_model_does_not_know_make_no_folder(
    scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = ["--prompt", "anterior hippocampus", "--prompt", "=spleen"]
    said = refused(capsys, "predict", scans, "-o", tmp_path / "out", *prompts)
    assert "is not known here" in said
    assert not (tmp_path / "out").exists()
