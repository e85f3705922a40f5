"""What lies round a command: links in a study, the terminal, the numbers it is given, the folder it runs in."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from fault_classes import makers
from fault_classes.makers import TINY
from fault_classes.place import Place
from fault_classes.registry import Trial, fault_class
from fault_classes.studies import cases, first_case


@fault_class(1, "links in a stranger's study and run")
def links_in_studies() -> Iterator[Trial]:
    def trial(place: Place, name: str, target: str, command: str) -> None:
        study = place.study("trained")
        case, path = first_case(study), study / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir() and not path.is_symlink():
            shutil.copytree(path, place.outside / "copy")
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.symlink_to(place.outside / ("copy" if (place.outside / "copy").exists() else target))
        place.study_is_damaged = True
        place.allow(study)
        (place.work / "m.nii.gz").write_bytes(makers.packed(makers.nifti(makers.block(1)[::-1])))
        arguments = {
            "train": ["train", study, "--name", "own", *TINY],
            "resume": ["train", study, "--run-name", "first", "--resume"],
            "import": ["import", makers.scans(place.work / "more"), "--into", study],
            "accept": ["judge", study, case, "liver", "accept", "--mask", place.work / "m.nii.gz"],
            "quality": ["quality", study], "clean": ["verify", study, "--clean"],
        }[command]  # fmt: skip
        place.run(*arguments)

    for name, command in [
        ("models", "train"), ("runs", "train"), ("cache", "train"), ("images", "import"), ("labels", "accept"),
        ("labels", "clean"), ("images", "clean"), ("models/own", "train"), ("runs/first", "resume"),
        ("runs/first/tensorboard", "resume"), ("runs/first/checkpoint-0000001", "resume"), ("models", "clean"),
    ]:  # fmt: skip
        yield f"{name} leads out, {command}", partial(trial, name=name, target="keep", command=command)
    for name in ("events.jsonl", "lock", "stop", "config.json", "checkpoint-0000002/state.json", "output.txt"):
        yield f"runs/first/{name} leads out, resume", partial(
            trial, name=f"runs/first/{name}", target="keep/diary.txt", command="resume")  # fmt: skip
    for name, command in (("store.sqlite", "accept"), ("store.sqlite-journal", "accept"),
        ("models/own/card.json", "quality"),
                          ("models/own/model.safetensors", "quality")):  # fmt: skip
        yield f"{name} leads out, {command}", partial(trial, name=name, target="keep/diary.txt", command=command)


@fault_class(7, "terminals that cannot show an answer", short=0)
def terminals() -> Iterator[Trial]:
    ours = "from amvlm.cli import main; main()"

    def command(place: Place, what: str) -> list[str]:
        scan, study = makers.scans(place.work / "scans") / "good_0.nii.gz", place.study()
        place.allow(place.work / "m.nii.gz")
        (place.work / "scans" / "bröken.nii.gz").write_bytes(b"x")
        return [sys.executable, "-P", "-c", ours, *map(str, {
            "segment": ["segment", scan, "--prompt", "anterior hippocampus", "-o", place.work / "m.nii.gz"],
            "history": ["history", study, first_case(study), "liver"], "verify": ["verify", study],
            "import": ["import", place.work / "scans", "--into", place.new_study()], "help": ["--help"],
        }[what])]  # fmt: skip

    def ascii_only(place: Place, what: str) -> None:
        environment = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
        answer = place.fresh(command(place, what), environment=environment)
        place.expect(answer.code == 0, f"exit code {answer.code}: {answer.err[-200:]}")

    for what in ("segment", "history", "import", "help"):
        yield f"ASCII alone, {what}", partial(ascii_only, what=what)

    def shell(place: Place, what: str, ending: str) -> None:
        words = " ".join(f"'{word}'" for word in command(place, what))
        place.fresh(["bash", "-c", f"{words} {ending}"])

    for ending in ("| head -c 1 > nothing", ">&-", "2>&-", ">&- 2>&-"):
        yield f"history {ending}", partial(_allowing_nothing, act=partial(shell, what="history", ending=ending))
        yield f"import {ending}", partial(_allowing_nothing, act=partial(shell, what="import", ending=ending))

    def gone(place: Place) -> None:
        study, folder = place.study(), place.work / "gone"
        folder.mkdir()
        place.allow(folder)
        place.fresh(["bash", "-c", f"cd {folder} && rmdir {folder} && {sys.executable} -P -c '{ours}' verify {study}"])

    yield "a working folder that is gone", gone


def _allowing_nothing(place: Place, act: Callable[[Place], object]) -> None:
    place.allow(place.work / "nothing")
    act(place)


@fault_class(7, "numbers and words on the command line")
def numbers() -> Iterator[Trial]:
    def trial(place: Place, command: str, flags: list[str]) -> None:
        study = place.study("trained" if command in ("quality", "evaluate") else "plain")
        scan = makers.scans(place.work / "scans") / "good_0.nii.gz"
        (place.work / "m.nii.gz").write_bytes(makers.packed(makers.nifti(makers.block(1))))
        place.allow(place.work / "o.nii.gz", place.work / "new", study)
        place.memory_mb = 2500
        arguments = {
            "segment": ["segment", scan, "--prompt", "anterior hippocampus", "-o", place.work / "o.nii.gz"],
            "edit": ["edit", place.work / "m.nii.gz", "-o", place.work / "o.nii.gz"],
            "train": ["train", study, *TINY[2:]], "quality": ["quality", study], "evaluate": ["evaluate", study],
            "pretrain": ["pretrain", study, "--preset", "tiny", "--steps", "1", "--generator-steps", "1"],
            "import": ["import", place.work / "scans", "--into", place.work / "new"],
        }[command]  # fmt: skip
        place.run(*arguments, *flags, seconds=45)

    for command, flags in [
        ("train", "--steps 1 --channels 1000000000 --channels 16"), ("train", "--steps 1 --channels -1 --channels 16"),
        ("train", "--steps 1 --seed 99999999999999999999999"), ("train", "--steps 1 --seed -1"),
        ("train", "--steps 1 --channels 8 --channels 0"), ("train", "--steps nan"), ("train", "--steps 1e9"),
        ("train", "--steps 1 --learning-rate nan"), ("train", "--steps 1 --learning-rate inf"),
        ("train", "--steps 1 --structures tibia"),
        ("train", "--steps 1 --network evil"),
        ("train", "--steps 1 --slice-ratio nan --dimensions 3 --planes 8"), ("train", "--steps 1 --model tibia"),
        ("train", "--steps 1 --slice-ratio 1e300 --dimensions 3 --planes 8"), ("train", "--steps 1 --ema-decay nan"),
        ("pretrain", "--text-encoder ../../evil"),
        ("pretrain", "--image-encoder evil/model"),
        ("segment", "--threshold nan"), ("segment", "--threshold -0.0"), ("segment", "--volume-index -1"),
        ("segment", "--volume-index 99999999999999999999"), ("segment", "--series -5"),
        ("segment", "--model ../../evil"),
        ("edit", "--smooth inf"), ("edit", "--smooth nan"), ("edit", "--smooth 1e9"),
        ("edit", "--smooth 1e300 --interpolate"),
        ("quality", "--limit 99999999999999999999999"), ("quality", "--seed -1"),
        ("quality", "--seed 99999999999999999999"),
        ("evaluate", "--limit 99999999999999999999999 --split val"), ("evaluate", "--vlm --split val"),
        ("import", "--accept-fraction nan"), ("import", "--seed -1"), ("import", "--seed 99999999999999999999999"),
        ("import", "--structure ../../evil"), ("import", "--labels /dev/zero"),
        ("import", "--labels ../../outside/secret.raw"),
        ("import", "--labels work"), ("import", "--structure \x1b[31m"),
    ]:  # fmt: skip
        yield f"{command} {flags}"[:60], partial(trial, command=command, flags=flags.split())


@fault_class(4, "studies among the scans")
def own_output() -> Iterator[Trial]:
    def inside(place: Place, times: int) -> None:
        """The study lies in the folder that is imported: its images and masks are no new scans."""
        source = makers.msd(place.work / "scans") if times == 2 else makers.scans(place.work / "scans")
        study = source / "study"
        place.allow(study)
        for _ in range(times):
            place.fine("import", source, "--into", study)
        expected = 3 if times == 2 else 2
        place.expect(cases(study) == expected, f"{cases(study)} cases of {expected}")
        place.run("import", source, "--into", place.new_study())
        place.expect(cases(place.work / "new") in (0, expected), f"another study has {cases(place.work / 'new')} cases")

    yield "the study lies in the folder of scans", partial(inside, times=3)
    yield "it lies in the folder of a decathlon", partial(inside, times=2)

    def study_as_source(place: Place) -> None:
        study = place.study()
        place.run("import", study, "--into", place.new_study())
        place.expect(cases(place.work / "new") in (0, 6), f"{cases(place.work / 'new')} scans from 6 cases")

    yield "a study is imported", study_as_source

    def into_itself(place: Place) -> None:
        study = place.study()
        place.allow(study)
        place.run("import", study, "--into", study)
        place.expect(cases(study) == 6, f"{cases(study)} cases of 6", "changed")

    yield "a study is imported into itself", into_itself

    def into_source(place: Place) -> None:
        source = makers.scans(place.work / "scans")
        place.refused("import", source, "--into", source)

    yield "the folder of scans is to be the study", into_source


@fault_class(4, "captions and prompts of absurd length")
def captions() -> Iterator[Trial]:
    def trial(place: Place, caption: str) -> None:
        folder, study = makers.pictures(place.work / "scans"), place.new_study()
        (folder / "captions.csv").write_text(f'Image,Description\nmask_p0.png,"{caption}"\n', "utf-8", "surrogatepass")
        place.run("import", folder, "--into", study, "--split", "train")
        if cases(study):
            place.run("train", study, *TINY)

    for name, caption in {
        "100,000 characters": "liver " * 20_000, "one word of 100,000": "x" * 100_000, "emoji": "🫁" * 500,
        "right to left": "\u202eliver", "control characters": "a\x01\x02\x1b[31mb", "only commas": "," * 500,
    }.items():  # fmt: skip
        yield f"a caption of {name}", partial(trial, caption=caption)

    def prompt(place: Place, text: str) -> None:
        scan = makers.scans(place.work / "scans") / "good_0.nii.gz"
        place.allow(place.work / "m.nii.gz")
        place.run("segment", scan, "--prompt", text, "-o", place.work / "m.nii.gz")

    for name, text in {"100,000 characters": "liver " * 20_000, "no letters": "\u200b\u200c",
        "surrogates": "\udcff"}.items():
        yield f"a prompt of {name}", partial(prompt, text=text)


@fault_class(4, "DICOM SEG of odd series")
def dicom_seg() -> Iterator[Trial]:
    def trial(place: Place, change: dict[str, object]) -> None:
        folder, study, out = place.work / "scans", place.new_study(), place.work / "out"
        makers.series(folder, **change)
        place.allow(out)
        place.run("import", folder, "--into", study, "--split", "train")
        if not cases(study):
            return
        mask = np.zeros((16, 12, 5), np.uint8)
        mask[3:6, 3:6, 1:3] = 1
        place.run("export", study, out, "--dicom", folder)
        shutil.rmtree(out, ignore_errors=True)
        from amvlm.imaging import write_volume
        from amvlm.store import LabelStore

        os.environ["XDG_DATA_HOME"] = str(place.home / "data")
        store = LabelStore(study)
        case = store.cases()[0]
        path = place.work / "m.nii.gz"
        place.allow(path)
        write_volume(path, store.read_image(case).with_array(mask))
        store.add_structure("L5/S disc")
        place.run("judge", study, case.case_id, "L5/S disc", "accept", "--mask", path)
        place.run("export", study, out, "--dicom", folder)

    for change in ({}, {"StudyInstanceUID": None}, {"PatientName": "Ä" * 300}, {"PatientID": None},
        {"StudyInstanceUID": "x/../y"},
                   {"FrameOfReferenceUID": ""}, {"SOPClassUID": "1.2.3"}, {"PatientBirthDate": "not a date"},
                   {"StudyDate": "99999999", "StudyTime": "x"}, {"PatientSex": "robot"}):  # fmt: skip
        yield f"{change}"[:60], partial(trial, change=change)
