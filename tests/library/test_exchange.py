"""Importing the layouts that people have on disk."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import openpyxl
import pytest
from PIL import Image, PngImagePlugin

from amvlm.cli import main
from amvlm.errors import UserError
from amvlm.exchange import import_study
from amvlm.exchange.importing import _hashed_splits
from amvlm.imaging import canonical_mask
from amvlm.models import AmvlmModel
from amvlm.store import LabelStore, verify


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine), path)


@pytest.fixture
def msd(tmp_path: Path) -> Path:
    folder = tmp_path / "Task"
    for n in range(6):
        rng = np.random.default_rng(n)
        write_nifti(folder / "imagesTr" / f"a_{n}.nii.gz", rng.integers(0, 99, (6, 5, 4), np.uint8))
        write_nifti(folder / "labelsTr" / f"a_{n}.nii.gz", rng.integers(0, 3, (6, 5, 4), np.uint8))
    description = {
        "name": "Hippocampus",
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "Anterior", "2": "Posterior"},
        "training": [{"image": f"./imagesTr/a_{n}.nii.gz", "label": f"./labelsTr/a_{n}.nii.gz"} for n in range(6)],
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


@pytest.fixture
def lvit(tmp_path: Path) -> Path:
    folder = tmp_path / "Train_Folder"
    (folder / "img").mkdir(parents=True)
    (folder / "labelcol").mkdir()
    book = openpyxl.Workbook()
    book.active.append(["Image", "Description"])
    for n in range(4):
        pixels = np.random.default_rng(n).integers(0, 255, (10, 12), np.uint8)
        Image.fromarray(pixels).save(folder / "img" / f"covid_{n}.png")
        Image.fromarray((pixels > 128).astype(np.uint8) * 255).save(folder / "labelcol" / f"mask_covid_{n}.png")
        book.active.append([f"mask_covid_{n}.png", f"Unilateral infection, {'left' if n % 2 else 'right'} lung."])
    book.save(folder / "Train_text.xlsx")
    return folder


def test_msd(msd: Path, tmp_path: Path) -> None:
    report = import_study(msd, tmp_path / "s", split="train")
    store = LabelStore(tmp_path / "s")
    assert (report.cases, report.masks, report.captions) == (6, 6, 0)
    assert [s.name for s in store.structures()] == ["anterior hippocampus", "posterior hippocampus"]
    assert len(store.snapshot().revisions) == 12
    case = store.cases()[2]
    label = np.asarray(nibabel.load(msd / "labelsTr" / "a_2.nii.gz").dataobj)
    assert np.array_equal(store.read_mask(store.current(case.case_id, "posterior hippocampus")), label == 2)
    assert case.modality == "MR"
    assert list(verify(store)) == []


def test_lvit_masks_captions_and_the_images_sides(lvit: Path, tmp_path: Path) -> None:
    report = import_study(lvit, tmp_path / "s", structure="pulmonary infection", split="train", accept_fraction=0.5)
    store = LabelStore(tmp_path / "s")
    assert (report.cases, report.masks, report.captions) == (4, 4, 4)
    assert {case.source_laterality for case in store.cases()} == {"image"}
    assert len(store.snapshot().revisions) == 2
    assert len(store.references()) == 4
    case = store.cases()[1]
    assert store.captions()[case.case_id] == [("pulmonary infection", "unilateral infection, right lung")]
    mask = canonical_mask(
        store.masks.read(store.references()[case.case_id, "pulmonary infection"]).array, store.read_image(case)
    )
    pixels = np.asarray(Image.open(lvit / "labelcol" / "mask_covid_1.png"))
    assert np.array_equal(mask[::-1, ::-1, 0].T, pixels > 0)


def test_captions_match_image_names_too_and_conflicts_are_refused(lvit: Path, tmp_path: Path) -> None:
    (lvit / "Train_text.xlsx").unlink()
    (lvit / "Train_text.csv").write_text("Image,Description\nCOVID_0.png,one\ncovid_1,two\n")
    report = import_study(lvit, tmp_path / "s", split="train")
    assert (report.captions, report.without_caption) == (2, 2)
    (lvit / "Train_text.csv").write_text("Image,Description\ncovid_0.png,one\ncovid_0.png,two\n")
    with pytest.raises(UserError, match="two captions"):
        import_study(lvit, tmp_path / "t")
    (lvit / "Train_text.csv").write_text("Name,Text\nx,y\n")
    with pytest.raises(UserError, match="columns Image and Description"):
        import_study(lvit, tmp_path / "u")


def picture(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def test_the_kaggle_layout(tmp_path: Path) -> None:
    folder = tmp_path / "Train Set"
    for n, name in enumerate(("covid_1", "sub-S03047_ses-E06139_run-1", "sub-S03047_ses-E07000_run-1")):
        pixels = np.random.default_rng(n).integers(0, 255, (10, 12), np.uint8)
        picture(folder / "Images" / f"{name}.png", pixels)
        picture(folder / "Ground-truths" / f"mask_{name}.png", (pixels > 128).astype(np.uint8) * 255)
    entries = [{"Image": "mask_COVID_1.png", "Description": "left lung"}, {"Image": "gone.png", "Description": "x"}]
    (folder / "captions.json").write_text(json.dumps(entries))
    report = import_study(folder, tmp_path / "s", structure="pulmonary infection", split="train")
    assert (report.cases, report.masks, report.captions, report.without_caption) == (3, 3, 1, 2)
    assert report.unused_captions == 1
    assert "1 rows of the caption table name no image" in report.sentence()
    cases = LabelStore(tmp_path / "s").cases()
    assert {case.source_laterality for case in cases} == {"image"}
    assert cases[1].group == cases[2].group != cases[0].group  # one patient, named by no file name in the study


def test_slices_of_a_spine_with_a_caption_per_structure(tmp_path: Path) -> None:
    folder = tmp_path / "MRSpineSeg"
    for case in range(3):
        for z in range(2):
            mask = np.zeros((8, 8), np.uint8)
            mask[2:4] = 9  # T10
            mask[4:6] = 19  # T9/T10
            mask[0, 0] = 10 * case  # T9 in one of them (10), a nameless value in another (20)
            picture(folder / "img" / f"Case{case}_slice{z}.png", np.full((8, 8), 40 * case + z, np.uint8))
            picture(folder / "labelcol" / f"Case{case}_slice{z}.png", mask)
    rows = [f'Case{case}_slice{z}.png,"T9 none, T10 spinous, T9/T10 bulging"' for case in range(3) for z in range(2)]
    (folder / "text.csv").write_text("\n".join(["Image,Description", *rows]))
    report = import_study(folder, tmp_path / "s", labels="mrspineseg", laterality="patient", split="train")
    assert len(report.structures) == 19
    assert report.cases == 4
    assert len(report.refused) == 2  # the value 20 has no name
    store = LabelStore(tmp_path / "s")
    captions = store.captions()["case-00001"]
    assert sorted(captions) == [("T10 vertebra", "t10 spinous"), ("T9/T10 disc", "t9/t10 bulging")]
    assert len({case.group for case in store.cases()}) == 2
    assert store.read_mask(store.current("case-00001", "T10 vertebra")).sum() == 16
    assert store.read_mask(store.current("case-00001", "T9 vertebra")).sum() == 0
    assert store.read_mask(store.current("case-00003", "T9 vertebra")).sum() == 1


def test_pictures_with_masks_and_captions_of_other_sets(tmp_path: Path) -> None:
    """MosMedData+ and BM-Seg as LViT and DuSSS lay them out: masks under the image's own name."""
    for name, images, masks in (("MosMedDataPlus", "img", "labelcol"), ("BM-Seg", "Images", "Masks")):
        folder = tmp_path / name
        for n in range(2):
            picture(folder / images / f"Jun_{n}.jpg", np.full((8, 8), 9 * n + len(name), np.uint8))
            picture(folder / masks / f"Jun_{n}.png", np.eye(8, dtype=np.uint8) * 255)
        (folder / "text.csv").write_text("Image;Description\nJun_0.png;one area, left lung\nJUN_1;two areas\n")
        report = import_study(folder, tmp_path / f"s-{name}", structure="lesion", split="train")
        assert (report.cases, report.masks, report.captions, report.unused_captions) == (2, 2, 2, 0)


