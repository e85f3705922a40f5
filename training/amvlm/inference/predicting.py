"""Masks of many scans: several prompts, one table, and a second run goes on where the first one ended."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from amvlm.errors import UserError, printable
from amvlm.imaging import Volume, to_original, write_bytes_atomically, write_volume
from amvlm.inference.evaluate import default_device
from amvlm.inference.session import Session
from amvlm.inference.sides import SideCheck
from amvlm.models import AmvlmModel
from amvlm.models.card import RESEARCH_ONLY
from amvlm.models.quality import foretold
from amvlm.outside import read_bytes, read_json
from amvlm.paths import inside, slug
from amvlm.store import Case, LabelStore
from amvlm.text.read import ReadPrompt

Kind = Literal["text mask", "prediction", "merged"]
TABLE, SETTINGS = "predictions.csv", "predictions.json"


@dataclass(frozen=True)
class PredictedMask:
    """One row of the table; ``expected_dice`` and ``doubts`` are "" where there are none."""

    case: str
    prompt: str
    file: str
    label: int
    voxels: int
    ml: float
    expected_dice: str
    doubts: str


@dataclass(frozen=True)
class Order:
    """What is asked of every scan.

    Parameters
    ----------
    prompts : sequence of str
    kind : {"text mask", "prediction", "merged"}
        A prediction and a merged mask of a structure that the model does not predict are its text mask, and the table
        says so.
    threshold : float
        Probability from which a voxel belongs to a mask.
    combined : bool
        One file for each scan, its values 1, 2, … in the order of the prompts; where masks overlap, the more probable
        one has the voxel.
    suffix : str
        ".nii.gz", ".nii", ".nrrd" or ".mha".
    """

    prompts: tuple[str, ...]
    kind: Kind = "merged"
    threshold: float = 0.5
    combined: bool = False
    suffix: str = ".nii.gz"


def predict(
    model: AmvlmModel, store: LabelStore, order: Order, into: Path, names: Mapping[str, str] | None = None
) -> Iterator[tuple[int, int, list[PredictedMask]]]:
    """Write the masks of every case into a folder; yields (cases done, cases in all, the case's rows).

    A case that the folder's table has already is not done again.

    Parameters
    ----------
    names : mapping, optional
        Case id → what its files are called; its id by default.

    Raises
    ------
    UserError
        If the folder holds other things, or what another model or other prompts made; or cannot be written.
    """
    readings = [model.card.understood(prompt) for prompt in order.prompts]
    rows = _begin(into, _settings(model, order))
    cases = store.cases()
    for done, case in enumerate(cases):
        name = slug(names[case.case_id]) if names else case.case_id
        own = rows.get(name)
        if own is None or not all((into / row.file).is_file() for row in own):
            own = _predicted(model, store, case, name, order, readings, into)
            rows[name] = own
            _write_table(into, [row for found in rows.values() for row in found])
        yield done + 1, len(cases), own


def _predicted(
    model: AmvlmModel,
    store: LabelStore,
    case: Case,
    name: str,
    order: Order,
    readings: Sequence[ReadPrompt],
    into: Path,
) -> list[PredictedMask]:
    scan = store.read_image(case)
    session = Session(model, scan, default_device())
    probabilities, found = [], []
    for number, (prompt, reading) in enumerate(zip(order.prompts, readings, strict=True), 1):
        masks_of = session.segment_volume(reading.caption)
        sides = SideCheck.of(session, reading)
        sides.see_volume(masks_of)
        doubts = [sides.sentence(cut=True), session.doubts(reading.caption)]
        notes = [reading.note, *session.warnings(reading.caption), *doubts]
        kind = order.kind
        if kind != "text mask" and session.prediction_of(reading.caption) is None:
            kind = "text mask"
            notes.insert(0, "The model predicts no such structure: this is the text mask.")
        file = f"{name}{order.suffix}" if order.combined else f"{name}_{slug(prompt)}{order.suffix}"
        probabilities.append(sides.kept(masks_of[kind]))
        found.append((number if order.combined else 1, prompt, file, _expected(session, reading.caption), notes))
    masks = _masks(probabilities, order)
    if order.combined:
        labels = np.zeros(masks[0].shape, np.uint16 if len(masks) > 255 else np.uint8)
        for number, mask in enumerate(masks, 1):
            labels[mask] = number
        _write(inside(into, found[0][2]), labels, scan)
    rows = []
    for mask, (number, prompt, file, expected, notes) in zip(masks, found, strict=True):
        if not order.combined:
            _write(inside(into, file), mask.astype(np.uint8), scan)
        voxels = int(mask.sum())
        rows.append(
            PredictedMask(
                name, prompt, file, number, voxels, round(voxels * scan.voxel_ml, 4), expected,
                " ".join(filter(None, notes)),
            )
        )  # fmt: skip
    return rows


def _masks(probabilities: Sequence[NDArray[np.uint8]], order: Order) -> list[NDArray[np.bool_]]:
    least = max(1, round(order.threshold * 255))
    masks = [probability >= least for probability in probabilities]
    if order.combined:
        winner = np.argmax(np.stack(probabilities), axis=0)
        masks = [mask & (winner == number) for number, mask in enumerate(masks)]
    return masks


def _write(path: Path, labels: NDArray[np.unsignedinteger], scan: Volume) -> None:
    array = np.ascontiguousarray(to_original(labels, scan))
    write_volume(path, Volume(array, scan.affine, scan.sides_known, scan.planar))


def _expected(session: Session, prompt: str) -> str:
    structure = session.prediction_of(prompt)
    signs = session.signs(prompt) if structure is not None else None
    dice = foretold(structure.expected_dice, signs) if structure is not None and signs is not None else None
    return "" if dice is None else f"{dice:.3f}"


def _settings(model: AmvlmModel, order: Order) -> dict[str, object]:
    labels = {prompt: number for number, prompt in enumerate(order.prompts, 1)} if order.combined else {}
    return {
        "note": RESEARCH_ONLY, "model": model.card.name, "model_fingerprint": model.fingerprint,
        **{key: list(value) if isinstance(value, tuple) else value for key, value in asdict(order).items()},
        "labels": labels,
    }  # fmt: skip


def _begin(into: Path, settings: dict[str, object]) -> dict[str, list[PredictedMask]]:
    """The rows of an earlier run into this folder; none for a new one."""
    try:
        into.mkdir(parents=True, exist_ok=True)
        inside(into, SETTINGS)
        if not any(into.iterdir()):
            write_bytes_atomically(into / SETTINGS, json.dumps(settings, indent=1).encode(), private=False)
            return {}
    except OSError as error:
        raise UserError(
            f"the folder cannot be written ({error.strerror})", file=into, remedy="Check its name and permissions."
        ) from error
    if not (into / SETTINGS).is_file():
        raise UserError("the folder is not empty", file=into, remedy="Choose a new folder, so nothing is overwritten.")
    if read_json(into / SETTINGS) != settings:
        raise UserError(
            "the folder holds what another model, other prompts or other options made", file=into,
            remedy="Choose a new folder.",
        )  # fmt: skip
    return _read_table(into / TABLE)


def _read_table(path: Path) -> dict[str, list[PredictedMask]]:
    if not path.is_file():
        return {}
    rows: dict[str, list[PredictedMask]] = {}
    try:
        for row in csv.DictReader(io.StringIO(read_bytes(path).decode())):
            read = PredictedMask(
                row["case"], row["prompt"], row["file"], int(row["label"]), int(row["voxels"]), float(row["ml"]),
                row["expected_dice"], row["doubts"],
            )  # fmt: skip
            rows.setdefault(read.case, []).append(read)
    except (KeyError, ValueError, TypeError, csv.Error) as error:
        raise UserError("its table was changed", file=path, remedy="Choose a new folder.") from error
    return rows


def _write_table(into: Path, rows: Sequence[PredictedMask]) -> None:
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerow([field.name for field in fields(PredictedMask)])
    for row in rows:
        values = asdict(row).values()
        writer.writerow([_no_formula(value) if isinstance(value, str) else value for value in values])
    write_bytes_atomically(into / TABLE, stream.getvalue().encode(), private=False)


def _no_formula(text: str) -> str:
    """Text that a spreadsheet takes as text."""
    return f"'{printable(text)}" if text.startswith(("=", "+", "-", "@")) else printable(text)
