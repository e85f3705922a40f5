"""Tables and JSON that strangers wrote: bounded, and refused in a sentence."""

from __future__ import annotations

import io
import json
import os
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openpyxl
import pytest
from PIL import Image

from amvlm.errors import UserError
from amvlm.exchange import import_study, spreadsheets
from amvlm.exchange.tables import read_captions
from amvlm.outside import read_json
from amvlm.store import LabelStore

HEADER = "Image,Description\n"
TEXTS = {
    "csv NUL": ("t.csv", f"{HEADER}c0.png,a\0b\n", "cannot be shown"),
    "csv escape": ("t.csv", f"{HEADER}c0.png,\x1b[31mred\n", "cannot be shown"),
    "csv right to left": ("t.csv", f"{HEADER}c0.png,\u202eabc\n", "cannot be shown"),
    "csv field of 1 MB": ("t.csv", f"{HEADER}c0.png,{'x' * 10**6}\n", "field larger"),
    "csv long caption": ("t.csv", f"{HEADER}c0.png,{'x ' * 30_000}\n", "59,999 characters"),
    "csv quote": ("t.csv", f'{HEADER}c0.png,"left\nc1.png,right\n', "not a readable csv"),
    "csv column twice": ("t.csv", "Image,Description,description\nc0.png,a,b\n", "twice"),
    "csv formula": ("t.csv", f"{HEADER}c0.png,=1+1\n", "formula"),
    "csv rows": ("t.csv", HEADER + "c0.png,a\n" * 200_001, "200,000 rows"),
    "csv columns": ("t.csv", f"Image,Description{',x' * 10**5}\n", "64 columns"),
    "csv Latin": ("t.csv", f"{HEADER}c0.png,l\xe4\n".encode("latin-1"), "not UTF-8"),
    "csv UTF-16": ("t.csv", f"{HEADER}c0.png,a\n".encode("utf-16"), "not UTF-8"),
    "csv empty": ("t.csv", "", "columns Image and Description"),
    "json deep": ("t.json", "[" * 10**5, "nested"),
    "json deep objects": ("t.json", '{"a":' * 10**5, "nested"),
    "json NaN": ("t.json", '{"c0.png": NaN}', "NaN"),
    "json infinite": ("t.json", '{"c0.png": -Infinity}', "Infinity"),
    "json huge number": ("t.json", f'{{"c0.png": {"9" * 10**5}}}', "not valid JSON"),
    "json half a pair": ("t.json", '{"c0.png": "\\ud800"}', "not valid JSON"),
    "json number": ("t.json", '{"c0.png": 5}', "not a table"),
    "json key twice": ("t.json", '{"c0.png": "a", "c0.png": "b"}', "twice"),
    "json list": ("t.json", "[1, 2]", "not a table"),
    "json null": ("t.json", "null", "not a table"),
    "json words": ("t.json", "hello", "not valid JSON"),
    "xlsx words": ("t.xlsx", "hello", "not a readable xlsx"),
    "xlsx empty zip": ("t.xlsx", b"PK\5\6" + b"\0" * 18, "not a readable xlsx"),
    "labels deep": ("labels.json", "[" * 10**5, "nested"),
    "labels number": ("labels.json", '{"1": 5}', "values mean"),
    "labels list": ("labels.json", "[1]", "values mean"),
}  # fmt: skip