def test_ambiguous_captions_and_file_names_are_refused(lvit: Path, tmp_path: Path) -> None:
    (lvit / "Train_text.xlsx").unlink()
    table = lvit / "Train_text.csv"
    table.write_text("Image,Description\nmask_covid_0.png,one\ncovid_0,two\n")
    with pytest.raises(UserError, match=r"'covid_0\.png' has two captions"):
        import_study(lvit, tmp_path / "s")
    table.write_text("Image,Description\ncovid_0.png,mask_covid_0.png\n")
    with pytest.raises(UserError, match="is a file name"):
        import_study(lvit, tmp_path / "s")
    table.write_text("Image,Description\ncovid_0.png,one\n")
    Image.new("L", (12, 10)).save(lvit / "img" / "covid_0.tif")
    with pytest.raises(UserError, match="two images are called 'covid_0'"):
        import_study(lvit, tmp_path / "s")


def test_a_plain_folder_and_again_with_more(scan_path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "scans"
    folder.mkdir()
    shutil.copy(scan_path, folder / "one.nii.gz")
    report = import_study(folder, tmp_path / "s")
    assert (report.cases, report.masks) == (1, 0)
    write_nifti(folder / "two.nii.gz", np.arange(24, dtype=np.int16).reshape(2, 3, 4))
    report = import_study(folder, tmp_path / "s")
    assert (report.cases, report.already_there) == (1, 1)
    store = LabelStore(tmp_path / "s")
    assert [case.case_id for case in store.cases()] == ["case-00001", "case-00002"]
    assert {case.split for case in store.cases()} <= {"train", "val"}  # without masks there is nothing to test on


def test_one_bad_file_does_not_stop_the_others(msd: Path, tmp_path: Path) -> None:
    (msd / "imagesTr" / "a_3.nii.gz").write_bytes(b"broken")
    write_nifti(msd / "labelsTr" / "a_4.nii.gz", np.zeros((2, 2, 2), np.uint8))
    write_nifti(msd / "labelsTr" / "a_5.nii.gz", np.full((6, 5, 4), 9, np.uint8))
    report = import_study(msd, tmp_path / "s")
    assert report.cases == 3
    assert [text.split(":")[0] for text in report.refused] == ["a_3.nii.gz", "a_4.nii.gz", "a_5.nii.gz"]


def test_a_study_that_exists_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        LabelStore.create(tmp_path)


def test_words_inside_files_stay_outside_the_study(tmp_path: Path) -> None:
    folder = tmp_path / "scans"
    folder.mkdir()
    image = nibabel.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.eye(4))
    image.header["descrip"] = b"SMITH^JOHN"
    nibabel.save(image, folder / "SMITH.nii")
    words = PngImagePlugin.PngInfo()
    words.add_text("Patient", "SMITH^JOHN")
    Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3)).save(folder / "SMITH.png", pnginfo=words)
    import_study(folder, tmp_path / "s")
    for path in (tmp_path / "s").rglob("*"):
        if path.is_file():
            import gzip

            content = path.read_bytes()
            content = gzip.decompress(content) if path.name.endswith(".gz") else content
            assert b"SMITH" not in content


