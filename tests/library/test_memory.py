"""What is remembered of a study outside it: a convenience that no damage may turn into an error."""

from __future__ import annotations

from pathlib import Path

import pytest

from amvlm.inference import bundled_model_folder
from amvlm.inference.catalogue import model_in_use
from amvlm.store import LabelStore
from amvlm.store.memory import MOST_RECENT, recall, recent_studies, remember, remember_study
from amvlm.store.names import user_folder


def test_fields_are_remembered_one_by_one(tmp_path: Path) -> None:
    store = LabelStore.create(tmp_path / "study")
    assert recall(store.store_id).model == ""
    remember(store.store_id, model="a")
    remember(store.store_id, case_id="case-00003")
    assert (recall(store.store_id).model, recall(store.store_id).case_id) == ("a", "case-00003")
    assert not list(store.folder.rglob("last*"))


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"[" * 10**5, b'{"model": 3}', b"x" * 2_000_000])
def test_what_cannot_be_read_is_nothing(tmp_path: Path, content: bytes) -> None:
    store = LabelStore.create(tmp_path / "study")
    remember(store.store_id, model="a")
    remember_study(store.folder)
    for path in user_folder().glob("*.json"):
        path.write_bytes(content)
    assert recall(store.store_id).model == ""
    assert recent_studies() == []


def test_a_folder_that_cannot_be_written_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    store = LabelStore.create(tmp_path / "study")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "file"))
    remember(store.store_id, model="a")
    assert recall(store.store_id).model == ""


def test_recent_studies_are_those_that_are_still_there(tmp_path: Path) -> None:
    folders = [tmp_path / f"study{number}" for number in range(MOST_RECENT + 2)]
    for folder in folders:
        LabelStore.create(folder)
        remember_study(folder)
    remember_study(folders[5])
    (folders[6] / "store.sqlite").unlink()
    recent = recent_studies()
    assert recent[0] == folders[5]
    assert folders[6] not in recent
    assert folders[0] not in recent
    assert len(recent) == MOST_RECENT - 1


def test_a_new_model_is_compared_with_the_one_in_use(tmp_path: Path) -> None:
    import shutil

    store = LabelStore.create(tmp_path / "study")
    assert model_in_use(store) is None
    for name in ("old", "new"):
        shutil.copytree(bundled_model_folder(), store.folder / "models" / name)
    newest = model_in_use(store)
    assert newest is not None
    other = {"old": "new", "new": "old"}[newest.name]
    remember(store.store_id, model=other)
    assert model_in_use(store) == store.folder / "models" / other
    remember(store.store_id, model="gone")
    assert model_in_use(store) == newest
