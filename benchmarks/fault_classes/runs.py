"""Training runs that are broken, interrupted, or whose ground is pulled away."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from fault_classes import makers
from fault_classes.disk import fill_disk, mountable
from fault_classes.makers import TINY
from fault_classes.place import Place
from fault_classes.registry import Trial, fault_class


@fault_class(7, "a lock that nobody holds")
def stale_locks() -> Iterator[Trial]:
    def trial(place: Place, lock: str) -> None:
        study = place.study("trained")
        path = study / "runs" / "first" / "lock"
        sleeper = subprocess.Popen(["sleep", "100"], cwd="/")
        place.afterwards.append(lambda: (sleeper.kill(), sleeper.wait()))
        if lock == "pipe":
            os.mkfifo(path)
        elif lock == "folder":
            path.mkdir()
        else:
            path.write_text({"another program": str(sleeper.pid), "init": "1"}.get(lock, lock))
        place.allow(study)
        use = place.fine if lock in ("another program", "init", "999999999", "", "x") else place.run
        use("train", study, "--run-name", "first", "--resume", seconds=40)

    for lock in ("another program", "init", "999999999", "", "x", "-1", "0", "1" * 5000, "pipe", "folder",
                 '{"pid": 1}', "1 2 3"):  # fmt: skip
        yield f"lock {lock[:20]!r}", partial(trial, lock=lock)


def _flip(path: Path, at: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(len(content) * at)] ^= 0x08
    path.write_bytes(bytes(content))


@fault_class(7, "a broken checkpoint or configuration", short=0)
def checkpoints() -> Iterator[Trial]:
    def trial(place: Place, name: str, change: Callable[[Path], object]) -> None:
        study = place.study("trained")
        newest = max((study / "runs" / "first").glob("checkpoint-*"))
        path = study / "runs" / "first" / name if name == "config.json" else newest / name
        change(path)
        place.allow(study)
        answer = place.run("train", study, "--run-name", "first", "--resume")
        said = answer.code == 2 or any(word in answer.text for word in ("damaged", "broken", "earlier", "one before"))
        place.expect(said, f"resumed as if it were sound: {answer.text.strip()[-200:]}")

    for at in (0.999, 0.5, 0.3, 0.7, 0.01):
        yield f"a bit of the tensors flipped at {at}", partial(
            trial, name="tensors.safetensors", change=partial(_flip, at=at))  # fmt: skip
    for name, change in {
        "cut": lambda p: os.truncate(p, p.stat().st_size // 2), "empty": lambda p: p.write_bytes(b""),
        "gone": Path.unlink, "random": lambda p: p.write_bytes(os.urandom(5000)),
        "zeros": lambda p: p.write_bytes(bytes(p.stat().st_size)),
    }.items():  # fmt: skip
        yield f"tensors {name}", partial(trial, name="tensors.safetensors", change=change)
    for content in ("", "{", "[]", "5", "null", '{"step": "x", "notes": {}}', '{"step": 1}',
        '{"step": -5, "notes": {}}',
                    '{"step": 1e400, "notes": []}', "[" * 10**5, '{"step": 10000000000, "notes": {}}'):  # fmt: skip
        yield f"state.json {content[:24]!r}", partial(
            trial, name="state.json", change=lambda p, c=content: p.write_text(c))  # fmt: skip
    for content in ("", "{", "[]", "5", '{"settings": {"steps": -1}}', "[" * 10**5, "{}"):
        yield f"config.json {content[:24]!r}", partial(
            trial, name="config.json", change=lambda p, c=content: p.write_text(c))  # fmt: skip

    def unknown(path: Path) -> None:
        config = json.loads(path.read_text())
        config["settings"]["evil"] = 1
        path.write_text(json.dumps(config))

    yield "config.json with an unknown setting", partial(trial, name="config.json", change=unknown)


LONG = [*TINY[2:], "--steps", "100000", "--validate-every", "100000", "--checkpoint-every", "50"]


def _when_training(
    study: Path, act: Callable[[], object], delay: float = 0.3, what: str = '"stage":"training"'
) -> None:
    """Wait for a run to train (60 s at most), then act."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for path in study.glob("runs/*/events.jsonl"):
            if what in path.read_text("utf-8", "replace"):
                time.sleep(delay)
                act()
                return
        time.sleep(0.05)
    act()


@fault_class(7, "Ctrl-C", short=1)
def interrupts() -> Iterator[Trial]:
    def train(place: Place, times: int, command: str) -> None:
        study = place.study()
        place.allow(study)
        place.exit_codes = (0, 1, 2, 130)
        many = ["--preset", "tiny", "--steps", "100000", "--generator-steps", "5", "--batch-size", "2"]
        flags = LONG if command == "train" else [*many, "--device", "cpu", "--precision", "fp32"]

        def during(process: int) -> None:
            def act() -> None:
                for _ in range(times):
                    os.kill(process, signal.SIGINT)
                    time.sleep(0.2)

            _when_training(study, act, what='"stage":"training"' if command == "train" else '"event":"progress"')

        answer = place.run(command, study, "--name", "interrupted", *flags, during=during, seconds=150)
        saved = (study / "models" / "interrupted" / "card.json").is_file()
        place.expect(saved or times > 1, f"no model is there: {answer.text.strip()[-200:]}")
        if saved:
            place.expect("saved" in answer.text.lower(), "the model is not told")
            place.run("quality", study, "--model", "interrupted")
        elif answer.code == 0:
            place.fault("answer", "exit code 0 and no model")
        place.expect(not list(study.glob("runs/*/lock")), "a lock stays")

    yield "once, in training", partial(train, times=1, command="train")
    yield "twice, in training", partial(train, times=2, command="train")
    yield "five times, in training", partial(train, times=5, command="train")
    yield "in pre-training", partial(train, times=1, command="pretrain")

    def early(place: Place, delay: float) -> None:
        study = place.study()
        place.allow(study)
        place.exit_codes = (0, 1, 2, 130, -2)

        def during(process: int) -> None:
            time.sleep(delay)
            os.kill(process, signal.SIGINT)

        answer = place.run("train", study, "--name", "interrupted", *LONG, during=during, seconds=120)
        if answer.code == 0:
            place.expect((study / "models" / "interrupted" / "card.json").is_file(), "exit code 0 and no model")
        place.expect(not list(study.glob("runs/*/lock")), "a lock stays")

    for delay in (0.2, 0.5, 1.0):
        yield f"{delay} s after the start", partial(early, delay=delay)

    def other(place: Place, command: str, delay: float) -> None:
        study = place.study("trained")
        folder = place.work / "many"
        makers.msd(folder, 60)
        place.allow(study, place.work / "out", place.work / "m.nii.gz")
        place.exit_codes = (0, 1, 2, 130, -2)
        place.leftovers_are_fair = True
        arguments = {
            "import": ["import", folder, "--into", study], "quality": ["quality", study], "verify": ["verify", study],
            "export": ["export", study, place.work / "out"], "evaluate": ["evaluate", folder],
        }[command]  # fmt: skip

        def during(process: int) -> None:
            time.sleep(delay)
            os.kill(process, signal.SIGINT)

        place.run(*arguments, during=during)

    for command in ("import", "quality", "verify", "export", "evaluate"):
        for delay in (0.1, 0.4):
            yield f"{command}, after {delay} s", partial(other, command=command, delay=delay)


