"""Whose scan is it: planted identifiers, changed images, and two programs at once."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fault_classes import makers, planted
from fault_classes.code import _first_case
from fault_classes.forks import rename_host
from fault_classes.makers import TINY
from fault_classes.place import Place, unpacked
from fault_classes.registry import Trial, fault_class


def _hold(folder: Path) -> set[str]:
    """Which planted words any file below a folder holds, in its name or its bytes, unpacked or not."""
    found: set[str] = set()
    for path in folder.rglob("*"):
        found |= planted.words_in(os.fsencode(path.relative_to(folder)))
        if path.is_file() and not path.is_symlink():
            found |= planted.words_in(unpacked(path))
    return found


@fault_class(5, "identifiers in pictures", short=2)
def in_pictures() -> Iterator[Trial]:
    def trial(place: Place, kind: str) -> None:
        folder, study = place.work / "scans", place.new_study()
        folder.mkdir()
        name = planted.PICTURES[kind](folder)
        answer = place.run("import", folder, "--into", study)
        place.expect(answer.code == 0 or name in answer.text, "neither imported nor named")
        if found := _hold(study):
            place.fault("outside", f"the study holds {', '.join(sorted(found))}")

    for kind in planted.PICTURES:
        yield kind, partial(trial, kind=kind)


@fault_class(5, "identifiers in volumes")
def in_volumes() -> Iterator[Trial]:
    def trial(place: Place, kind: str) -> None:
        folder, study, out = place.work / "scans", place.new_study(), place.work / "out"
        folder.mkdir()
        planted.VOLUMES[kind](folder)
        place.allow(out, place.work / "m.nii.gz")
        place.fine("import", folder, "--into", study)
        place.run("export", study, out)
        source = folder if kind == "DICOM" else next(path for path in folder.iterdir() if path.is_file())
        place.run("segment", source, "--prompt", "liver", "-o", place.work / "m.nii.gz")
        found = _hold(study) | (_hold(out) if out.exists() else set())
        if (place.work / "m.nii.gz").exists():
            found |= planted.words_in(unpacked(place.work / "m.nii.gz"))
        if found:
            place.fault("outside", f"study, export or mask hold {', '.join(sorted(found))}")

    for kind in planted.VOLUMES:
        yield kind, partial(trial, kind=kind)


@fault_class(5, "names of files, folders, user and host", short=0)
def in_names() -> Iterator[Trial]:
    def trial(place: Place, layout: str) -> None:
        folder = place.work / f"scans {planted.WORD}folder"
        make = makers.msd if layout == "MSD" else makers.pictures
        make(folder)
        for path in list(folder.rglob("*.png")) + list(folder.rglob("*.nii.gz")):
            path.rename(path.with_name(path.name.replace("scan_", f"scan_{planted.WORD}file").replace(
                "p", f"{planted.WORD}file", 1) if layout == "pictures" else path.name.replace(
                "scan_", f"scan_{planted.WORD}file")))  # fmt: skip
        for name in ("dataset.json", "captions.csv"):
            if (folder / name).exists():
                (folder / name).write_text((folder / name).read_text().replace("scan_", f"scan_{planted.WORD}file"))
        study, out = place.new_study(), place.work / "out"
        place.allow(out, place.work / "q.json")
        environment = {"USER": f"{planted.WORD}user", "LOGNAME": f"{planted.WORD}user", "USERNAME": f"{planted.WORD}user"}
        more: dict[str, Any] = {"environment": environment, "prepare": lambda: rename_host(f"{planted.WORD}host")}
        place.run("import", folder, "--into", study, "--split", "train", "--accept-fraction", "0.67", **more)
        place.run("train", study, "--name", "own", *TINY, **more)
        place.run("quality", study, "--json", place.work / "q.json", **more)
        place.run("export", study, out, **more)
        found = _hold(study) | (_hold(out) if out.exists() else set())
        if found:
            place.fault("outside", f"study or export hold {', '.join(sorted(found))}")

    yield "MSD", partial(trial, layout="MSD")
    yield "pictures", partial(trial, layout="pictures")


@fault_class(6, "an image that was changed on disk")
def changed_images() -> Iterator[Trial]:
    def trial(place: Place, how: str, command: str) -> None:
        study = place.study("trained")
        shutil.rmtree(study / "cache")
        place.study_is_damaged = True
        paths = sorted((study / "images").iterdir())
        if how == "all swapped":
            contents = [path.read_bytes() for path in paths]
            for path, content in zip(paths, contents[1:] + contents[:1], strict=True):
                path.write_bytes(content)
        elif how == "another scan":
            for path in paths:
                path.write_bytes(makers.packed(makers.nifti(makers.voxels(77))))
        elif how == "one byte":
            for path in paths:
                content = bytearray(path.read_bytes())
                content[-20] ^= 1
                path.write_bytes(bytes(content))
        else:
            for path in paths:
                path.unlink()
        place.allow(study, place.work / "e.json")
        flags = {"quality": ["--model", "own"], "train": TINY,
                 "evaluate": ["--model", "own", "--split", "val", "--json", place.work / "e.json"]}[command]  # fmt: skip
        answer = place.refused(command, study, *flags)
        place.expect("image" in answer.err or "changed" in answer.err, f"unclear: {answer.err[-200:]}")

    for how in ("all swapped", "another scan", "one byte", "gone"):
        for command in ("quality", "train", "evaluate"):
            yield f"{how}, {command}", partial(trial, how=how, command=command)


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
        case = _first_case(study)
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
            place.fine("judge", study, _first_case(study), "spleen", "absent")

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


@fault_class(8, "sides in a mixed study")
def sides() -> Iterator[Trial]:
    def patient_folder(folder: Path) -> Path:
        makers.scans(folder, 3)
        rows = "".join(f"good_{n}.nii.gz,lesion in the left lobe\n" for n in range(3))
        (folder / "captions.csv").write_text("Image,Description\n" + rows)
        return folder

    def captions(study: Path) -> Counter[str]:
        with closing(sqlite3.connect(study / "store.sqlite")) as connection:
            return Counter(row[0] for row in connection.execute("SELECT text FROM caption"))

    def sided(found: Counter[str], side: str, word: str) -> int:
        return sum(count for text, count in found.items() if side in text and word in text)

    def mixed(place: Place, order: str) -> None:
        study = place.new_study()
        pictures, volumes = makers.pictures(place.work / "p"), patient_folder(place.work / "v")
        for source in (pictures, volumes) if order == "pictures first" else (volumes, pictures):
            place.fine("import", source, "--into", study)
        found = captions(study)
        place.expect(sided(found, "right", "lung") == 3, f"captions of pictures are not converted: {found}", "changed")
        place.expect(sided(found, "left", "lobe") == 3, f"captions of volumes are changed: {found}", "changed")

    yield "pictures first", partial(mixed, order="pictures first")
    yield "volumes first", partial(mixed, order="volumes first")

    def asked(place: Place, laterality: str) -> None:
        study = place.new_study()
        place.fine("import", makers.pictures(place.work / "p"), "--into", study, "--laterality", laterality)
        wanted = "left" if laterality == "patient" else "right"
        found = captions(study)
        place.expect(sided(found, wanted, "lung") == 3, f"{laterality}: {found}", "changed")

    yield "--laterality patient", partial(asked, laterality="patient")
    yield "--laterality image", partial(asked, laterality="image")

    def old_study(place: Place) -> None:
        """A study of the schema before: captions in the image's sides, and a column that says so."""
        study = place.new_study()
        place.fine("import", makers.pictures(place.work / "p"), "--into", study)
        with closing(sqlite3.connect(study / "store.sqlite")) as connection, connection:
            columns = [row[1] for row in connection.execute("PRAGMA table_info(case_)")]
            if "source_laterality" not in columns:
                return
            connection.execute("ALTER TABLE case_ RENAME COLUMN source_laterality TO laterality")
            connection.execute("UPDATE case_ SET laterality='image'")
            connection.execute("UPDATE caption SET text = replace(text, 'right', 'left')")
            connection.execute("UPDATE meta SET schema_version = 2")
        place.fine("verify", study)
        place.fine("verify", study)  # migrated once
        found = captions(study)
        place.expect(sided(found, "right", "lung") == 3, f"after migration: {found}", "changed")

    yield "a study of schema 2", old_study

    def old_card(place: Place) -> None:
        """A card that says image gives the other side for the same word."""
        masks = {}
        scan = makers.scans(place.work / "scans") / "good_0.nii.gz"
        from fault_classes.models import _bundled

        for side in ("patient", "image"):
            model = place.work / side
            shutil.copytree(_bundled(), model)
            card = json.loads((model / "card.json").read_text())
            card["laterality"] = side
            (model / "card.json").write_text(json.dumps(card))
            place.allow(place.work / f"{side}.nii.gz")
            place.fine("segment", scan, "--prompt", "left anterior hippocampus" if side == "patient" else
                       "right anterior hippocampus", "--model", model, "-o", place.work / f"{side}.nii.gz")  # fmt: skip
            path = place.work / f"{side}.nii.gz"
            masks[side] = unpacked(path)[len(path.read_bytes()) :] if path.exists() else b""
        place.expect(masks["patient"] == masks["image"], "left of a card of images is not right of one of patients")

    yield "a card of the image's sides", old_card

    def trained(place: Place) -> None:
        """Half the captions name the image's sides, half the patient's: what training reads agrees with the voxels."""
        study = place.study("pictures")
        place.allow(study)
        place.fine("train", study, "--name", "own", *TINY)
        card = json.loads((study / "models" / "own" / "card.json").read_text())
        place.expect(card.get("laterality", "patient") == "patient", f"the card says {card.get('laterality')}")

    yield "a model of an image-sided study", trained

