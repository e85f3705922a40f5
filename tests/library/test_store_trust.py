"""A study from a stranger, two programs at once, and a disk that fails: sentences, and nothing lost."""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from amvlm.errors import UserError
from amvlm.exchange import import_study
from amvlm.store import LabelStore, clean, verify
from amvlm.store.index import _ERRORS, Index, sentence_of
from amvlm.store.schema import TABLES

LABEL = ("case-00001", "liver")


@pytest.fixture
def store(scan_path: Path, tmp_path: Path) -> LabelStore:
    import_study(scan_path, tmp_path / "study")
    opened = LabelStore(tmp_path / "study")
    opened.add_structure("liver")
    opened.accept(*LABEL, np.ones(opened.cases()[0].shape, np.uint8))
    return opened


def change(store: LabelStore, *statements: str) -> None:
    """What a stranger did to the index."""
    connection = sqlite3.connect(store.folder / "store.sqlite")
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


def read_all(study: Path) -> None:
    opened = LabelStore(study)
    for case in opened.cases():
        opened.read_image(case)
    for revision in opened.snapshot().revisions:
        opened.read_mask(revision)
    opened.structures(), opened.captions(), opened.quality(), opened.load_draft(*LABEL)
    opened.read_reference(opened.case(LABEL[0]), LABEL[1])


# -- the table of errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", _ERRORS)
def test_every_row_of_the_table_has_its_own_remedy(name: str, tmp_path: Path) -> None:
    error = sqlite3.OperationalError("x")
    error.sqlite_errorname = f"{name}_SOMETHING" if name.count("_") == 1 else name
    sentence = str(sentence_of(error, tmp_path / "store.sqlite"))
    assert _ERRORS[name][0] in sentence
    assert ("backup" in sentence) == (name in {"SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_FORMAT", "SQLITE_ERROR"})


