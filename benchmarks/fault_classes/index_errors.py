"""Errors of the index: every one a sentence that is true."""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

from fault_classes import makers
from fault_classes.indexes import edit
from fault_classes.makers import TINY
from fault_classes.place import Place
from fault_classes.registry import Trial, fault_class
from fault_classes.studies import first_case

_MASK = makers.packed(makers.nifti(makers.block(1)[::-1]))


@fault_class(7, "a locked index")
def locked() -> Iterator[Trial]:
    def trial(place: Place, begin: str, command: str) -> None:
        study = place.study()
        case = first_case(study)
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
        "with a foreign journal": lambda p: p.with_name(f"{p.name}-journal").write_bytes(b"\xd9\xd5\5\xf9" + bytes(99)),
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
        known = first_case(study)
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

    for number in (
        str(2**63),
        str(2**63 - 1),
        str(-(2**63) - 1),
        str(2**64),
        "-1",
        "0",
        "9" * 4000,
        "1.5",
        "x",
        "1e3",
        "٣",
    ):
        yield f"restore {number[:22]}", partial(restore, number=number)
