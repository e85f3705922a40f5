"""A run's folder: who runs it, what a stranger may have put there, what a full disk leaves."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from amvlm import following
from amvlm.config import EncoderSettings, PretrainSettings
from amvlm.errors import UserError
from amvlm.events import AnyEvent, EventLog, EventReader, Failed, Finished, Note, Progress
from amvlm.following import report_events
from amvlm.learning.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from amvlm.store.runs import RunFolder, Stopped

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="POSIX links, pipes and signals")
CONFIG = {"job": "train", "model": "m", "base": "b", "settings": {}, "precision": "fp32", "revisions": [1, 2]}

# -- who runs it ------------------------------------------------------------------------------------


PIDS = ["1", str(os.getpid()), "4194304", "0", "-1", "", "nonsense", "9" * 40, "\0"]


@pytest.mark.parametrize("pid", PIDS, ids=["init", "own", "last", "0", "negative", "none", "word", "long", "null byte"])
def test_a_process_id_in_a_file_proves_nothing(pid: str, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "r")
    (run.path / "lock").write_text(pid)  # left by a kill, or copied with the study; the number is somebody else's now
    assert run.running_pid() is None
    with run:
        assert RunFolder(run.path).running_pid() == os.getpid()
    assert run.running_pid() is None
    assert not (run.path / "lock").exists()


_HOLD = (
    "import sys; from pathlib import Path; from amvlm.store.runs import RunFolder\n"
    "with RunFolder(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()\n"
)


def holding(path: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _HOLD, str(path)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_of_two_starters_one_wins_and_a_kill_gives_the_lock_back(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "r")
    starters = [holding(run.path) for _ in range(3)]
    try:
        lines = [process.stdout.readline() for process in starters if process.stdout]  # "" where it ended
        assert sorted(lines) == ["", "", "held\n"]
        winner = starters[lines.index("held\n")]
        losers = [process for process in starters if process is not winner]
        assert all("going on already" in process.communicate()[1] for process in losers)
        assert run.running_pid() == winner.pid
        with pytest.raises(UserError, match="going on already"), run:
            pass
        winner.kill()
        winner.communicate()
        assert run.running_pid() is None
        with run:
            pass
    finally:
        for process in starters:
            process.kill()
            process.wait()


@POSIX
def test_a_lock_that_is_a_link_or_a_pipe_is_refused_in_words(tmp_path: Path) -> None:
    run, victim = RunFolder(tmp_path / "r"), tmp_path / "victim"
    victim.write_text("mine")
    (run.path / "lock").symlink_to(victim)
    assert run.running_pid() is None
    with pytest.raises(UserError, match="lock"), run:
        pass
    (run.path / "lock").unlink()
    os.mkfifo(run.path / "lock")
    assert run.running_pid() is None
    with pytest.raises(UserError, match="lock"), run:
        pass
    assert victim.read_text() == "mine"


def test_runs_are_found_in_odd_company(tmp_path: Path) -> None:
    assert RunFolder.all(tmp_path) == []
    RunFolder.new(tmp_path)
    (tmp_path / "runs" / "a file").write_text("")
    (tmp_path / "runs" / "odd; name").mkdir()
    if sys.platform != "win32":
        (tmp_path / "runs" / "linked").symlink_to(tmp_path)
    assert len(RunFolder.all(tmp_path)) == 1


# -- what a stranger may have put there -------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "../../../elsewhere/victim"}, {"model": "/victim"}, {"model": ""}, {"model": 7}, {"base": "../x"},
        {"base": ["b"]}, {"job": "evil"}, {"settings": []}, {"precision": "fp8"}, {"revisions": ["x"]},
        {"revisions": {"1": 2}}, {"threads": -1}, {"threads": 10**9}, {"base_fingerprint": "x" * 10_000},
    ],
)  # fmt: skip
def test_a_strangers_configuration_is_checked(changes: dict[str, Any], tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "r")
    (run.path / "config.json").write_text(json.dumps(CONFIG | changes))
    with pytest.raises(UserError, match="configuration is damaged"):
        run.read_config()
    run.write_config(CONFIG)
    assert run.read_config().revisions == (1, 2)


@pytest.mark.parametrize("content", ["", "{", "[]", "[" * 100_000, '{"job": "train"}', "\0"])
def test_a_broken_configuration_is_a_sentence(content: str, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "r")
    with pytest.raises(UserError, match="configuration is missing"):
        run.read_config()
    (run.path / "config.json").write_text(content)
    with pytest.raises(UserError, match="configuration is damaged"):
        run.read_config()


def test_events_of_a_stranger_are_passed_over_and_never_held(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    log.write(Note(text="first"))
    with path.open("ab") as stream:
        stream.write(b'{"event":"note","text":"' + b"x" * (20 << 20) + b'"}\n')  # one event of 20 MB
        stream.write(b"\xff\xfe\n[]\n" + b"[" * 50_000 + b'\n{"event":"finished","model":"../x","seconds":1}\n')
        stream.write(b'{"event":"progress","stage":"s","step":1e99,"steps":1}\n')
        stream.write(b'{"event":"progress","stage":"s","step":-1,"steps":99999999999999999999}\n')
    log.write(Note(text="last"))
    reader = EventReader(path)
    assert [event.text for event in reader.new_events() if isinstance(event, Note)] == ["first", "last"]
    with path.open("ab") as stream:
        stream.write(b"y" * (3 << 20))  # a line that has no end yet
    assert list(reader.new_events()) == []
    with path.open("ab") as stream:
        stream.write(b"\n")
    log.write(Finished(model="m", seconds=1))
    assert [type(event) for event in reader.new_events()] == [Finished]
    assert isinstance(list(reader.last_events())[-1], Finished)


@POSIX
def test_events_are_written_through_no_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine\n")
    (tmp_path / "events.jsonl").symlink_to(victim)
    with pytest.raises(UserError, match="events could not be written"):
        EventLog(tmp_path / "events.jsonl").write(Note(text="x"))
    assert list(EventReader(tmp_path / "events.jsonl").new_events()) == []
    assert victim.read_text() == "mine\n"


# -- checkpoints ------------------------------------------------------------------------------------


class Learner:
    """A network and its optimiser after some steps."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.net = nn.Linear(3, 2)
        self.optimiser = torch.optim.AdamW(self.net.parameters())

    def step(self) -> None:
        self.net(torch.ones(1, 3)).sum().backward()
        self.optimiser.step()

    def save(self, folder: Path, step: int) -> None:
        self.step()
        save_checkpoint(folder, step, {"net": self.net}, self.optimiser, {"best": 0.1 * step, "inf": float("inf")})

    def load(self, folder: Path) -> Any:
        return load_checkpoint(folder, {"net": self.net}, self.optimiser)


