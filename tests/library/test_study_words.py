"""Structures and reports from the command line: added, renamed, and nothing that belongs to them lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from amvlm.cli import main
from amvlm.errors import UserError
from amvlm.exchange import import_study
from amvlm.store import LabelStore, verify


@pytest.fixture
def study(scan_path: Path, tmp_path: Path) -> Path:
    import_study(scan_path, tmp_path / "study")
    return tmp_path / "study"


def run(*arguments: object) -> None:
    main(list(map(str, arguments)))


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as ended:
        main(list(map(str, arguments)))
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


def test_a_study_gets_its_first_structure_and_label_without_a_window(
    study: Path, scan_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("structure", "add", study, "liver", "--alias", "hepar", "--colour", "#112233")
    (own,) = LabelStore(study).structures()
    assert (own.name, own.aliases, own.colour) == ("liver", ("hepar",), "#112233")
    run("judge", study, "case-00001", "liver", "absent")
    run("structure", "list", study)
    assert "hepar" in capsys.readouterr().out
    assert "already" in refused(capsys, "structure", "add", study, " liver ")


def test_a_rename_takes_labels_drafts_and_reports_along(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = LabelStore(study)
    for name in ("liver", "spleen"):
        store.add_structure(name)
    mask = np.ones(store.cases()[0].shape, np.uint8)
    accepted = store.accept("case-00001", "liver", mask, prompt="the liver")
    store.save_draft("case-00001", "liver", {0: mask[:, :, 0]})
    store.set_captions({"case-00001": ["a large liver"]}, "liver")
    run("structure", "rename", study, "liver", "Leber")
    assert [s.name for s in store.structures()] == ["Leber", "spleen"]
    assert store.structures()[0].aliases == ("liver",)
    current = store.current("case-00001", "Leber")
    assert current is not None
    assert (current.revision_id, current.mask_sha256) == (accepted.revision_id, accepted.mask_sha256)
    assert list(store.load_draft("case-00001", "Leber")) == [0]
    assert store.captions() == {"case-00001": [("Leber", "a large liver")]}
    assert list(verify(store)) == []
    with pytest.raises(UserError), store.index.write() as connection:  # the guard stands again
        connection.execute("UPDATE revision SET prompt = 'another'")
    run("structure", "rename", study, "Leber", "liver")  # and back: its old name was an alias
    assert store.structures()[0].aliases == ("Leber",)
    for new in ("spleen", "SPLEEN", "", "a\x00b", "a" * 500):
        assert refused(capsys, "structure", "rename", study, "liver", new)
    assert refused(capsys, "structure", "rename", study, "kidney", "x")


@pytest.mark.parametrize("hostile", ["[/red]", "<img src=file:x>", "../../labels", "-- ; DROP TABLE structure"])
def test_hostile_names_are_only_words(study: Path, hostile: str) -> None:
    store = LabelStore(study)
    store.add_structure("liver")
    store.rename_structure("liver", hostile)
    store.set_aliases(hostile, [f"{hostile} 2"])
    assert [s.name for s in store.structures()] == [hostile]
    run("structure", "list", study)


def test_aliases_belong_to_one_structure(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("liver", "spleen"):
        run("structure", "add", study, name)
    run("structure", "alias", study, "liver", "hepar", "hepar")
    assert LabelStore(study).structures()[0].aliases == ("hepar",)
    for taken in ("Hepar", "liver"):
        assert "already names" in refused(capsys, "structure", "alias", study, "spleen", taken)
    assert "no alias" in refused(capsys, "structure", "alias", study, "liver", "lien", "--remove")
    run("structure", "alias", study, "liver", "hepar", "--remove")
    assert LabelStore(study).structures()[0].aliases == ()
    assert "no colour" in refused(capsys, "structure", "colour", study, "liver", "red")
    run("structure", "colour", study, "liver", "#a0B1c2")


def test_reports_come_later_in_the_patients_sides(study: Path, scan_path: Path, tmp_path: Path) -> None:
    run("caption", "set", study, "case-00001", "infection of the left lung", "--laterality", "image")
    assert LabelStore(study).captions() == {"case-00001": [(None, "infection of the right lung")]}
    table = tmp_path / "reports.csv"
    table.write_text(f"Image,Description\n{scan_path.name},a clear right lung\nother.nii.gz,nothing\n", "utf-8")
    run("caption", "import", study, table)
    assert LabelStore(study).captions() == {"case-00001": [(None, "a clear right lung")]}
    run("caption", "list", study)
    run("caption", "set", study, "case-00001", "--remove")
    assert LabelStore(study).captions() == {}


def test_no_report_is_dropped_in_silence(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "reports.csv"
    for rows in ("other.nii.gz,words\n", ""):
        table.write_text(f"Image,Description\n{rows}", "utf-8")
        assert "no row of the table names a case" in refused(capsys, "caption", "import", study, table)
    table.write_text("Image,Description\ncase-00001,words\nscan.nii.gz,other words\n", "utf-8")
    assert "two reports" in refused(capsys, "caption", "import", study, table)
    assert "empty" in refused(capsys, "caption", "set", study, "case-00001", " . ")
    assert refused(capsys, "caption", "set", study, "case-00009", "words")
    assert refused(capsys, "caption", "set", study, "case-00001", "words", "--structure", "liver")
    assert LabelStore(study).captions() == {}


def test_a_name_of_half_a_character_is_a_sentence(study: Path) -> None:
    for act in (
        lambda store: store.add_structure("l\udcff"),
        lambda store: store.rename_structure("l\udcff", "x"),
        lambda store: store.set_captions({"case-\udcff": ["x"]}),
        lambda store: store.set_captions({"case-00001": ["x\udcff"]}),
    ):
        with pytest.raises(UserError):
            act(LabelStore(study))
