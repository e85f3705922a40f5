"""Minutes are the default: what a person gives, what is said on the way, and where the old path is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from amvlm.cli import main
from amvlm.config import TrainSettings
from amvlm.errors import UserError
from amvlm.events import AnyEvent, Finished, Note, Progress, Started, Validation
from amvlm.flags import validated
from amvlm.following import report_events
from amvlm.learning import RunFolder, train
from amvlm.learning.countdown import counted_down
from amvlm.models import AmvlmModel
from amvlm.planning import Fingerprint
from amvlm.store import LabelStore

CPU = ["--device", "cpu", "--threads", "1", "--precision", "fp32", "--batch-size", "2"]


def test_ten_minutes_are_the_default_and_steps_the_way_to_the_paper() -> None:
    assert TrainSettings().by_minutes
    assert TrainSettings().minutes == 10
    by_steps = TrainSettings(steps=7)
    assert not by_steps.by_minutes
    assert TrainSettings.model_validate(by_steps.model_dump()) == by_steps
    assert TrainSettings.model_validate(TrainSettings().model_dump()) == TrainSettings()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"minutes": 0}, "more than 0 --minutes"), ({"minutes": -1}, "--minutes: "),
        ({"minutes": float("nan")}, "--minutes: "), ({"minutes": float("inf")}, "--minutes: "),
        ({"minutes": 1e9}, "--minutes: "), ({"minutes": 5, "steps": 10}, "not both"),
        ({"student": {"network": "unet"}}, "--network belongs to a training by steps"),
        ({"validate_every": 3, "minutes": 5}, "--validate-every belongs"), ({"mode": "text_guided"}, "--mode belongs"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_a_sentence(given: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        validated(TrainSettings, given)


@pytest.mark.parametrize("minutes", ["0", "-1", "nan", "1e9"])
@pytest.mark.parametrize("command", ["train", "plan"])
def test_absurd_minutes_are_refused_before_anything_is_read(
    command: str, minutes: str, sample_store: LabelStore, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([command, str(sample_store.folder), f"--minutes={minutes}"])
    assert "--minutes" in capsys.readouterr().err
    assert not (sample_store.folder / "runs").exists() or not list((sample_store.folder / "runs").iterdir())


def test_too_few_minutes_are_refused_with_how_many_would_do(
    sample_store: LabelStore, quick: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["train", str(sample_store.folder), "--minutes", "0.01", *CPU])
    said = capsys.readouterr().err
    assert "too few" in said
    assert "Give at least --minutes" in said
    assert not (sample_store.folder / "models").exists() or not list((sample_store.folder / "models").iterdir())


def test_several_processes_need_steps(
    sample_store: LabelStore, quick: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit):
        main(["train", str(sample_store.folder), "--run-name", "r", *CPU])
    assert "give --steps" in capsys.readouterr().err


def test_a_training_by_steps_says_first_at_which_size(
    sample_store: LabelStore, build_model: Callable[..., AmvlmModel]
) -> None:
    with RunFolder.new(sample_store.folder) as run:
        events = train(sample_store, build_model(), TrainSettings(steps=1, device="cpu"), run, "m")
        first = next(iter(events))
    assert isinstance(first, Note)
    assert "scaled to 32×32 px, the size of the model x" in first.text


def test_a_run_without_settings_is_planned_and_resumed_in_its_own_way(
    sample_store: LabelStore, quick: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where an earlier version recorded the steps that a run by minutes never read."""
    study = str(sample_store.folder)
    main(["train", study, "--name", "m", "--run-name", "r", *CPU])
    said = capsys.readouterr().err
    assert "The plan: 2-D, 0.5 mm" in said
    lines = said.splitlines()
    for stage in ("training on all scans: 10 of 10, ", "teaching the text mask: 2 of 2, "):
        assert any(line.startswith(stage) and " min left" in line for line in lines)
    config = sample_store.folder / "runs" / "r" / "config.json"
    config.write_text(config.read_text().replace('"steps":0', '"steps":1500').replace('"steps": 0', '"steps": 1500'))
    main(["train", study, "--name", "again", "--run-name", "r", "--resume"])
    folders = [sample_store.folder / "models" / name / "model.safetensors" for name in ("m", "again")]
    assert folders[0].read_bytes() == folders[1].read_bytes()