def damage_bit(folder: Path) -> None:
    content = bytearray((folder / "tensors.safetensors").read_bytes())
    content[-2] ^= 1
    (folder / "tensors.safetensors").write_bytes(content)


def change_state(folder: Path, **changes: Any) -> None:
    known = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps(known | changes))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a flipped bit": damage_bit,
    "cut tensors": lambda folder: os.truncate(folder / "tensors.safetensors", 100),
    "no tensors": lambda folder: (folder / "tensors.safetensors").unlink(),
    "state not JSON": lambda folder: (folder / "state.json").write_text("{"),
    "state deep": lambda folder: (folder / "state.json").write_text("[" * 100_000),
    "another step": lambda folder: change_state(folder, step=3),
    "other notes": lambda folder: change_state(folder, notes={"best": 9}),
    "a hash of nothing": lambda folder: change_state(folder, sha256="0" * 64),
    "no hash": lambda folder: change_state(folder, sha256=None),
    "a huge step": lambda folder: change_state(folder, step=10**30),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(damage: str, tmp_path: Path) -> None:
    learner, other = Learner(), Learner()
    learner.save(tmp_path, 2)
    kept = {name: tensor.clone() for name, tensor in learner.net.state_dict().items()}
    learner.save(tmp_path, 4)
    assert other.load(tmp_path) == (4, {"best": 0.4, "inf": float("inf")}, "")
    DAMAGES[damage](tmp_path / "checkpoint-0000004")
    found = other.load(tmp_path)
    assert (found.step, found.notes["best"]) == (2, 0.2)
    assert "goes on from step 2" in found.doubt
    assert all(torch.equal(tensor, kept[name]) for name, tensor in other.net.state_dict().items())
    DAMAGES[damage](tmp_path / "checkpoint-0000002")
    with pytest.raises(UserError, match="every checkpoint of this run is damaged"):
        other.load(tmp_path)


def test_a_checkpoint_of_other_networks_is_refused_in_words(tmp_path: Path) -> None:
    Learner().save(tmp_path, 2)
    other = Learner()
    other.net = nn.Linear(4, 2)
    with pytest.raises(UserError, match="does not fit"):
        other.load(tmp_path)


@POSIX
def test_removing_checkpoints_follows_no_link(tmp_path: Path) -> None:
    victim, run = tmp_path / "victim", tmp_path / "run"
    run.mkdir()
    learner = Learner()
    learner.save(victim, 1)
    (run / "checkpoint-0000000").symlink_to(victim / "checkpoint-0000001")
    for step in (1, 2, 3, 4):
        if step == 2:
            (run / "checkpoint-0000001" / "notes.txt").write_text("mine")
        learner.save(run, step)
    assert (victim / "checkpoint-0000001" / "tensors.safetensors").is_file()
    assert (run / "checkpoint-0000001" / "notes.txt").read_text() == "mine"
    assert [path.name[-1] for path in checkpoints(run)] == ["3", "4"]


# -- a job that fails -------------------------------------------------------------------------------