def test_a_locked_index_is_not_called_damaged(store: LabelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amvlm.store.index.BUSY_SECONDS", 0.05)
    other = sqlite3.connect(store.folder / "store.sqlite", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    for action in (lambda: LabelStore(store.folder), lambda: store.mark_absent(*LABEL)):
        with pytest.raises(UserError, match=r"another program is writing.*Nothing is damaged"):
            action()
    other.close()
    assert store.mark_absent(*LABEL).kind == "absent"


def test_a_full_disk_changes_nothing(store: LabelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    connected = Index._connected

    def almost_full(index: Index) -> sqlite3.Connection:
        connection = connected(index)
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count={pages}")
        return connection

    monkeypatch.setattr(Index, "_connected", almost_full)
    with pytest.raises(UserError, match="disk is full"):
        [store.add_structure(f"structure {number} {'x' * 150}") for number in range(200)]
    monkeypatch.undo()
    assert list(verify(store)) == []


def test_a_corrupt_page_and_a_file_that_is_no_database(store: LabelStore) -> None:
    path = store.folder / "store.sqlite"
    sound = path.read_bytes()
    path.write_bytes(sound[:4096] + os.urandom(len(sound) - 4096))
    with pytest.raises(UserError, match="backup"):
        read_all(store.folder)
    path.write_bytes(b"hello" * 1000)
    with pytest.raises(UserError, match="not a database"):
        LabelStore(store.folder)
    path.write_bytes(b"")
    with pytest.raises(UserError):
        LabelStore(store.folder)


def test_an_index_that_went_away_is_not_made_anew(store: LabelStore) -> None:
    (store.folder / "store.sqlite").rename(store.folder / "moved")
    with pytest.raises(UserError, match="cannot be opened"):
        store.cases()
    assert not (store.folder / "store.sqlite").exists()


@pytest.mark.parametrize(
    ("action", "words"),
    [
        (lambda s: s.mark("case-00009", "liver", "skipped"), "no case 'case-00009'"),
        (lambda s: s.mark("../x", "liver", "skipped"), "no case '../x'"),
        (lambda s: s.mark("case-00001", "spleen", "skipped"), "no structure 'spleen'"),
        (lambda s: s.mark_absent("case-00009", "liver"), "no case"),
        (lambda s: s.undo("case-00009", "liver"), "no case"),
        (lambda s: s.undo("case-00001", "spleen"), "no structure"),
        (lambda s: s.require("case-00001", "\x1b[31mliver"), "no structure"),
        (lambda s: s.save_draft("case-00001", "", {0: np.ones((9, 8), np.uint8)}), "no structure"),
        (lambda s: s.accept("case-00009", "liver", np.ones((2, 2, 2))), "no case"),
        (lambda s: s.restore(2**63), "no revision"),
        (lambda s: s.restore(-(2**70)), "no revision"),
        (lambda s: s.restore(0), "no revision"),
        (lambda s: s.add_structure(" \n"), "no name"),
        (lambda s: s.add_structure("a\x00b"), "cannot be shown"),
        (lambda s: s.add_structure("x" * 600), "600 characters"),
    ],
)
def test_what_the_study_does_not_have_is_named_rightly(
    store: LabelStore, action: Callable[[LabelStore], object], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        action(store)
    assert list(verify(store)) == []


# -- a stranger's index -------------------------------------------------------------------------------------------

HOSTILE = {
    "a trigger that hides labels": "CREATE TRIGGER t AFTER INSERT ON state BEGIN DELETE FROM state; END",
    "a view in the place of a table": "CREATE VIEW v AS SELECT 1",
    "a changed trigger of ours": "DROP TRIGGER revision_is_never_lost",
    "a further table": "CREATE TABLE t (x)",
    "a further column": "ALTER TABLE meta ADD COLUMN x",
    "an index with an expression": "CREATE INDEX i ON state (abs(revision_id))",
    "an identifier that is a path": "UPDATE meta SET store_id = '/../../etc'",
    "an identifier of another kind": "UPDATE meta SET store_id = x'00'",
    "no row at all": "DELETE FROM meta",
    "a version that is text": "UPDATE meta SET schema_version = 'x'",
    "a version of tomorrow": "UPDATE meta SET schema_version = 4",
    "a case that is a path": "UPDATE case_ SET case_id = '/tmp/x'",
    "a case with a space": "UPDATE case_ SET case_id = 'scan A'",
    "a case that is a number": "UPDATE case_ SET case_id = 7",
    "an image outside": "UPDATE case_ SET image_file = '../../etc/passwd'",
    "an absolute image": "UPDATE case_ SET image_file = '/etc/passwd'",
    "an image that climbs": "UPDATE case_ SET image_file = 'images/../store.sqlite'",
    "another hash": "UPDATE case_ SET image_sha256 = '" + "0" * 64 + "'",
    "a shape that is a word": "UPDATE case_ SET shape = '\"x\"'",
    "a shape of 10^18": "UPDATE case_ SET shape = '[1000000, 1000000, 1000000]'",
    "a negative shape": "UPDATE case_ SET shape = '[-1, 2, 3]'",
    "nested brackets": "UPDATE case_ SET shape = '" + "[" * 100_000 + "'",
    "an affine of NaN": "UPDATE case_ SET affine = '[[NaN,0,0,0],[0,1,0,0],[0,0,1,0],[0,0,0,1]]'",
    "text that is no UTF-8": "UPDATE case_ SET patient = CAST(x'ff' AS TEXT)",
    "aliases that are a number": "UPDATE structure SET aliases = '7'",
    "prompts that are not JSON": "UPDATE structure SET prompts = '{'",
    "a mask outside": "INSERT INTO reference VALUES ('case-00001', 'liver', '../../x')",
    "a draft that does not fit": "INSERT INTO draft_slice VALUES ('case-00001', 'liver', 0, x'78')",
    "a shape of 10^12 voxels": "UPDATE case_ SET shape = '[10000, 10000, 10000]'",
    "no numbers left": "UPDATE sqlite_sequence SET seq = 9223372036854775807",
    "a structure that is bytes": "UPDATE structure SET aliases = x'00'",
    "quality that is a word": "INSERT INTO quality VALUES ('case-00001','liver','','x',1,1,1,1,1,1,'[]',1,'')",
    "a caption of bytes": "INSERT INTO caption VALUES ('case-00001', NULL, 'volume', NULL, x'ff')",
    "flags that are not a list": "INSERT INTO quality VALUES ('case-00001','liver','',1,1,1,1,1,1,1,'7',1,'')",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_strangers_index_is_refused_in_a_sentence(store: LabelStore, what: str) -> None:
    change(store, HOSTILE[what])
    before = set(store.folder.parent.rglob("*"))
    with pytest.raises(UserError):
        read_all(store.folder)
    assert set(store.folder.parent.rglob("*")) == before


def test_links_that_leave_the_study_are_not_followed(store: LabelStore, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    shutil.move(store.folder / "labels", tmp_path / "elsewhere" / "labels")
    (store.folder / "labels").symlink_to(tmp_path / "elsewhere" / "labels")
    with pytest.raises(UserError, match="outside its folder"):
        LabelStore(store.folder)


def test_another_patients_image_in_the_place_of_a_case_is_refused(store: LabelStore) -> None:
    path = store.images.path(store.cases()[0].image_file)
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(UserError, match="changed on disk"):
        LabelStore(store.folder).read_image(store.cases()[0])
    assert [finding.kind for finding in verify(store)] == ["damage"]


def test_a_label_whose_state_was_deleted_is_damage(store: LabelStore) -> None:
    change(store, "DELETE FROM state")
    assert [finding.kind for finding in verify(store)] == ["damage"]


# -- making and leaving -------------------------------------------------------------------------------------------


def test_a_study_is_private(store: LabelStore) -> None:
    for path in [store.folder, *store.folder.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), PermissionError(13, "Permission denied")])
def test_a_study_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UserError, match="could not be made"):
        LabelStore.create(tmp_path / "s")


def test_two_programs_make_one_study(tmp_path: Path) -> None:
    opened: list[LabelStore] = []

    def make() -> None:
        opened.append(LabelStore.open_or_create(tmp_path / "s"))

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({each.store_id for each in opened}) == 1
    assert len(opened) == 4
    assert not list((tmp_path / "s").glob(".*"))


def test_a_wholly_refused_import_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "scans"
    folder.mkdir()
    (folder / "broken.nii.gz").write_bytes(b"x")
    with pytest.raises(UserError):
        import_study(folder, tmp_path / "study", structure="liver")
    assert not (tmp_path / "study").exists()


def test_leftovers_are_named_and_removed(store: LabelStore) -> None:
    grid = store.read_image(store.cases()[0])
    store.masks.add(np.zeros(grid.shape, np.uint8), grid)
    store.images.add(b"orphan", ".nii.gz")
    for folder in ("", "images", "labels"):
        (store.folder / folder / ".0123.part").write_bytes(b"x")
    assert [finding.kind for finding in verify(store)] == ["leftover"] * 5
    assert len(clean(store)) == 5
    assert list(verify(store)) == []
    read_all(store.folder)


def test_a_label_waits_for_its_mask_when_somebody_cleans(store: LabelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mask is written, then removed as a leftover before the row is: the label is refused, never half kept."""
    judge = LabelStore._judge

    def cleaned_first(opened: LabelStore, judgement: object) -> object:
        clean(opened)
        return judge(opened, judgement)  # type: ignore[arg-type]

    monkeypatch.setattr(LabelStore, "_judge", cleaned_first)
    with pytest.raises(UserError, match="Try again"):
        store.accept(*LABEL, np.zeros(store.cases()[0].shape, np.uint8))
    assert list(verify(store)) == []


IMPORT = """
import sys
from pathlib import Path
from amvlm.exchange import import_study
sys.stdin.readline()
import_study(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def test_two_importers_give_every_case_its_own_image(tmp_path: Path) -> None:
    for source in "ab":
        (tmp_path / source).mkdir()
        for number in range(6):
            pixels = np.random.default_rng([ord(source), number]).integers(0, 255, (8, 9), np.uint8)
            Image.fromarray(pixels).save(tmp_path / source / f"{source}{number}.png")
    LabelStore.create(tmp_path / "s")
    command = [sys.executable, "-c", IMPORT]
    children = [
        subprocess.Popen([*command, tmp_path / source, tmp_path / "s"], stdin=subprocess.PIPE) for source in "ab"
    ]
    for child in children:
        child.communicate(b"go\n")
        assert child.returncode == 0
    store = LabelStore(tmp_path / "s")
    assert [case.case_id for case in store.cases()] == [f"case-{n:05d}" for n in range(1, 13)]
    hashes = {hashlib.sha256(np.asarray(Image.open(p)).tobytes()).hexdigest() for p in tmp_path.glob("[ab]/*.png")}
    kept = {
        hashlib.sha256(np.ascontiguousarray(store.read_image(case).array[:, :, 0].T).tobytes()).hexdigest()
        for case in store.cases()
    }
    assert kept == hashes
    assert list(verify(store)) == []


# -- whose left -----------------------------------------------------------------------------------------------------


def captioned(folder: Path, image_sided: bool, offset: int = 0) -> Path:
    """Two pictures with a bright box in one half; captions name the image's or the patient's side."""
    names = ("img", "labelcol") if image_sided else ("images", "masks")
    for name in names:
        (folder / name).mkdir(parents=True)
    rows = ["Image,Description"]
    for n, left_half in enumerate((True, False)):
        mask = np.zeros((32, 32), np.uint8)
        mask[10:20, 2:14] = 255
        mask = mask if left_half else mask[:, ::-1]
        noise = np.random.default_rng(n + offset).integers(0, 40, mask.shape, np.uint8)
        Image.fromarray(mask // 2 + noise).save(folder / names[0] / f"{n}.png")
        Image.fromarray(mask).save(folder / names[1] / f"{n}.png")
        rows.append(f"{n}.png,infection of the {'left' if left_half == image_sided else 'right'} lung")
    (folder / "text.csv").write_text("\n".join(rows))
    return folder


def assert_sides_agree(store: LabelStore) -> None:
    from amvlm.imaging.orientation import canonical_mask

    assert store.captions()
    for case in store.cases():
        ((_, text),) = store.captions()[case.case_id]
        mask = store.read_reference(case, "infection")
        assert mask is not None
        columns = canonical_mask(mask, store.read_image(case)).any((1, 2))
        on_the_left = columns[: len(columns) // 2].sum() > columns[len(columns) // 2 :].sum()  # RAS+: low is left
        assert ("left" in text) == on_the_left


def test_a_study_of_mixed_sides_holds_one(tmp_path: Path) -> None:
    for n, image_sided in enumerate((True, False)):
        source = captioned(tmp_path / f"source{n}", image_sided, offset=10 * n)
        import_study(source, tmp_path / "study", structure="infection", split="train")
    store = LabelStore(tmp_path / "study")
    assert {case.source_laterality for case in store.cases()} == {"image", "patient"}
    assert_sides_agree(store)


def test_a_study_of_an_earlier_release_is_converted_once(tmp_path: Path) -> None:
    import_study(captioned(tmp_path / "source", True), tmp_path / "study", structure="infection", split="train")
    new = LabelStore(tmp_path / "study")
    texts = new.captions()
    change(
        new, "UPDATE meta SET schema_version = 2", "ALTER TABLE case_ RENAME COLUMN source_laterality TO laterality",
        "UPDATE caption SET text = 'infection of the left lung' WHERE case_id = 'case-00001'",
        "UPDATE caption SET text = 'infection of the right lung' WHERE case_id = 'case-00002'",
    )  # fmt: skip
    migrated = LabelStore(tmp_path / "study")
    assert migrated.captions() == texts
    assert LabelStore(tmp_path / "study").captions() == texts
    assert_sides_agree(migrated)


def test_a_new_index_is_laid_out_like_a_migrated_one(tmp_path: Path) -> None:
    """Migrations must give exactly today's tables: anything else would be refused as foreign."""
    old = TABLES.replace("source_laterality", "laterality")
    (tmp_path / "s").mkdir()
    for name in ("images", "labels"):
        (tmp_path / "s" / name).mkdir()
    connection = sqlite3.connect(tmp_path / "s" / "store.sqlite")
    connection.executescript(old[: old.index("CREATE TABLE quality")])
    connection.execute("INSERT INTO meta VALUES (1, ?)", ("0" * 32,))
    connection.commit()
    connection.close()
    assert LabelStore(tmp_path / "s").cases() == []


def test_names_of_doubtful_sides_are_refused(tmp_path: Path) -> None:
    source = captioned(tmp_path / "source", True)
    (source / "labels.json").write_text('{"255": "left lung infection"}')
    with pytest.raises(UserError, match="whose left"):
        import_study(source, tmp_path / "study")
    assert not (tmp_path / "study").exists()


def test_slices_that_a_stranger_planted_are_not_used(store: LabelStore) -> None:
    from amvlm.learning.slices import SliceBank

    case = store.cases()[0]
    planted = store.folder / "cache" / "v1-16"
    planted.mkdir(parents=True)
    np.save(planted / f"{case.image_sha256}.npy", np.full((7, 1, 16, 16), 9, np.float16))
    bank = SliceBank(store, 16)
    assert list(bank.prepare([case])) == [1]
    assert float(bank.planes(case.case_id).max()) < 9
    (path,) = (p for p in store.folder.rglob("*.npy") if planted not in p.parents)
    path.write_bytes(path.read_bytes()[:300])  # cut by a loss of power
    assert list(SliceBank(store, 16).prepare([case])) == [1]
    assert len(np.load(path)) == 7


def test_a_cache_that_is_a_link_out_of_the_study_is_refused(
    store: LabelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "victim").mkdir()
    (store.folder / "cache").symlink_to(tmp_path / "victim")
    with pytest.raises(UserError, match="outside its folder"):
        store.cache_folder("v1-16")
    assert not list((tmp_path / "victim").iterdir())
    monkeypatch.setenv("AMVLM_CACHE", str(tmp_path / "scratch"))
    assert store.cache_folder("v1-16").parent == tmp_path / "scratch"


@pytest.mark.parametrize(
    ("case", "structure", "prompt"),
    [(None, "nothing", ""), (None, None, "l\udcffver"), (None, "l\udcffver", ""), ("\udcff", None, "")],
)
def test_what_is_refused_leaves_no_mask_behind(
    sample_store: LabelStore, case: str | None, structure: str | None, prompt: str
) -> None:
    scan = sample_store.cases()[0]
    before = sorted((sample_store.folder / "labels").iterdir())
    with pytest.raises(UserError):
        sample_store.accept(
            case or scan.case_id, structure or sample_store.structures()[0].name, np.ones(scan.shape, np.uint8),
            prompt=prompt,
        )  # fmt: skip
    with pytest.raises(UserError, match="has no case"):
        sample_store.mark("\udcff", "x", "skipped")
    with pytest.raises(UserError, match="has no structure"):
        sample_store.mark(scan.case_id, "l\udcffver", "skipped")
    assert sorted((sample_store.folder / "labels").iterdir()) == before