@pytest.fixture
def lvit(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    for n in range(2):
        for kind, name, most in (("img", f"c{n}", 250), ("labelcol", f"mask_c{n}", 1)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(n).integers(0, most + 1, (8, 9), np.uint8)
            Image.fromarray(pixels).save(folder / kind / f"{name}.png")
    return folder


@pytest.mark.parametrize("kind", TEXTS)
def test_tables_that_cannot_be_trusted_stop_the_import_in_a_sentence(lvit: Path, tmp_path: Path, kind: str) -> None:
    name, content, sentence = TEXTS[kind]
    (lvit / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=sentence) as raised:
        import_study(lvit, tmp_path / "s")
    assert raised.value.remedy
    assert len(str(raised.value)) < 400
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("kind", ["csv NUL", "json deep", "xlsx words", "csv formula"])
def test_further_down_they_are_named_and_the_scans_come_in(lvit: Path, tmp_path: Path, kind: str) -> None:
    name, content, sentence = TEXTS[kind]
    lvit.rename(tmp_path / "more")
    (tmp_path / "more").rename(lvit.parent / "all")
    (tmp_path / "all" / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    (tmp_path / "top").mkdir()
    (tmp_path / "all").rename(tmp_path / "top" / "Train_Folder")
    report = import_study(tmp_path / "top", tmp_path / "s")
    assert (report.cases, report.masks, report.captions) == (2, 2, 0)
    assert report.files_seen == sum(report.files.values()) == 5
    assert sentence in report.refused[0]


def test_names_that_lead_elsewhere_are_only_words(lvit: Path, tmp_path: Path) -> None:
    rows = ["c0.png,left lung", "../../etc/passwd,x", "/dev/zero,x", f"{'z' * 5000}.png,x", ",", "", "c1.png", "=x,y"]
    (lvit / "t.csv").write_text(HEADER + "\n".join(rows[:-1]) + "\n\n")
    report = import_study(lvit, tmp_path / "s")
    assert (report.cases, report.captions, report.unused_captions) == (2, 1, 3)


def test_a_table_at_the_top_names_scans_by_their_place(tmp_path: Path) -> None:
    for n, patient in enumerate("AB"):
        (tmp_path / "in" / patient).mkdir(parents=True)
        Image.new("L", (8, 9), 10 * n + 5).save(tmp_path / "in" / patient / "scan.png")
    (tmp_path / "in" / "t.csv").write_text(f"{HEADER}A/scan.png,first\nB/scan.png,second\n")
    report = import_study(tmp_path / "in", tmp_path / "s", structure="lung")
    assert (report.captions, report.unused_captions) == (2, 0)
    store = LabelStore(tmp_path / "s")
    first = next(case for case in store.cases() if (store.read_image(case).array == 5).all())
    assert store.captions()[first.case_id] == [("lung", "first")]
    (tmp_path / "in" / "t.csv").write_text(f"{HEADER}scan.png,which\n")
    assert import_study(tmp_path / "in", tmp_path / "t", structure="lung").unused_captions == 1


# -- xlsx ----------------------------------------------------------------------------------------------------------

Edit = Callable[[bytes], bytes | None]


def xlsx(part: str = "", edit: Edit = lambda content: content, caption: str = "left") -> bytes:
    """A small workbook of which one part is changed, or left away."""
    book = openpyxl.Workbook()
    book.active.append(["Image", "Description"])
    book.active.append(["c0.png", caption])
    plain, changed = io.BytesIO(), io.BytesIO()
    book.save(plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(changed, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            content = edit(source.read(name)) if part and part in name else source.read(name)
            if content is not None:
                target.writestr(name, content)
    return changed.getvalue()


def _laughs(content: bytes) -> bytes:
    entities = b'<!ENTITY a "ha">' + b"".join(
        b'<!ENTITY %c "%s">' % (98 + n, b"&%c;" % (97 + n) * 10) for n in range(9)
    )
    return b'<?xml version="1.0"?><!DOCTYPE x [' + entities + b"]>" + content.replace(b"left", b"&j;")


def _foreign(content: bytes) -> bytes:
    entity = b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]>'
    return entity + content.replace(b"left", b"&a;")


def _far(content: bytes) -> bytes:
    return content.replace(b'r="A2"', b'r="XFD1048576"').replace(b'<row r="2"', b'<row r="1048576"')


WORKBOOKS = {
    "broken XML": (xlsx("sheet1", lambda content: content[:50]), "not a readable"),
    "no sheet": (xlsx("sheet1", lambda content: None), "not a readable"),
    "no workbook": (xlsx("workbook.xml", lambda content: b"<a/>"), "not a readable"),
    "bomb": (xlsx("sheet1", lambda content: content + b" " * (70 * 2**20)), "unfold to more than 64 MB"),
    "entities": (xlsx("sheet1", _laughs), "not a readable"),
    "foreign entity": (xlsx("sheet1", _foreign), "not a readable"),
    "cut": (xlsx()[:-200], "not a readable"),
    "formula": (xlsx(caption="=1+1"), "formula"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WORKBOOKS)
def test_workbooks_that_cannot_be_trusted(tmp_path: Path, kind: str) -> None:
    content, sentence = WORKBOOKS[kind]
    (tmp_path / "t.xlsx").write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        read_captions(tmp_path / "t.xlsx")


def test_a_cell_far_away_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spreadsheets, "MAX_ROWS", 1000)
    (tmp_path / "t.xlsx").write_bytes(xlsx("sheet1", _far))
    with pytest.raises(UserError, match="more than 1,000 rows"):
        read_captions(tmp_path / "t.xlsx")


def test_sound_tables_are_read(tmp_path: Path) -> None:
    (tmp_path / "t.xlsx").write_bytes(xlsx())
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbf" + f"{HEADER}\nc0.png,left\nc1.png\n\n".encode())
    assert read_captions(tmp_path / "t.xlsx") == read_captions(tmp_path / "t.csv") == [("c0.png", "left")]


# -- JSON from outside ---------------------------------------------------------------------------------------------


def test_json_is_no_longer_than_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({"a": [1, "ä"]}))
    assert read_json(path) == {"a": [1, "ä"]}
    with path.open("r+b") as stream:
        stream.truncate(2**31)  # sparse: it takes no room
    with pytest.raises(UserError, match="larger than 64 MB"):
        read_json(path)
    path.write_text("[1, 2, 3]")
    with pytest.raises(UserError, match="larger"):
        read_json(path, 5)
    with pytest.raises(UserError, match="a folder"):
        read_json(tmp_path)
    with pytest.raises(UserError, match="no such file"):
        read_json(tmp_path / "gone")


@pytest.mark.skipif(sys.platform == "win32", reason="pipes and devices")
def test_json_is_a_plain_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(UserError, match="neither a file nor a folder"):
            read_json(path)


def test_a_sheet_of_empty_cells_takes_no_time(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    book.active.append(["Image", "Description"])
    book.active.append(["a.png", "a lung"])
    book.save(tmp_path / "sound.xlsx")
    assert read_captions(tmp_path / "sound.xlsx") == [("a.png", "a lung")]
    with zipfile.ZipFile(tmp_path / "sound.xlsx") as sound, zipfile.ZipFile(
        tmp_path / "bomb.xlsx", "w", zipfile.ZIP_DEFLATED
    ) as bomb:
        for part in sound.infolist():
            content = sound.read(part)
            if part.filename.endswith("sheet1.xml"):
                content = content.replace(b"</row>", b'<c r="A1"/>' * 10**6 + b"</row>", 1)
            bomb.writestr(part, content)
    with pytest.raises(UserError, match="too many cells"):
        read_captions(tmp_path / "bomb.xlsx")


def test_a_table_without_a_row_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "scans"
    folder.mkdir()
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(folder / "a.png")
    (folder / "short.csv").write_text(f"{HEADER}a.png\n")
    report = import_study(folder, tmp_path / "study")
    assert any("short.csv" in line and "holds no row" in line for line in report.lines())


def test_regions_of_interest_are_masks(scan_path: Path, tmp_path: Path) -> None:
    from amvlm.imaging import Volume, read_volume, write_volume

    folder = tmp_path / "scans"
    folder.mkdir()
    (folder / "scan.nii.gz").write_bytes(scan_path.read_bytes())
    scan = read_volume(scan_path)
    write_volume(folder / "scan_roi.nii.gz", Volume((scan.array > 400).astype(np.uint8), scan.affine))
    import_study(folder, tmp_path / "study", structure="lesion")
    store = LabelStore(tmp_path / "study")
    assert len(store.cases()) == 1
    assert store.current("case-00001", "lesion") is not None
