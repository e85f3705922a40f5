"""Two programs at once."""

from __future__ import annotations

import os
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fault_classes import makers
from fault_classes.makers import TINY
from fault_classes.place import Place
from fault_classes.registry import Trial, fault_class
from fault_classes.studies import first_case


def own_images(study: Path, sources: dict[str, np.ndarray[Any, Any]]) -> tuple[list[str], Counter[str]]:
    """Compare every case's voxels with every source: what is wrong, and how often each source is there."""
    from amvlm.store import LabelStore
    from amvlm.store.names import original_names

    store = LabelStore(study)
    names = original_names(store.store_id)
    wrong, seen = [], Counter[str]()
    for case in store.cases():
        found = store.read_image(case).array
        name = next((name for name, array in sources.items() if np.array_equal(array, found)), "")
        seen[name] += 1
        if not name:
            wrong.append(f"{case.case_id} holds no source's voxels")
        elif names.get(case.case_id, name) != name:
            wrong.append(f"{case.case_id} holds {name} and is called {names[case.case_id]}")
    return wrong, seen


def _sources(folder: Path, count: int, first: int) -> dict[str, np.ndarray[Any, Any]]:
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for number in range(first, first + count):
        array = makers.voxels(1000 + number)
        (folder / f"s{number}.nii.gz").write_bytes(makers.packed(makers.nifti(array)))
        found[f"s{number}.nii.gz"] = array
    return found


@fault_class(6, "two programs at once")
def at_once() -> Iterator[Trial]:
    def imports(place: Place, same: bool, new: bool) -> None:
        study = place.new_study() if new else place.study()
        place.allow(study)
        sources = _sources(place.work / "a", 12, 0) | _sources(place.work / "b", 12, 0 if same else 100)
        before = 0 if new else 6
        place.run("import", place.work / "a", "--into", study, during=lambda _: place.run(
            "import", place.work / "b", "--into", study, cwd=place.folder / "tmp"))  # fmt: skip
        os.environ["XDG_DATA_HOME"] = str(place.home / "data")
        wrong, seen = own_images(study, sources | {n: makers.voxels(i) for i, n in enumerate(
            [f"scan_{k}.nii.gz" for k in range(6)])})  # fmt: skip
        place.expect(not wrong, "; ".join(wrong[:3]), "changed")
        count = sum(seen[name] for name in sources)
        place.expect(count == len(sources), f"{count} cases of {len(sources)}", "changed")
        place.expect(sum(seen.values()) == len(sources) + before, f"{seen.total()} cases")

    yield "two imports", partial(imports, same=False, new=False)
    yield "the same import twice", partial(imports, same=True, new=False)
    yield "two imports into a new study", partial(imports, same=False, new=True)

    def accepts(place: Place) -> None:
        study, more = place.study(), _sources(place.work / "a", 12, 0)
        place.allow(study)
        case = first_case(study)
        (place.work / "m.nii.gz").write_bytes(makers.packed(makers.nifti(makers.block(1))))

        def judge(_: int) -> None:
            for _ in range(6):
                place.fine("judge", study, case, "liver", "accept", "--mask", place.work / "m.nii.gz")
                place.fine("judge", study, case, "spleen", "absent")

        place.fine("import", place.work / "a", "--into", study, during=judge)
        with closing(sqlite3.connect(study / "store.sqlite")) as connection:
            count = connection.execute("SELECT count(*) FROM revision WHERE case_id=?", (case,)).fetchone()[0]
            cases = connection.execute("SELECT count(*) FROM case_").fetchone()[0]
        place.expect(count >= 12, f"{count} judgements of 12 are there", "changed")
        place.expect(cases == 6 + len(more), f"{cases} cases of {6 + len(more)}", "changed")

    yield "an import and twelve judgements", accepts

    def training(place: Place) -> None:
        study = place.study()
        _sources(place.work / "a", 12, 0)
        place.allow(study)

        def act(_: int) -> None:
            deadline = time.monotonic() + 30
            while not list(study.glob("runs/*/events.jsonl")) and time.monotonic() < deadline:
                time.sleep(0.05)
            place.fine("import", place.work / "a", "--into", study)
            place.fine("judge", study, first_case(study), "spleen", "absent")

        place.fine("train", study, "--name", "own", *TINY, during=act)

    yield "an import while training", training

    def same_run(place: Place) -> None:
        study = place.study("trained")
        place.allow(study)

        def again(_: int) -> None:
            deadline = time.monotonic() + 30
            while not (study / "runs" / "shared" / "lock").exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            place.refused("train", study, "--run-name", "shared", *TINY)
            place.expect((study / "runs" / "shared" / "lock").exists(), "the second took the first one's lock away")

        place.fine("train", study, "--run-name", "shared", "--name", "own", *TINY[2:], "--steps", "30", during=again)

    yield "one run, twice", same_run

    def same_model(place: Place) -> None:
        study = place.study()
        place.allow(study)
        place.fine("train", study, "--name", "own", *TINY, during=lambda _: place.fine(
            "train", study, "--name", "own", *TINY))  # fmt: skip
        place.fine("quality", study, "--model", "own")

    yield "two runs save one model", same_model