def test_splits_do_not_depend_on_the_machine(msd: Path, tmp_path: Path) -> None:
    import_study(msd, tmp_path / "s")
    import_study(msd, tmp_path / "t")
    one, two = ([case.split for case in LabelStore(tmp_path / name).cases()] for name in "st")
    assert one == two


@pytest.mark.parametrize(
    ("folder", "cases"), [("hippocampus", 200), ("monuseg/Train_Folder", 24), ("monuseg/Val_Folder", 6)]
)
def test_real_data_counts(shared_data: Path, tmp_path: Path, folder: str, cases: int) -> None:
    report = import_study(shared_data / folder, tmp_path / "s", masks="reference")
    assert (report.cases, report.masks) == (cases, cases)
    assert report.captions == (0 if folder == "hippocampus" else cases)
    assert report.refused == []


def test_a_model_is_measured_on_a_folder_that_nobody_imported(
    lvit: Path, tmp_path: Path, build_model: Callable[..., AmvlmModel], capsys: pytest.CaptureFixture[str]
) -> None:
    build_model(names=("pulmonary infection",)).save(tmp_path / "model")
    before = sorted(path.name for path in tmp_path.rglob("*"))
    main(["evaluate", str(lvit), "--model", str(tmp_path / "model"), "--json", str(tmp_path / "figures.json")])
    printed = " ".join(capsys.readouterr().out.split())
    assert "pulmonary infection" in printed
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert len(figures["cases"]) == len(list((lvit / "img").iterdir()))
    assert {row["mask"] for row in figures["summary"]} == {"text mask", "prediction", "merged"}
    (tmp_path / "figures.json").unlink()
    assert sorted(path.name for path in tmp_path.rglob("*")) == before  # nothing is left beside the folder
    with pytest.raises(SystemExit):
        main(["evaluate", str(tmp_path / "nowhere"), "--model", str(tmp_path / "model")])
    assert "no such folder" in capsys.readouterr().err


@pytest.mark.parametrize("has_masks", [False, True])
def test_small_studies_have_cases_to_validate_and_to_train_on(has_masks: bool) -> None:
    for count in (1, 2, 3, 4, 6, 8, 11, 30, 200):
        for series in range(20):
            names = [f"scan {series} {number}" for number in range(count)]
            splits = list(_hashed_splits(names, has_masks).values())
            assert splits.count("val") >= min(5, count // 4)
            assert splits.count("train") + splits.count("test") >= count / 2
            assert has_masks or "test" not in splits
            assert _hashed_splits(names[::-1], has_masks) == _hashed_splits(names, has_masks)