@fault_class(7, "a study that moves or vanishes during a run", short=0)
def vanishing() -> Iterator[Trial]:
    def trial(place: Place, act: str) -> None:
        study = place.study()
        place.allow(study, place.work / "moved")
        place.study_is_damaged = True

        def change() -> None:
            run = next((study / "runs").iterdir())
            if act == "the run's folder is deleted":
                shutil.rmtree(run)
            elif act == "the study is moved":
                study.rename(place.work / "moved")
            elif act == "the study is deleted":
                shutil.rmtree(study)
            elif act == "the events become a folder":
                (run / "events.jsonl").unlink()
                (run / "events.jsonl").mkdir()
            elif act == "models becomes a file":
                shutil.rmtree(study / "models")
                (study / "models").write_text("x")
            elif act == "the index is deleted":
                (study / "store.sqlite").unlink()
                (run / "stop").touch()
            elif act == "labels are deleted":
                shutil.rmtree(study / "labels")
                (run / "stop").touch()

        def during(process: int) -> None:
            _when_training(study, change)

        flags = [*TINY[2:], "--steps", "600", "--validate-every", "300", "--checkpoint-every", "20"]
        flags = [flag for pair in zip(flags[::2], flags[1::2], strict=True) if pair != ("--checkpoint-every", "1")
                 for flag in pair]  # fmt: skip
        place.run("train", study, "--name", "own", *flags, during=during, seconds=120)

    for act in ("the run's folder is deleted", "the study is moved", "the study is deleted",
        "the events become a folder",
                "models becomes a file", "the index is deleted", "labels are deleted"):  # fmt: skip
        yield act, partial(trial, act=act)


@fault_class(7, "saving over a model, and the disk is full", short=0)
def saving_over() -> Iterator[Trial]:

    if not mountable():
        return

    def trial(place: Place, left: int) -> None:
        disk = place.small_disk(place.work / "study", 60_000)
        shutil.copytree(place.template("trained"), disk, dirs_exist_ok=True)
        before = (disk / "models" / "own" / "card.json").read_bytes()
        shutil.rmtree(disk / "cache", ignore_errors=True)
        fill_disk(disk, left)
        place.allow(disk)
        place.leftovers_are_fair = True
        answer = place.run(
            "train", disk, "--name", "own", "--run-name", "again", *TINY[:-4], "--checkpoint-every", "1000"
        )
        model = disk / "models" / "own"
        whole = all(
            (model / name).is_file() for name in ("card.json", "config.json", "model.safetensors", "tokenizer.json")
        )
        place.expect(whole, f"the old model is gone: {sorted(p.name for p in (disk / 'models').iterdir())}", "changed")
        place.expect(answer.code == 0 or not whole or (model / "card.json").read_bytes() == before,
                     "the old model changed", "changed")  # fmt: skip
        (disk / "filler").unlink()

    for left in (300_000, 2_000_000, 5_000_000, 9_000_000):
        yield f"{left / 10**6:.1f} MB left", partial(trial, left=left)
