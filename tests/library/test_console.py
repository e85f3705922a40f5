"""What comes from a file, a name or a prompt is printed as plain text: no markup, no link, no control code."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from amvlm import console
from amvlm.cli import main
from amvlm.events import AnyEvent, Finished, Note, Progress, Started, Validation
from amvlm.following import report_events
from amvlm.sample.study import first_scan
from amvlm.store import LabelStore
from amvlm.store.runs import RunFolder

ODD = ["[/red]", "[bold]", "[link=file:///etc/passwd]x[/link]", "[red", "[[x]]", ":bomb:", "\x1b[31mred", "\x1b]8;;http://x\x07y",
       "a\rb", "\x07", "\u202etxt.exe", "a\tb", "<img src=file:///x>", "{}", "%s", "\ud800"]  # fmt: skip
FORBIDDEN = "\x1b\x07\r\u202e\ud800"


def _exit_code(command: list[str]) -> object:
    try:
        main(command)
    except SystemExit as ended:
        return ended.code
    return 0


def clean(printed: str, text: str) -> None:
    assert not set(FORBIDDEN) & set(printed)
    if text.isprintable():
        assert text in printed


@pytest.mark.parametrize("text", ODD)
def test_every_way_to_print_shows_plain_text(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    for act in (console.say, console.result, console.fail, lambda t: console.say(t, "note")):
        act(text)
        shown = capsys.readouterr()
        clean(shown.out + shown.err, text)
    console.table(text, ("one", "two"), [(text, 7)], left=("one",))
    clean(capsys.readouterr().out, text)
    with console.status(text) as update:
        update(text)
    assert not set("\x07\ud800\u202e") & set(capsys.readouterr().err)


@pytest.mark.parametrize("text", ODD)
def test_events_of_a_job_are_shown_plain(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = text.encode("utf-8", "replace").decode()  # an event cannot hold a lone surrogate

    def job() -> Iterator[AnyEvent]:
        yield Started(job="train", labelled=1, unlabelled=1, structures=[text], steps=1, device=text, precision="fp32")
        yield Note(text=text, level="warning")
        yield Progress(stage=text, step=1, steps=2, losses={text: 0.5})
        yield Validation(step=1, student={text: 0.5}, text_mask={}, merged={})
        yield Finished(model="m", seconds=1)

    with RunFolder(tmp_path / "r") as run:
        report_events(job(), run)
    shown = capsys.readouterr()
    clean(shown.out + shown.err, text)


@pytest.mark.parametrize("text", ["[/red]", "\x1b[31mred", "[link=file:///x]y[/link]"])
def test_commands_take_odd_words_without_a_traceback(
    text: str, tmp_path: Path, sample_template: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(sample_template, tmp_path / "study")
    study = str(tmp_path / "study")
    for command in (
        ["segment", str(first_scan()), "--prompt", text, "-o", str(tmp_path / "mask.nii.gz")],
        ["judge", study, text, text, "accept"], ["history", study, text, text], ["restore", study, "999"],
        ["train", study, "--name", text], ["train", study, "--run-name", text], ["train", study, "--model", text],
        ["train", study, "--run-name", text, "--resume"], ["pretrain", study, "--base", text],
        ["train", study, "--structures", text], ["evaluate", text], ["quality", study, "--model", text],
        ["verify", text], ["export", study, study], ["import", text, "--into", str(tmp_path / "other")],
    ):  # fmt: skip
        assert _exit_code(command) in (0, 1, 2), command
        shown = capsys.readouterr()
        assert "Traceback" not in shown.err
        assert "unexpected" not in shown.err, shown.err
        assert not set(FORBIDDEN) & set(shown.out + shown.err), command


def test_an_error_of_ours_is_a_sentence_without_a_path(
    sample_store: LabelStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(self: LabelStore, *_: object) -> None:
        raise KeyError("/home/dr_smith/secret")

    monkeypatch.setattr(LabelStore, "history", broken)
    with pytest.raises(SystemExit) as ended:
        main(["history", str(sample_store.folder), sample_store.cases()[0].case_id, "anterior hippocampus"])
    assert ended.value.code == 70
    shown = capsys.readouterr().err
    assert "unexpected KeyError in cli_labels.py, line" in shown
    assert "smith" not in shown
    monkeypatch.setenv("AMVLM_TRACEBACK", "1")
    with pytest.raises(KeyError):
        main(["history", str(sample_store.folder), sample_store.cases()[0].case_id, "anterior hippocampus"])


def test_a_figure_file_that_cannot_be_written_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from amvlm.cli import _write_json
    from amvlm.errors import UserError

    with pytest.raises(UserError, match="could not be written"):
        _write_json(tmp_path / "no" / "such" / "x.json", {})
    _write_json(None, {})


def test_usage_errors_show_no_markup_either() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "amvlm", "judge", "s", "c", "x", "[/red]"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "[/red]" in done.stderr
    assert "Traceback" not in done.stderr
