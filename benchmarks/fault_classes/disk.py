"""Errors of the index and of the disk: every one a sentence that is true."""

from __future__ import annotations

import os
import re
import resource
import shutil
import sqlite3
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

from fault_classes import makers
from fault_classes.code import _first_case
from fault_classes.indexes import edit
from fault_classes.makers import TINY
from fault_classes.place import Answer, Place
from fault_classes.registry import Trial, fault_class

_MASK = makers.packed(makers.nifti(makers.block(1)[::-1]))


def mountable() -> bool:
    """Whether this machine lets the catalogue make small disks."""
    if os.getuid() != 0 or shutil.which("mount") is None:
        return False
    folder = Path(f"/tmp/faults-mount-{os.getpid()}")
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)], check=False, capture_output=True)
    subprocess.run(["umount", str(folder)], check=False, capture_output=True)
    folder.rmdir()
    return done.returncode == 0


@fault_class(7, "a locked index")
def locked() -> Iterator[Trial]:
    def trial(place: Place, begin: str, command: str) -> None:
        study = place.study()
        case = _first_case(study)
        (place.work / "m.nii.gz").write_bytes(_MASK)
        arguments = {
            "verify": ["verify", study], "judge": ["judge", study, case, "liver", "absent"],
            "accept": ["judge", study, case, "liver", "accept", "--mask", place.work / "m.nii.gz"],
            "import": ["import", makers.scans(place.work / "more"), "--into", study],
            "quality": ["quality", study], "export": ["export", study, place.work / "out"],
            "train": ["train", study, *TINY],
        }[command]  # fmt: skip
        place.allow(place.work / "out", study / "runs")
        place.leftovers_are_fair = True
        with closing(sqlite3.connect(study / "store.sqlite", isolation_level=None)) as holder:
            holder.execute(begin)
            answer = place.refused(*arguments)
        place.expect(not re.search("backup|restore it", answer.text, re.I), f"bad advice: {answer.err[-200:]}")
        place.expect(re.search("another program|in use|busy|locked", answer.text), f"unclear: {answer.err[-200:]}")
        if command in ("import", "accept"):
            place.allow(study / "images", study / "labels")

    for command in ("verify", "judge", "accept", "import", "quality", "export", "train"):
        yield command, partial(trial, begin="BEGIN EXCLUSIVE", command=command)
    yield "judge, while another writes", partial(trial, begin="BEGIN IMMEDIATE", command="judge")


