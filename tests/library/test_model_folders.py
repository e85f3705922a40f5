"""A save replaces a model of ours and nothing else; at every instant of a save one whole model stands."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from amvlm.errors import UserError
from amvlm.inference.catalogue import available_models, find_model
from amvlm.models import AmvlmModel
from amvlm.store import LabelStore
from amvlm.store.folders import (
    MODEL_FILES,
    is_model_folder,
    leftovers,
    model_target,
    remove_leftovers,
    save_model_folder,
    standing,
)
from amvlm.store.runs import RunFolder

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="POSIX links, modes and signals")
CLIMBING = ["../labels", "..", ".", "/tmp/x", "a/b", "a\\b", ".hidden", "x/../../labels", "nul", "a\0b", "x" * 300, " ",
            "a\nb", "C:\\x", "x."]  # fmt: skip


def content(version: int) -> dict[str, bytes]:
    return {name: f"{version} ".encode() * 50 for name in sorted(MODEL_FILES)}


def version_of(folder: Path) -> int:
    """The version that all files of a whole model agree on."""
    assert is_model_folder(standing(folder))
    found = {(standing(folder) / name).read_bytes() for name in MODEL_FILES}
    assert len(found) == 1
    return int(found.pop().split()[0])


@pytest.mark.parametrize("name", CLIMBING)
def test_no_name_leaves_its_folder(name: str, tmp_path: Path) -> None:
    study = tmp_path / "study"
    for folder in ("models", "runs", "labels"):
        (study / folder).mkdir(parents=True)
    (study / "labels" / "mask.nii.gz").write_bytes(b"accepted")
    with pytest.raises(UserError):
        model_target(study, name)
    with pytest.raises(UserError):
        RunFolder.named(study, name)
    with pytest.raises(UserError):
        save_model_folder(study / "models" / ".." / "labels", content(1))
    assert (study / "labels" / "mask.nii.gz").read_bytes() == b"accepted"
    assert not [*(study / "models").iterdir(), *(study / "runs").iterdir()]


@pytest.mark.parametrize("kind", ["masks", "a file", "another file beside", "a subfolder", "empty", "no card"])
def test_a_save_replaces_nothing_but_a_model(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "study" / "models" / "m"
    folder.parent.mkdir(parents=True)
    if kind == "a file":
        folder.write_text("mine")
    else:
        folder.mkdir()
    if kind in ("another file beside", "a subfolder"):
        for name, text in content(1).items():
            (folder / name).write_bytes(text)
    if kind == "no card":
        (folder / "config.json").write_text("{}")
    if kind in ("masks", "another file beside"):
        (folder / "mask.nii.gz").write_bytes(b"accepted")
    if kind == "a subfolder":
        (folder / "deep").mkdir()
        (folder / "deep" / "mask.nii.gz").write_bytes(b"accepted")
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    with pytest.raises(UserError, match="something else under this model's name"):
        save_model_folder(folder, content(2))
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == before


@POSIX
def test_links_are_neither_replaced_nor_followed(tmp_path: Path) -> None:
    models, victim = tmp_path / "study" / "models", tmp_path / "victim"
    save_model_folder(victim, content(7))
    models.mkdir(parents=True)
    (models / "linked").symlink_to(victim)
    with pytest.raises(UserError, match="something else"):
        save_model_folder(models / "linked", content(2))
    (models / "m").mkdir()
    for name in MODEL_FILES:
        (models / "m" / name).symlink_to(victim / name)
    with pytest.raises(UserError, match="something else"):
        save_model_folder(models / "m", content(2))
    (models / ".fresh.old").symlink_to(victim)
    save_model_folder(models / "fresh", content(2))
    save_model_folder(models / "fresh2", content(2))
    assert version_of(victim) == 7
    elsewhere = tmp_path / "other"
    elsewhere.mkdir()
    (elsewhere / "models").symlink_to(tmp_path / "study" / "models")
    (elsewhere / "runs").symlink_to(tmp_path)
    with pytest.raises(UserError, match="outside its folder"):
        model_target(elsewhere, "m")
    with pytest.raises(UserError, match="outside its folder"):
        RunFolder.new(elsewhere)


class Crash(BaseException):
    """The process ends here."""


def crash_at(step: int, patch: pytest.MonkeyPatch) -> list[str]:
    """Let the ``step``-th act on the disk and every later one fail; returns the acts that happened."""
    happened: list[str] = []
    for name in ("rename", "replace", "unlink", "rmdir", "mkdir", "fsync"):
        true = getattr(os, name)

        def act(*args: object, _true: Callable[..., object] = true, _name: str = name, **more: object) -> object:
            if len(happened) >= step:
                raise Crash
            happened.append(_name)
            return _true(*args, **more)

        patch.setattr(os, name, act)
    return happened


@pytest.mark.parametrize("before", ["nothing", "a model", "a crash"])
def test_a_crash_at_every_step_leaves_a_whole_model(before: str, tmp_path: Path) -> None:
    steps = 0
    for step in range(100):
        study = tmp_path / str(step)
        folder = study / "models" / "m"
        folder.parent.mkdir(parents=True)
        if before != "nothing":
            save_model_folder(folder, content(1))
        if before == "a crash":
            folder.rename(folder.with_name(".m.old"))
        with pytest.MonkeyPatch.context() as patch:
            happened = crash_at(step, patch)
            try:
                save_model_folder(folder, content(2))
                done = True
            except Crash:
                done = False
        steps = max(steps, len(happened))
        if before != "nothing" or standing(folder).exists():
            assert version_of(folder) in ((2,) if done else (1, 2)), happened
        save_model_folder(folder, content(3))
        assert version_of(folder) == 3
        remove_leftovers(study)
        assert leftovers(study) == []
        assert [path.name for path in folder.parent.iterdir()] == ["m"]
        if done:
            break
    assert steps > 10


_KILLED_SAVES = """
import os, random, signal, sys, time
from pathlib import Path
from amvlm.store.folders import MODEL_FILES, is_model_folder, save_model_folder, standing

