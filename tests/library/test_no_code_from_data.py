"""Nothing in a study, a folder of scans or a model's folder is imported, whoever starts whatever there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from amvlm.children import child_environment, neutral_folder, python_command
from amvlm.inference.catalogue import bundled_model_folder
from amvlm.sample.study import first_scan
from amvlm.store import LabelStore

PLANTED = ("typer.py", "torch.py", "sitecustomize.py", "usercustomize.py", "amvlm.py", "numpy/__init__.py", "json.py",
           "rich/__init__.py", "argparse.py", "safetensors.py", "pip.py", "evil.pth", "napari.py")  # fmt: skip


def plant(folder: Path, canary: Path, names: tuple[str, ...] = PLANTED) -> None:
    """Put modules of well-known names into a folder; each writes the canary when it is imported."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"import pathlib; pathlib.Path({str(canary)!r}).write_text(__name__)\n")


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


Done = subprocess.CompletedProcess[str]


def start(command: list[str], folder: Path, environment: dict[str, str] | None = None) -> Done:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=environment)


def test_the_trap_catches(tmp_path: Path, canary: Path) -> None:
    plant(tmp_path, canary)
    start([sys.executable, "-c", "import typer"], tmp_path)
    assert canary.read_text() == "typer"


def test_children_import_neither_from_their_folder_nor_from_the_environment(
    tmp_path: Path, canary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(tmp_path, canary)
    for name in ("PYTHONPATH", "PYTHONSTARTUP", "PYTHONHOME", "PYTHONBREAKPOINT", "PYTHONINSPECT"):
        monkeypatch.setenv(name, str(tmp_path))
    environment = child_environment()
    done = start(python_command("amvlm", "--version"), tmp_path, environment)
    assert (done.returncode, done.stderr) == (0, "")
    grandchild = [*python_command("amvlm", "--version")[:1], "-c", "import os, subprocess, sys; "
                  "sys.exit(subprocess.call([sys.executable, '-c', 'import typer, torch, numpy']))"]  # fmt: skip
    assert start(grandchild, tmp_path, environment).returncode == 0
    assert not canary.exists()
    folder = neutral_folder()
    assert list(folder.iterdir()) == []
    if sys.platform != "win32":
        assert folder.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("where", ["study", "scans", "model"])
def test_the_command_line_imports_nothing_from_where_it_is_started(
    where: str, sample_store: LabelStore, tmp_path: Path, canary: Path
) -> None:
    folder = {"study": sample_store.folder, "scans": tmp_path / "scans", "model": tmp_path / "model"}[where]
    shutil.copytree(bundled_model_folder(), tmp_path / "model")
    (tmp_path / "scans").mkdir()
    shutil.copy(first_scan(), tmp_path / "scans" / "scan.nii.gz")
    without_our_name = tuple(name for name in PLANTED if name != "amvlm.py")  # that one *is* ``python -m amvlm`` there
    plant(folder, canary, without_our_name)
    segment = ["segment", str(tmp_path / "scans" / "scan.nii.gz"), "--prompt", "anterior hippocampus", "--model",
               str(tmp_path / "model"), "-o", str(tmp_path / "mask.nii.gz")]  # fmt: skip
    command = segment if where == "scans" else ["verify", str(sample_store.folder)]
    done = start([sys.executable, "-m", "amvlm", *command], folder)
    assert done.returncode == 0, done.stderr
    assert not canary.exists()
    plant(folder, canary)
    assert start(python_command("amvlm", "--version"), folder).returncode == 0
    assert not canary.exists()


def test_the_demo_imports_nothing_from_where_it_is_started(tmp_path: Path, canary: Path) -> None:
    plant(tmp_path, canary)
    done = start(python_command("napari_amvlm.demo", "--help"), tmp_path)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(tmp_path / "numpy")
    (tmp_path / "amvlm.py").unlink()
    done = start([sys.executable, "-m", "napari_amvlm.demo", "--help"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert not canary.exists()


def test_run_py_starts_its_children_far_from_the_callers_folder(tmp_path: Path, canary: Path) -> None:
    plant(tmp_path, canary)
    script = Path(__file__).parents[2] / "run.py"
    check = (
        "import runpy, sys, subprocess; seen = []\n"
        "def call(command, **more): seen.append((command, more)); return 0\n"
        "subprocess.call = call\n"
        f"run = runpy.run_path({str(script)!r})\n"
        "run['run']('pytest', windowed=False); run['call'](['pip'], '')\n"
        "assert seen[0][0][1:3] == ['-P', '-m'], seen\n"
        "assert all(more['cwd'] == run['ROOT'] and 'PYTHONPATH' not in more['env'] for _, more in seen), seen\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = start([sys.executable, "-I", "-c", check], tmp_path, environment)
    assert done.returncode == 0, done.stderr
    assert not canary.exists()
