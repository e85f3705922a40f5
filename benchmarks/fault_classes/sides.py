"""Whose left: captions of both conventions in one study."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

from fault_classes import makers
from fault_classes.makers import TINY, bundled
from fault_classes.place import Place, unpacked
from fault_classes.registry import Trial, fault_class


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

        for side in ("patient", "image"):
            model = place.work / side
            shutil.copytree(bundled(), model)
            card = json.loads((model / "card.json").read_text())
            card["laterality"] = side
            (model / "card.json").write_text(json.dumps(card))
            place.allow(model, place.work / f"{side}.nii.gz")
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
