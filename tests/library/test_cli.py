"""The command line: every job, and every mistake as one sentence with exit code 2."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from nibabel.orientations import apply_orientation, inv_ornt_aff

from amvlm.cli import main
from amvlm.imaging import Volume, read_volume, write_volume
from amvlm.sample.study import first_scan
from amvlm.store import LabelStore

STRUCTURE = "anterior hippocampus"


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as raised:
        main(arguments)
    assert raised.value.code == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    last = str(captured.err.strip().splitlines()[-1])
    assert last.startswith("amvlm: ")
    return last


def test_segment_writes_a_mask_on_the_scans_own_grid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "mask.nii.gz"
    main(["segment", str(first_scan()), "--prompt", "anterior hippocampus", "-o", str(output)])
    mask, scan = nibabel.load(output), nibabel.load(first_scan())
    assert mask.shape == scan.shape
    assert np.allclose(mask.affine, scan.affine)
    assert mask.get_data_dtype() == np.uint8
    assert 500 < np.asarray(mask.dataobj).sum() < 5000
    assert "ml" in capsys.readouterr().out


def test_sources_differ_and_the_threshold_counts(tmp_path: Path) -> None:
    sizes = {}
    for name, flags in {
        "text": [], "prediction": ["--source", "prediction"], "strict": ["--threshold", "0.95"],
    }.items():  # fmt: skip
        output = tmp_path / f"{name}.nii.gz"
        main(["segment", str(first_scan()), "--prompt", "posterior hippocampus", "-o", str(output), *flags])
        sizes[name] = int(np.asarray(nibabel.load(output).dataobj).sum())
    assert sizes["strict"] < sizes["text"] != sizes["prediction"]


def test_48_orders_one_mask_in_world_space(tmp_path: Path) -> None:
    scan = read_volume(first_scan())
    wanted: set[tuple[int, ...]] = set()
    flips = list(itertools.product((1, -1), repeat=3))
    for number, axes in enumerate(itertools.permutations(range(3))):  # six orders, each with another flip
        orientation = np.array(list(zip(axes, flips[number], strict=True)))
        other = Volume(apply_orientation(scan.array, orientation), scan.affine @ inv_ornt_aff(orientation, scan.shape))
        write_volume(tmp_path / "scan.nii.gz", other)
        main(
            [
                "segment",
                str(tmp_path / "scan.nii.gz"),
                "--prompt",
                "anterior hippocampus",
                "-o",
                str(tmp_path / "m.nii.gz"),
            ]
        )
        mask = read_volume(tmp_path / "m.nii.gz")
        assert mask.same_grid(other)
        voxels = np.argwhere(mask.array)
        world = voxels @ mask.affine[:3, :3].T + mask.affine[:3, 3]
        found = {tuple(row) for row in np.round(world).astype(int).tolist()}
        assert len(found) == len(voxels)
        wanted = wanted or found
        assert found == wanted


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["segment", "nowhere.nii.gz", "--prompt", "x", "-o", "m.nii.gz"], "nowhere.nii.gz: there is no such file"),
        (["segment", "SCAN", "--prompt", "  ", "-o", "m.nii.gz"], "the prompt is empty"),
        (["segment", "SCAN", "--prompt", "a" * 5000, "-o", "m.nii.gz"], "5,000 characters"),
        (["segment", "SCAN", "--prompt", "x", "-o", "m.jpg"], "must end in .nii"),
        (["segment", "SCAN", "--prompt", "x", "-o", "no/such/m.nii.gz"], "folder does not exist"),
        (["segment", "SCAN", "--prompt", "liver", "--source", "prediction", "-o", "m.nii.gz"], "is not known here"),
        (["segment", "SCAN", "--prompt", "x", "--model", "nothing", "-o", "m.nii.gz"], "there is no model"),
        (["train", "nowhere"], "not a study"),
        (["pretrain", "nowhere"], "not a study"),
        (["evaluate", "nowhere"], "no such folder"),
        (["verify", "nowhere"], "not a study"),
        (["import", "nowhere", "--into", "study"], "no such folder"),
        (["train", "STUDY", "--steps", "0"], "--steps"),
        (["train", "STUDY", "--mode", "image_only", "--captions", "shuffled"], "text_guided"),
        (["train", "STUDY", "--resume"], "no such run"),
        (["train", "STUDY"], "no training case is labelled"),
        (["evaluate", "STUDY"], "expert mask"),
    ],
)
def test_mistakes_are_one_sentence(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    LabelStore.create(tmp_path / "study")
    named = {"SCAN": str(first_scan()), "STUDY": str(tmp_path / "study")}
    assert words in refused([named.get(argument, argument) for argument in arguments], capsys)


def test_verify_counts_and_finds_damage(sample_store: LabelStore, capsys: pytest.CaptureFixture[str]) -> None:
    main(["verify", str(sample_store.folder)])
    assert "40 cases, 10 labels, 0 damaged" in capsys.readouterr().out
    path = sample_store.folder / sample_store.cases()[0].image_file
    path.write_bytes(path.read_bytes()[:-1])
    assert subprocess.call([sys.executable, "-m", "amvlm", "verify", str(sample_store.folder)]) == 1


def test_train_and_evaluate_from_the_command_line(
    sample_store: LabelStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = str(sample_store.folder)
    small = ["--steps", "3", "--batch-size", "2", "--precision", "fp32", "--device", "cpu"]
    main(["train", study, "--name", "tiny", *small, "--network", "unet", "--channels", "8", "--channels", "16"])
    main(["evaluate", study, "--model", "tiny", "--split", "val", "--json", str(tmp_path / "figures.json")])
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert {row["mask"] for row in figures["summary"]} == {"text mask", "prediction", "merged"}
    assert len(figures["cases"]) == 6
    capsys.readouterr()
    main(["quality", study, "--model", "tiny", "--order", "diverse", "--json", str(tmp_path / "quality.json")])
    assert "17 cases to judge, diverse first" in capsys.readouterr().out
    looked = json.loads((tmp_path / "quality.json").read_text())
    assert len(looked) == 34
    assert all(0 <= row["expected_dice"] <= 1 for row in looked)  # calibrated by cross-fit
    distances = list(dict.fromkeys(row["distance"] for row in looked))
    assert distances == sorted(distances, reverse=True)
    run = next((sample_store.folder / "runs").iterdir())
    assert (run / "events.jsonl").read_text().count("\n") >= 3
    assert list((run / "tensorboard").iterdir())


def test_exported_labels_open_elsewhere(
    sample_store: LabelStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["export", str(sample_store.folder), str(tmp_path / "out")])
    described = json.loads((tmp_path / "out" / "labels.json").read_text())
    assert len(described["labels"]) == 10
    first = described["labels"][0]
    image = nibabel.load(tmp_path / "out" / first["file"])
    assert np.allclose(image.affine, sample_store.case(first["case"]).affine)
    assert "not empty" in refused(["export", str(sample_store.folder), str(tmp_path / "out")], capsys)


def test_amvlm_train_is_amvlm_train(tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("amvlm-train")
    if not program.exists():
        pytest.skip("the console scripts are not installed")
    done = subprocess.run([str(program), str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "this is not a study" in done.stderr


def test_the_headless_demo_prints_its_table(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("amvlm.demo.CORRECTED_CASES", 2)
    main(["demo", "--minutes", "1", "--json", str(tmp_path / "table.json")])
    assert "before and after the accepted corrections" in capsys.readouterr().out
    rows = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert len(rows) == 7
    assert all(0.7 < row["before"] < 0.95 for row in rows)


def test_without_any_model_it_says_how_to_make_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("amvlm.inference.catalogue.bundled_model_folder", lambda: tmp_path / "nothing")
    LabelStore.create(tmp_path / "study")
    assert "there is no model yet" in refused(["train", str(tmp_path / "study")], capsys)


def test_judging_and_history_without_a_window(
    sample_store: LabelStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = str(sample_store.folder)
    case = next(c for c in sample_store.cases("train") if sample_store.state(c.case_id, STRUCTURE) == "unknown")
    scan = sample_store.read_image(case)
    mask = np.zeros(scan.shape, np.uint8)
    mask[4:9, 4:9, 4:9] = 1
    path = tmp_path / "mask.nrrd"
    write_volume(path, scan.with_array(mask))
    judge = ["judge", store, case.case_id, STRUCTURE]
    main([*judge, "accept", "--mask", str(path)])
    first = sample_store.current(case.case_id, STRUCTURE)
    assert first is not None
    assert np.array_equal(sample_store.read_mask(first), mask)
    main([*judge, "absent"])
    assert sample_store.state(case.case_id, STRUCTURE) == "absent"
    main(["restore", store, str(first.revision_id)])
    assert sample_store.current(case.case_id, STRUCTURE).mask_sha256 == first.mask_sha256
    capsys.readouterr()
    main(["history", store, case.case_id, STRUCTURE])
    shown = capsys.readouterr().out
    assert shown.count("accepted") == 2
    assert shown.count("absent") == 1
    main([*judge, "undo"])
    assert sample_store.state(case.case_id, STRUCTURE) == "absent"

    assert "Give it with --mask" in refused([*judge, "accept"], capsys)
    write_volume(path, scan.with_array(mask.astype(np.int16) * 300))
    assert "other than 0 and 1" in refused([*judge, "accept", "--mask", str(path)], capsys)
    write_volume(path, scan.with_array(mask * 0))
    assert "empty" in refused([*judge, "accept", "--mask", str(path)], capsys)
    write_volume(path, Volume(mask[1:], scan.affine))
    assert "grid" in refused([*judge, "accept", "--mask", str(path)], capsys)
    assert "no revision 999" in refused(["restore", store, "999"], capsys)


def test_corrections_without_a_window(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mask = np.zeros((12, 12, 9), np.uint8)
    mask[3:9, 3:9, 2] = mask[3:9, 3:9, 6] = 1
    mask[5, 5, 2] = 0
    mask[0, 0, 0:2] = 1
    path, output = tmp_path / "mask.nii.gz", tmp_path / "out.mha"
    write_volume(path, Volume(mask, np.diag([1.0, 1, 3, 1])))
    main(["edit", str(path), "-o", str(output), "--fill-holes", "--interpolate", "--largest-part"])
    found = read_volume(output)
    assert found.array[3:9, 3:9, 2:7].all()
    assert found.array[5, 5, 2] == 1
    assert not found.array[:, :, 7:].any()
    assert "voxels" in capsys.readouterr().out
    assert "must end in" in refused(["edit", str(path), "-o", str(tmp_path / "x.txt")], capsys)
