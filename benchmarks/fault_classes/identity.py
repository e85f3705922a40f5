"""Whose scan is it: planted identifiers, changed images, and two programs at once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from fault_classes import makers, planted
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
        place.run("segment", source, "--prompt", "anterior hippocampus", "-o", place.work / "m.nii.gz")
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
        environment = {
            "USER": f"{planted.WORD}user",
            "LOGNAME": f"{planted.WORD}user",
            "USERNAME": f"{planted.WORD}user",
        }
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
                 "evaluate": ["--model", "own", "--split", "val", "--json",
                 place.work / "e.json"]}[command]  # fmt: skip
        answer = place.refused(command, study, *flags)
        place.expect("image" in answer.err or "changed" in answer.err, f"unclear: {answer.err[-200:]}")

    for how in ("all swapped", "another scan", "one byte", "gone"):
        for command in ("quality", "train", "evaluate"):
            yield f"{how}, {command}", partial(trial, how=how, command=command)