@fault_class(7, "a damaged index", short=3)
def damaged() -> Iterator[Trial]:
    def overwrite(path: Path, at: float, content: bytes) -> None:
        with path.open("r+b") as stream:
            stream.seek(int(path.stat().st_size * at))
            stream.write(content)

    def other_database(path: Path) -> None:
        path.unlink()
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("CREATE TABLE moz_places (id INTEGER, url TEXT)")

    def wal(path: Path) -> None:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA user_version=3")

    def replaced(path: Path, make: Callable[[Path], object]) -> None:
        path.unlink()
        make(path)

    def empty_meta(path: Path) -> None:
        edit(path.parent, "DELETE FROM meta")

    changes: dict[str, Callable[[Path], object]] = {
        "a page in the middle": lambda p: overwrite(p, 0.5, b"\xa5" * 4096),
        "not a database": lambda p: p.write_bytes(b"just text " * 999),
        "empty": lambda p: p.write_bytes(b""),
        "cut in half": lambda p: os.truncate(p, p.stat().st_size // 2),
        "100 bytes": lambda p: os.truncate(p, 100),
        "its first page": lambda p: overwrite(p, 0.005, b"\xff" * 900),
        "its last page": lambda p: overwrite(p, 0.97, b"\x01" * 2000),
        "a wrong page size": lambda p: overwrite(p, 0.0, b"SQLite format 3\0\x00\x07"),
        "zeros": lambda p: p.write_bytes(bytes(p.stat().st_size)),
        "another program's": other_database,
        "two rows of meta": lambda p: edit(p.parent, "INSERT INTO meta VALUES (1, 'x')"),
        "no row of meta": empty_meta,
        "a folder": lambda p: replaced(p, Path.mkdir),
        "a pipe": lambda p: replaced(p, os.mkfifo),
        "a link to /dev/zero": lambda p: replaced(p, lambda q: q.symlink_to("/dev/zero")),
        "with write-ahead log": wal,
        "with a foreign journal": lambda p: p.with_name("store.sqlite-journal").write_bytes(b"\xd9\xd5\x05\xf9" + bytes(600)),
        "with a journal that is a folder": lambda p: p.with_name("store.sqlite-journal").mkdir(),
        "a dangling label": lambda p: edit(p.parent, "DELETE FROM case_ WHERE rowid = (SELECT max(rowid) FROM case_)"),
        "a dangling structure": lambda p: edit(p.parent, "DELETE FROM structure"),
        "random": lambda p: p.write_bytes(b"SQLite format 3\0" + os.urandom(5000)),
    }  # fmt: skip

    def trial(place: Place, change: Callable[[Path], object]) -> None:
        study = place.study()
        change(study / "store.sqlite")
        place.study_is_damaged = True
        place.allow(study, place.work / "out", place.work / "q.json")
        for arguments in (["verify", study], ["judge", study, "case-00001", "liver", "absent"],
                          ["export", study, place.work / "out"], ["history", study, "case-00001", "liver"],
                          ["import", makers.scans(place.work / "more"), "--into", study]):  # fmt: skip
            place.run(*arguments, seconds=25)

    for name, change in changes.items():
        yield name, partial(trial, change=change)


@fault_class(7, "cases, structures and revisions that are not there")
def unknown() -> Iterator[Trial]:
    def trial(place: Place, case: str, structure: str, verdict: str) -> None:
        study = place.study()
        (place.work / "m.nii.gz").write_bytes(_MASK)
        mask = ["--mask", place.work / "m.nii.gz"] if verdict == "accept" else []
        known = _first_case(study)
        arguments = ["history", study] if verdict == "history" else ["judge", study]
        names = [known if case == "KNOWN" else case, structure]
        end = [] if verdict == "history" else [verdict]
        answer = place.refused(*arguments, *names, *end, *mask)
        word, other = ("structure", "no case") if case == "KNOWN" else ("case", "no structure")
        place.expect(word in answer.err and other not in answer.err, f"says the wrong thing: {answer.err[-200:]}")

    for verdict in ("skip", "absent", "accept", "reject", "undo", "history"):
        yield f"{verdict} in an unknown case", partial(trial, case="case-99999", structure="liver", verdict=verdict)
        yield f"{verdict} of an unknown structure", partial(trial, case="KNOWN", structure="tibia", verdict=verdict)
    for case in ("", "../x", "x" * 5000, "CASE-00001", "case-1", "\udcff"):
        yield f"skip in case {case[:20]!r}", partial(trial, case=case, structure="liver", verdict="skip")
    yield "skip of structure ''", partial(trial, case="KNOWN", structure="", verdict="skip")

    def restore(place: Place, number: str) -> None:
        place.refused("restore", place.study(), "--", number)

    for number in (str(2**63), str(2**63 - 1), str(-(2**63) - 1), str(2**64), "-1", "0", "9" * 4000, "1.5", "x", "1e3", "٣"):
        yield f"restore {number[:22]}", partial(restore, number=number)


def _fill(folder: Path, left: int) -> None:
    """Leave so many bytes on a small disk."""
    usage = shutil.disk_usage(folder)
    (folder / "filler").write_bytes(bytes(max(0, usage.free - left)))


@fault_class(7, "a full disk", short=2)
def full() -> Iterator[Trial]:
    if not mountable():
        return

    def in_study(place: Place, left: int, command: str) -> None:
        disk = place.small_disk(place.work / "study", 40_000)
        shutil.copytree(place.template("trained" if command in ("resume", "quality") else "plain"), disk, dirs_exist_ok=True)
        _fill(disk, left)
        (place.work / "m.nii.gz").write_bytes(_MASK)
        case = _first_case(disk)
        arguments = {
            "judge": ["judge", disk, case, "spleen", "absent"],
            "accept": ["judge", disk, case, "liver", "accept", "--mask", place.work / "m.nii.gz"],
            "import": ["import", makers.scans(place.work / "more", 6), "--into", disk],
            "train": ["train", disk, "--name", "own2", "--run-name", "r2", *TINY],
            "resume": ["train", disk, "--run-name", "first", "--resume"],
            "quality": ["quality", disk],
        }[command]  # fmt: skip
        before = _labels(disk)
        place.allow(disk)
        place.leftovers_are_fair = True
        answer = place.run(*arguments)
        place.expect(answer.code == 2 or left > 10**6, f"exit code {answer.code}: {answer.text[-200:]}")
        (disk / "filler").unlink()
        place.expect(_labels(disk)[: len(before)] == before, "labels are lost", "changed")

    for command in ("judge", "accept", "import", "train", "quality", "resume"):
        for left in (0, 20_000, 400_000):
            if (command, left) not in (("judge", 400_000), ("accept", 400_000), ("quality", 400_000), ("import", 400_000)):
                yield f"{command} with {left // 1000} kB left", partial(in_study, left=left, command=command)

    def output(place: Place, kilobytes: int, command: str) -> None:
        study, disk = place.study("trained"), place.small_disk(place.work / "disk", kilobytes)
        place.allow(disk, study / "store.sqlite")
        scan = makers.scans(place.work / "scans") / "good_0.nii.gz"
        _fill(disk, 0 if command != "export" else 900)
        arguments = {
            "new study": ["import", place.work / "scans", "--into", disk / "new"],
            "export": ["export", study, disk / "out"],
            "export as NRRD": ["export", study, disk / "out", "--suffix", ".nrrd"],
            "segment": ["segment", scan, "--prompt", "liver", "-o", disk / "m.nii.gz"],
            "segment to NRRD": ["segment", scan, "--prompt", "liver", "-o", disk / "m.nrrd"],
            "segment to MHA": ["segment", scan, "--prompt", "liver", "-o", disk / "m.mha"],
            "edit": ["edit", scan, "-o", disk / "m.mha"],
            "quality": ["quality", study, "--json", disk / "q.json"],
            "evaluate": ["evaluate", study, "--split", "val", "--json", disk / "e.json"],
        }[command]  # fmt: skip
        place.refused(*arguments)
        place.expect(not list(disk.glob("m.*")), "half a file stays")

    for command in ("new study", "export", "export as NRRD", "segment", "segment to NRRD", "segment to MHA", "edit", "quality",
                    "evaluate"):  # fmt: skip
        yield f"{command} on it", partial(output, kilobytes=64, command=command)

    def device(place: Place, command: str) -> None:
        study = place.study("trained")
        place.allow(study / "store.sqlite")
        place.refused(command, study, "--json", "/dev/full", *(
            ["--split", "val"] if command == "evaluate" else []))  # fmt: skip

    for command in ("quality", "evaluate"):
        yield f"{command} --json /dev/full", partial(device, command=command)

    def temporary(place: Place) -> None:
        """The system's folder for temporary files is full."""
        disk = place.small_disk(place.work / "disk", 64)
        place.allow(disk)
        _fill(disk, 0)
        folder = makers.msd(place.work / "scans")
        place.run("evaluate", folder, environment={"TMPDIR": str(disk)})  # Python goes on to another one

    yield "the folder for temporary files", temporary

    def home(place: Place) -> None:
        disk = place.small_disk(place.work / "disk", 64)
        place.allow(disk)
        _fill(disk, 0)
        place.run("import", makers.scans(place.work / "scans"), "--into", place.new_study(),
                  environment={"XDG_DATA_HOME": str(disk)})  # fmt: skip

    yield "the user's data folder", home


def _labels(study: Path) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(study / "store.sqlite")) as connection:
        return connection.execute("SELECT * FROM revision ORDER BY revision_id").fetchall()


