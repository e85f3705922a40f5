"""Errors of the index and of the disk: every one a sentence that is true."""

from __future__ import annotations

import os
import resource
import shutil
import stat
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from fault_classes import makers
from fault_classes.makers import TINY
from fault_classes.place import Place
from fault_classes.registry import Trial, fault_class
from fault_classes.studies import first_case, revisions

_MASK = makers.packed(makers.nifti(makers.block(1)[::-1]))


def mountable() -> bool:
    """Whether this machine lets the catalogue make small disks."""
    if os.getuid() != 0 or shutil.which("mount") is None:
        return False
    folder = Path(f"/tmp/faults-mount-{os.getpid()}")
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)], check=False, capture_output=True
    )
    subprocess.run(["umount", str(folder)], check=False, capture_output=True)
    folder.rmdir()
    return done.returncode == 0


def fill_disk(folder: Path, left: int) -> None:
    """Leave so many bytes on a small disk."""
    usage = shutil.disk_usage(folder)
    (folder / "filler").write_bytes(bytes(max(0, usage.free - left)))


@fault_class(7, "a full disk", short=2)
def full() -> Iterator[Trial]:
    if not mountable():
        return

    def in_study(place: Place, left: int, command: str) -> None:
        disk = place.small_disk(place.work / "study", 40_000)
        shutil.copytree(
            place.template("trained" if command in ("resume", "quality") else "plain"), disk, dirs_exist_ok=True
        )
        fill_disk(disk, left)
        (place.work / "m.nii.gz").write_bytes(_MASK)
        case = first_case(disk)
        arguments = {
            "judge": ["judge", disk, case, "spleen", "absent"],
            "accept": ["judge", disk, case, "liver", "accept", "--mask", place.work / "m.nii.gz"],
            "import": ["import", makers.scans(place.work / "more", 6), "--into", disk],
            "train": ["train", disk, "--name", "own2", "--run-name", "r2", *TINY],
            "resume": ["train", disk, "--run-name", "first", "--resume"],
            "quality": ["quality", disk],
        }[command]  # fmt: skip
        before = revisions(disk)
        place.allow(disk)
        place.leftovers_are_fair = True
        answer = place.run(*arguments)
        place.expect(answer.code == 2 or command == "quality", f"exit code {answer.code}: {answer.text[-200:]}")
        (disk / "filler").unlink()
        place.expect(revisions(disk)[: len(before)] == before, "labels are lost", "changed")

    for command in ("judge", "accept", "import", "train", "quality", "resume"):
        for left in (0, 20_000, 400_000):
            if (command, left) not in (
                ("judge", 400_000),
                ("accept", 400_000),
                ("quality", 400_000),
                ("import", 400_000),
            ):
                yield f"{command} with {left // 1000} kB left", partial(in_study, left=left, command=command)

    def output(place: Place, kilobytes: int, command: str) -> None:
        study, disk = place.study("trained"), place.small_disk(place.work / "disk", kilobytes)
        place.allow(disk, study / "store.sqlite")
        scan = makers.scans(place.work / "scans") / "good_0.nii.gz"
        fill_disk(disk, 0 if command != "export" else 900)
        arguments = {
            "new study": ["import", place.work / "scans", "--into", disk / "new"],
            "export": ["export", study, disk / "out"],
            "export as NRRD": ["export", study, disk / "out", "--suffix", ".nrrd"],
            "segment": ["segment", scan, "--prompt", "anterior hippocampus", "-o", disk / "m.nii.gz"],
            "segment to NRRD": ["segment", scan, "--prompt", "anterior hippocampus", "-o", disk / "m.nrrd"],
            "segment to MHA": ["segment", scan, "--prompt", "anterior hippocampus", "-o", disk / "m.mha"],
            "edit": ["edit", scan, "-o", disk / "m.mha"],
            "quality": ["quality", study, "--json", disk / "q.json"],
            "evaluate": ["evaluate", study, "--split", "val", "--json", disk / "e.json"],
        }[command]  # fmt: skip
        place.refused(*arguments)
        place.expect(not list(disk.glob("m.*")), "half a file stays")

    for command in ("new study", "export", "export as NRRD", "segment", "segment to NRRD", "segment to MHA", "edit",
        "quality",
                    "evaluate"):  # fmt: skip
        yield f"{command} on it", partial(output, kilobytes=64, command=command)

    def temporary(place: Place) -> None:
        """The system's folder for temporary files is full."""
        disk = place.small_disk(place.work / "disk", 64)
        place.allow(disk)
        fill_disk(disk, 0)
        folder = makers.msd(place.work / "scans")
        place.run("evaluate", folder, environment={"TMPDIR": str(disk)})  # Python goes on to another one

    yield "the folder for temporary files", temporary

    def home(place: Place) -> None:
        disk = place.small_disk(place.work / "disk", 64)
        place.allow(disk)
        fill_disk(disk, 0)
        place.run("import", makers.scans(place.work / "scans"), "--into", place.new_study(),
                  environment={"XDG_DATA_HOME": str(disk)})  # fmt: skip

    yield "the user's data folder", home