folder, chance, replaced = Path(sys.argv[1]), random.Random(0), 0
files = lambda version: {name: b"%d " % version * 50 for name in sorted(MODEL_FILES)}
save_model_folder(folder, files(0))
for _ in range(40):
    child = os.fork()
    if not child:
        for version in range(1, 10**6):
            save_model_folder(folder, files(version))
    time.sleep(chance.uniform(0.005, 0.15))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    stands = standing(folder)
    assert is_model_folder(stands)
    found = {(stands / name).read_bytes() for name in MODEL_FILES}
    assert len(found) == 1, found
    replaced += found.pop() != files(0)["card.json"]
print(replaced)
"""


@POSIX
def test_forty_kills_lose_no_model(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _KILLED_SAVES, str(tmp_path / "models" / "m")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert int(done.stdout) > 0


def test_the_old_model_is_found_by_its_name_after_a_crash_in_the_swap(
    sample_store: LabelStore, build_model: Callable[..., AmvlmModel]
) -> None:
    models = sample_store.folder / "models"
    build_model().save(models / "m")
    (models / "m").rename(models / ".m.old")
    assert available_models(sample_store)["m"] == models / ".m.old"
    assert AmvlmModel.load(find_model("m", sample_store)).card.name == "m"
    assert AmvlmModel.load(models / "m").card.name == "m"
    assert leftovers(sample_store.folder) == []


@POSIX
def test_models_and_runs_are_private(sample_store: LabelStore, build_model: Callable[..., AmvlmModel]) -> None:
    before = os.umask(0)
    try:
        build_model().save(sample_store.folder / "models" / "m")
        with RunFolder.new(sample_store.folder) as run:
            run.ask_to_stop()
    finally:
        os.umask(before)
    for path in (*(sample_store.folder / "models").rglob("*"), *(sample_store.folder / "runs").rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_leftovers_of_kills_are_named_and_removed(tmp_path: Path) -> None:
    study, part = tmp_path, f".{'0' * 32}.part"
    save_model_folder(study / "models" / "m", content(1))
    junk = [
        study / "models" / f".n.{'a' * 32}.part" / "model.safetensors", study / "models" / ".m.old" / "card.json",
        study / "models" / "m" / part, study / "runs" / "r" / "checkpoint-0000002" / "tensors.safetensors",
        study / "runs" / "r" / part, study / "runs" / "r" / "align" / "checkpoint-0000004" / part,
    ]  # fmt: skip
    kept = [study / "runs" / "r" / "checkpoint-0000001" / "state.json", study / "runs" / "r" / "events.jsonl"]
    for path in (*junk, *kept):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    found = leftovers(study)
    assert all(any(path.is_relative_to(one) for one in found) for path in junk)
    assert not any(path.is_relative_to(one) for one in found for path in kept)
    with RunFolder(study / "runs" / "r"):
        assert not any(path.is_relative_to(study / "runs") for path in leftovers(study))
    assert set(remove_leftovers(study)) == set(found)
    assert leftovers(study) == []
    assert all(path.exists() for path in kept)
    assert version_of(study / "models" / "m") == 1