@fault_class(7, "files larger than the system allows")
def file_limits() -> Iterator[Trial]:
    def trial(place: Place, limit: int, command: str) -> None:
        study = place.study()
        (place.work / "m.nii.gz").write_bytes(_MASK)
        place.allow(place.work / "out", study)
        case, before = _first_case(study), _labels(study)
        arguments = {
            "accept": ["judge", study, case, "liver", "accept", "--mask", place.work / "m.nii.gz"],
            "import": ["import", makers.scans(place.work / "more"), "--into", study],
            "export": ["export", study, place.work / "out"],
            "train": ["train", study, *TINY],
        }[command]  # fmt: skip
        place.leftovers_are_fair = True
        place.refused(*arguments, prepare=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
        place.expect(_labels(study)[: len(before)] == before, "labels are lost", "changed")

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
        for path in ([study / closed] if closed != "target" else [place.work / "target"]):
            path.chmod(mode)
        case = _first_case(study)
        arguments = {
            "accept": ["judge", study, case, "liver", "accept", "--mask", place.work / "m.nii.gz"],
            "import": ["import", scans, "--into", study], "verify": ["verify", study],
            "new study": ["import", scans, "--into", place.work / "target" / "new"],
            "export": ["export", study, place.work / "target" / "out"],
            "segment": ["segment", scans / "good_0.nii.gz", "--prompt", "liver", "-o", place.work / "target" / "m.nii.gz"],
            "train": ["train", study, *TINY], "quality": ["quality", study, "--model", "own"],
            "resume": ["train", study, "--run-name", "first", "--resume"],
            "evaluate": ["evaluate", study, "--split", "val", "--model", "own", "--json", place.work / "target" / "e.json"],
        }[command]  # fmt: skip
        place.allow(study)
        (place.run if command in ("verify", "quality") else place.refused)(*arguments, prepare=place.as_nobody)
        (study / closed if closed != "target" else place.work / "target").chmod(0o777)

    for closed, mode, command in (
        ("target", 0o555, "new study"), ("target", 0o555, "export"), ("target", 0o555, "segment"), ("target", 0o555, "evaluate"),
        ("target", 0o000, "new study"), (".", 0o555, "accept"), ("store.sqlite", 0o444, "accept"), ("store.sqlite", 0, "verify"),
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
            place.expect(not stat.S_IMODE(path.stat().st_mode) & 0o077, "the list of names can be read by all", "outside")

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

