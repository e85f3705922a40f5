"""What the wheel holds, and what keeps the rooms apart."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("dist")
    pytest.importorskip("hatchling", reason="needs hatchling, a part of the test extra")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)],
        check=True, capture_output=True,
    )  # fmt: skip
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_holds_both_packages_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert tops == {"amvlm", "napari_amvlm", next(name for name in tops if name.endswith(".dist-info"))}


def test_the_wheel_holds_models_sample_and_licence(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    wanted = {
        "amvlm/models/generator.py", "amvlm/sample/model/model.safetensors", "amvlm/sample/model/card.json",
        "amvlm/sample/study/dataset.json", "amvlm/sample/study/ATTRIBUTION.md", "amvlm/sample/study/roles.json",
        "amvlm/text/vocabulary.txt", "amvlm/text/anatomy.csv", "amvlm/text/everyday.txt",
        "napari_amvlm/napari.yaml", "napari_amvlm/panels/prompt.py",
    }  # fmt: skip
    assert wanted <= names
    assert sum("imagesTr" in name for name in names) == 40
    assert sum("labelsTr" in name for name in names) == 40


def test_the_bundle_stays_small(wheel: zipfile.ZipFile) -> None:
    size = {
        part: sum(i.file_size for i in wheel.infolist() if f"sample/{part}/" in i.filename)
        for part in ("study", "model")
    }
    assert size["study"] <= 5e6
    assert size["model"] <= 12e6


def test_a_planted_import_of_napari_is_found(tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("lint-imports")
    if not program.exists():
        pytest.skip("needs the dev extra; run: python run.py lint")
    for name in ("training", "napari_amvlm"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("study", "model", "__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    planted = tmp_path / "training" / "amvlm" / "metrics.py"
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path / 'training'}{os.pathsep}{tmp_path}"}

    def lint() -> int:
        command = [str(program), "--no-cache"]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False).returncode

    assert lint() == 0
    planted.write_text(planted.read_text() + "\nimport napari\n")
    assert lint() == 1


def test_training_and_prompting_need_no_dicom_library(scan_path: Path) -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['SimpleITK', 'pydicom', 'highdicom', 'napari', 'qtpy']));"
        "import amvlm.learning, amvlm.inference; from amvlm.imaging import read_volume; read_volume(sys.argv[1])"
    )
    subprocess.run([sys.executable, "-c", code, str(scan_path)], check=True)


def test_the_manifest_is_valid() -> None:
    from npe2 import PluginManifest

    manifest = PluginManifest.from_file(ROOT / "napari_amvlm" / "napari.yaml")
    assert {widget.display_name for widget in manifest.contributions.widgets or []} == {
        "Segment with text",
        "Review pseudo-labels",
        "Train",
        "Other planes",
    }
