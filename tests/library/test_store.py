"""The label store: nothing accepted is ever lost or changed."""

from __future__ import annotations

import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from amvlm.errors import UserError
from amvlm.exchange import import_study
from amvlm.store import LabelStore, verify

KILLS = 200


@pytest.fixture
def store(scan_path: Path, tmp_path: Path) -> LabelStore:
    folder = tmp_path / "scans"
    folder.mkdir()
    shutil.copy(scan_path, folder / "Smith_John_19700101.nii.gz")
    study = tmp_path / "study"
    import_study(folder, study)
    opened = LabelStore(study)
    opened.add_structure("liver", prompts=["the liver"])
    return opened


def mask_of(store: LabelStore, seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).random(store.cases()[0].shape) > 0.5).astype(np.uint8)


def test_accept_then_read_back(store: LabelStore) -> None:
    case = store.cases()[0]
    assert store.state(case.case_id, "liver") == "unknown"
    revision = store.accept(
        case.case_id, "liver", mask_of(store, 1), prompt="the liver", source="text mask", edited_voxels=7
    )
    assert store.state(case.case_id, "liver") == "accepted"
    assert np.array_equal(store.read_mask(revision), mask_of(store, 1))
    assert store.snapshot().revisions == (revision,)
    assert np.array_equal(store.masks.read(revision.mask_sha256).affine, case.affine)
    assert list(verify(store)) == []


def test_undo_walks_back_and_deletes_nothing(store: LabelStore) -> None:
    case_id = store.cases()[0].case_id
    first = store.accept(case_id, "liver", mask_of(store, 1))
    store.accept(case_id, "liver", mask_of(store, 2))
    store.mark_absent(case_id, "liver")
    assert store.undo(case_id, "liver").kind == "accepted"
    assert np.array_equal(store.read_mask(store.current(case_id, "liver")), mask_of(store, 2))
    assert store.undo(case_id, "liver").mask_sha256 == first.mask_sha256
    assert store.undo(case_id, "liver").kind == "withdrawn"
    assert store.state(case_id, "liver") == "unknown"
    assert len(store.history(case_id, "liver")) == 6
    with pytest.raises(UserError, match="no label to undo"):
        store.undo(case_id, "liver")
    assert list(verify(store)) == []


def test_a_revision_can_neither_change_nor_go(store: LabelStore) -> None:
    store.accept(store.cases()[0].case_id, "liver", mask_of(store, 1))
    with sqlite3.connect(store.folder / "store.sqlite") as connection:
        with pytest.raises(sqlite3.IntegrityError, match="never changed"):
            connection.execute("UPDATE revision SET prompt='x'")
        with pytest.raises(sqlite3.IntegrityError, match="never deleted"):
            connection.execute("DELETE FROM revision")
    connection.close()


def test_skip_never_hides_a_label(store: LabelStore) -> None:
    case_id = store.cases()[0].case_id
    store.mark(case_id, "liver", "skipped")
    assert store.state(case_id, "liver") == "skipped"
    store.accept(case_id, "liver", mask_of(store, 1))
    with pytest.raises(UserError, match="already labelled"):
        store.mark(case_id, "liver", "rejected")


def test_drafts_survive_reopening_and_end_with_accept(store: LabelStore) -> None:
    case_id = store.cases()[0].case_id
    plane = mask_of(store, 3)[:, :, 2]
    store.save_draft(case_id, "liver", {2: plane})
    reopened = LabelStore(store.folder)
    assert reopened.state(case_id, "liver") == "draft"
    assert np.array_equal(reopened.load_draft(case_id, "liver")[2], plane)
    assert reopened.snapshot().revisions == ()
    reopened.accept(case_id, "liver", mask_of(store, 3))
    assert reopened.load_draft(case_id, "liver") == {}


def test_a_draft_over_a_label_keeps_the_label(store: LabelStore) -> None:
    case_id = store.cases()[0].case_id
    store.accept(case_id, "liver", mask_of(store, 1))
    store.save_draft(case_id, "liver", {0: mask_of(store, 2)[:, :, 0]})
    assert store.state(case_id, "liver") == "accepted"
    store.discard_draft(case_id, "liver")
    assert store.state(case_id, "liver") == "accepted"


@pytest.mark.parametrize("mask", [np.zeros((2, 2, 2), np.uint8), np.full((9, 8, 7), 3, np.uint8)])
def test_masks_of_another_shape_or_value_are_refused(store: LabelStore, mask: np.ndarray) -> None:
    with pytest.raises(UserError):
        store.accept(store.cases()[0].case_id, "liver", mask)
    assert store.snapshot().revisions == ()


def test_a_changed_mask_is_found_and_refused(store: LabelStore) -> None:
    revision = store.accept(store.cases()[0].case_id, "liver", mask_of(store, 1))
    other = store.masks.path(revision.mask_sha256)
    damaged = bytearray(other.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    other.write_bytes(damaged)
    assert [finding.kind for finding in verify(store)] == ["damage"]
    with pytest.raises(UserError, match=r"damaged|changed"):
        store.read_mask(revision)
    store.accept(store.cases()[0].case_id, "liver", mask_of(store, 1))  # the same label again mends the file
    assert list(verify(store)) == []


def test_a_store_of_another_version_is_refused(store: LabelStore) -> None:
    with sqlite3.connect(store.folder / "store.sqlite") as connection:
        connection.execute("UPDATE meta SET schema_version = 99")
    connection.close()
    with pytest.raises(UserError, match="version 99"):
        LabelStore(store.folder)


def test_no_original_name_is_in_the_store(store: LabelStore) -> None:
    store.accept(store.cases()[0].case_id, "liver", mask_of(store, 1))
    for path in store.folder.rglob("*"):
        assert "Smith" not in path.name
        if path.is_file():
            assert b"Smith" not in path.read_bytes()


ACCEPTING = """
import sys
import numpy as np
from amvlm.store import LabelStore
store = LabelStore(sys.argv[1])
case = store.cases()[0]
rng = np.random.default_rng(int(sys.argv[2]))
while True:
    mask = (rng.random(case.shape) > 0.5).astype(np.uint8)
    print(store.accept(case.case_id, "liver", mask).revision_id, flush=True)
"""


def kill_while_accepting(store: LabelStore, rounds: int, accepts: int) -> set[int]:
    """Kill -9 a process that accepts, at random moments, until ``accepts`` were acknowledged; return their ids."""
    chance = random.Random(0)
    acknowledged: set[int] = set()
    for round_ in range(rounds):
        with subprocess.Popen(
            [sys.executable, "-c", ACCEPTING, str(store.folder), str(round_)],
            stdout=subprocess.PIPE,
            text=True,
        ) as child:
            assert child.stdout is not None
            for _ in range(max(1, accepts // rounds)):
                acknowledged.add(int(child.stdout.readline()))
            try:
                child.wait(timeout=chance.random() * 0.01)
            except subprocess.TimeoutExpired:
                child.send_signal(signal.SIGKILL)
            acknowledged.update(int(line) for line in child.stdout.read().split("\n")[:-1])
    return acknowledged


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_kill_9_loses_no_acknowledged_accept(store: LabelStore) -> None:
    acknowledged = kill_while_accepting(store, rounds=10, accepts=KILLS)
    assert len(acknowledged) >= KILLS
    assert [finding for finding in verify(store) if finding.kind == "damage"] == []
    history = {revision.revision_id: revision for revision in store.history(store.cases()[0].case_id, "liver")}
    assert acknowledged <= set(history)
    assert all(store.masks.intact(history[identifier].mask_sha256) for identifier in acknowledged)