@fault_class(7, "outputs that are no files")
def odd_outputs() -> Iterator[Trial]:
    def trial(place: Place, kind: str, command: str) -> None:
        study, target = (
            place.study("trained"),
            place.work / ("m.nii.gz" if command in ("segment", "edit") else "x.json"),
        )
        scan = makers.scans(place.work / "scans") / "good_0.nii.gz"
        if kind == "device":
            os.mknod(target, stat.S_IFCHR | 0o666, os.makedev(1, 7))  # what /dev/full is, but not that of this machine
        elif kind == "pipe":
            os.mkfifo(target)
        elif kind == "folder":
            target.mkdir()
        else:
            target.symlink_to(place.outside / "keep" / "diary.txt" if kind == "link" else place.outside / "keep")
        place.allow(study / "store.sqlite")
        arguments = {
            "segment": ["segment", scan, "--prompt", "anterior hippocampus", "-o", target],
            "edit": ["edit", scan, "-o", target],
            "quality": ["quality", study, "--json", target],
            "evaluate": ["evaluate", study, "--split", "val", "--json", target],
        }[command]  # fmt: skip
        before = target.lstat().st_mode
        if kind.startswith("link"):
            place.allow(target)
            place.run(*arguments)  # the link may be replaced, what it leads to may not
        else:
            place.refused(*arguments, seconds=20)
            place.expect(target.lstat().st_mode == before, f"the {kind} was replaced", "changed")

    for kind in ("device", "pipe", "folder", "link", "link to a folder"):
        if kind != "device" or os.getuid() == 0:
            for command in ("quality", "segment", "evaluate", "edit"):
                yield f"{command} to a {kind}", partial(trial, kind=kind, command=command)

    def into(place: Place, kind: str) -> None:
        """A new study or an export where something else is."""
        target, study = place.work / "target", place.study()
        os.mkfifo(target) if kind == "pipe" else target.write_text("years of work")
        place.refused("import", makers.scans(place.work / "scans"), "--into", target, seconds=20)
        place.refused("export", study, target, seconds=20)

    yield "a study and an export to a file", partial(into, kind="file")
    yield "a study and an export to a pipe", partial(into, kind="pipe")


