"""Fixtures shared by library and GUI tests. Nothing here touches the network or the user's own folders."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import nibabel
import numpy as np
import platformdirs
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the networks are tiny, and training runs beside the window's worker
os.environ.setdefault("NAPARI_CONFIG", "")


_WEIGHTS = os.environ.get("AMVLM_WEIGHTS") or str(
    Path(platformdirs.user_cache_dir("napari-amvlm", appauthor=False)) / "weights"
)


@pytest.fixture(autouse=True)
def _private_folders(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path_factory.mktemp("home")
    for variable in ("XDG_DATA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(variable, str(home))
    monkeypatch.setenv("AMVLM_WEIGHTS", _WEIGHTS)  # published ones, which `run.py` fetched; tests only read them


@pytest.fixture
def minilm() -> Path:
    """The folder of the sentence encoder; tests that need it skip where it is not at hand."""
    from amvlm import weights

    if not weights.is_there("minilm"):
        pytest.skip("needs the published encoder: amvlm weights fetch minilm")
    return weights.find("minilm")


@pytest.fixture
def shared_data() -> Path:
    """Real data for development; tests that need it skip where it is not at hand."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the development data in ../shared/data")
    return folder


@pytest.fixture
def scan_path(tmp_path: Path) -> Path:
    """A small asymmetric scan with anisotropic spacing."""
    rng = np.random.default_rng(0)
    array = rng.integers(0, 200, (9, 8, 7), dtype=np.int16)
    array[6:, :3, 4:] += 500
    path = tmp_path / "scan.nii.gz"
    affine = np.diag([1.0, 1.5, 3.0, 1.0])
    affine[:3, 3] = (-10, 20, 5)
    path.write_bytes(gzip.compress(nibabel.Nifti1Image(array, affine).to_bytes()))
    return path


@pytest.fixture(scope="session")
def sample_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample study, start set accepted; tests work on copies."""
    from amvlm.sample import copy_sample_study

    folder = tmp_path_factory.mktemp("sample") / "study"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("names")))
        copy_sample_study(folder)
    return folder