def test_the_fingerprint_is_printed_for_programs(
    sample_store: LabelStore, quick: None, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["plan", str(sample_store.folder), "--fingerprint", "--minutes", "3"])
    facts = Fingerprint.model_validate_json(capsys.readouterr().out)
    assert facts.minutes == 3
    assert facts.labelled == 5


# -- progress ------------------------------------------------------------------------------------------


def test_one_countdown_over_all_stages() -> None:
    """Ten minutes: 80 % training, 3 % labelling, 12 % text mask, 5 % measuring; a second per report."""
    clock = iter(range(1000))
    reports = [("reading images", 0, 10), ("reading images", 10, 10), ("training", 1, 100), ("training", 11, 100),
               ("labelling the other scans", 1, 5), ("training on all scans", 40, 100),
               ("teaching the text mask", 10, 10), ("measuring", 5, 5)]  # fmt: skip
    events: list[AnyEvent] = [Progress(stage=stage, step=step, steps=steps) for stage, step, steps in reports]
    now = 0.0

    def tick() -> float:
        return now

    left = []
    for event in counted_down(iter(events), 10, tick):
        assert isinstance(event, Progress)
        left.append(event.seconds_left)
        now += next(clock) + 1
    assert left[:2] == [600, 600]  # what has no share comes on top
    assert left[2] == pytest.approx(480 * 0.99 + 120)  # no pace yet
    assert left[3] == pytest.approx(3 / 10 * 89 + 120)  # ten steps took three seconds
    assert left[4] == pytest.approx(0.65 * 600)
    assert left[5] == pytest.approx(480 * 0.6 + 102)
    assert left[6:] == [30, 0]


def test_a_file_gets_a_line_per_stage_and_validation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def job() -> Iterator[AnyEvent]:
        yield Started(job="train", labelled=1, unlabelled=1, structures=["a"], steps=100, device="cpu",
                      precision="fp32", minutes=2)  # fmt: skip
        for step in range(1, 101):
            yield Progress(stage="training", step=step, steps=100, losses={"Dice": 0.5}, seconds_left=100.0 - step)
        yield Validation(step=100, student={"a": 0.8}, text_mask={}, merged={})
        yield Finished(model="m", seconds=100)

    with RunFolder(tmp_path / "r") as run:
        report_events(job(), run)
    lines = capsys.readouterr().err.splitlines()
    assert "training: 1 of 100, 1:39 min left  Dice 0.500" in lines
    assert sum(line.startswith("training: ") for line in lines) == 11
    assert "step 100, validation Dice: student 0.800  Dice 0.500, 0:00 min left" in lines


@pytest.mark.skipif(sys.platform == "win32", reason="reads a file while it is written")
def test_the_command_writes_whole_lines_into_a_file(sample_store: LabelStore, tmp_path: Path) -> None:
    """The real command by steps, with a cross-fit and a validation, and nothing that animates."""
    for case in sample_store.cases("val")[:1]:
        for structure in sample_store.structures():
            mask = sample_store.read_reference(case, structure.name)
            assert mask is not None
            sample_store.accept(case.case_id, structure.name, mask)
    command = [sys.executable, "-P", "-m", "amvlm", "train", str(sample_store.folder), "--steps", "4", "--name", "m",
               "--network", "unet", "--channels", "8", "--channels", "16", "--validate-every", "2", *CPU]  # fmt: skip
    with (tmp_path / "out.txt").open("wb") as out:
        assert subprocess.call(command, stdout=out, stderr=out, env={**os.environ, "COLUMNS": "80"}) == 0
    said = (tmp_path / "out.txt").read_bytes()
    assert b"\x1b" not in said
    assert b"\r" not in said
    lines = said.decode().splitlines()
    assert "64×64 px" in lines[0]
    assert any(line.startswith("step 4, validation Dice: student ") and "L_sup" in line for line in lines)
    assert lines[-1].startswith("Saved the model m")