@fault_class(7, "files larger than the system allows")
def file_limits() -> Iterator[Trial]:
    def trial(place: Place, limit: int, command: str) -> None:
        study = place.study()
        (place.work / "m.nii.gz").write_bytes(_MASK)
        place.allow(place.work / "out", study)
        case, before = first_case(study), revisions(study)
        arguments = {
            "accept": ["judge", study, case, "liver", "accept", "--mask", place.work / "m.nii.gz"],
            "import": ["import", makers.scans(place.work / "more"), "--into", study],
            "export": ["export", study, place.work / "out"],
            "train": ["train", study, *TINY],
        }[command]  # fmt: skip
        place.leftovers_are_fair = True
        place.refused(*arguments, prepare=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
        place.expect(revisions(study)[: len(before)] == before, "labels are lost", "changed")

    for command, limit in (("accept", 200), ("import", 900), ("export", 150), ("train", 30_000), ("train", 900_000),
                           ("import", 200)):  # fmt: skip
        yield f"{command}, {limit} bytes", partial(trial, limit=limit, command=command)


@fault_class(7, "folders that may not be read or written")
def permissions() -> Iterator[Trial]:
    def trial(place: Place, closed: str, mode: int, command: str) -> None:
        study = place.study("trained")
        scans = makers.scans(place.work / "scans")
        (place.work / "m.nii.gz").write_bytes(_MASK)
        (place.work / "target").mkdir()
        place.open_to_all()
        place.study_is_damaged = True  # it is another user's now
        for path in [study / closed] if closed != "target" else [place.work / "target"]:
            path.chmod(mode)
        case = first_case(study)
        arguments = {
            "accept": ["judge", study, case, "liver", "accept", "--mask", place.work / "m.nii.gz"],
            "import": ["import", scans, "--into", study], "verify": ["verify", study],
            "new study": ["import", scans, "--into", place.work / "target" / "new"],
            "export": ["export", study, place.work / "target" / "out"],
            "segment": ["segment", scans / "good_0.nii.gz", "--prompt", "anterior hippocampus", "-o",
            place.work / "target" / "m.nii.gz"],
            "train": ["train", study, *TINY], "quality": ["quality", study, "--model", "own"],
            "resume": ["train", study, "--run-name", "first", "--resume"],
            "evaluate": ["evaluate", study, "--split", "val", "--model", "own", "--json",
            place.work / "target" / "e.json"],
        }[command]  # fmt: skip
        place.allow(study)
        (place.run if command in ("verify", "quality") else place.refused)(*arguments, prepare=place.as_nobody)
        (study / closed if closed != "target" else place.work / "target").chmod(0o777)

    for closed, mode, command in (
        ("target", 0o555, "new study"), ("target", 0o555, "export"), ("target", 0o555, "segment"),
        ("target", 0o555, "evaluate"),
        ("target", 0o000, "new study"), (".", 0o555, "accept"), ("store.sqlite", 0o444, "accept"),
        ("store.sqlite", 0, "verify"),
        ("labels", 0o555, "accept"), ("images", 0o555, "import"), ("images", 0, "quality"), ("labels", 0, "verify"),
        ("models", 0o555, "train"), ("runs", 0o555, "train"), ("models", 0, "quality"), ("runs", 0, "resume"),
        ("models/own/card.json", 0, "quality"), ("runs/first/config.json", 0, "resume"),
    ):  # fmt: skip
        yield f"{closed} {mode:o}, {command}", partial(trial, closed=closed, mode=mode, command=command)


@fault_class(7, "a study's files are its owner's alone")
def modes() -> Iterator[Trial]:
    def trial(place: Place, umask: int) -> None:
        study = place.new_study()
        place.fine("import", makers.msd(place.work / "scans"), "--into", study, "--split", "train",
                   prepare=lambda: os.umask(umask))  # fmt: skip
        place.run("train", study, *TINY, prepare=lambda: os.umask(umask))
        for path in (study, *study.rglob("*")):
            mode = stat.S_IMODE(path.lstat().st_mode)
            if mode & 0o077 and not (path.is_dir() and path != study):  # a closed study closes what is in it
                place.fault("outside", f"{path.name} has mode {mode:04o}")
                break
        names = place.home / "data" / "napari-amvlm"
        for path in names.rglob("*"):
            place.expect(
                not stat.S_IMODE(path.stat().st_mode) & 0o077, "the list of names can be read by all", "outside"
            )

    for umask in (0o022, 0o000, 0o002):
        yield f"umask {umask:03o}", partial(trial, umask=umask)


@fault_class(7, "leftovers of killed programs")
def leftovers() -> Iterator[Trial]:
    def trial(place: Place, name: str, make: str) -> None:
        study = place.study()
        path = study / name
        path.parent.mkdir(exist_ok=True)
        if make == "folder":
            path.mkdir()
            (path / "model.safetensors").write_bytes(b"half")
        elif make == "link":
            path.symlink_to(place.outside / "keep")
        elif make == "link to a file":
            path.symlink_to(place.outside / "keep" / "diary.txt")
        else:
            path.write_bytes(b"half of something")
        place.allow(study)
        answer = place.run("verify", study)
        place.expect("leftover" in answer.out and answer.code == 0, f"not named: {answer.text[-200:]}")
        place.leftovers_are_fair = True
        place.fine("verify", study, "--clean")
        if not make.startswith("link"):
            place.expect(not path.exists(), "--clean leaves it")

    hexes = "0123456789abcdef" * 4
    for name, make in ((f"images/{hexes}.nii.gz", "file"), (f"labels/{hexes}.nii.gz", "file"),
                       (f"images/.{hexes[:32]}.part", "file"), (f"labels/.{hexes[:32]}.part", "file"),
                       (f".{hexes[:32]}.part", "file"), (f"models/.own.{hexes[:32]}.part", "folder"),
                       (f"models/own/.{hexes[:32]}.part", "file")):  # fmt: skip
        yield f"{name[:30]} ({make})", partial(trial, name=name, make=make)

    def kept(place: Place, make: str) -> None:
        """What is no leftover of ours, or leads elsewhere, is not followed."""
        study = place.study()
        path = study / "labels" / f".{hexes[:32]}.part"
        path.symlink_to(place.outside / ("keep" if make == "folder" else "keep/diary.txt"))
        place.allow(study)
        place.study_is_damaged = True
        place.run("verify", study, "--clean")

    yield "a link to a folder elsewhere", partial(kept, make="folder")
    yield "a link to a file elsewhere", partial(kept, make="file")