def failing(error: BaseException, events: int = 2) -> Iterator[AnyEvent]:
    for step in range(events):
        yield Progress(stage="training", step=step, steps=9, losses={"L": 0.5})
    raise error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "memory does not hold"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "memory does not hold"),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate"), "memory does not hold"),
        (OSError(errno.ENOSPC, "No space left on device", "/home/dr_smith/study/x"), "x: a file could not be"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "/data/study/images/a.nii.gz"), "a.nii.gz"),
        (UserError("the study is odd"), "the study is odd"),
        (Stopped("stopped before training began"), "before training began"),
        (KeyboardInterrupt(), "ended at once, without a model"),
    ],
)
def test_the_end_of_a_job_is_a_sentence_in_its_file_too(error: BaseException, words: str, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "r")
    with pytest.raises(UserError, match=words) as raised:
        report_events(failing(error), run)
    assert "dr_smith" not in str(raised.value)
    last = list(EventReader(run.path / "events.jsonl").new_events())[-1]
    assert last == Failed(text=str(raised.value))


def test_other_errors_are_not_hidden(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        report_events(failing(RuntimeError("shapes do not fit")), RunFolder(tmp_path / "r"))


@pytest.mark.parametrize("missing", ["events.jsonl", "tensorboard"])
def test_a_full_disk_in_any_file_of_a_run_is_a_sentence(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = os.open

    def full(path: Any, *args: Any, **more: Any) -> int:
        if missing in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return true(path, *args, **more)

    run = RunFolder(tmp_path / "r")
    monkeypatch.setattr(os, "open", full)
    with pytest.raises(UserError, match=r"could not be written \(No space left"):
        report_events(failing(AssertionError(), 1), run)


def test_a_run_whose_folder_goes_ends_with_a_sentence(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "r")

    def events() -> Iterator[AnyEvent]:
        yield Note(text="x")
        shutil.rmtree(run.path)
        yield Note(text="y")

    with pytest.raises(UserError, match="the run's folder is gone"), run:
        report_events(events(), run)
    with pytest.raises(UserError, match="could not be asked to stop"):
        run.ask_to_stop()
    assert run.stop_asked()  # in this process the wish counts


# -- what a run keeps -------------------------------------------------------------------------------


def test_curves_hold_no_name_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setattr("socket.gethostname", lambda: "ward-7-dr-smith")
    run = RunFolder(tmp_path / "r")
    job: Iterator[AnyEvent] = failing(UserError("end"))
    with pytest.raises(UserError, match="end"):
        report_events(job, run)
    (kept,) = (run.path / "tensorboard").iterdir()
    assert "smith" not in kept.name
    assert str(os.getpid()) not in kept.name
    assert b"smith" not in kept.read_bytes()
    curves = EventAccumulator(str(run.path / "tensorboard"))
    curves.Reload()
    assert [point.step for point in curves.Scalars("loss/L")] == [0, 1]
    if sys.platform != "win32":
        assert {path.stat().st_mode & 0o077 for path in run.path.rglob("*")} == {0}


def test_a_folder_of_encoders_is_recorded_without_its_path(tmp_path: Path) -> None:
    folder = tmp_path / "Jane Doe" / "encoder"
    folder.mkdir(parents=True)
    given = PretrainSettings(encoders=EncoderSettings(text_encoder=str(folder), image_encoder="org/hub-id"))
    recorded = given.for_the_record()
    assert "Jane" not in recorded.model_dump_json()
    assert recorded.encoders.image_encoder == "org/hub-id"
    assert recorded.for_the_record() == recorded
    with pytest.raises(UserError, match=r"'encoder'.*--text-encoder FOLDER"):
        recorded.encoders.completed(EncoderSettings())
    assert recorded.encoders.completed(given.encoders).text_encoder == str(folder)


def test_following_leaves_the_signals_as_they_were(tmp_path: Path) -> None:
    import signal

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(UserError):
        report_events(failing(UserError("end")), RunFolder(tmp_path / "r"))
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@POSIX
@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_the_first_signal_asks_and_the_second_ends(
    number: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import signal

    told: list[str] = []
    monkeypatch.setattr(following.console, "say_from_signal", told.append)
    run, sent = RunFolder(tmp_path / "r"), getattr(signal, number)

    def job(signals: int) -> Iterator[AnyEvent]:
        yield Note(text="begun")
        for _ in range(signals):
            os.kill(os.getpid(), sent)
        assert run.stop_asked()
        yield Finished(model="m", stopped_early=True, seconds=1)

    with run:
        report_events(job(1), run)
    assert told == [following.STOPPING]
    assert isinstance(list(EventReader(run.path / "events.jsonl").new_events())[-1], Finished)
    with run, pytest.raises(Stopped, match="ended at once"):
        report_events(job(2), run)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")  # torchrun repeats the signals that its children got already
    with run:
        report_events(job(3), run)
